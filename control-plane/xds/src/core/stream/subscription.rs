//! The book-keeping of one resource type on one stream.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::Arc,
};

use super::super::cache::Cache;
use crate::resource::{Kind, Name, Resource, Version, table_of};

#[derive(Debug, Default)]
pub(super) struct Subscription {
    /// The client has asked for this type.
    pub(super) started: bool,
    /// It accepted an answer, be it an empty one: a gateway waits for that when it starts, and one that refused all it
    /// was offered after a reconnect must still hear what is gone.
    pub(super) greeted: bool,
    pub(super) wildcard: bool,
    pub(super) names: BTreeSet<Name>,
    pub(super) held: BTreeMap<Name, Held>,
    /// Versions this client refused: the newest, and the last good one when it refused that as well.
    pub(super) refused: BTreeMap<Name, Vec<Version>>,
    /// Names whose content must be compared with what the client holds.
    pub(super) dirty: BTreeMap<Name, Mark>,
    /// Names the client holds that no longer exist; at 0: it asked for what does not exist.
    pub(super) gone: BTreeMap<Name, Gone>,
    /// Names the client holds that no longer exist and are not removed, see [`Subscription::leave`].
    pub(super) left: BTreeSet<Name>,
    /// Names the client will ask for because of something it was sent, with the revision of that.
    pub(super) expected: BTreeMap<Name, u64>,
    /// Names the client waits for, even if it had this version before: the endpoints of a cluster it was just sent.
    pub(super) owed: BTreeSet<Name>,
    pub(super) flight: Option<Flight>,
    /// After an ambiguous refusal: offer only these together.
    pub(super) parts: VecDeque<BTreeSet<Name>>,
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) version: Option<Version>,
    /// Not known for what a client kept from before it connected.
    pub(super) resource: Option<Arc<Resource>>,
}

/// The oldest and the newest change of a name that was not sent yet: the oldest decides what is settled, the newest
/// what has to be in force before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) first: u64,
    pub(super) last: u64,
    /// Send even when the client holds this version.
    pub(super) force: bool,
}

/// As in [`Mark`]: a removal waits for all that was published with it, and settles what was not told before it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gone {
    pub(super) first: u64,
    pub(super) last: u64,
}

#[derive(Debug)]
pub(super) struct Flight {
    pub(super) nonce: u64,
    pub(super) items: Vec<Item>,
    names: HashSet<Name>,
    /// The first revision among the additions, and among the removals.
    offered: u64,
    removed: u64,
}

#[derive(Debug)]
pub(super) struct Item {
    pub(super) name: Name,
    /// `None` is a removal.
    pub(super) offer: Option<Arc<Resource>>,
    pub(super) first: u64,
    pub(super) last: u64,
}

pub(super) enum Target {
    Offer(Arc<Resource>),
    /// Everything there is was refused: leave the client with what it has.
    Keep,
    Gone,
}

// === impl Flight ===

impl Flight {
    pub(super) fn new(nonce: u64, items: Vec<Item>) -> Self {
        let first = |offered: bool| {
            // What never existed is told for politeness.
            let items = items.iter().filter(|item| item.offer.is_some() == offered && (offered || item.last > 0));
            items.map(|item| item.first).min().unwrap_or(u64::MAX)
        };
        let (offered, removed) = (first(true), first(false));
        let names = items.iter().map(|item| item.name.clone()).collect();
        Flight { nonce, items, names, offered, removed }
    }
}

// === impl Subscription ===

impl Subscription {
    /// `visible`: requests see when it is gone, so a removal that was not delivered counts on.
    pub(super) fn mark(&mut self, name: &Name, exists: bool, visible: bool, revision: u64) {
        if exists {
            let gone = self.gone.remove(name).filter(|gone| visible && gone.last > 0);
            let first = gone.map_or(revision, |gone| gone.first);
            self.left.remove(name);
            self.mark_at(name, first, revision);
        } else {
            let first = self.dirty.remove(name).map_or(revision, |mark| mark.first);
            self.refused.remove(name);
            if self.is_in_flight(name) || self.held.contains_key(name) {
                self.gone.insert(name.clone(), Gone { first, last: revision.max(1) });
            }
        }
    }

    /// Routes of a scope that is gone: the client gives them up when it hears of that, and needs their clusters until
    /// then.
    pub(super) fn leave(&mut self, name: &Name) {
        self.dirty.remove(name);
        self.refused.remove(name);
        if self.is_in_flight(name) || self.held.contains_key(name) {
            self.left.insert(name.clone());
        }
    }

    pub(super) fn mark_at(&mut self, name: &Name, first: u64, last: u64) {
        let mark = self.dirty.entry(name.clone()).or_insert(Mark { first, last, force: false });
        mark.first = mark.first.min(first);
        mark.last = mark.last.max(last);
    }

    pub(super) fn force(&mut self, name: &Name, first: u64, last: u64) {
        self.mark_at(name, first, last);
        self.dirty.get_mut(name).expect("just marked").force = true;
    }

    /// The first revision of an addition the client has not acknowledged.
    pub(super) fn unacknowledged(&self) -> u64 {
        let dirty = self.dirty.values().map(|mark| mark.first);
        let expected = self.expected.values().copied();
        let flight = self.flight.iter().map(|flight| flight.offered);
        dirty.chain(expected).chain(flight).min().unwrap_or(u64::MAX)
    }

    /// The first revision of a removal in flight.
    pub(super) fn leaving(&self) -> u64 {
        self.flight.as_ref().map_or(u64::MAX, |flight| flight.removed)
    }

    /// The first revision of a removal the client has not acknowledged. Names that never existed do not count.
    pub(super) fn lingering(&self) -> u64 {
        let gone = self.gone.values().filter(|gone| gone.last > 0).map(|gone| gone.first);
        gone.chain([self.leaving()]).min().unwrap_or(u64::MAX)
    }

    /// What the client may have in another version than the newest, or has and should not.
    pub(super) fn unsettled_names(&self) -> impl Iterator<Item = &Name> {
        let flight = self.flight.iter().flat_map(|flight| &flight.names);
        flight.chain(self.dirty.keys()).chain(self.gone.keys()).chain(&self.left).chain(self.refused.keys())
    }

    fn is_in_flight(&self, name: &str) -> bool {
        self.flight.as_ref().is_some_and(|flight| flight.names.contains(name))
    }

    /// The client has some version, or is not about to get one.
    pub(super) fn is_in_place(&self, name: &str) -> bool {
        let coming = || self.dirty.contains_key(name) || self.expected.contains_key(name) || self.is_in_flight(name);
        self.held.contains_key(name) || !coming()
    }

    pub(super) fn holds(&self, name: &str, version: Version) -> bool {
        self.held.get(name).is_some_and(|held| held.version == Some(version))
    }

    pub(super) fn hold(&mut self, name: Name, resource: Arc<Resource>) {
        self.held.insert(name, Held { version: Some(resource.version), resource: Some(resource) });
    }

    pub(super) fn held_resources(&self) -> BTreeMap<Name, Arc<Resource>> {
        self.held.iter().filter_map(|(name, held)| Some((name.clone(), held.resource.clone()?))).collect()
    }

    pub(super) fn target(&self, kind: Kind, name: &str, cache: &Cache) -> Target {
        let Some(entry) = cache.get(kind, name) else { return Target::Gone };
        let refused = self.refused.get(name).map_or(&[][..], Vec::as_slice);
        // What is offered instead of the newest may refer to clusters that are not published any more.
        let complete = |resource: &Resource| {
            let mut clusters = resource.requires.iter().filter(|(kind, _)| *kind == Kind::Cluster);
            clusters.all(|(kind, name)| cache.get(*kind, name).is_some())
        };
        let offers = |candidate: &&Arc<Resource>| {
            let newest = candidate.version == entry.current().version;
            !refused.contains(&candidate.version) && (newest || complete(candidate))
        };
        match entry.candidates().find(offers) {
            Some(resource) => Target::Offer(resource.clone()),
            None => Target::Keep,
        }
    }

    pub(super) fn refuse(&mut self, name: &Name, version: Version) {
        let versions = self.refused.entry(name.clone()).or_default();
        versions.truncate(1);
        versions.insert(0, version);
    }

    /// Offers the items of an ambiguous refusal again in two parts; a table apart from its hosts.
    pub(super) fn split(&mut self, items: &[Item]) {
        let names: Vec<&Name> = items.iter().filter(|item| item.offer.is_some()).map(|item| &item.name).collect();
        let (tables, hosts): (Vec<&Name>, Vec<&Name>) = names.iter().partition(|name| table_of(name).is_none());
        let (left, right) = if tables.is_empty() || hosts.is_empty() {
            let (left, right) = names.split_at(names.len() / 2);
            (left.to_vec(), right.to_vec())
        } else {
            (tables, hosts)
        };
        for part in [right, left] {
            if !part.is_empty() {
                self.parts.push_front(part.into_iter().cloned().collect());
            }
        }
    }
}

/// Whether a refusal names a resource: the name as a whole word. Hosts are known to the client without their table.
pub(super) fn mentions(message: &str, name: &str) -> bool {
    let name = table_of(name).map_or(name, |table| &name[table.len() + 1..]);
    let word = |c: char| c.is_ascii_alphanumeric() || "-_/".contains(c);
    message.match_indices(name).any(|(at, _)| {
        let before = message[..at].chars().next_back();
        let mut after = message[at + name.len()..].chars();
        let ends = match after.next() {
            Some('.') => !after.next().is_some_and(word),
            next => !next.is_some_and(word),
        };
        ends && !before.is_some_and(|c| word(c) || c == '.')
    })
}

/// Whether a refusal is about the client's machine and not about the resource: others may have it.
pub(super) fn is_local(message: &str) -> bool {
    message.contains("cannot bind") || message.contains("failed to bind")
}

/// Envoy dumps the refused message before it says what is wrong with it.
pub(super) fn shorten(message: &str) -> String {
    const LIMIT: usize = 1000;
    let mut text = message.rsplit_once("\n: ").map_or(message, |(_, reason)| reason);
    if text.len() > LIMIT {
        let mut from = text.len() - LIMIT;
        while !text.is_char_boundary(from) {
            from += 1;
        }
        text = &text[from..];
    }
    text.to_owned()
}
