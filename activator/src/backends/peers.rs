//! Which activators share a revision, and which part of its pods is whose.

use std::{collections::BTreeSet, net::IpAddr, ops::Range};

use super::listing::{Group, Groups, port_name};

/// This activator's place among those that a revision's public Endpoints list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peers {
    pub(crate) index: usize,
    pub(crate) count: usize,
}

// === impl Peers ===

impl Peers {
    /// Where `own` stands among the addresses of a revision's public Endpoints; nothing if it is not there.
    pub(crate) fn find(endpoints: &Groups, own: IpAddr, protocol: &str) -> Option<Self> {
        let port = port_name(protocol);
        let endpoints = if endpoints.may_list(own) { endpoints.read() } else { return None };
        let listed = || endpoints.iter().filter(|group| group.has(port)).flat_map(Group::ready);
        // Pods may be listed as well as activators, and there may be many of them.
        listed().find(|ip| *ip == own)?;
        let ips: BTreeSet<_> = listed().map(|ip| ip.to_string()).collect();
        let index = ips.iter().position(|ip| *ip == own.to_string())?;
        Some(Self { index, count: ips.len() })
    }

    /// Which of `pods` are this activator's. With fewer pods than activators each activator has one; otherwise each has
    /// an equal run of them, and the rest goes to the first activators, one each.
    pub(super) fn part(self, pods: usize) -> [Range<usize>; 2] {
        const NONE: Range<usize> = 0..0;
        if pods <= 1 || self.count <= 1 {
            return [0..pods, NONE];
        }
        if self.count > pods {
            let one = self.index % pods;
            return [one..one + 1, NONE];
        }
        let (share, rest) = (pods / self.count, pods % self.count);
        let run = self.index * share..(self.index + 1) * share;
        let last = pods - rest + self.index;
        [run, if self.index < rest { last..last + 1 } else { NONE }]
    }

    #[cfg(test)]
    pub(super) fn owns(self, index: usize, pods: usize) -> bool {
        self.part(pods).iter().any(|range| range.contains(&index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::{Listing, Whole};

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
        let json = serde_json::json!({"metadata": {}, "subsets": [
            {"addresses": [{"ip": "10.0.0.9"}, {"ip": "10.0.0.10"}], "ports": [{"name": "http", "port": 8012}]},
            {"addresses": [{"ip": "10.0.0.1"}], "ports": [{"name": "http2", "port": 8013}]},
        ]});
        let endpoints: Listing<Whole> = serde_json::from_value(json).expect("valid");
        let find = |ip: &str| Peers::find(&endpoints.groups, ip.parse().unwrap(), "http1");
        assert_eq!(find("10.0.0.9"), Some(Peers { index: 1, count: 2 }));
        assert_eq!(find("10.0.0.1"), None);
    }
}
