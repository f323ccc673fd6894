//! Which slices hold which endpoints, with as few and as small writes as possible.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use controller::ObjectKey;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::backends::Port;
use crate::selector::Labels;
use crate::{names, write};

/// Endpoints in one slice at most.
const MAX_ENDPOINTS: usize = 100;

/// Endpoints by address family and ports.
pub(crate) type Groups = BTreeMap<(&'static str, Vec<Port>), Vec<Endpoint>>;

/// Whose slices these are, and what they all carry.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) service: ObjectKey,
    pub(crate) reference: OwnerReference,
    pub(crate) labels: Labels,
    pub(crate) annotations: Option<Labels>,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Write {
    Create(Box<EndpointSlice>),
    Patch(String, Value),
    Delete(String),
}

/// A slice as it should be, and the one that is to become it.
struct Filled<'a> {
    slice: Option<&'a Arc<EndpointSlice>>,
    family: &'static str,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
}

/// The writes that turn `existing` into slices of `groups`.
///
/// An endpoint stays in its slice; new ones fill what has room; a slice that is no longer needed is used for another
/// group before a new one is made. With `placeholder` a Service without endpoints keeps one empty slice, so that its
/// first endpoint is a small change of something that is there.
pub(crate) fn pack(owner: &Owner, existing: &[Arc<EndpointSlice>], groups: Groups, placeholder: bool) -> Vec<Write> {
    let mut spare: Vec<&Arc<EndpointSlice>> = Vec::new();
    let mut kept: HashSet<String> = HashSet::new();
    let mut filled: Vec<Filled<'_>> = Vec::new();
    let mut homeless: Vec<(&'static str, Vec<EndpointPort>, Vec<Endpoint>)> = Vec::new();

    for ((family, ports), endpoints) in groups {
        let ports: Vec<EndpointPort> = ports.into_iter().map(slice_port).collect();
        let mut wanted: HashMap<String, Endpoint> = endpoints.into_iter().map(|e| (identity(&e), e)).collect();
        let mut slices = Vec::new();
        for slice in existing {
            let same = slice.address_type == family && slice.ports.as_deref().unwrap_or_default() == ports;
            if same && !slice.endpoints.is_empty() {
                let staying: Vec<Endpoint> =
                    slice.endpoints.iter().filter_map(|endpoint| wanted.remove(&identity(endpoint))).collect();
                kept.insert(slice.name_any());
                slices.push((slice, staying));
            }
        }
        let mut left: Vec<Endpoint> = wanted.into_values().collect();
        left.sort_by_key(identity);
        left.reverse();
        for (slice, mut endpoints) in slices {
            while endpoints.len() < MAX_ENDPOINTS
                && let Some(endpoint) = left.pop()
            {
                endpoints.push(endpoint);
            }
            if endpoints.is_empty() {
                spare.push(slice);
            } else {
                filled.push(Filled { slice: Some(slice), family, ports: ports.clone(), endpoints });
            }
        }
        left.reverse();
        for chunk in left.chunks(MAX_ENDPOINTS) {
            homeless.push((family, ports.clone(), chunk.to_vec()));
        }
    }
    spare.extend(existing.iter().filter(|slice| !kept.contains(&slice.name_any())));

    if filled.is_empty() && homeless.is_empty() && placeholder {
        // The address family of a slice never changes; whatever spare one there is will do.
        let family = if spare.first().is_some_and(|slice| slice.address_type == "IPv6") { "IPv6" } else { "IPv4" };
        homeless.push((family, Vec::new(), Vec::new()));
    }
    for (family, ports, endpoints) in homeless {
        let slice = spare.iter().position(|slice| slice.address_type == family).map(|at| spare.remove(at));
        filled.push(Filled { slice, family, ports, endpoints });
    }

    let mut writes: Vec<Write> = Vec::new();
    let mut taken: HashSet<String> = existing.iter().map(|slice| slice.name_any()).collect();
    for Filled { slice, family, ports, endpoints } in filled {
        match slice {
            Some(slice) => writes.extend(change(owner, slice, ports, endpoints)),
            None => {
                let name = free_name(owner, &taken);
                taken.insert(name.clone());
                writes.push(Write::Create(Box::new(new_slice(owner, name, family, ports, endpoints))));
            }
        }
    }
    writes.extend(spare.into_iter().map(|slice| Write::Delete(slice.name_any())));
    writes
}

fn change(owner: &Owner, slice: &EndpointSlice, ports: Vec<EndpointPort>, endpoints: Vec<Endpoint>) -> Option<Write> {
    let labels = write::difference(&slice.metadata.labels, &Some(&owner.labels));
    let annotations = owner.annotations.as_ref().and_then(|a| write::difference(&slice.metadata.annotations, &Some(a)));
    let same_ports = slice.ports.as_deref().unwrap_or_default() == ports;
    if labels.is_none() && annotations.is_none() && same_ports && slice.endpoints == endpoints {
        return None;
    }
    let metadata = json!({
        "labels": labels.unwrap_or_else(|| json!({})),
        "annotations": annotations.unwrap_or_else(|| json!({})),
    });
    let patch = json!({"metadata": metadata, "ports": ports, "endpoints": endpoints});
    Some(Write::Patch(slice.name_any(), patch))
}

fn new_slice(
    owner: &Owner,
    name: String,
    family: &str,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(name),
            generate_name: Some(format!("{}-", owner.service.name)),
            namespace: Some(owner.service.namespace.clone()),
            labels: Some(owner.labels.clone()),
            annotations: owner.annotations.clone().filter(|annotations| !annotations.is_empty()),
            owner_references: Some(vec![owner.reference.clone()]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        ports: Some(ports),
        endpoints,
    }
}

/// Made from the owner and a number, so that creating a slice that is there but not seen yet is refused.
fn free_name(owner: &Owner, taken: &HashSet<String>) -> String {
    let base: String = owner.service.name.chars().take(57).collect();
    let names = (0u32..).map(|number| {
        let hash = names::hash(&[owner.reference.uid.as_bytes(), &number.to_be_bytes()]);
        format!("{base}-{}", &hash[..5])
    });
    names.into_iter().find(|name| !taken.contains(name)).expect("endless numbers give a free name")
}

fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()).unwrap_or_default();
    format!("{}/{uid}", endpoint.addresses.first().map_or("", String::as_str))
}

fn slice_port(port: Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name),
        port: Some(port.port),
        protocol: Some(port.protocol),
        app_protocol: port.app_protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner {
            service: ObjectKey::new("ns", "s"),
            reference: OwnerReference { uid: "u".into(), ..OwnerReference::default() },
            labels: [("a".to_owned(), "b".to_owned())].into(),
            annotations: None,
        }
    }

    fn endpoint(ip: usize) -> Endpoint {
        Endpoint { addresses: vec![format!("10.0.{}.{}", ip / 250, ip % 250)], ..Endpoint::default() }
    }

    fn port(number: i32) -> Vec<Port> {
        vec![Port { name: "http".into(), port: number, protocol: "TCP".into(), app_protocol: None }]
    }

    fn group(number: i32, endpoints: impl Iterator<Item = usize>) -> Groups {
        [(("IPv4", port(number)), endpoints.map(endpoint).collect())].into()
    }

    /// Applies the writes as the API would.
    fn apply(existing: &[Arc<EndpointSlice>], writes: Vec<Write>) -> Vec<Arc<EndpointSlice>> {
        let mut slices: Vec<EndpointSlice> = existing.iter().map(|slice| (**slice).clone()).collect();
        for write in writes {
            match write {
                Write::Create(slice) => slices.push(*slice),
                Write::Delete(name) => slices.retain(|slice| slice.name_any() != name),
                Write::Patch(name, patch) => {
                    let slice = slices.iter_mut().find(|slice| slice.name_any() == name).unwrap();
                    slice.endpoints = serde_json::from_value(patch["endpoints"].clone()).unwrap();
                    slice.ports = serde_json::from_value(patch["ports"].clone()).unwrap();
                }
            }
        }
        slices.into_iter().map(Arc::new).collect()
    }

    #[test]
    fn the_placeholder_becomes_the_first_slice_and_the_last_one_the_placeholder() {
        let empty = apply(&[], pack(&owner(), &[], Groups::new(), true));
        assert_eq!((empty.len(), empty[0].endpoints.len()), (1, 0));
        assert_eq!(pack(&owner(), &empty, Groups::new(), true), [], "nothing to do twice");
        let writes = pack(&owner(), &empty, group(80, 0..1), true);
        assert!(matches!(&writes[..], [Write::Patch(..)]), "{writes:?}");
        let one = apply(&empty, writes);
        assert_eq!(pack(&owner(), &one, group(80, 0..1), true), []);
        let none = apply(&one, pack(&owner(), &one, Groups::new(), true));
        assert_eq!((none.len(), none[0].endpoints.len()), (1, 0));
    }

    #[test]
    fn one_endpoint_more_or_less_changes_one_slice() {
        let slices = apply(&[], pack(&owner(), &[], group(80, 0..250), true));
        assert_eq!(slices.len(), 3);
        assert_eq!(pack(&owner(), &slices, group(80, 0..251), true).len(), 1);
        assert_eq!(pack(&owner(), &slices, group(80, 1..250), true).len(), 1);
    }

    #[test]
    fn other_ports_reuse_the_slice() {
        let slices = apply(&[], pack(&owner(), &[], group(80, 0..2), true));
        let writes = pack(&owner(), &slices, group(81, 0..2), true);
        assert!(matches!(&writes[..], [Write::Patch(..)]), "{writes:?}");
        let gone = pack(&owner(), &slices, Groups::new(), false);
        assert!(matches!(&gone[..], [Write::Delete(_)]));
    }

    #[test]
    fn a_slice_that_is_not_seen_yet_is_made_under_the_same_name() {
        let name = |writes: Vec<Write>| match &writes[..] {
            [Write::Create(slice)] => slice.name_any(),
            other => panic!("{other:?}"),
        };
        assert_eq!(name(pack(&owner(), &[], group(80, 0..1), true)), name(pack(&owner(), &[], group(80, 0..2), true)));
    }
}
