//! How requests are read. Both protocols: a request is an acknowledgement only if it carries the nonce that is in
//! flight; what it says about subscriptions counts in any case, because requests arrive in order.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::{
        Event,
        cache::{Cache, bounds, host_range, table_version},
    },
    Stream, exists,
    subscription::{Gone, Held, Mark},
};
use crate::resource::{ALL, Kind, Name, Resource, Version, table_of};

#[derive(Debug, Clone)]
pub struct DeltaRequest {
    pub kind: Kind,
    pub subscribe: Vec<String>,
    pub unsubscribe: Vec<String>,
    /// What the client kept from an earlier stream: name and version.
    pub initial: BTreeMap<String, String>,
    pub nonce: String,
    pub error: Option<String>,
}

#[derive(Debug, Clone)]
pub struct WorldRequest {
    pub kind: Kind,
    pub names: Vec<String>,
    pub nonce: String,
    pub error: Option<String>,
}

// === impl DeltaRequest ===

impl DeltaRequest {
    /// The part about tables and the part about routes of scopes.
    fn split(self) -> [DeltaRequest; 2] {
        let of_scope = |name: &String| table_of(name).is_some();
        let (scoped_subscribe, subscribe) = self.subscribe.into_iter().partition(of_scope);
        let (scoped_unsubscribe, unsubscribe) = self.unsubscribe.into_iter().partition(of_scope);
        let (scoped_initial, initial) = self.initial.into_iter().partition(|(name, _)| of_scope(name));
        let (nonce, error) = (self.nonce, self.error);
        let scoped = DeltaRequest {
            kind: Kind::ScopedRoute,
            subscribe: scoped_subscribe,
            unsubscribe: scoped_unsubscribe,
            initial: scoped_initial,
            nonce: nonce.clone(),
            error: error.clone(),
        };
        [DeltaRequest { kind: Kind::Route, subscribe, unsubscribe, initial, nonce, error }, scoped]
    }

    fn names_anything(&self) -> bool {
        !self.subscribe.is_empty() || !self.unsubscribe.is_empty() || !self.initial.is_empty()
    }
}

// === impl Stream ===

impl Stream {
    pub(in crate::core) fn delta(&mut self, request: DeltaRequest, cache: &mut Cache, events: &mut Vec<Event>) {
        if request.kind != Kind::Route {
            return self.delta_of(request, cache, events);
        }
        // Tables and routes of scopes are one type and two subscriptions. The nonce is that of one of them.
        for part in request.split() {
            if part.names_anything() {
                self.delta_of(part, cache, events);
            } else {
                self.answer(part.kind, &part.nonce, part.error.as_deref(), cache, events);
            }
        }
    }

    fn delta_of(&mut self, request: DeltaRequest, cache: &mut Cache, events: &mut Vec<Event>) {
        let kind = request.kind;
        self.answer(kind, &request.nonce, request.error.as_deref(), cache, events);
        let at = self.asked_at(cache);
        let sub = &mut self.subs[kind as usize];
        let first = !sub.started;
        sub.started = true;
        if first {
            self.remember(kind, &request.initial, cache);
        }
        let mut wildcard = first && kind.is_whole() && request.subscribe.is_empty();
        for name in &request.subscribe {
            match name.as_str() {
                "*" => wildcard = true,
                name => self.subscribe(kind, name, first, at, cache),
            }
        }
        if wildcard {
            self.subscribe_all(kind, at, cache);
        }
        for name in &request.unsubscribe {
            match name.as_str() {
                "*" => self.unsubscribe_all(kind),
                name => self.unsubscribe(kind, name),
            }
        }
    }

    pub(in crate::core) fn world(&mut self, request: WorldRequest, cache: &mut Cache, events: &mut Vec<Event>) {
        let kind = request.kind;
        self.answer(kind, &request.nonce, request.error.as_deref(), cache, events);
        let at = self.asked_at(cache);
        let sub = &mut self.subs[kind as usize];
        let first = !sub.started;
        sub.started = true;
        let all = request.names.is_empty() && kind.is_whole() && (first || sub.wildcard);
        let explicit = request.names.iter().any(|name| name == "*");
        if all || explicit {
            if !sub.wildcard {
                self.subscribe_all(kind, at, cache);
            }
        } else if sub.wildcard {
            self.unsubscribe_all(kind);
        }
        let names: BTreeSet<&str> = request.names.iter().map(String::as_str).filter(|name| *name != "*").collect();
        let sub = &self.subs[kind as usize];
        let dropped: Vec<Name> = sub.names.iter().filter(|name| !names.contains(&***name)).cloned().collect();
        let added: Vec<&str> = names.into_iter().filter(|name| !sub.names.contains(*name)).collect();
        for name in dropped {
            self.unsubscribe(kind, &name);
        }
        for name in added {
            self.subscribe(kind, name, true, at, cache);
        }
    }

    fn answer(&mut self, kind: Kind, nonce: &str, error: Option<&str>, cache: &mut Cache, events: &mut Vec<Event>) {
        let sub = &mut self.subs[kind as usize];
        let Some(flight) = sub.flight.take_if(|flight| nonce.parse() == Ok(flight.nonce)) else { return };
        match error {
            None => self.acknowledge(kind, flight, cache, events),
            Some(message) => self.refuse(kind, flight, message, cache, events),
        }
    }

    /// What a reconnecting client already has is not sent again. It will ask for what that refers to: requests for the
    /// different types come one by one, and until the last one nothing can be said to be in force.
    fn remember(&mut self, kind: Kind, initial: &BTreeMap<String, String>, cache: &Cache) {
        for (name, version) in initial {
            let version = Version::parse(version);
            if kind == Kind::Route {
                let Some(base) = cache.get(kind, name).and_then(|entry| entry.candidates().next()) else { continue };
                let hosts: Vec<_> =
                    cache.hosts(name).filter_map(|(_, entry)| entry.candidates().next()).cloned().collect();
                if version == Some(table_version(base, hosts.iter())) {
                    let sub = &mut self.subs[kind as usize];
                    sub.hold(base.name.clone(), base.clone());
                    for host in hosts {
                        sub.hold(host.name.clone(), host);
                    }
                }
                continue;
            }
            let known = cache.get(kind, name).and_then(|entry| {
                let same = entry.candidates().find(|candidate| Some(candidate.version) == version);
                same.cloned()
            });
            let known = known.map(|known| self.form(known));
            if let Some(known) = &known {
                self.expect_children(known, 0, cache);
            }
            let name = known.as_ref().map_or_else(|| name.as_str().into(), |known| known.name.clone());
            self.subs[kind as usize].held.insert(name, Held { version, resource: known });
        }
    }

    /// What the client has refers to these: it will ask for those that it has not asked for, and nothing since `first`
    /// is in force before.
    pub(super) fn expect_children(&mut self, known: &Resource, first: u64, cache: &Cache) {
        for (child, name) in known.requires.iter().filter(|(child, _)| *child != Kind::Cluster) {
            if exists(*child, name, cache) && !self.wants(*child, name) {
                let since = self.subs[*child as usize].expected.entry(name.clone()).or_insert(first);
                *since = first.min(*since);
            }
        }
    }

    /// `at`: where it counts, unless it was expected.
    fn subscribe(&mut self, kind: Kind, name: &str, first: bool, at: u64, cache: &Cache) {
        let revision = cache.revision();
        let sub = &mut self.subs[kind as usize];
        let name: Name = cache.get(kind, name).map_or_else(|| name.into(), |entry| entry.current().name.clone());
        sub.names.insert(name.clone());
        let expected = sub.expected.remove(&name);
        if cache.get(kind, &name).is_some() {
            match expected {
                Some(at) if first => sub.mark_at(&name, at, revision),
                Some(at) => sub.force(&name, at, revision),
                None if first => sub.mark_at(&name, at, revision),
                None => sub.force(&name, at, revision),
            }
        } else if kind == Kind::ScopedRoute {
            sub.leave(&name);
            return;
        } else {
            sub.gone.insert(name.clone(), Gone { first: 0, last: 0 });
        }
        if kind != Kind::Route {
            return;
        }
        let sub = &mut self.subs[kind as usize];
        let held: Vec<Name> =
            sub.held.range::<str, _>(bounds(&host_range(&name))).map(|(name, _)| name.clone()).collect();
        let missing = held.into_iter().filter(|host| cache.get(kind, host).is_none());
        let gone = Gone { first: expected.unwrap_or(at), last: revision.max(1) };
        sub.gone.extend(missing.map(|host| (host, gone)));
        for (host, _) in cache.hosts(&name) {
            sub.mark_at(host, expected.unwrap_or(at), revision);
        }
    }

    fn subscribe_all(&mut self, kind: Kind, at: u64, cache: &Cache) {
        let revision = cache.revision();
        let sub = &mut self.subs[kind as usize];
        sub.wildcard = true;
        let first = sub.expected.remove(ALL).unwrap_or(at);
        let held: Vec<Name> = sub.held.keys().filter(|name| cache.get(kind, name).is_none()).cloned().collect();
        let gone = Gone { first, last: revision.max(1) };
        sub.gone.extend(held.into_iter().map(|name| (name, gone)));
        for name in cache.names(kind) {
            if !sub.dirty.contains_key(name) {
                sub.dirty.insert(name.clone(), Mark { first, last: revision, force: false });
            }
        }
    }

    fn unsubscribe(&mut self, kind: Kind, name: &str) {
        let sub = &mut self.subs[kind as usize];
        sub.names.remove(name);
        sub.expected.remove(name);
        sub.owed.remove(name);
        self.forget_unwanted(kind, name);
        if kind == Kind::Route && table_of(name).is_none() {
            let sub = &self.subs[kind as usize];
            let range = host_range(name);
            let mut hosts: BTreeSet<Name> =
                sub.held.range::<str, _>(bounds(&range)).map(|(name, _)| name.clone()).collect();
            hosts.extend(sub.dirty.range::<str, _>(bounds(&range)).map(|(name, _)| name.clone()));
            hosts.extend(sub.gone.range::<str, _>(bounds(&range)).map(|(name, _)| name.clone()));
            for host in hosts {
                self.forget_unwanted(kind, &host);
            }
        }
    }

    fn unsubscribe_all(&mut self, kind: Kind) {
        let sub = &mut self.subs[kind as usize];
        sub.wildcard = false;
        let names: BTreeSet<Name> = sub.held.keys().chain(sub.dirty.keys()).chain(sub.gone.keys()).cloned().collect();
        for name in names {
            self.forget_unwanted(kind, &name);
        }
    }

    fn forget_unwanted(&mut self, kind: Kind, name: &str) {
        if !self.wants(kind, name) {
            let sub = &mut self.subs[kind as usize];
            sub.held.remove(name);
            sub.dirty.remove(name);
            sub.gone.remove(name);
            sub.left.remove(name);
            sub.refused.remove(name);
        }
    }
}
