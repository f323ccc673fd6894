//! The pods of one revision: which exist, which are ready, which may be sent requests.
//!
//! Endpoints tell which addresses exist and what the kubelet thinks of them. A ready address is used at once. One
//! that is not ready yet is probed directly and used from its first success, if the revision's probes allow it. An
//! address that refuses a connection is set aside and probed until it answers or its endpoint goes; meanwhile the
//! requests wait, or go elsewhere. An address that leaves the endpoints is out before the next request. Should it come back (events may tell of it late and
//! twice) it is the same pod with the same requests under way.
//!
//! Several activators share the pods of a revision with containerConcurrency: each uses its own part, as upstream
//! divides them, so that their slots add up to what the pods can take.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
};

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints};
use parking_lot::Mutex;
use tokio_util::sync::DropGuard;

use crate::throttler::{Endpoint, Pod, Throttler};

/// What a revision's private Endpoints say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) ready: BTreeSet<Endpoint>,
    pub(crate) not_ready: BTreeSet<Endpoint>,
}

/// This activator's place among those that a revision's public Endpoints list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peers {
    pub(crate) index: usize,
    pub(crate) count: usize,
}

/// Asks pods whether they are ready.
pub(crate) trait Prober: Send + Sync {
    /// Asks until the pod is ready and calls [`Backends::succeeded`] then. Dropping the guard ends it.
    fn start(&self, pod: Arc<Pod>, asker: Weak<Backends>) -> DropGuard;
}

/// How the pods of a revision are treated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Treatment {
    /// Requests a pod takes at once; 0: any number.
    pub(crate) concurrency: usize,
    /// Use a pod that answers a probe before the kubelet has found it ready.
    pub(crate) probe_early: bool,
}

pub(crate) struct Backends {
    throttler: Throttler,
    treatment: Treatment,
    prober: Arc<dyn Prober>,
    state: Mutex<State>,
    this: Weak<Backends>,
}

#[derive(Default)]
struct State {
    pods: BTreeMap<Endpoint, Known>,
    /// Pods that have left the endpoints and still have requests.
    departed: BTreeMap<Endpoint, Weak<Pod>>,
    peers: Option<Peers>,
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

// === impl Addresses ===

impl Addresses {
    /// Adds the addresses of the port that serves `protocol` (`http1` or `h2c`).
    pub(crate) fn add(&mut self, endpoints: &Endpoints, protocol: &str) {
        let port_name = port_name(protocol);
        for subset in endpoints.subsets.iter().flatten() {
            let named = subset.ports.iter().flatten().find(|port| port.name.as_deref() == Some(port_name));
            let Some(port) = named.and_then(|port| u16::try_from(port.port).ok()) else { continue };
            let parse = |address: &EndpointAddress| {
                let uid = address.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default();
                Some(Endpoint { address: SocketAddr::new(address.ip.parse().ok()?, port), uid: uid.into() })
            };
            let ready = subset.addresses.iter().flatten();
            let not_ready = subset.not_ready_addresses.iter().flatten();
            self.ready.extend(ready.filter_map(parse));
            self.not_ready.extend(not_ready.filter_map(parse));
        }
    }
}

// === impl Peers ===

impl Peers {
    /// Where `own` stands among the addresses of a revision's public Endpoints; nothing if it is not there.
    pub(crate) fn find(endpoints: &Endpoints, own: IpAddr, protocol: &str) -> Option<Self> {
        let port_name = port_name(protocol);
        let mut ips = BTreeSet::new();
        for subset in endpoints.subsets.iter().flatten() {
            if subset.ports.iter().flatten().any(|port| port.name.as_deref() == Some(port_name)) {
                ips.extend(subset.addresses.iter().flatten().map(|address| address.ip.as_str()));
            }
        }
        let index = ips.iter().position(|ip| ip.parse() == Ok(own))?;
        Some(Self { index, count: ips.len() })
    }

    /// Whether pod number `index` of `pods` is this activator's. With fewer pods than activators each activator has
    /// one; otherwise each has an equal run of them, and the rest goes to the first activators, one each.
    fn owns(self, index: usize, pods: usize) -> bool {
        if pods <= 1 || self.count <= 1 {
            return true;
        }
        if self.count > pods {
            return index == self.index % pods;
        }
        let (share, rest) = (pods / self.count, pods % self.count);
        let run = self.index * share..(self.index + 1) * share;
        run.contains(&index) || (self.index < rest && index == pods - rest + self.index)
    }
}

// === impl Backends ===

impl Backends {
    pub(crate) fn new(throttler: Throttler, treatment: Treatment, prober: Arc<dyn Prober>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self { throttler, treatment, prober, state: Mutex::default(), this: this.clone() })
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
            let known = self.known(&mut state, endpoint);
            if !std::mem::replace(&mut known.ready, true) {
                known.healthy = true;
                known.probe = None;
            }
        }
        for endpoint in addresses.not_ready.difference(&addresses.ready) {
            let known = self.known(&mut state, endpoint);
            if std::mem::replace(&mut known.ready, false) {
                known.healthy = false;
            }
            if !known.healthy && known.probe.is_none() && self.treatment.probe_early {
                known.probe = Some(self.prober.start(known.pod.clone(), self.this.clone()));
            }
        }
        self.publish(&state);
    }

    /// Takes over where this activator stands. Not being listed says nothing, as upstream sees it.
    pub(crate) fn set_peers(&self, peers: Peers) {
        let mut state = self.state.lock();
        if state.peers.replace(peers) != Some(peers) {
            self.publish(&state);
        }
    }

    /// Whether each activator uses only a part of the pods.
    pub(crate) fn are_divided(&self) -> bool {
        self.treatment.concurrency > 0
    }

    /// A connection to `pod` failed: nothing is sent there until it has answered a probe.
    pub(crate) fn failed(&self, pod: &Arc<Pod>) {
        let mut state = self.state.lock();
        let Some(known) = state.known(pod) else { return };
        if std::mem::replace(&mut known.healthy, false) {
            known.probe = Some(self.prober.start(known.pod.clone(), self.this.clone()));
            self.publish(&state);
        }
    }

    /// A pod answered a probe.
    pub(crate) fn succeeded(&self, pod: &Arc<Pod>) {
        let mut state = self.state.lock();
        let Some(known) = state.known(pod) else { return };
        known.probe = None;
        // Where only the kubelet can tell, an answer means something only if the kubelet agrees.
        known.healthy = known.ready || self.treatment.probe_early;
        self.publish(&state);
    }

    fn known<'a>(&self, state: &'a mut State, endpoint: &Endpoint) -> &'a mut Known {
        let State { pods, departed, .. } = state;
        pods.entry(endpoint.clone()).or_insert_with(|| {
            let returned = departed.remove(endpoint).and_then(|pod| pod.upgrade());
            let pod = returned.unwrap_or_else(|| Pod::new(endpoint.clone(), self.treatment.concurrency));
            Known { pod, ready: false, healthy: false, probe: None }
        })
    }

    fn publish(&self, state: &State) {
        let healthy: Vec<_> = state.pods.values().filter(|known| known.healthy).map(|known| &known.pod).collect();
        let own = match state.peers {
            Some(peers) if self.are_divided() => {
                // By name, as every activator sorts them.
                let mut named: Vec<_> = healthy.iter().map(|pod| (pod.address().to_string(), *pod)).collect();
                named.sort_by(|(one, _), (other, _)| one.cmp(other));
                let count = named.len();
                let own = named.into_iter().enumerate().filter(|(index, _)| peers.owns(*index, count));
                own.map(|(_, (_, pod))| pod.clone()).collect()
            }
            _ => healthy.into_iter().cloned().collect(),
        };
        self.throttler.set_pods(own);
    }
}

// === impl State ===

impl State {
    fn known(&mut self, pod: &Arc<Pod>) -> Option<&mut Known> {
        self.pods.get_mut(pod.endpoint()).filter(|known| Arc::ptr_eq(&known.pod, pod))
    }
}

fn port_name(protocol: &str) -> &'static str {
    if protocol == api::keys::PROTOCOL_H2C { "http2" } else { "http" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(ready: &[u16], not_ready: &[u16]) -> Addresses {
        let set = |ports: &[u16]| ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port)).into()).collect();
        Addresses { ready: set(ready), not_ready: set(not_ready) }
    }

    struct Never;

    impl Prober for Never {
        fn start(&self, _: Arc<Pod>, _: Weak<Backends>) -> DropGuard {
            tokio_util::sync::CancellationToken::new().drop_guard()
        }
    }

    fn backends() -> (Throttler, Arc<Backends>) {
        treated(Treatment { concurrency: 0, probe_early: true })
    }

    fn treated(treatment: Treatment) -> (Throttler, Arc<Backends>) {
        let bound = crate::throttler::Bound { per_revision: 1000, total: 1000 };
        let throttler = Throttler::new(crate::throttler::QueueLimit::new(bound, bound));
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
        let (throttler, backends) = treated(Treatment { concurrency: 1, probe_early: true });
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
        let (throttler, backends) = treated(Treatment { concurrency: 0, probe_early: false });
        backends.update(&addresses(&[1], &[]));
        let pod = throttler.pods()[0].clone();
        backends.failed(&pod);
        backends.update(&addresses(&[], &[1]));
        backends.succeeded(&pod);
        assert!(used(&throttler).is_empty());
        backends.update(&addresses(&[1], &[]));
        assert_eq!(used(&throttler), [1]);
    }

    #[test]
    fn activators_divide_the_pods_as_upstream_does() {
        let owned = |pods: usize, count: usize, index: usize| {
            let peers = Peers { index, count };
            (0..pods).filter(|pod| peers.owns(*pod, pods)).collect::<Vec<_>>()
        };
        assert_eq!((owned(3, 2, 0), owned(3, 2, 1)), (vec![0, 2], vec![1]));
        assert_eq!((owned(5, 2, 0), owned(5, 2, 1)), (vec![0, 1, 4], vec![2, 3]));
        assert_eq!((owned(2, 5, 0), owned(2, 5, 3)), (vec![0], vec![1]));
        assert_eq!((owned(1, 5, 3), owned(4, 1, 0)), (vec![0], vec![0, 1, 2, 3]));
    }

    #[test]
    fn an_activator_finds_itself_in_the_public_endpoints() {
        let json = serde_json::json!({"subsets": [
            {"addresses": [{"ip": "10.0.0.9"}, {"ip": "10.0.0.10"}], "ports": [{"name": "http", "port": 8012}]},
            {"addresses": [{"ip": "10.0.0.1"}], "ports": [{"name": "http2", "port": 8013}]},
        ]});
        let endpoints: Endpoints = serde_json::from_value(json).expect("valid");
        let find = |ip: &str| Peers::find(&endpoints, ip.parse().unwrap(), "http1");
        assert_eq!(find("10.0.0.9"), Some(Peers { index: 1, count: 2 }));
        assert_eq!(find("10.0.0.1"), None);
    }

    #[test]
    fn the_port_of_the_protocol_is_used() {
        let json = serde_json::json!({"subsets": [{
            "addresses": [{"ip": "10.0.0.1"}],
            "notReadyAddresses": [{"ip": "10.0.0.2"}],
            "ports": [{"name": "http-autometric", "port": 9090}, {"name": "http", "port": 8012}],
        }]});
        let endpoints: Endpoints = serde_json::from_value(json).expect("valid");
        let of = |protocol| {
            let mut addresses = Addresses::default();
            addresses.add(&endpoints, protocol);
            addresses
        };
        let found = of("http1");
        assert_eq!(found.ready, [Endpoint::from("10.0.0.1:8012".parse::<SocketAddr>().unwrap())].into());
        assert_eq!(found.not_ready, [Endpoint::from("10.0.0.2:8012".parse::<SocketAddr>().unwrap())].into());
        assert_eq!(of("h2c"), Addresses::default());
    }
}
