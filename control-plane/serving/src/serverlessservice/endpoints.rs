//! Which addresses the public Endpoints have: the revision's pods or activators.

use std::collections::BTreeSet;

use api::keys::ports;
use api::networking::v1alpha1::ServerlessService;
use api::subset;
use k8s_openapi::api::core::v1::{EndpointPort, EndpointSubset};
use kube::ResourceExt;

use super::children::protocol;

const SERVE: &str = "Serve";

/// The decision for one ServerlessService.
#[derive(Debug, Clone, PartialEq)]
pub struct Backends {
    /// For the public Endpoints.
    pub subsets: Vec<EndpointSubset>,
    /// Ready pods.
    pub private_ready: usize,
    /// The mode asked for, which is not always the mode chosen.
    pub proxy_wanted: bool,
}

/// Pods while there are ready ones and the mode is `Serve`, else activators; pods again if no activator is ready.
pub fn choose(sks: &ServerlessService, private: &[EndpointSubset], activators: &[EndpointSubset]) -> Backends {
    let proxy_wanted = sks.spec.mode != SERVE;
    let private_ready = ready(private);
    let serve = private_ready > 0 && (!proxy_wanted || ready(activators) == 0);
    let (name, number) = protocol(sks);
    let wanted = [(name, number), ("https", ports::BACKEND_HTTPS)];
    let subsets = if serve {
        with_ports(private.to_vec(), wanted)
    } else {
        let count = usize::try_from(sks.spec.num_activators).unwrap_or(0);
        with_ports(reduce(activators, &sks.name_any(), count), wanted)
    };
    Backends { subsets, private_ready, proxy_wanted }
}

fn ready(subsets: &[EndpointSubset]) -> usize {
    subsets.iter().flat_map(|subset| &subset.addresses).map(Vec::len).sum()
}

/// The activators that stand before this revision: `count` of them, always the same ones; 0 means all.
fn reduce(subsets: &[EndpointSubset], target: &str, count: usize) -> Vec<EndpointSubset> {
    if count == 0 {
        return subsets.to_vec();
    }
    let addresses = subsets.iter().flat_map(|subset| subset.addresses.iter().flatten());
    let all: BTreeSet<String> = addresses.map(|address| address.ip.clone()).collect();
    let chosen = subset::choose(&all, target, count);
    let reduced = subsets.iter().filter_map(|subset| {
        let mut subset = subset.clone();
        let addresses = subset.addresses.get_or_insert_default();
        addresses.retain(|address| chosen.contains(&address.ip));
        (!addresses.is_empty()).then_some(subset)
    });
    reduced.collect()
}

/// Only the ports that requests go to. Two names for one number are one port, under the name of the Service's.
fn with_ports(mut subsets: Vec<EndpointSubset>, wanted: [(&str, u16); 2]) -> Vec<EndpointSubset> {
    for subset in &mut subsets {
        let present = subset.ports.take().unwrap_or_default();
        let find = |(name, number): (&str, u16)| -> Option<EndpointPort> {
            let mut same = present.iter().filter(|port| port.port == i32::from(number));
            let first = same.clone().next();
            same.find(|port| port.name.as_deref() == Some(name)).or(first).cloned()
        };
        let kept: Vec<EndpointPort> = wanted.into_iter().filter_map(find).collect();
        subset.ports = (!kept.is_empty()).then_some(kept);
    }
    subsets
}
