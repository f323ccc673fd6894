//! Where two texts of a list of addresses differ, in whole addresses.
//!
//! Both are compared until they differ, the address in which that is is found by going back to where it begins, and from
//! there addresses of both are read until one of the one text is one of the other: from these on both go on alike, until
//! they differ again. Where nothing is found soon, the lists are too different for this.

use std::ops::Range;

use super::super::{
    Listed,
    read::{self, Address},
};

/// How an address begins.
const START: &[u8] = br#"{"ip":""#;
/// Where one ends and the next begins, and nothing else: a quotation mark in a text has a backslash before it, behind one
/// that ends a text comes no letter, and no field of an address is a list.
const BORDER: &[u8] = br#"},{"ip":""#;
/// Addresses that are read in search of a common one.
const MOST: usize = 32;

/// What there is in one list and not in the other.
#[derive(Default)]
pub(super) struct Differences {
    /// The bytes of the new list.
    pub(super) len: usize,
    pub(super) gone: Vec<Element>,
    pub(super) come: Vec<Element>,
}

/// One address and where it is.
pub(super) struct Element {
    pub(super) listed: Listed,
    range: Range<usize>,
}

/// Reads one address after the other, to the end of the bytes or of the list.
pub(super) struct Elements<'a> {
    bytes: &'a [u8],
    at: usize,
    ready: bool,
    is_first: bool,
}

/// What differs between `old`, a list, and the one that `new` begins with; an address that was moved may be in both.
/// Nothing if that would be most of it, or if `new` is no such list.
pub(super) fn differences(old: &[u8], new: &[u8], ready: bool) -> Option<Differences> {
    let mut found = Differences::default();
    // Both are where an address begins.
    let (mut before, mut now) = (0, 0);
    if !old.is_empty() && !new.is_empty() {
        while let Some((old_at, new_at)) = step(old, new, before, now, &mut found, ready)? {
            (before, now) = (old_at, new_at);
        }
        return Some(found);
    }
    found.gone = Elements::of(old, ready).all()?;
    let mut all = Elements::of(new, ready);
    while let Some(element) = all.next()? {
        found.come.push(element);
    }
    found.len = all.at();
    Some(found)
}

/// Goes on to where both are alike again; to nowhere if that is the end.
fn step(
    old: &[u8],
    new: &[u8],
    mut before: usize,
    mut now: usize,
    found: &mut Differences,
    ready: bool,
) -> Option<Option<(usize, usize)>> {
    let same = common(&old[before..], &new[now..]);
    let border = old[before..before + same].windows(BORDER.len()).rposition(|window| window == BORDER);
    let start = border.map_or(0, |border| border + b"},".len());
    (before, now) = (before + start, now + start);
    let mut olds = Elements { at: before, ..Elements::of(old, ready) };
    let mut news = Elements { at: now, ..Elements::of(new, ready) };
    let element = olds.next()??.range;
    if element.len() <= same - start {
        // They differ behind this one.
        (news.at, news.is_first) = (now + element.len(), false);
    } else {
        (olds.at, olds.is_first) = (before, true);
    }
    let (mut one, mut other) = (Vec::new(), Vec::new());
    loop {
        let (last_old, last_new) = (olds.next()?, news.next()?);
        let is_end = last_old.is_none() && last_new.is_none();
        if one.len() >= MOST && last_old.is_some() && last_new.is_some() {
            return None;
        }
        one.extend(last_old);
        other.extend(last_new);
        let is_same = |a: &Element, b: &Element| old[a.range.clone()] == new[b.range.clone()];
        let by_old = || Some((one.len() - 1, one.last().and_then(|a| other.iter().position(|b| is_same(a, b)))?));
        let by_new = || Some((other.last().and_then(|b| one.iter().position(|a| is_same(a, b)))?, other.len() - 1));
        let met = if one.is_empty() { None } else { by_old() }.or_else(by_new);
        let next = met.map(|(a, b)| (one[a].range.start, other[b].range.start));
        if let Some((a, b)) = met {
            one.truncate(a);
            other.truncate(b);
        }
        if met.is_some() || is_end {
            found.gone.append(&mut one);
            found.come.append(&mut other);
            found.len = news.at;
            return Some(next);
        }
    }
}

/// How many bytes both begin with.
fn common(one: &[u8], other: &[u8]) -> usize {
    // Large pieces are compared fastest.
    let same = same_pieces::<2048>(one, other);
    let same = same + same_pieces::<64>(&one[same..], &other[same..]);
    same + same_pieces::<1>(&one[same..], &other[same..])
}

/// The same, but only as many bytes as whole pieces have.
fn same_pieces<const SIZE: usize>(one: &[u8], other: &[u8]) -> usize {
    let (ones, others) = (one.as_chunks::<SIZE>().0, other.as_chunks::<SIZE>().0);
    ones.iter().zip(others).take_while(|(one, other)| one == other).count() * SIZE
}

// === impl Elements ===

impl<'a> Elements<'a> {
    pub(super) fn of(bytes: &'a [u8], ready: bool) -> Self {
        Self { bytes, at: 0, ready, is_first: true }
    }

    /// The next address, or that there is none; nothing if what comes is something else, which an iterator could not tell
    /// from the end.
    pub(super) fn next(&mut self) -> Option<Option<Element>> {
        let rest = &self.bytes[self.at..];
        let rest = match (self.is_first, rest) {
            (_, [] | [b']', ..]) => return Some(None),
            (true, rest) => rest,
            (false, [b',', rest @ ..]) => rest,
            (false, _) => return None,
        };
        if !rest.starts_with(START) {
            return None;
        }
        let mut read = serde_json::Deserializer::from_slice(rest).into_iter::<Address>();
        let listed = read::listed(read.next()?.ok()?, self.ready);
        let start = self.bytes.len() - rest.len();
        self.at = start + read.byte_offset();
        self.is_first = false;
        Some(Some(Element { listed, range: start..self.at }))
    }

    pub(super) fn all(mut self) -> Option<Vec<Element>> {
        let mut all = Vec::new();
        while let Some(element) = self.next()? {
            all.push(element);
        }
        Some(all)
    }

    /// How far it is.
    pub(super) fn at(&self) -> usize {
        self.at
    }
}
