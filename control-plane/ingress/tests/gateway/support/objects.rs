//! The objects of a test, in the place of an API, and what is done with them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use api::networking::v1alpha1::Ingress;
use controller::ObjectKey;
use ingress::{Settings, world::Objects};
use k8s_openapi::{
    ByteString,
    api::{
        core::v1::{Secret, Service},
        discovery::v1::EndpointSlice,
    },
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::rig::{Control, Rig};

#[derive(Clone, Default)]
pub(super) struct Store(pub(super) Arc<Mutex<Stored>>);

#[derive(Default)]
pub(super) struct Stored {
    pub(super) services: HashMap<ObjectKey, Arc<Service>>,
    pub(super) slices: HashMap<ObjectKey, Arc<EndpointSlice>>,
    pub(super) ingresses: HashMap<ObjectKey, Ingress>,
    secrets: HashMap<ObjectKey, Arc<Secret>>,
    bundles: BTreeMap<String, String>,
}

impl Objects for Store {
    fn service(&self, key: &ObjectKey) -> Option<Arc<Service>> {
        self.0.lock().services.get(key).cloned()
    }

    fn slices(&self, service: &ObjectKey) -> Vec<Arc<EndpointSlice>> {
        self.0.lock().slices.get(service).cloned().into_iter().collect()
    }

    fn secret(&self, key: &ObjectKey) -> Option<Arc<Secret>> {
        self.0.lock().secrets.get(key).cloned()
    }

    fn trust_bundles(&self) -> BTreeMap<String, String> {
        self.0.lock().bundles.clone()
    }
}

// === impl Rig ===

impl Rig {
    /// Creates or replaces a Service with these ready addresses, and tells the control plane.
    pub(crate) fn service(&self, name: &str, port_name: &str, addresses: &[SocketAddr]) {
        let key = ObjectKey::new("default", name);
        let service = json!({"metadata": {"name": name, "namespace": "default"},
            "spec": {"ports": [{"name": port_name, "port": 80, "targetPort": "web"}]}});
        let port = addresses.first().map_or(1, |address| address.port());
        let endpoints: Vec<Value> =
            addresses.iter().map(|address| json!({"addresses": [address.ip().to_string()]})).collect();
        let slice = json!({"metadata": {"name": name, "namespace": "default"}, "addressType": "IPv4",
            "ports": [{"name": port_name, "port": port}], "endpoints": endpoints});
        {
            let mut stored = self.objects.0.lock();
            stored.services.insert(key.clone(), Arc::new(serde_json::from_value(service).unwrap()));
            stored.slices.insert(key.clone(), Arc::new(serde_json::from_value(slice).unwrap()));
        }
        self.refresh(&key);
    }

    pub(crate) fn remove_service(&self, name: &str) {
        let key = ObjectKey::new("default", name);
        {
            let mut stored = self.objects.0.lock();
            stored.services.remove(&key);
            stored.slices.remove(&key);
        }
        self.refresh(&key);
    }

    fn refresh(&self, service: &ObjectKey) {
        let mut control = self.control.lock();
        let again = control.world.refresh(service);
        self.apply_again(&mut control, again);
    }

    /// Other settings than those the rig started with.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.options.settings.clone();
        change(&mut settings);
        let mut control = self.control.lock();
        let again = control.world.configure(settings);
        self.apply_again(&mut control, again);
    }

    /// Creates or replaces a Secret.
    pub(crate) fn secret(&self, namespace: &str, name: &str, data: &[(&str, &str)]) {
        let key = ObjectKey::new(namespace, name);
        let data = data.iter().map(|(name, value)| ((*name).to_owned(), ByteString(value.as_bytes().to_vec())));
        let secret = Secret { data: Some(data.collect()), ..Default::default() };
        self.objects.0.lock().secrets.insert(key.clone(), Arc::new(secret));
        let mut control = self.control.lock();
        let again = control.world.secret(&key);
        self.apply_again(&mut control, again);
    }

    pub(crate) fn trust_bundle(&self, name: &str, pem: &str) {
        self.objects.0.lock().bundles.insert(name.to_owned(), pem.to_owned());
        let mut control = self.control.lock();
        let again = control.world.trust_bundles();
        self.apply_again(&mut control, again);
    }

    pub(crate) fn remove_ingress(&self, name: &str) {
        let key = ObjectKey::new("default", name);
        self.objects.0.lock().ingresses.remove(&key);
        let mut control = self.control.lock();
        let again = control.world.remove(&key);
        self.apply_again(&mut control, again);
    }

    /// Creates or replaces a Service that is another name for an address elsewhere.
    pub(crate) fn external_name(&self, name: &str, host: &str, port: u16) {
        let key = ObjectKey::new("default", name);
        let service = json!({"metadata": {"name": name, "namespace": "default"},
            "spec": {"type": "ExternalName", "externalName": host, "ports": [{"name": "http2", "port": port}]}});
        self.objects.0.lock().services.insert(key.clone(), Arc::new(serde_json::from_value(service).unwrap()));
        self.refresh(&key);
    }

    pub(crate) fn ingress(&self, name: &str, spec: Value) {
        self.ingress_with(name, json!({}), spec);
    }

    /// With labels and annotations.
    pub(crate) fn ingress_with(&self, name: &str, metadata: Value, spec: Value) {
        let mut ingress: Ingress = serde_json::from_value(json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
            "metadata": {"name": name, "namespace": "default"}, "spec": spec,
        }))
        .unwrap();
        let text = |field: &str| serde_json::from_value(metadata[field].clone()).unwrap();
        ingress.metadata.labels = text("labels");
        ingress.metadata.annotations = text("annotations");
        let key = ObjectKey::of(&ingress);
        let mut stored = self.objects.0.lock();
        let generation = stored.ingresses.get(&key).and_then(|old| old.metadata.generation).unwrap_or_default() + 1;
        ingress.metadata.generation = Some(generation);
        stored.ingresses.insert(key, ingress.clone());
        drop(stored);
        let mut control = self.control.lock();
        let again = control.world.apply(&ingress);
        self.apply_again(&mut control, again);
    }

    fn apply_again(&self, control: &mut Control, mut keys: BTreeSet<ObjectKey>) {
        while let Some(key) = keys.pop_first() {
            let ingress = self.objects.0.lock().ingresses[&key].clone();
            keys.extend(control.world.apply(&ingress));
        }
    }
}
