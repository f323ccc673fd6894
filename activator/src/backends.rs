//! The pods of one revision: which exist, which are ready, which may be sent requests.
//!
//! Endpoints tell which addresses exist and what the kubelet thinks of them. A ready address is used at once. One
//! that is not ready yet is probed directly and used from its first success, if the revision's probes allow it. An
//! address that refuses a connection is set aside and probed until it answers or its endpoint goes; meanwhile the
//! requests wait, or go elsewhere. An address that leaves the endpoints is out before the next request.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use controller::Tasks;
use k8s_openapi::api::core::v1::Endpoints;
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    probe,
    throttler::{Pod, Throttler},
};

/// What a revision's private Endpoints say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) ready: BTreeSet<SocketAddr>,
    pub(crate) not_ready: BTreeSet<SocketAddr>,
}

/// How the pods of a revision are treated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Treatment {
    /// Requests a pod takes at once; 0: any number.
    pub(crate) concurrency: usize,
    /// Use a pod that answers a probe before the kubelet has found it ready.
    pub(crate) probe_early: bool,
    pub(crate) probe_limit: Duration,
}

pub(crate) struct Backends {
    throttler: Throttler,
    treatment: Treatment,
    tasks: Tasks,
    pods: Mutex<BTreeMap<SocketAddr, Known>>,
    this: Weak<Backends>,
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
        let port_name = if protocol == api::keys::PROTOCOL_H2C { "http2" } else { "http" };
        for subset in endpoints.subsets.iter().flatten() {
            let named = subset.ports.iter().flatten().find(|port| port.name.as_deref() == Some(port_name));
            let Some(port) = named.and_then(|port| u16::try_from(port.port).ok()) else { continue };
            let parse = |ip: &str| Some(SocketAddr::new(ip.parse().ok()?, port));
            let ready = subset.addresses.iter().flatten();
            let not_ready = subset.not_ready_addresses.iter().flatten();
            self.ready.extend(ready.filter_map(|address| parse(&address.ip)));
            self.not_ready.extend(not_ready.filter_map(|address| parse(&address.ip)));
        }
    }
}

// === impl Backends ===

impl Backends {
    pub(crate) fn new(throttler: Throttler, treatment: Treatment, tasks: Tasks) -> Arc<Self> {
        Arc::new_cyclic(|this| Self { throttler, treatment, tasks, pods: Mutex::default(), this: this.clone() })
    }

    /// Takes over what the endpoints say now.
    pub(crate) fn update(&self, addresses: &Addresses) {
        let mut pods = self.pods.lock();
        pods.retain(|address, _| addresses.ready.contains(address) || addresses.not_ready.contains(address));
        for &address in &addresses.ready {
            let known = self.known(&mut pods, address);
            if !std::mem::replace(&mut known.ready, true) {
                known.healthy = true;
                known.probe = None;
            }
        }
        for &address in addresses.not_ready.difference(&addresses.ready) {
            let known = self.known(&mut pods, address);
            if std::mem::replace(&mut known.ready, false) {
                known.healthy = false;
            }
            if !known.healthy && known.probe.is_none() && self.treatment.probe_early {
                known.probe = Some(self.probe(known.pod.clone()));
            }
        }
        self.publish(&pods);
    }

    /// A connection to `pod` failed: nothing is sent there until it has answered a probe.
    pub(crate) fn failed(&self, pod: &Arc<Pod>) {
        let mut pods = self.pods.lock();
        let Some(known) = pods.get_mut(&pod.address()).filter(|known| Arc::ptr_eq(&known.pod, pod)) else { return };
        if std::mem::replace(&mut known.healthy, false) {
            known.probe = Some(self.probe(known.pod.clone()));
            self.publish(&pods);
        }
    }

    fn succeeded(&self, pod: &Arc<Pod>) {
        let mut pods = self.pods.lock();
        let Some(known) = pods.get_mut(&pod.address()).filter(|known| Arc::ptr_eq(&known.pod, pod)) else { return };
        known.healthy = true;
        known.probe = None;
        self.publish(&pods);
    }

    fn known<'a>(&self, pods: &'a mut BTreeMap<SocketAddr, Known>, address: SocketAddr) -> &'a mut Known {
        pods.entry(address).or_insert_with(|| Known {
            pod: Pod::new(address, self.treatment.concurrency),
            ready: false,
            healthy: false,
            probe: None,
        })
    }

    fn probe(&self, pod: Arc<Pod>) -> DropGuard {
        let token = CancellationToken::new();
        let (cancelled, this, limit) = (token.clone(), self.this.clone(), self.treatment.probe_limit);
        self.tasks.spawn("probe", async move {
            tokio::select! {
                () = cancelled.cancelled() => return,
                () = probe::until_ready(&pod, limit) => {}
            }
            if let Some(this) = this.upgrade() {
                this.succeeded(&pod);
            }
        });
        token.drop_guard()
    }

    fn publish(&self, pods: &BTreeMap<SocketAddr, Known>) {
        self.throttler.set_pods(pods.values().filter(|known| known.healthy).map(|known| known.pod.clone()).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(ready: &[u16], not_ready: &[u16]) -> Addresses {
        let set = |ports: &[u16]| ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port))).collect();
        Addresses { ready: set(ready), not_ready: set(not_ready) }
    }

    fn backends() -> (Throttler, Arc<Backends>) {
        let throttler = Throttler::new(crate::throttler::QueueLimit::new(10, 10));
        let treatment = Treatment { concurrency: 0, probe_early: true, probe_limit: Duration::from_secs(1) };
        (throttler.clone(), Backends::new(throttler, treatment, Tasks::new()))
    }

    fn used(throttler: &Throttler) -> Vec<u16> {
        throttler.pods().iter().map(|pod| pod.address().port()).collect()
    }

    #[tokio::test]
    async fn ready_addresses_are_used_and_those_that_leave_are_not() {
        let (throttler, backends) = backends();
        backends.update(&addresses(&[1, 2], &[3]));
        assert_eq!(used(&throttler), [1, 2]);
        backends.update(&addresses(&[2], &[1]));
        assert_eq!(used(&throttler), [2]);
        backends.update(&addresses(&[], &[]));
        assert!(used(&throttler).is_empty());
    }

    #[tokio::test]
    async fn a_pod_that_answered_a_probe_stays_in_use_while_it_is_not_ready_yet() {
        let (throttler, backends) = backends();
        backends.update(&addresses(&[], &[3]));
        let pod = backends.pods.lock().values().next().expect("known").pod.clone();
        backends.succeeded(&pod);
        backends.update(&addresses(&[], &[3, 4]));
        assert_eq!(used(&throttler), [3]);
    }

    #[tokio::test]
    async fn a_pod_that_failed_comes_back_by_its_probe_not_by_the_next_event() {
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
        assert_eq!(found.ready, ["10.0.0.1:8012".parse().unwrap()].into());
        assert_eq!(found.not_ready, ["10.0.0.2:8012".parse().unwrap()].into());
        assert_eq!(of("h2c"), Addresses::default());
    }
}
