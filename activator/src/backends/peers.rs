//! What Endpoints say about a revision: where its pods are, and which activators share it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints};

use crate::throttler::Endpoint;

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
    pub(super) fn owns(self, index: usize, pods: usize) -> bool {
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

/// The port of a revision's Services that leads to its pods.
pub(crate) fn port_name(protocol: &str) -> &'static str {
    if protocol == api::keys::PROTOCOL_H2C { "http2" } else { "http" }
}

#[cfg(test)]
mod tests {
    use super::*;

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
