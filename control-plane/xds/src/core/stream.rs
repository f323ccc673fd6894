//! One client's stream: what it subscribed to, what it holds, what it must still be told.
//!
//! Delta and state-of-the-world share all of it; they differ in how requests are read ([`requests`]) and in how a batch
//! is written out ([`Stream::render`]). Routes travel in one of two ways: by scope, where a change of a host is a small
//! resource; or in whole tables. The hosts of a table are items of its subscription all the same, which is what makes a
//! refused table attributable to one host.

mod requests;
mod subscription;

use std::{collections::BTreeSet, sync::Arc};

pub use self::requests::{DeltaRequest, WorldRequest};
use self::subscription::{Flight, Gone, Held, Item, Mark, Subscription, Target};
use super::{
    Event,
    cache::{Cache, bounds, host_range},
};
use crate::resource::{ALL, Kind, Name, Resource, Version, table_of};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Delta,
    /// State of the world.
    World,
}

#[derive(Debug, Clone)]
pub struct Response {
    pub kind: Kind,
    pub protocol: Protocol,
    pub nonce: u64,
    pub version: Version,
    pub resources: Vec<Arc<Resource>>,
    pub removed: Vec<Name>,
}

#[derive(Debug)]
pub(super) struct Stream {
    protocol: Protocol,
    /// Takes routes by scope.
    scoped: bool,
    pub(super) node: String,
    subs: [Subscription; 8],
    nonce: u64,
}

/// Removals: what refers to something goes before what it refers to. Routes of scopes are not removed: gateways give
/// them up with their last scope.
const REMOVAL_ORDER: [Kind; 6] =
    [Kind::Scope, Kind::Route, Kind::Listener, Kind::Secret, Kind::Cluster, Kind::Endpoints];

/// What one response may have, where the protocol allows several: nobody waits long behind the first configuration of a
/// gateway, and no buffer grows with the number of resources. Few in tests, so that all of it happens there.
const BATCH: usize = if cfg!(test) { 2 } else { 1000 };
const BATCH_BYTES: usize = 512 << 10;

/// What requests see: its removal counts.
const VISIBLE: [Kind; 3] = [Kind::Listener, Kind::Scope, Kind::Route];

// === impl Stream ===

impl Stream {
    pub(super) fn new(protocol: Protocol) -> Self {
        Stream { protocol, scoped: false, node: String::new(), subs: Default::default(), nonce: 0 }
    }

    /// State-of-the-world gateways always get tables: removing one scope would send all others again.
    pub(super) fn set_scoped(&mut self) {
        self.scoped = self.protocol == Protocol::Delta;
    }

    /// What this gateway gets of a resource.
    fn form(&self, resource: Arc<Resource>) -> Arc<Resource> {
        match &resource.scoped {
            Some(form) if self.scoped => form.clone(),
            _ => resource,
        }
    }

    fn wants(&self, kind: Kind, name: &str) -> bool {
        let sub = &self.subs[kind as usize];
        sub.wildcard || sub.names.contains(name) || table_of(name).is_some_and(|table| sub.names.contains(table))
    }

    /// A published resource changed.
    pub(super) fn touch(&mut self, kind: Kind, name: &Name, cache: &Cache) {
        let kind = home(kind);
        let exists = cache.get(kind, name).is_some();
        if !exists {
            self.subs[kind as usize].expected.remove(name);
        }
        if kind == Kind::ScopedRoute && !exists {
            self.subs[kind as usize].leave(name);
            return;
        }
        if self.wants(kind, name) {
            let change = self.untold_routes(kind, name);
            let sub = &mut self.subs[kind as usize];
            sub.mark(name, exists, VISIBLE.contains(&kind), cache.revision());
            if let Some(gone) = sub.gone.get_mut(name) {
                gone.first = gone.first.min(change);
            }
        }
    }

    /// Of a scope: the first change of its routes that the client was not told. It ends when the scope is gone.
    fn untold_routes(&self, kind: Kind, name: &str) -> u64 {
        let held = self.subs[Kind::Scope as usize].held.get(name).filter(|_| kind == Kind::Scope);
        let requires = held.and_then(|held| held.resource.as_ref()).into_iter().flat_map(|scope| scope.requires.iter());
        let routes = &self.subs[Kind::ScopedRoute as usize];
        requires.filter_map(|(_, name)| Some(routes.dirty.get(name)?.first)).min().unwrap_or(u64::MAX)
    }

    /// Only a client that has asked for both serves requests by what it is told. Who asks for one of them, to look at
    /// it, has no say in what is in force; and one that has not asked yet is like one that has not connected.
    pub(super) fn is_gateway(&self) -> bool {
        [Kind::Cluster, Kind::Listener].iter().all(|kind| self.subs[*kind as usize].started)
    }

    pub(super) fn has_work(&self) -> bool {
        self.subs.iter().any(|sub| sub.flight.is_none() && (!sub.dirty.is_empty() || !sub.gone.is_empty()))
    }

    /// The oldest response that the client has not answered.
    pub(super) fn unanswered(&self) -> Option<u64> {
        self.subs.iter().filter_map(|sub| Some(sub.flight.as_ref()?.nonce)).min()
    }

    pub(super) fn describe(&self) -> String {
        let mut out = format!("node {:?}, {:?}", self.node, self.protocol);
        for kind in Kind::ALL {
            let sub = &self.subs[kind as usize];
            let few = |names: &mut dyn Iterator<Item = &Name>| names.take(5).cloned().collect::<Vec<_>>();
            if sub.started {
                out += &format!(
                    "; {kind}: holds {}, in flight {}, changed {} {:?}, gone {} {:?}, expected {} {:?}, refused {} {:?}",
                    sub.held.len(),
                    sub.flight.as_ref().map_or(0, |flight| flight.items.len()),
                    sub.dirty.len(),
                    few(&mut sub.dirty.keys()),
                    sub.gone.len(),
                    few(&mut sub.gone.keys()),
                    sub.expected.len(),
                    few(&mut sub.expected.keys()),
                    sub.refused.len(),
                    few(&mut sub.refused.keys()),
                );
            }
        }
        out
    }

    /// The first revision that is not in force here yet. What goes counts where requests see it; clusters, endpoints
    /// and secrets that nothing refers to any more may go later, or stay for a refused host that still needs them.
    pub(super) fn unsettled(&self) -> u64 {
        let lingering = VISIBLE.iter().map(|kind| self.subs[*kind as usize].lingering());
        self.subs.iter().map(Subscription::unacknowledged).chain(lingering).min().unwrap_or(u64::MAX)
    }

    /// The revision at which something counts that the client asks for now. What a gateway asks for on its own, after
    /// all that it was told is in force, takes nothing back of that, so what is settled never goes backwards while the
    /// same gateways are connected; one that is still being told about everything has nothing in force.
    fn asked_at(&self, cache: &Cache) -> u64 {
        if self.is_gateway() { self.unsettled().min(cache.revision() + 1) } else { 0 }
    }

    /// Additions of this kind must be older than this: everything earlier in the order that is as old or older than
    /// they are has to be acknowledged first. What was asked for by name because of its parent need not wait.
    fn barrier(&self, kind: Kind) -> u64 {
        let earlier = match kind {
            Kind::Endpoints | Kind::Secret => return u64::MAX,
            // A gateway that was told of a scope asks for its routes: these need not wait for the acknowledgement.
            Kind::ScopedRoute => Kind::Scope,
            kind => kind,
        };
        let earlier = self.subs[..earlier as usize].iter();
        earlier.map(|sub| sub.unacknowledged().min(sub.leaving())).min().unwrap_or(u64::MAX)
    }

    pub(super) fn next(&mut self, cache: &mut Cache) -> Option<Response> {
        for kind in Kind::ALL {
            let sub = &self.subs[kind as usize];
            if !sub.started || sub.flight.is_some() {
                continue;
            }
            let items = self.additions(kind, cache);
            let greet = kind.is_whole() && !self.subs[kind as usize].greeted && self.barrier(kind) == u64::MAX;
            if (!items.is_empty() || greet)
                && let Some(response) = self.send(kind, items, cache)
            {
                return Some(response);
            }
        }
        for kind in REMOVAL_ORDER {
            let sub = &self.subs[kind as usize];
            if sub.started && sub.flight.is_none() && !sub.gone.is_empty() {
                let items = self.removals(kind, cache);
                if !items.is_empty()
                    && let Some(response) = self.send(kind, items, cache)
                {
                    return Some(response);
                }
            }
        }
        None
    }

    /// Takes out of the subscription what can be added or changed now. A host that goes is a change of its table: it
    /// leaves together with additions, so that a domain can move from one host to another at once.
    fn additions(&mut self, kind: Kind, cache: &Cache) -> Vec<Item> {
        let barrier = self.barrier(kind);
        loop {
            let part = self.subs[kind as usize].parts.pop_front();
            let allowed = |name: &Name| part.as_ref().is_none_or(|part| part.contains(name));
            let due = |name: &Name, mark: &Mark| mark.last < barrier && self.clusters_in_place(kind, name, cache);
            let dirty = || self.subs[kind as usize].dirty.iter().filter(|(name, _)| allowed(name));
            let due = dirty().filter(|(name, mark)| due(name, mark)).map(|(name, _)| name.clone());
            let limit = if self.is_batched(kind) { BATCH } else { usize::MAX };
            let names: Vec<Name> = due.take(limit).collect();
            let more = names.len() == limit;
            let postponed = part.is_some() && dirty().count() > names.len();
            let sub = &mut self.subs[kind as usize];
            let mut offers = Vec::new();
            let mut already_held = Vec::new();
            let mut size = 0;
            for name in names {
                if limit == BATCH && size > BATCH_BYTES {
                    break;
                }
                let mark = sub.dirty.remove(&name).expect("listed above");
                match sub.target(kind, &name, cache) {
                    Target::Offer(resource)
                        if mark.force || sub.owed.contains(&name) || !sub.holds(&name, resource.version) =>
                    {
                        sub.owed.remove(&name);
                        size += resource.body.len();
                        offers.push(Item { name, offer: Some(resource), first: mark.first, last: mark.last });
                    }
                    Target::Offer(resource) => already_held.push((resource, mark.first)),
                    Target::Keep | Target::Gone => {}
                }
            }
            for (resource, first) in already_held {
                self.expect_children(&self.form(resource), first, cache);
            }
            let mut items = self.formed(offers);
            let sub = &mut self.subs[kind as usize];
            if matches!(kind, Kind::Route | Kind::Scope) {
                let gone: Vec<Name> = sub
                    .gone
                    .iter()
                    .filter(|(name, gone)| (kind == Kind::Scope || table_of(name).is_some()) && gone.last < barrier)
                    .map(|(name, _)| name.clone())
                    .collect();
                for name in gone {
                    let gone = sub.gone.remove(&name).expect("listed above");
                    items.push(Item { name, offer: None, first: gone.first, last: gone.last });
                }
            }
            match part {
                // The client has all of these.
                _ if more && items.is_empty() => part.into_iter().for_each(|part| sub.parts.push_front(part)),
                Some(part) if postponed && items.is_empty() => {
                    sub.parts.push_front(part);
                    return items;
                }
                Some(_) if items.is_empty() => {}
                _ => return items,
            }
        }
    }

    /// A table, and all of a kind in the state of the world, travel in one piece.
    fn is_batched(&self, kind: Kind) -> bool {
        kind != Kind::Route && !(self.protocol == Protocol::World && kind.is_whole())
    }

    /// What may have become older than its clusters while it waited to be asked for, or was refused for want of one,
    /// goes after them all the same.
    fn clusters_in_place(&self, kind: Kind, name: &str, cache: &Cache) -> bool {
        if !matches!(kind, Kind::Route | Kind::ScopedRoute) {
            return true;
        }
        let [clusters, endpoints] = [Kind::Cluster, Kind::Endpoints].map(|kind| &self.subs[kind as usize]);
        cache.get(kind, name).is_none_or(|entry| {
            let mut needed = entry.current().requires.iter().filter(|(kind, _)| *kind == Kind::Cluster);
            needed.all(|(_, name)| clusters.is_in_place(name) && endpoints.is_in_place(name))
        })
    }

    fn formed(&self, mut items: Vec<Item>) -> Vec<Item> {
        for item in &mut items {
            item.offer = item.offer.take().map(|offer| self.form(offer));
        }
        items
    }

    /// Whether the client has told what it has that may refer to this kind: after a reconnect the requests for the
    /// different types come one by one.
    fn users_known(&self, kind: Kind) -> bool {
        let started = |kind: Kind| self.subs[kind as usize].started;
        match kind {
            Kind::Cluster | Kind::Endpoints => started(Kind::Route) || started(Kind::Scope),
            Kind::Secret => started(Kind::Listener),
            Kind::Listener | Kind::Scope | Kind::ScopedRoute | Kind::Route | Kind::VirtualHost => true,
        }
    }

    /// Clusters of hosts that the client has in a version which is not the newest: that was refused, is on its way, or
    /// goes. `None` if that cannot be known, because the client has such a host from before it connected.
    fn needed_by_old(&self, cache: &Cache) -> Option<BTreeSet<Name>> {
        let mut needed = BTreeSet::new();
        for kind in [Kind::Route, Kind::ScopedRoute] {
            let sub = &self.subs[kind as usize];
            let names = sub.unsettled_names().chain(cache.refused_routes());
            for held in names.filter_map(|name| sub.held.get(name)) {
                needed.extend(held.resource.as_ref()?.requires.iter().map(|(_, name)| name.clone()));
            }
        }
        Some(needed)
    }

    fn removals(&mut self, kind: Kind, cache: &Cache) -> Vec<Item> {
        let known = self.users_known(kind);
        let needed = match kind {
            Kind::Cluster | Kind::Endpoints => self.needed_by_old(cache),
            _ => Some(BTreeSet::new()),
        };
        let under_way = self.subs.iter().map(|sub| sub.unacknowledged().min(sub.leaving()));
        let under_way = under_way.min().unwrap_or(u64::MAX);
        let earlier = REMOVAL_ORDER.iter().take_while(|other| **other != kind);
        let before =
            earlier.filter_map(|other| self.subs[*other as usize].gone.values().map(|gone| gone.first).min()).min();
        let limit = under_way.min(before.unwrap_or(u64::MAX));
        let sub = &mut self.subs[kind as usize];
        let free = |name: &Name| needed.as_ref().is_some_and(|needed| !needed.contains(name));
        let due = |name: &Name, revision: u64| revision == 0 || (known && revision < limit && free(name));
        let due = sub.gone.iter().filter(|(name, revision)| due(name, revision.last));
        let names: Vec<Name> = due.map(|(name, _)| name.clone()).collect();
        let take = |name: Name| {
            let gone = sub.gone.remove(&name).expect("listed above");
            Item { name, offer: None, first: gone.first, last: gone.last }
        };
        names.into_iter().map(take).collect()
    }

    /// Puts items in flight. Nothing is sent when the protocol cannot say it (a removal from a partial world).
    fn send(&mut self, kind: Kind, items: Vec<Item>, cache: &mut Cache) -> Option<Response> {
        let Some((resources, removed)) = self.render(kind, &items, cache) else {
            let sub = &mut self.subs[kind as usize];
            for item in items {
                if item.offer.is_none() {
                    sub.held.remove(&item.name);
                }
            }
            return None;
        };
        for item in &items {
            let Some(offer) = &item.offer else { continue };
            for (child, name) in offer.requires.iter().filter(|(child, _)| *child != Kind::Cluster) {
                if *child == Kind::Endpoints {
                    self.subs[*child as usize].owed.insert(name.clone());
                }
                if self.wants(*child, name) {
                    // A changed cluster waits for its endpoints again, although the client subscribed to them before.
                    // They follow at once: Envoy acknowledges clusters only when they have what they wait for.
                    if *child == Kind::Endpoints && cache.get(*child, name).is_some() {
                        self.subs[*child as usize].mark_at(name, item.first, item.last);
                    }
                } else if exists(*child, name, cache) {
                    self.subs[*child as usize].expected.insert(name.clone(), item.first);
                }
            }
        }
        self.nonce += 1;
        let nonce = self.nonce;
        let sub = &mut self.subs[kind as usize];
        sub.flight = Some(Flight::new(nonce, items));
        let version = resources.iter().fold(Version::of(&kind.type_url()), |v, r| v.join(&r.name, r.version));
        Some(Response { kind, protocol: self.protocol, nonce, version, resources, removed })
    }

    fn render(&self, kind: Kind, items: &[Item], cache: &mut Cache) -> Option<(Vec<Arc<Resource>>, Vec<Name>)> {
        let sub = &self.subs[kind as usize];
        let world = self.protocol == Protocol::World;
        let removed = |items: &[Item]| -> Vec<Name> {
            items.iter().filter(|item| item.offer.is_none()).map(|item| item.name.clone()).collect()
        };
        if kind == Kind::Route {
            return self.render_tables(items, cache);
        }
        if world && kind.is_whole() {
            let mut all = sub.held_resources();
            for item in items {
                match &item.offer {
                    Some(offer) => all.insert(item.name.clone(), offer.clone()),
                    None => all.remove(&item.name),
                };
            }
            return Some((all.into_values().collect(), Vec::new()));
        }
        let offers: Vec<Arc<Resource>> = items.iter().filter_map(|item| item.offer.clone()).collect();
        if world {
            return (!offers.is_empty()).then_some((offers, Vec::new()));
        }
        Some((offers, removed(items)))
    }

    fn render_tables(&self, items: &[Item], cache: &mut Cache) -> Option<(Vec<Arc<Resource>>, Vec<Name>)> {
        let sub = &self.subs[Kind::Route as usize];
        let mut tables: Vec<&str> = items.iter().map(|item| table_of(&item.name).unwrap_or(&item.name)).collect();
        tables.sort_unstable();
        tables.dedup();
        let mut resources = Vec::new();
        let mut removed = Vec::new();
        for table in tables {
            let own = items.iter().find(|item| &*item.name == table);
            let base = match own {
                Some(Item { offer: None, name, .. }) => {
                    removed.push(name.clone());
                    continue;
                }
                Some(Item { offer: Some(offer), .. }) => offer.clone(),
                None => match sub.held.get(table).and_then(|held| held.resource.clone()) {
                    Some(base) => base,
                    None => continue,
                },
            };
            let mut hosts: std::collections::BTreeMap<&str, &Arc<Resource>> = sub
                .held
                .range::<str, _>(bounds(&host_range(table)))
                .filter_map(|(name, held)| Some((&**name, held.resource.as_ref()?)))
                .collect();
            for item in items.iter().filter(|item| table_of(&item.name) == Some(table)) {
                match &item.offer {
                    Some(offer) => hosts.insert(&item.name, offer),
                    None => hosts.remove(&*item.name),
                };
            }
            let hosts: Vec<Arc<Resource>> = hosts.into_values().cloned().collect();
            resources.push(cache.assemble(&base, &hosts));
        }
        if self.protocol == Protocol::World {
            removed.clear();
        }
        (!resources.is_empty() || !removed.is_empty()).then_some((resources, removed))
    }

    fn acknowledge(&mut self, kind: Kind, flight: Flight, cache: &mut Cache, events: &mut Vec<Event>) {
        self.subs[kind as usize].greeted = true;
        for item in flight.items {
            let wanted = self.wants(kind, &item.name);
            let sub = &mut self.subs[kind as usize];
            match item.offer {
                Some(offer) => {
                    let newest = cache.get(kind, &item.name).map(|entry| entry.current().version);
                    // An older version in the place of a refused one does not undo the refusal.
                    let undone = newest.is_none_or(|newest| newest == offer.version);
                    let refused_here = undone && sub.refused.remove(&item.name).is_some();
                    if cache.accept(&offer) || (refused_here && newest == Some(offer.version)) {
                        events.push(Event::Recovered { kind: offer.kind, name: offer.name.clone() });
                    }
                    if kind == Kind::Cluster {
                        self.retry_hosts_of(&offer.name, item.first, cache);
                    }
                    if wanted {
                        self.subs[kind as usize].hold(item.name, offer);
                    }
                }
                None => {
                    sub.held.remove(&item.name);
                }
            }
        }
    }

    /// A host may have been refused only because of a cluster that is there now.
    fn retry_hosts_of(&mut self, cluster: &Name, first: u64, cache: &Cache) {
        for kind in [Kind::Route, Kind::ScopedRoute] {
            let sub = &mut self.subs[kind as usize];
            let uses = |host: &Name| {
                let entry = cache.get(kind, host);
                entry.is_some_and(|e| e.current().requires.iter().any(|(_, name)| name == cluster))
            };
            let hosts: Vec<Name> = sub.refused.keys().filter(|host| uses(host)).cloned().collect();
            for host in hosts {
                sub.refused.remove(&host);
                sub.mark_at(&host, first, cache.revision());
            }
        }
    }

    /// Whether the client has something that needs this. What a cluster needs nothing else of its kind does.
    fn requires(&self, kind: Kind, name: &str, needed: &(Kind, Name)) -> bool {
        let sub = &self.subs[kind as usize];
        let requires = |held: &Held| held.resource.as_ref().is_some_and(|resource| resource.requires.contains(needed));
        if kind == Kind::Cluster { sub.held.get(name).is_some_and(requires) } else { sub.held.values().any(requires) }
    }

    /// Finds out which item was refused: the only one, the only one the message names (it may dump everything it got),
    /// or by offering halves again.
    fn refuse(&mut self, kind: Kind, flight: Flight, message: &str, cache: &mut Cache, events: &mut Vec<Event>) {
        for item in &flight.items {
            for needed in item.offer.iter().flat_map(|offer| offer.requires.iter()) {
                if !self.requires(kind, &item.name, needed) {
                    self.subs[needed.0 as usize].expected.remove(&needed.1);
                }
            }
        }
        let offers: Vec<&Name> = flight.items.iter().filter(|i| i.offer.is_some()).map(|i| &i.name).collect();
        let named: Vec<&Name> =
            offers.iter().filter(|name| subscription::mentions(message, name)).copied().take(2).collect();
        let nothing_offered = offers.is_empty();
        let culprit = match (offers.as_slice(), named.as_slice()) {
            ([only], _) | (_, [only]) => Some(Name::clone(only)),
            _ => None,
        };
        let (guilty, rest): (Vec<Item>, Vec<Item>) = flight
            .items
            .into_iter()
            .partition(|item| item.offer.is_some() && culprit.as_ref().is_some_and(|name| *name == item.name));
        let message = subscription::shorten(message);
        for item in &guilty {
            let offer = item.offer.as_ref().expect("partitioned on it");
            // Without one of its clusters it is the cluster's fault, and only here.
            let clusters = &self.subs[Kind::Cluster as usize];
            let mut needed = offer.requires.iter().filter(|(child, _)| *child == Kind::Cluster);
            if needed.all(|(_, name)| clusters.held.contains_key(name)) {
                if !subscription::is_local(&message) {
                    cache.reject(kind, &item.name, offer.version);
                }
                events.push(Event::Rejected {
                    kind: offer.kind,
                    name: item.name.clone(),
                    version: offer.version,
                    node: self.node.clone(),
                    message: message.clone(),
                });
            }
            let sub = &mut self.subs[kind as usize];
            sub.refuse(&item.name, offer.version);
            // What was accepted earlier, here or elsewhere, is still worth having.
            sub.mark_at(&item.name, item.first, item.last);
        }
        let sub = &mut self.subs[kind as usize];
        sub.greeted |= nothing_offered;
        if guilty.is_empty() {
            sub.split(&rest);
        }
        for item in rest {
            match item.offer {
                Some(_) => sub.mark_at(&item.name, item.first, item.last),
                // It may have come back in the meantime.
                None if cache.get(kind, &item.name).is_some() => sub.mark_at(&item.name, item.first, item.last),
                None => {
                    sub.gone.insert(item.name, Gone { first: item.first, last: item.last });
                }
            }
        }
    }
}

/// Where a resource is an item.
fn home(kind: Kind) -> Kind {
    if kind == Kind::VirtualHost { Kind::Route } else { kind }
}

fn exists(kind: Kind, name: &str, cache: &Cache) -> bool {
    name == ALL || cache.get(kind, name).is_some()
}
