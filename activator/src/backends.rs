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
//! divides them, so that their slots add up to what the pods can take.

mod addresses;
mod service;

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use controller::ObjectKey;
use parking_lot::Mutex;
use tokio_util::sync::DropGuard;

pub(crate) use self::addresses::{Addresses, Peers, port_name};
use self::service::Service;
use crate::throttler::{Endpoint, Link, Pod, Throttler};

/// Asks pods whether they are ready.
pub(crate) trait Prober: Send + Sync {
    /// Asks until the pod is ready and calls [`Backends::succeeded`] then, and [`Backends::suspected`] whenever the
    /// answer is such that a mesh may have given it. Dropping the guard ends it.
    fn start(&self, pod: Arc<Pod>, asker: Weak<Backends>) -> DropGuard;
    /// Finds the Service's address, asks there until a pod is ready and calls [`Backends::service_answered`] then.
    fn start_service(&self, service: &ServiceRef, asker: Weak<Backends>) -> DropGuard;
}

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
    pods: BTreeMap<Endpoint, Known>,
    /// Pods that have left the endpoints and still have requests.
    departed: BTreeMap<Endpoint, Weak<Pod>>,
    peers: Option<Peers>,
    /// What is known about how pods are reached: `Either` until one has answered.
    reach: Reach,
    service: Service,
}

struct Known {
    pod: Arc<Pod>,
    /// What the endpoints said last.
    ready: bool,
    /// Whether requests may go there.
    healthy: bool,
    /// The probe that runs; dropping it ends it.
    probe: Option<DropGuard>,
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
            pods: BTreeMap::new(),
            departed: BTreeMap::new(),
            peers: None,
            reach: treatment.reach,
            service: Service::default(),
        };
        Arc::new_cyclic(|this| Self { throttler, treatment, prober, state: Mutex::new(state), this: this.clone() })
    }

    /// Takes over what the endpoints say now.
    pub(crate) fn update(&self, addresses: &Addresses) {
        let mut state = self.state.lock();
        let State { pods, departed, .. } = &mut *state;
        departed.retain(|_, pod| pod.strong_count() > 0);
        pods.retain(|endpoint, known| {
            let stays = addresses.ready.contains(endpoint) || addresses.not_ready.contains(endpoint);
            if !stays {
                departed.insert(endpoint.clone(), Arc::downgrade(&known.pod));
            }
            stays
        });
        for endpoint in &addresses.ready {
            let reach = state.reach;
            let known = self.known(&mut state, endpoint);
            if !std::mem::replace(&mut known.ready, true) && reach == Reach::Pods {
                known.healthy = true;
                known.probe = None;
            }
            if !known.healthy && known.probe.is_none() && reach == Reach::Either {
                known.probe = Some(self.prober.start(known.pod.clone(), self.this.clone()));
            }
        }
        for endpoint in addresses.not_ready.difference(&addresses.ready) {
            let reach = state.reach;
            let known = self.known(&mut state, endpoint);
            if std::mem::replace(&mut known.ready, false) {
                known.healthy = false;
            }
            if !known.healthy && known.probe.is_none() && self.treatment.probe_early && reach != Reach::Service {
                known.probe = Some(self.prober.start(known.pod.clone(), self.this.clone()));
            }
        }
        self.look_after_service(&mut state);
        self.publish(&mut state);
    }

    /// Takes over where this activator stands. Not being listed says nothing, as upstream sees it.
    pub(crate) fn set_peers(&self, peers: Peers) {
        let mut state = self.state.lock();
        if state.peers.replace(peers) != Some(peers) {
            self.publish(&mut state);
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
        let Some(known) = state.known(pod) else { return };
        if std::mem::replace(&mut known.healthy, false) {
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
        let Some(known) = state.known(pod) else { return };
        known.probe = None;
        // Where only the kubelet can tell, an answer means something only if the kubelet agrees.
        known.healthy = known.ready || self.treatment.probe_early;
        if std::mem::replace(&mut state.reach, Reach::Pods) == Reach::Either {
            state.service = Service::default();
            for known in state.pods.values_mut().filter(|known| known.ready && !known.healthy) {
                known.healthy = true;
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

    fn known<'a>(&self, state: &'a mut State, endpoint: &Endpoint) -> &'a mut Known {
        let State { pods, departed, .. } = state;
        pods.entry(endpoint.clone()).or_insert_with(|| {
            let returned = departed.remove(endpoint).and_then(|pod| pod.upgrade());
            let pod = returned
                .unwrap_or_else(|| Pod::new(endpoint.clone(), self.treatment.concurrency, &self.treatment.link));
            Known { pod, ready: false, healthy: false, probe: None }
        })
    }

    fn publish(&self, state: &mut State) {
        if state.reach == Reach::Service {
            let ready = state.pods.values().filter(|known| known.ready).count();
            let activators = state.peers.map_or(1, |peers| peers.count);
            return self.throttler.set_pods(state.service.pods(self.treatment.concurrency, ready, activators));
        }
        let healthy: Vec<_> = state.pods.values().filter(|known| known.healthy).map(|known| &known.pod).collect();
        let own = match state.peers {
            Some(peers) if self.are_divided() => {
                let named = by_name(healthy.into_iter().cloned());
                let count = named.len();
                let own = named.into_iter().enumerate().filter(|(index, _)| peers.owns(*index, count));
                own.map(|(_, pod)| pod).collect()
            }
            _ if self.throttler.order_matters() => by_name(healthy.into_iter().cloned()),
            _ => healthy.into_iter().cloned().collect(),
        };
        self.throttler.set_pods(own);
    }
}

/// In the order in which every activator sorts them.
fn by_name(pods: impl Iterator<Item = Arc<Pod>>) -> Vec<Arc<Pod>> {
    let mut named: Vec<_> = pods.map(|pod| (pod.address().to_string(), pod)).collect();
    named.sort_by(|(one, _), (other, _)| one.cmp(other));
    named.into_iter().map(|(_, pod)| pod).collect()
}

// === impl State ===

impl State {
    fn known(&mut self, pod: &Arc<Pod>) -> Option<&mut Known> {
        self.pods.get_mut(pod.endpoint()).filter(|known| Arc::ptr_eq(&known.pod, pod))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::throttler::Policy;

    fn addresses(ready: &[u16], not_ready: &[u16]) -> Addresses {
        let set = |ports: &[u16]| ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port)).into()).collect();
        Addresses { ready: set(ready), not_ready: set(not_ready) }
    }

    struct Never;

    impl Prober for Never {
        fn start(&self, _: Arc<Pod>, _: Weak<Backends>) -> DropGuard {
            tokio_util::sync::CancellationToken::new().drop_guard()
        }

        fn start_service(&self, _: &ServiceRef, _: Weak<Backends>) -> DropGuard {
            tokio_util::sync::CancellationToken::new().drop_guard()
        }
    }

    fn backends() -> (Throttler, Arc<Backends>) {
        treated(Treatment { reach: Reach::Pods, ..Treatment::of("rev") })
    }

    fn treated(treatment: Treatment) -> (Throttler, Arc<Backends>) {
        let bound = crate::throttler::Bound { each: 1000, total: 1000 };
        let throttler = Throttler::new(crate::throttler::QueueLimit::new(bound, bound), Policy::default());
        (throttler.clone(), Backends::new(throttler, treatment, Arc::new(Never)))
    }

    fn used(throttler: &Throttler) -> Vec<u16> {
        throttler.pods().iter().map(|pod| pod.address().port()).collect()
    }

    #[test]
    fn ready_addresses_are_used_and_those_that_leave_are_not() {
        let (throttler, backends) = backends();
        backends.update(&addresses(&[1, 2], &[3]));
        assert_eq!(used(&throttler), [1, 2]);
        backends.update(&addresses(&[2], &[1]));
        assert_eq!(used(&throttler), [2]);
        backends.update(&addresses(&[], &[]));
        assert!(used(&throttler).is_empty());
    }

    #[test]
    fn a_pod_that_answered_a_probe_stays_in_use_while_it_is_not_ready_yet() {
        let (throttler, backends) = backends();
        backends.update(&addresses(&[], &[3]));
        let pod = backends.state.lock().pods.values().next().expect("known").pod.clone();
        backends.succeeded(&pod);
        backends.update(&addresses(&[], &[3, 4]));
        assert_eq!(used(&throttler), [3]);
    }

    #[test]
    fn a_pod_that_failed_comes_back_by_its_probe_not_by_the_next_event() {
        let (throttler, backends) = backends();
        backends.update(&addresses(&[1, 2], &[]));
        let pod = throttler.pods()[0].clone();
        backends.failed(&pod);
        backends.update(&addresses(&[1, 2, 3], &[]));
        assert_eq!(used(&throttler), [2, 3]);
        backends.succeeded(&pod);
        assert_eq!(used(&throttler), [1, 2, 3]);
    }

    #[test]
    fn a_pod_that_comes_back_still_has_its_requests() {
        let (throttler, backends) = treated(Treatment { concurrency: 1, reach: Reach::Pods, ..Treatment::of("rev") });
        backends.update(&addresses(&[1], &[]));
        let acquire = || futures::FutureExt::now_or_never(throttler_acquire(&throttler));
        let lease = acquire().expect("free");
        backends.update(&addresses(&[], &[]));
        backends.update(&addresses(&[1], &[]));
        assert!(acquire().is_none(), "its only slot is taken");
        drop(lease);
        assert!(acquire().is_some());
    }

    async fn throttler_acquire(throttler: &Throttler) -> crate::throttler::Lease {
        throttler.acquire(&mut crate::throttler::Turn::new(0)).await.expect("room")
    }

    #[test]
    fn where_only_the_kubelet_can_tell_an_answer_is_not_enough() {
        let (throttler, backends) =
            treated(Treatment { probe_early: false, reach: Reach::Pods, ..Treatment::of("rev") });
        backends.update(&addresses(&[1], &[]));
        let pod = throttler.pods()[0].clone();
        backends.failed(&pod);
        backends.update(&addresses(&[], &[1]));
        backends.succeeded(&pod);
        assert!(used(&throttler).is_empty());
        backends.update(&addresses(&[1], &[]));
        assert_eq!(used(&throttler), [1]);
    }

    fn pod(backends: &Backends, port: u16) -> Arc<Pod> {
        let state = backends.state.lock();
        let mut pods = state.pods.values().map(|known| known.pod.clone());
        pods.find(|pod| pod.address().port() == port).expect("known")
    }

    #[test]
    fn unless_it_is_said_how_pods_are_reached_the_first_has_to_answer() {
        let (throttler, backends) = treated(Treatment::of("rev"));
        backends.update(&addresses(&[1, 2], &[]));
        assert!(used(&throttler).is_empty());
        backends.succeeded(&pod(&backends, 1));
        assert_eq!(used(&throttler), [1, 2]);
        backends.update(&addresses(&[1, 2, 3], &[]));
        assert_eq!(used(&throttler), [1, 2, 3]);
        // Once pods are known to be reached, a Service that answers late changes nothing.
        backends.service_answered(SocketAddr::from(([10, 96, 0, 1], 80)));
        assert_eq!(used(&throttler), [1, 2, 3]);
    }

    #[test]
    fn where_only_the_service_answers_it_stands_for_the_ready_pods() {
        let (throttler, backends) = treated(Treatment { concurrency: 10, ..Treatment::of("rev") });
        let service = SocketAddr::from(([10, 96, 0, 1], 80));
        backends.update(&addresses(&[1, 2], &[3]));
        backends.suspected(&pod(&backends, 3));
        assert!(!backends.state.lock().service.is_asked(), "a pod that is not ready says nothing about a mesh");
        backends.suspected(&pod(&backends, 1));
        assert!(backends.state.lock().service.is_asked());
        backends.service_answered(service);
        let capacity = || throttler.pods().iter().map(|pod| (pod.address(), pod.capacity())).collect::<Vec<_>>();
        assert_eq!(capacity(), [(service, 20)]);
        backends.set_peers(Peers { index: 0, count: 5 });
        assert_eq!(capacity(), [(service, 4)]);
        backends.set_peers(Peers { index: 0, count: 200 });
        assert_eq!(capacity(), [(service, 1)]);
        // It is down as long as it does not answer, and asked again.
        let failed = throttler.pods()[0].clone();
        backends.failed(&failed);
        assert!(throttler.is_empty() && backends.state.lock().service.is_asked());
        backends.service_answered(service);
        assert!(Arc::ptr_eq(&throttler.pods()[0], &failed));
        backends.update(&addresses(&[], &[1, 2]));
        assert!(throttler.is_empty() && !backends.state.lock().service.is_asked());
    }

    #[test]
    fn in_a_mesh_the_service_is_asked_as_soon_as_a_pod_is_ready() {
        let (throttler, backends) = treated(Treatment { reach: Reach::Service, ..Treatment::of("rev") });
        backends.update(&addresses(&[], &[1]));
        assert!(!backends.state.lock().service.is_asked());
        backends.update(&addresses(&[1], &[]));
        assert!(backends.state.lock().service.is_asked() && throttler.is_empty());
        backends.service_answered(SocketAddr::from(([10, 96, 0, 1], 80)));
        assert_eq!(used(&throttler), [80]);
    }
}
