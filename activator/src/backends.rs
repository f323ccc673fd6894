//! The pods of one revision: which exist, which are ready, which may be sent requests.
//!
//! Endpoints tell which addresses exist and what the kubelet thinks of them. A ready address is used at once. One
//! that is not ready yet is probed directly and used from its first success, if the revision's probes allow it. An
//! address that refuses a connection is set aside and probed until it answers or its endpoint goes; meanwhile the
//! requests wait, or go elsewhere. An address that leaves the endpoints is out before the next request. Should it come
//! back (events may tell of it late and twice) it is the same pod with the same requests under way.
//!
//! A mesh may forbid to reach pods by their own addresses. Unless the installation says how it is, the first ready pod
//! has to answer a probe before pods are used; if it does not and the revision's private Service does, that Service is
//! used from then on, as one backend with the capacity of the ready pods (see `service`).
//!
//! Several activators share the pods of a revision with containerConcurrency: each uses its own part, as upstream
//! divides them, so that their slots add up to what the pods can take (see `division`).

mod division;
mod listing;
mod peers;
mod service;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, Weak},
};

use controller::ObjectKey;
use parking_lot::Mutex;
use tokio_util::sync::DropGuard;

#[cfg(test)]
pub(crate) use self::listing::Addresses;
use self::{division::Division, listing::changes, service::Service};
pub(crate) use self::{
    listing::{Groups, Listing, Slice, Source, Texts, Whole, port_name},
    peers::Peers,
};
use crate::throttler::{Endpoint, Link, Pod, Throttler, Uid};

/// Asks pods whether they are ready.
pub(crate) trait Prober: Send + Sync {
    /// Asks until the pod is ready and calls [`Backends::succeeded`] then, and [`Backends::suspected`] whenever the
    /// answer is such that a mesh may have given it. Dropping the guard ends it.
    fn start(&self, pod: Arc<Pod>, asker: Weak<Backends>) -> DropGuard;
    /// Finds the Service's address, asks there until a pod is ready and calls [`Backends::service_answered`] then.
    fn start_service(&self, service: &ServiceRef, asker: Weak<Backends>) -> DropGuard;
}

/// Nobody is asked, or nobody ever answers.
#[cfg(test)]
pub(crate) struct NoProbes;

/// How the pods of a revision are treated.
#[derive(Debug, Clone)]
pub(crate) struct Treatment {
    /// Requests a pod takes at once; 0: any number.
    pub(crate) concurrency: usize,
    /// Use a pod that answers a probe before the kubelet has found it ready.
    pub(crate) probe_early: bool,
    pub(crate) reach: Reach,
    pub(crate) link: Link,
    pub(crate) service: ServiceRef,
}

/// A revision's private Service, and which of its ports is meant.
#[derive(Debug, Clone)]
pub(crate) struct ServiceRef {
    pub(crate) key: ObjectKey,
    pub(crate) port: &'static str,
}

/// Which addresses lead to pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// Whichever turns out to.
    #[default]
    Either,
    /// Their own.
    Pods,
    /// Their Service's.
    Service,
}

pub(crate) struct Backends {
    throttler: Throttler,
    treatment: Treatment,
    prober: Arc<dyn Prober>,
    state: Mutex<State>,
    this: Weak<Backends>,
}

struct State {
    /// What each object that lists pods said last.
    sources: BTreeMap<Box<str>, Groups>,
    /// In the order in which every activator sorts them.
    pods: BTreeMap<Name, Known>,
    /// How many of them the kubelet has found ready.
    ready: usize,
    /// Pods that have left the endpoints and may still have requests.
    departed: BTreeMap<Endpoint, Weak<Pod>>,
    /// How many of them there may be until those without requests are forgotten.
    sweep_at: usize,
    peers: Option<Peers>,
    /// Which pods are used, where that is a part of them.
    division: Option<Division>,
    /// What is known about how pods are reached: `Either` until one has answered.
    reach: Reach,
    service: Service,
    /// What is not published yet.
    moved: Moved,
}

/// A pod's address as text, and its uid.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name(Box<str>, Uid);

struct Known {
    pod: Arc<Pod>,
    /// In how many places it is listed as ready and as not ready: while a pod moves from one slice to another it may
    /// be in both.
    listed: [u32; 2],
    /// What they said last: ready if any says so.
    ready: bool,
    /// Whether requests may go there.
    healthy: bool,
    /// The probe that runs; dropping it ends it.
    probe: Option<DropGuard>,
}

/// Pods to which requests may not go any more, and pods to which they may from now on.
#[derive(Default)]
struct Moved {
    gone: Vec<Arc<Pod>>,
    come: Vec<Arc<Pod>>,
}

// === impl NoProbes ===

#[cfg(test)]
impl Prober for NoProbes {
    fn start(&self, _: Arc<Pod>, _: Weak<Backends>) -> DropGuard {
        tokio_util::sync::CancellationToken::new().drop_guard()
    }

    fn start_service(&self, _: &ServiceRef, _: Weak<Backends>) -> DropGuard {
        tokio_util::sync::CancellationToken::new().drop_guard()
    }
}

// === impl Treatment ===

impl Treatment {
    /// As it is unless something else is said.
    #[cfg(test)]
    pub(crate) fn of(revision: &str) -> Self {
        let key = ObjectKey::new("default", format!("{revision}-private"));
        Self {
            concurrency: 0,
            probe_early: true,
            reach: Reach::default(),
            link: Link::plain(),
            service: ServiceRef { key, port: "http" },
        }
    }
}

// === impl Backends ===

impl Backends {
    pub(crate) fn new(throttler: Throttler, treatment: Treatment, prober: Arc<dyn Prober>) -> Arc<Self> {
        let state = State {
            sources: BTreeMap::new(),
            pods: BTreeMap::new(),
            ready: 0,
            departed: BTreeMap::new(),
            sweep_at: 0,
            peers: None,
            division: None,
            reach: treatment.reach,
            service: Service::default(),
            moved: Moved::default(),
        };
        Arc::new_cyclic(|this| Self { throttler, treatment, prober, state: Mutex::new(state), this: this.clone() })
    }

    /// Takes over what an object of this name lists now; nothing, if it is gone. What is done about it depends on what
    /// is different, not on how much is listed.
    pub(crate) fn update(&self, source: &str, now: &Groups) {
        let mut state = self.state.lock();
        let before = match now.is_empty() {
            true => state.sources.remove(source),
            false => match state.sources.get_mut(source) {
                Some(known) => Some(std::mem::replace(known, now.clone())),
                None => state.sources.insert(source.into(), now.clone()),
            },
        };
        let mut changed = changes(&before.unwrap_or_default(), now, self.treatment.service.port);
        for (endpoint, ready, is_new) in &changed {
            let known = self.known(&mut state, *endpoint);
            let count = &mut known.listed[usize::from(*ready)];
            *count = if *is_new { *count + 1 } else { count.saturating_sub(1) };
        }
        changed.dedup_by_key(|(endpoint, ..)| *endpoint);
        for (endpoint, ..) in changed {
            self.judge(&mut state, endpoint);
        }
        self.look_after_service(&mut state);
        self.publish(&mut state);
    }

    /// Nothing lists any pod any more.
    pub(crate) fn clear(&self) {
        let sources: Vec<_> = self.state.lock().sources.keys().cloned().collect();
        sources.iter().for_each(|source| self.update(source, &Groups::default()));
    }

    /// Takes over where this activator stands. Not being listed says nothing, as upstream sees it.
    pub(crate) fn set_peers(&self, peers: Peers) {
        let mut state = self.state.lock();
        if state.peers.replace(peers) != Some(peers) {
            self.publish_all(&mut state);
        }
    }

    /// Whether each activator uses only a part of the pods.
    pub(crate) fn are_divided(&self) -> bool {
        self.treatment.concurrency > 0
    }

    /// A connection to `pod` failed: nothing is sent there until it has answered a probe.
    pub(crate) fn failed(&self, pod: &Arc<Pod>) {
        let mut state = self.state.lock();
        if state.service.failed(pod) {
            self.look_after_service(&mut state);
            self.publish(&mut state);
            return;
        }
        let Some((known, moved)) = state.known(pod) else { return };
        if known.healthy {
            known.set_healthy(false, moved);
            known.probe = Some(self.prober.start(known.pod.clone(), self.this.clone()));
            self.publish(&mut state);
        }
    }

    /// A pod answered a probe.
    pub(crate) fn succeeded(&self, pod: &Arc<Pod>) {
        let mut state = self.state.lock();
        if state.reach == Reach::Service {
            return;
        }
        let Some((known, moved)) = state.known(pod) else { return };
        known.probe = None;
        // Where only the kubelet can tell, an answer means something only if the kubelet agrees.
        let healthy = known.ready || self.treatment.probe_early;
        known.set_healthy(healthy, moved);
        if std::mem::replace(&mut state.reach, Reach::Pods) == Reach::Either {
            state.service = Service::default();
            let State { pods, moved, .. } = &mut *state;
            for known in pods.values_mut().filter(|known| known.ready && !known.healthy) {
                known.set_healthy(true, moved);
                known.probe = None;
            }
        }
        self.publish(&mut state);
    }

    /// Whether the endpoints still list this pod.
    pub(crate) fn knows(&self, pod: &Arc<Pod>) -> bool {
        let mut state = self.state.lock();
        state.service.is(pod) || state.known(pod).is_some()
    }

    fn known<'a>(&self, state: &'a mut State, endpoint: Endpoint) -> &'a mut Known {
        let State { pods, departed, .. } = state;
        pods.entry(Name::of(&endpoint)).or_insert_with(|| {
            let returned = departed.remove(&endpoint).and_then(|pod| pod.upgrade());
            let pod = returned.unwrap_or_else(|| Pod::new(endpoint, self.treatment.concurrency, &self.treatment.link));
            Known { pod, listed: [0; 2], ready: false, healthy: false, probe: None }
        })
    }

    /// What becomes of a pod that is listed differently now.
    fn judge(&self, state: &mut State, endpoint: Endpoint) {
        let State { pods, ready: ready_pods, reach, moved, .. } = state;
        let Entry::Occupied(mut entry) = pods.entry(Name::of(&endpoint)) else { return };
        let known = entry.get_mut();
        let ready = known.listed[1] > 0;
        *ready_pods = *ready_pods + usize::from(ready) - usize::from(known.ready);
        let was_ready = std::mem::replace(&mut known.ready, ready);
        if known.listed == [0; 2] {
            known.set_healthy(false, moved);
            let pod = Arc::downgrade(&entry.remove().pod);
            return state.depart(endpoint, pod);
        }
        let asked = match ready {
            true => {
                if !was_ready && *reach == Reach::Pods {
                    known.set_healthy(true, moved);
                    known.probe = None;
                }
                *reach == Reach::Either
            }
            false => {
                if was_ready {
                    known.set_healthy(false, moved);
                }
                self.treatment.probe_early && *reach != Reach::Service
            }
        };
        if asked && !known.healthy && known.probe.is_none() {
            known.probe = Some(self.prober.start(known.pod.clone(), self.this.clone()));
        }
    }

    /// Tells the throttler what has changed.
    fn publish(&self, state: &mut State) {
        let is_divided = self.divides(state).is_some();
        if state.reach == Reach::Service || self.throttler.order_matters() {
            return self.publish_all(state);
        }
        let moved = std::mem::take(&mut state.moved);
        let own = match &mut state.division {
            Some(division) => division.change(&moved),
            None => (!is_divided).then_some(moved),
        };
        let Some(Moved { gone, come }) = own else { return self.publish_all(state) };
        if !gone.is_empty() || !come.is_empty() {
            self.throttler.change_pods(&gone, come);
        }
    }

    /// Tells the throttler how everything is.
    fn publish_all(&self, state: &mut State) {
        state.moved = Moved::default();
        state.division = None;
        if state.reach == Reach::Service {
            let activators = state.peers.map_or(1, |peers| peers.count);
            return self.throttler.set_pods(state.service.pods(self.treatment.concurrency, state.ready, activators));
        }
        let healthy = state.pods.iter().filter(|(_, known)| known.healthy);
        let own = match self.divides(state) {
            Some(peers) => {
                let order = healthy.map(|(name, known)| (name.clone(), known.pod.clone())).collect();
                state.division.insert(Division::new(peers, order)).own()
            }
            None => healthy.map(|(_, known)| known.pod.clone()).collect(),
        };
        self.throttler.set_pods(own);
    }

    /// Where this activator stands, if it is not to use all pods.
    fn divides(&self, state: &State) -> Option<Peers> {
        state.peers.filter(|peers| self.are_divided() && peers.count > 1)
    }
}

// === impl State ===

impl State {
    fn known(&mut self, pod: &Arc<Pod>) -> Option<(&mut Known, &mut Moved)> {
        let known = self.pods.get_mut(&Name::of(pod.endpoint())).filter(|known| Arc::ptr_eq(&known.pod, pod))?;
        Some((known, &mut self.moved))
    }

    /// Remembers a pod in case it comes back.
    fn depart(&mut self, endpoint: Endpoint, pod: Weak<Pod>) {
        if self.departed.len() >= self.sweep_at {
            self.departed.retain(|_, pod| pod.strong_count() > 0);
            self.sweep_at = 2 * self.departed.len() + 8;
        }
        self.departed.insert(endpoint, pod);
    }
}

// === impl Name ===

impl Name {
    fn of(endpoint: &Endpoint) -> Self {
        Self(endpoint.address.to_string().into(), endpoint.uid)
    }
}

// === impl Known ===

impl Known {
    fn set_healthy(&mut self, healthy: bool, moved: &mut Moved) {
        if std::mem::replace(&mut self.healthy, healthy) != healthy {
            moved.note(&self.pod, healthy);
        }
    }
}

// === impl Moved ===

impl Moved {
    /// Notes that a pod comes, or goes.
    fn note(&mut self, pod: &Arc<Pod>, comes: bool) {
        // What was not told yet need not be told.
        let (to, from) = if comes { (&mut self.come, &mut self.gone) } else { (&mut self.gone, &mut self.come) };
        match from.iter().position(|other| Arc::ptr_eq(other, pod)) {
            Some(index) => drop(from.swap_remove(index)),
            None => to.push(pod.clone()),
        }
    }
}
