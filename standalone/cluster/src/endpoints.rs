//! Endpoints of Services with a selector: what the ServerlessService controller counts ready pods by.

use std::collections::BTreeMap;
use std::sync::Arc;

use controller::{Context, Error, ObjectKey, Queue};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use crate::backends::{self, HEADLESS, Port};
use crate::caches::Caches;
use crate::error::told;
use crate::selector::Labels;
use crate::write;

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpoint-controller";

struct Controller {
    client: Client,
    caches: Caches,
}

pub(crate) fn start(ctx: &Context, caches: &Caches, workers: usize) {
    let queue: Queue = Queue::new();
    backends::feed(caches, &queue);
    let changed = queue.clone();
    // Our own writes too: what was decided on an older state is looked at again when that state is seen.
    caches.endpoints.on_event(move |change| changed.add(ObjectKey::of(&**change.object())));
    let controller = Arc::new(Controller { client: ctx.client.clone(), caches: caches.clone() });
    queue.run(&ctx.tasks, "endpoints", workers, move |key| {
        let controller = controller.clone();
        async move { told("endpoints", &key, controller.sync(&key).await) }
    });
}

// === impl Controller ===

impl Controller {
    async fn sync(&self, key: &ObjectKey) -> Result<(), Error> {
        let current = self.caches.endpoints.get_key(key);
        let api = write::meta_api::<Endpoints>(&self.client, &key.namespace);
        let Some(service) = self.caches.services.get_key(key) else {
            let ours = current.is_some_and(|e| e.labels().get(MANAGED_BY).is_some_and(|by| by == CONTROLLER));
            if ours {
                match api.delete(&key.name, &DeleteParams::background()).await {
                    Err(error) if !controller::error::is_not_found(&error) => return Err(error.into()),
                    _ => {}
                }
            }
            return Ok(());
        };
        let Some(spec) = service.spec.as_ref().filter(|_| backends::is_selecting(&service)) else { return Ok(()) };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let wanted = endpoints(&service, &backends::pods(&self.caches, &key.namespace, spec));
        let Some(current) = current else {
            let full: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
            return match full.create(&PostParams::default(), &wanted).await {
                // Deleted with its namespace, or seen in a moment.
                Err(error) if controller::error::is_already_exists(&error) => Err(Error::Conflict(error.to_string())),
                Err(error) => Err(error.into()),
                Ok(_) => Ok(()),
            };
        };
        let same = current.metadata.labels == wanted.metadata.labels
            && current.subsets.as_deref().unwrap_or_default() == wanted.subsets.as_deref().unwrap_or_default();
        if !same {
            let labels = write::difference(&current.metadata.labels, &wanted.metadata.labels);
            let patch = json!({
                "metadata": {"labels": labels.unwrap_or_else(|| json!({}))},
                "subsets": wanted.subsets.unwrap_or_default(),
            });
            match api.patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                // Our view of it was old; its deletion is about to be seen.
                Err(error) if controller::error::is_not_found(&error) => {}
                other => drop(other?),
            }
        }
        Ok(())
    }
}

/// The Endpoints a Service should have. Ports that pods serve under different numbers make several subsets.
fn endpoints(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let mut subsets: BTreeMap<Vec<Port>, [Vec<EndpointAddress>; 2]> = BTreeMap::new();
    let Some(spec) = service.spec.as_ref() else { return Endpoints::default() };
    let unready_too = spec.publish_not_ready_addresses == Some(true);
    for pod in pods {
        let Some(backend) = backends::backend(service, pod).filter(|b| !b.terminating || unready_too) else { continue };
        let Some(ports) = backends::ports(spec, pod) else { continue };
        let list = usize::from(!(backend.ready || unready_too));
        subsets.entry(ports).or_default()[list].push(EndpointAddress {
            ip: backend.ip,
            hostname: backend.hostname,
            node_name: backend.node,
            target_ref: Some(backend.target),
        });
    }
    let subsets: Vec<EndpointSubset> = subsets
        .into_iter()
        .map(|(ports, [mut ready, mut not_ready])| {
            for list in [&mut ready, &mut not_ready] {
                list.sort_by(|a, b| a.ip.cmp(&b.ip));
            }
            EndpointSubset {
                addresses: (!ready.is_empty()).then_some(ready),
                not_ready_addresses: (!not_ready.is_empty()).then_some(not_ready),
                ports: (!ports.is_empty()).then(|| ports.into_iter().map(endpoint_port).collect()),
            }
        })
        .collect();
    let mut labels: Labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    if backends::is_headless(spec) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.namespace(),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

fn endpoint_port(port: Port) -> EndpointPort {
    EndpointPort {
        name: (!port.name.is_empty()).then_some(port.name),
        port: port.port,
        protocol: Some(port.protocol),
        app_protocol: port.app_protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, ip: &str, ready: bool, named_port: i32) -> Arc<Pod> {
        let ready = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "ns", "uid": name},
                "spec": {"nodeName": "box", "containers": [{"name": "c", "ports": [
                    {"name": "http-autometric", "containerPort": named_port},
                ]}]},
                "status": {"podIP": ip, "phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap(),
        )
    }

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "ns", "labels": {"a": "b"}},
            "spec": {"selector": {"x": "y"}, "ports": [
                {"name": "http", "port": 80, "targetPort": 8012},
                {"name": "http-autometric", "port": 9090, "targetPort": "http-autometric"},
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn ready_and_not_ready_pods_under_resolved_ports() {
        let pods = [pod("b", "10.0.0.2", true, 9090), pod("a", "10.0.0.1", false, 9090)];
        let got = serde_json::to_value(endpoints(&service(), &pods)).unwrap();
        let address = |ip: &str, name: &str| {
            let target = json!({"kind": "Pod", "name": name, "namespace": "ns", "uid": name});
            json!({"ip": ip, "nodeName": "box", "targetRef": target})
        };
        assert_eq!(got["metadata"]["labels"], json!({"a": "b", MANAGED_BY: CONTROLLER}));
        assert_eq!(
            got["subsets"],
            json!([{
                "addresses": [address("10.0.0.2", "b")],
                "notReadyAddresses": [address("10.0.0.1", "a")],
                "ports": [
                    {"name": "http", "port": 8012, "protocol": "TCP"},
                    {"name": "http-autometric", "port": 9090, "protocol": "TCP"},
                ],
            }])
        );
    }

    #[test]
    fn a_port_under_another_number_is_another_subset_and_a_missing_one_is_left_out() {
        let mut nameless = (*pod("c", "10.0.0.3", true, 1)).clone();
        nameless.spec.as_mut().unwrap().containers[0].ports = None;
        let pods = [pod("a", "10.0.0.1", true, 9090), pod("b", "10.0.0.2", true, 9999), Arc::new(nameless)];
        let subsets = endpoints(&service(), &pods).subsets.unwrap();
        let ports: Vec<Vec<i32>> = subsets.iter().map(|s| s.ports.iter().flatten().map(|p| p.port).collect()).collect();
        assert_eq!(ports, [vec![8012], vec![8012, 9090], vec![8012, 9999]]);
    }

    #[test]
    fn terminating_and_finished_pods_are_not_there() {
        let mut leaving = (*pod("a", "10.0.0.1", true, 9090)).clone();
        leaving.metadata.deletion_timestamp = Some(crate::names::now());
        let mut done = (*pod("b", "10.0.0.2", true, 9090)).clone();
        done.status.as_mut().unwrap().phase = Some("Succeeded".into());
        assert_eq!(endpoints(&service(), &[Arc::new(leaving), Arc::new(done)]).subsets, None);
    }
}
