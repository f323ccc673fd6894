//! Endpoints of many pods, kept as the text that came: of the next text only what is different is read.
//!
//! Text is compared as fast as memory is, a hundred times as fast as JSON is read. What differs is widened to whole
//! addresses (see `difference`); everything else is byte for byte what was read before, in the same list of the same
//! subset, so that it says the same. Only the form is understood in which the API writes objects: no spaces, the fields
//! of a subset in their order, and in an address, which begins with its IP, nothing but the fields that there are today.
//! Whatever else comes is not this module's, and is read as any other object.

mod difference;
#[cfg(test)]
mod tests;

use std::{
    ops::Range,
    sync::{Arc, Weak},
};

use bytes::Bytes;

use self::difference::{Element, Elements, differences};
use super::{
    Change, Group, Listed, added_and_removed,
    read::{self, Port, Protocol},
};

const READY: &[u8] = br#""addresses":["#;
const NOT_READY: &[u8] = br#""notReadyAddresses":["#;
const PORTS: &[u8] = br#""ports":"#;

/// The subsets of one object, and what is different from a text before.
#[derive(Debug)]
pub(crate) struct Text {
    bytes: Bytes,
    subsets: Vec<Subset>,
    edit: Option<Edit>,
}

#[derive(Debug)]
struct Subset {
    /// Where its addresses are, without brackets; nowhere if there are none.
    ready: Range<usize>,
    not_ready: Range<usize>,
    http: Option<u16>,
    http2: Option<u16>,
}

#[derive(Debug)]
struct Edit {
    from: Weak<Text>,
    /// In which subset a pod is not listed any more, or listed now.
    gone: Vec<(usize, Listed)>,
    come: Vec<(usize, Listed)>,
}

/// Goes through a text.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// While it is known.
    edit: Option<Edit>,
}

// === impl Text ===

impl Text {
    /// Reads the list of subsets that `bytes` are, as far as it is not in `before`; nothing if it is not in the form that
    /// is expected.
    pub(super) fn read(bytes: Bytes, before: Option<&Arc<Self>>) -> Option<Self> {
        let edit = before.map(|before| Edit { from: Arc::downgrade(before), gone: Vec::new(), come: Vec::new() });
        let mut reader = Reader { bytes: &bytes, at: 0, edit };
        let mut subsets = Vec::new();
        reader.pass(b"[")?;
        loop {
            let number = subsets.len();
            let known = before.and_then(|before| Some((before, before.subsets.get(number)?)));
            let listed = |range: fn(&Subset) -> &Range<usize>| {
                known.map(|(before, subset)| &before.bytes[range(subset).clone()]).unwrap_or_default()
            };
            reader.pass(b"{")?;
            let ready = reader.list(READY, listed(|subset| &subset.ready), number, true)?;
            let not_ready = reader.list(NOT_READY, listed(|subset| &subset.not_ready), number, false)?;
            let (http, http2) = reader.ports()?;
            reader.pass(b"}")?;
            if known.is_none_or(|(_, known)| (known.http, known.http2) != (http, http2)) {
                reader.edit = None;
            }
            subsets.push(Subset { ready, not_ready, http, http2 });
            if reader.pass(b",").is_none() {
                break;
            }
        }
        reader.pass(b"]")?;
        let is_all = reader.at == reader.bytes.len();
        let edit = reader.edit.filter(|_| before.is_some_and(|before| before.subsets.len() == subsets.len()));
        is_all.then_some(Self { bytes, subsets, edit })
    }

    /// Everything that it lists.
    pub(super) fn groups(&self) -> Vec<Group> {
        let group = |subset: &Subset| {
            let listed = |range: &Range<usize>, ready| {
                let elements = Elements::of(&self.bytes[range.clone()], ready).all().expect("it was read before");
                elements.into_iter().map(|element| element.listed)
            };
            let pods = listed(&subset.ready, true).chain(listed(&subset.not_ready, false)).collect();
            Group { http: subset.http, http2: subset.http2, pods }
        };
        self.subsets.iter().map(group).collect()
    }

    /// What is different from `before`, if that is known without reading both.
    pub(super) fn changes(&self, before: &Arc<Self>, port: &str) -> Option<Vec<Change>> {
        let edit = self.edit.as_ref().filter(|edit| std::ptr::eq(edit.from.as_ptr(), &raw const **before))?;
        let endpoints = |entries: &[(usize, Listed)]| {
            let endpoint = |(subset, listed): &(usize, Listed)| {
                let subset = &self.subsets[*subset];
                listed.endpoint(if port == "http2" { subset.http2 } else { subset.http })
            };
            entries.iter().filter_map(endpoint).collect()
        };
        Some(added_and_removed(endpoints(&edit.gone), endpoints(&edit.come)))
    }

    /// Whether this is somewhere in it.
    pub(super) fn has(&self, text: &str) -> bool {
        !self.bytes.is_empty() && self.bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

// === impl Reader ===

impl Reader<'_> {
    /// Goes behind `text`, if that is what comes next.
    fn pass(&mut self, text: &[u8]) -> Option<()> {
        let is_next = self.bytes[self.at..].starts_with(text);
        self.at += if is_next { text.len() } else { 0 };
        is_next.then_some(())
    }

    /// Goes behind a list of addresses, if one with this name comes next, and tells where it is.
    fn list(&mut self, name: &[u8], before: &[u8], subset: usize, ready: bool) -> Option<Range<usize>> {
        let is_there = self.pass(name).is_some();
        let (start, rest) = (self.at, &self.bytes[self.at..]);
        let rest = if is_there { rest } else { &[] };
        let found = self.edit.as_mut().and_then(|edit| Some((differences(before, rest, ready)?, edit)));
        match found {
            Some((found, edit)) => {
                self.at += found.len;
                let here = |elements: Vec<Element>| elements.into_iter().map(move |element| (subset, element.listed));
                edit.gone.extend(here(found.gone));
                edit.come.extend(here(found.come));
            }
            None => {
                self.edit = None;
                let mut all = Elements::of(rest, ready);
                while all.next()?.is_some() {}
                self.at += all.at();
            }
        }
        let range = start..self.at;
        if is_there {
            self.pass(b"],")?;
        }
        Some(range)
    }

    /// Goes behind the ports.
    fn ports(&mut self) -> Option<(Option<u16>, Option<u16>)> {
        self.pass(PORTS)?;
        let mut read = serde_json::Deserializer::from_slice(&self.bytes[self.at..]).into_iter::<Vec<Port>>();
        let ports = read.next()?.ok()?;
        self.at += read.byte_offset();
        Some((read::port(&ports, Protocol::Http), read::port(&ports, Protocol::Http2)))
    }
}
