//! EndpointSlices of Services without a selector, mirrored from Endpoints that somebody else writes.
//!
//! The gateway reads slices while the ServerlessService controller writes Endpoints: this is on the way of every
//! change of a Revision's backends.

use std::sync::Arc;

use controller::{Context, Error, ObjectKey, Queue};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions};
use kube::{Client, ResourceExt};

use crate::backends::{self, MANAGED_BY, Port, SERVICE_NAME};
use crate::caches::Caches;
use crate::endpointslice::{Groups, Owner, Write, feed_back, pack, slices_of, write_all};
use crate::error::told;

const CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const NOT_COPIED: [&str; 2] =
    ["kubectl.kubernetes.io/last-applied-configuration", "endpoints.kubernetes.io/last-change-trigger-time"];

struct Controller {
    client: Client,
    caches: Caches,
}

pub(crate) fn start(ctx: &Context, caches: &Caches, workers: usize) {
    let queue: Queue = Queue::new();
    let changed = queue.clone();
    caches.endpoints.on_event(move |change| changed.add(ObjectKey::of(&**change.object())));
    let changed = queue.clone();
    caches.services.on_event(move |change| {
        if !backends::is_selecting(change.object()) {
            changed.add(ObjectKey::of(&**change.object()));
        }
    });
    feed_back(caches, &queue, CONTROLLER);
    let controller = Arc::new(Controller { client: ctx.client.clone(), caches: caches.clone() });
    queue.run(&ctx.tasks, "mirroring", workers, move |key| {
        let controller = controller.clone();
        async move { told("mirroring", &key, controller.sync(&key).await) }
    });
}

// === impl Controller ===

impl Controller {
    async fn sync(&self, key: &ObjectKey) -> Result<(), Error> {
        let existing = slices_of(&self.caches, key, CONTROLLER);
        let service = self.caches.services.get_key(key).filter(|service| !backends::is_selecting(service));
        let endpoints = self.caches.endpoints.get_key(key).filter(|endpoints| is_mirrored(endpoints));
        let writes = match (service, endpoints) {
            (Some(_), Some(endpoints)) => pack(&owner(key, &endpoints), &existing, groups(&endpoints), false),
            _ => existing.iter().map(|slice| Write::Delete(slice.name_any())).collect(),
        };
        write_all(&self.client, &key.namespace, writes).await
    }
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    endpoints.metadata.deletion_timestamp.is_none()
        && endpoints.labels().get(SKIP).is_none_or(|skip| skip != "true")
        && !endpoints.annotations().contains_key(LEADER)
}

fn owner(key: &ObjectKey, endpoints: &Endpoints) -> Owner {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    labels.insert(SERVICE_NAME.to_owned(), key.name.clone());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|name, _| !NOT_COPIED.contains(&name.as_str()));
    Owner {
        service: key.clone(),
        reference: controller::owner_reference(endpoints),
        labels,
        annotations: Some(annotations),
    }
}

fn groups(endpoints: &Endpoints) -> Groups {
    let mut groups = Groups::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = ports(subset);
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(not_ready) {
            let family = if address.ip.contains(':') { "IPv6" } else { "IPv4" };
            groups.entry((family, ports.clone())).or_default().push(endpoint(address, ready));
        }
    }
    groups
}

fn ports(subset: &EndpointSubset) -> Vec<Port> {
    let ports = subset.ports.iter().flatten().map(|port| Port {
        name: port.name.clone().unwrap_or_default(),
        port: port.port,
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        app_protocol: port.app_protocol.clone(),
    });
    ports.collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn not_ready_addresses_are_kept_as_such() {
        let endpoints: Endpoints = serde_json::from_value(json!({
            "metadata": {"name": "hello-00001", "namespace": "default", "uid": "u",
                "annotations": {"serving.knative.dev/creator": "me", NOT_COPIED[1]: "now"}},
            "subsets": [{
                "addresses": [{"ip": "10.244.0.17", "nodeName": "box"}],
                "notReadyAddresses": [{"ip": "10.244.0.18"}],
                "ports": [{"name": "http", "port": 8012, "protocol": "TCP"}],
            }],
        }))
        .unwrap();
        let key = ObjectKey::new("default", "hello-00001");
        let writes = pack(&owner(&key, &endpoints), &[], groups(&endpoints), false);
        let [Write::Create(slice)] = &writes[..] else { panic!("{writes:?}") };
        let slice = serde_json::to_value(slice).unwrap();
        assert_eq!(slice["metadata"]["annotations"], json!({"serving.knative.dev/creator": "me"}));
        assert_eq!(slice["metadata"]["ownerReferences"][0]["kind"], "Endpoints");
        assert_eq!(slice["ports"], json!([{"name": "http", "port": 8012, "protocol": "TCP"}]));
        assert_eq!(
            slice["endpoints"],
            json!([
                {"addresses": ["10.244.0.17"], "conditions": {"ready": true}, "nodeName": "box"},
                {"addresses": ["10.244.0.18"], "conditions": {"ready": false}},
            ])
        );
    }
}
