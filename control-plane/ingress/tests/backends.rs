//! What a changed Ingress looks up: a backend that is in use is known, until an event says that it is another one.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use api::networking::v1alpha1::Ingress;
use controller::ObjectKey;
use ingress::{
    Options,
    world::{Objects, World},
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use parking_lot::Mutex;
use serde_json::{Value, json};
use xds::{Kind, Xds};

#[derive(Clone, Default)]
struct Store {
    services: Arc<Mutex<HashMap<ObjectKey, Arc<Service>>>>,
    looked_up: Arc<AtomicUsize>,
}

impl Store {
    fn set(&self, ports: Value) {
        let service = json!({"metadata": {"name": "app", "namespace": "default"}, "spec": {"ports": ports}});
        self.services.lock().insert(app(), Arc::new(serde_json::from_value(service).unwrap()));
    }

    fn looked_up(&self) -> usize {
        self.looked_up.swap(0, Ordering::Relaxed)
    }
}

impl Objects for Store {
    fn service(&self, key: &ObjectKey) -> Option<Arc<Service>> {
        self.looked_up.fetch_add(1, Ordering::Relaxed);
        self.services.lock().get(key).cloned()
    }

    fn slices(&self, _: &ObjectKey) -> Vec<Arc<EndpointSlice>> {
        let slice = json!({"metadata": {}, "addressType": "IPv4", "ports": [{"name": "http", "port": 8012}],
            "endpoints": [{"addresses": ["10.0.0.1"]}]});
        vec![Arc::new(serde_json::from_value(slice).unwrap())]
    }
}

fn app() -> ObjectKey {
    ObjectKey::new("default", "app")
}

fn ingress(generation: i64) -> Ingress {
    let split = json!({"serviceNamespace": "default", "serviceName": "app", "servicePort": 80, "percent": 100});
    let step = json!({"X-Step": generation.to_string()});
    let rule = json!({"hosts": ["app.example.com"], "visibility": "ExternalIP",
        "http": {"paths": [{"splits": [split], "appendHeaders": step}]}});
    serde_json::from_value(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
        "metadata": {"name": "app", "namespace": "default", "generation": generation},
        "spec": {"rules": [rule]},
    }))
    .unwrap()
}

#[test]
fn a_changed_route_looks_up_no_service_and_a_changed_service_is_looked_up_again() {
    let store = Store::default();
    let http = json!({"name": "http", "port": 80, "targetPort": 8012});
    store.set(json!([http]));
    let (xds, _events) = Xds::new();
    let mut world = World::new(store.clone(), xds.clone(), &Options::default());
    world.apply(&ingress(1));
    assert_eq!(store.looked_up(), 1);
    world.apply(&ingress(2));
    assert_eq!(store.looked_up(), 0);
    let cluster = |name: &str| xds.resource(Kind::Cluster, name).is_some();
    assert!(cluster("default/app") && !cluster("default/app:80"));

    // Not its first port any more: the cluster has another name.
    store.set(json!([{"name": "other", "port": 81, "targetPort": 8013}, http]));
    let again = world.refresh(&app());
    assert_eq!(again, [app()].into());
    world.apply(&ingress(2));
    assert!(!cluster("default/app") && cluster("default/app:80"));

    store.services.lock().clear();
    world.refresh(&app());
    store.looked_up();
    world.apply(&ingress(3));
    assert!(store.looked_up() > 0, "a Service that is gone has no ports, so this is another cluster");
    assert!(cluster("default/app:80"), "what works stays until the other has addresses");
}
