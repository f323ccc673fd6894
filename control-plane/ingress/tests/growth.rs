//! Ingresses that come and go leave nothing behind.

use std::{collections::HashMap, sync::Arc};

use api::networking::v1alpha1::Ingress;
use controller::ObjectKey;
use ingress::{
    Options,
    world::{Objects, World},
};
use k8s_openapi::{
    ByteString,
    api::{
        core::v1::{Secret, Service},
        discovery::v1::EndpointSlice,
    },
};
use parking_lot::Mutex;
use serde_json::json;
use xds::{Kind, Xds};

const INGRESSES: usize = 10_000;
const ROUNDS: usize = 2;

#[derive(Clone, Default)]
struct Store(Arc<Mutex<HashMap<ObjectKey, Pair>>>);

type Pair = (Arc<Service>, Arc<EndpointSlice>);

impl Objects for Store {
    fn service(&self, key: &ObjectKey) -> Option<Arc<Service>> {
        self.0.lock().get(key).map(|(service, _)| service.clone())
    }

    fn slices(&self, service: &ObjectKey) -> Vec<Arc<EndpointSlice>> {
        self.0.lock().get(service).map(|(_, slice)| slice.clone()).into_iter().collect()
    }
}

fn ingress(name: &str) -> Ingress {
    let split = json!({"serviceNamespace": "default", "serviceName": name, "servicePort": 80, "percent": 100});
    let rule = |host: String, visibility: &str| json!({"hosts": [host], "visibility": visibility, "http": {"paths": [{"splits": [split]}]}});
    serde_json::from_value(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
        "metadata": {"name": name, "namespace": "default", "generation": 1},
        "spec": {"rules": [rule(format!("{name}.default.svc"), "ClusterLocal"),
            rule(format!("{name}.example.com"), "ExternalIP")]},
    }))
    .unwrap()
}

fn backend(name: &str) -> Pair {
    let metadata = json!({"name": name, "namespace": "default"});
    let service = json!({"metadata": metadata, "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8012}]}});
    let slice = json!({"metadata": metadata, "addressType": "IPv4", "ports": [{"name": "http", "port": 8012}],
        "endpoints": [{"addresses": ["10.0.0.1"]}]});
    (Arc::new(serde_json::from_value(service).unwrap()), Arc::new(serde_json::from_value(slice).unwrap()))
}

/// Memory in use, in KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// One certificate under every name.
struct Secured(Arc<Secret>);

impl Objects for Secured {
    fn service(&self, _: &ObjectKey) -> Option<Arc<Service>> {
        None
    }

    fn slices(&self, _: &ObjectKey) -> Vec<Arc<EndpointSlice>> {
        Vec::new()
    }

    fn secret(&self, _: &ObjectKey) -> Option<Arc<Secret>> {
        Some(self.0.clone())
    }
}

#[test]
fn many_certificates_at_once_are_one_change_of_the_listeners() {
    let key = rcgen::KeyPair::generate().unwrap();
    let chain = rcgen::CertificateParams::new(vec!["*.example.com".to_owned()]).unwrap().self_signed(&key).unwrap();
    let data = [("tls.crt", chain.pem()), ("tls.key", key.serialize_pem())];
    let data = data.map(|(name, pem)| (name.to_owned(), ByteString(pem.into_bytes())));
    let secret = Arc::new(Secret { data: Some(data.into()), ..Default::default() });
    let secured = |n: usize| {
        let mut ingress = serde_json::to_value(ingress(&format!("i{n}"))).unwrap();
        let tls = json!([{"hosts": [format!("i{n}.example.com")], "secretName": format!("s{n}"),
            "secretNamespace": "default"}]);
        ingress["spec"]["tls"] = tls;
        serde_json::from_value::<Ingress>(ingress).unwrap()
    };
    let listeners = |together: bool| {
        let (xds, _events) = Xds::new();
        let mut world = World::new(Secured(secret.clone()), xds.clone(), &Options::default());
        let apply = |world: &mut World<Secured>| {
            for n in 0..100 {
                world.apply(&secured(n));
                let made = xds.resource(Kind::Listener, "listener_8443").is_some();
                assert_eq!(made, !together, "they come last");
            }
        };
        if together {
            world.together(apply)
        } else {
            apply(&mut world)
        }
        ["listener_8080", "listener_8443", "listener_9443"].map(|name| xds.resource(Kind::Listener, name).unwrap())
    };
    assert_eq!(listeners(true), listeners(false));
}

#[test]
fn ten_thousand_come_and_go_again_and_again() {
    let store = Store::default();
    let (xds, _events) = Xds::new();
    let mut world = World::new(store.clone(), xds, &Options::default());
    let mut used = Vec::new();
    for _ in 0..ROUNDS {
        for n in 0..INGRESSES {
            let name = format!("i{n}");
            let key = ObjectKey::new("default", name.as_str());
            world.apply(&ingress(&name));
            store.0.lock().insert(key.clone(), backend(&name));
            for again in world.refresh(&key) {
                world.apply(&ingress(&again.name));
            }
        }
        assert_eq!(world.figures(), (INGRESSES, 0));
        for n in 0..INGRESSES {
            let key = ObjectKey::new("default", format!("i{n}"));
            store.0.lock().remove(&key);
            world.refresh(&key);
            world.remove(&key);
        }
        assert_eq!(world.figures(), (0, 0));
        used.push(resident());
    }
    // What the first round took from the system is used again.
    let (first, last) = (used[0], used[ROUNDS - 1]);
    assert!(last < first + first / 5, "memory after each round, in KiB: {used:?}");
}
