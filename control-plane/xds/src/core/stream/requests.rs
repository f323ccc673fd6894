//! How requests are read. Both protocols: a request is an acknowledgement only if it carries the nonce that is in
//! flight; what it says about subscriptions counts in any case, because requests arrive in order.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::{
        Event,
        cache::{Cache, bounds, host_range, table_version},
    },
    Stream,
    subscription::{Held, Mark},
};
use crate::resource::{Kind, Name, Resource, Version, table_of};

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

impl Stream {
    pub(in crate::core) fn delta(&mut self, request: DeltaRequest, cache: &mut Cache, events: &mut Vec<Event>) {
        let kind = request.kind;
        self.answer(kind, &request.nonce, request.error.as_deref(), cache, events);
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
                name => self.subscribe(kind, name, first, cache),
            }
        }
        if wildcard {
            self.subscribe_all(kind, cache);
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
        let sub = &mut self.subs[kind as usize];
        let first = !sub.started;
        sub.started = true;
        let all = request.names.is_empty() && kind.is_whole() && (first || sub.wildcard);
        let explicit = request.names.iter().any(|name| name == "*");
        if all || explicit {
            if !sub.wildcard {
                self.subscribe_all(kind, cache);
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
            self.subscribe(kind, name, true, cache);
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
        let inline = kind == Kind::Route && !self.host_discovery;
        for (name, version) in initial {
            let version = Version::parse(version);
            if inline {
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
            if let Some(known) = &known {
                self.expect_children(kind, known, cache);
            }
            self.subs[kind as usize].held.insert(name.as_str().into(), Held { version, resource: known });
        }
    }

    fn expect_children(&mut self, kind: Kind, known: &Resource, cache: &Cache) {
        let hosts = (kind == Kind::Route && self.host_discovery).then(|| (Kind::VirtualHost, known.name.clone()));
        let children = known.requires.iter().filter(|(child, _)| *child != Kind::Cluster);
        for (child, name) in children.cloned().chain(hosts) {
            let exists = child == Kind::VirtualHost || cache.get(child, &name).is_some();
            if exists && !self.wants(child, &name) {
                self.subs[child as usize].expected.insert(name, 0);
            }
        }
    }

    fn subscribe(&mut self, kind: Kind, name: &str, first: bool, cache: &Cache) {
        let revision = cache.revision();
        let hosts = matches!(kind, Kind::Route | Kind::VirtualHost);
        let sub = &mut self.subs[kind as usize];
        let name: Name = name.into();
        sub.names.insert(name.clone());
        let expected = sub.expected.remove(&name);
        if cache.get(kind, &name).is_some() {
            match expected {
                Some(at) if first => sub.mark_at(&name, at, at),
                Some(at) => sub.force(&name, at, at),
                None if first => sub.mark_at(&name, 0, revision),
                None => sub.force(&name, 0, revision),
            }
        } else if kind != Kind::VirtualHost || table_of(&name).is_some() {
            sub.gone.insert(name.clone(), 0);
        }
        if !hosts || (kind == Kind::Route && self.host_discovery) {
            return;
        }
        let sub = &mut self.subs[kind as usize];
        let held: Vec<Name> =
            sub.held.range::<str, _>(bounds(&host_range(&name))).map(|(name, _)| name.clone()).collect();
        let missing = held.into_iter().filter(|host| cache.get(kind, host).is_none());
        sub.gone.extend(missing.map(|host| (host, revision.max(1))));
        for (host, _) in cache.hosts(&name) {
            sub.mark_at(host, expected.unwrap_or(0), revision);
        }
    }

    fn subscribe_all(&mut self, kind: Kind, cache: &Cache) {
        let revision = cache.revision();
        let sub = &mut self.subs[kind as usize];
        sub.wildcard = true;
        let held: Vec<Name> = sub.held.keys().filter(|name| cache.get(kind, name).is_none()).cloned().collect();
        sub.gone.extend(held.into_iter().map(|name| (name, revision.max(1))));
        for name in cache.names(kind) {
            if !sub.dirty.contains_key(name) {
                sub.dirty.insert(name.clone(), Mark { first: 0, last: revision, force: false });
            }
        }
    }

    fn unsubscribe(&mut self, kind: Kind, name: &str) {
        let sub = &mut self.subs[kind as usize];
        sub.names.remove(name);
        sub.expected.remove(name);
        sub.owed.remove(name);
        self.forget_unwanted(kind, name);
        if matches!(kind, Kind::Route | Kind::VirtualHost) && table_of(name).is_none() {
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
            sub.refused.remove(name);
        }
    }
}
