//! The objects that Ingresses refer to, with no more of each in memory than is used.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use api::networking::v1alpha1::Ingress;
use controller::{Cache, Context, ObjectKey};
use k8s_openapi::{
    api::{
        core::v1::{ConfigMap, Secret, Service, ServiceSpec},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt;
use parking_lot::Mutex;

use crate::{
    options::{Options, Settings},
    world::{Objects, ROUTING_CERTIFICATES},
};

#[derive(Clone)]
pub(super) struct Caches {
    pub(super) services: Cache<Service>,
    pub(super) slices: Cache<EndpointSlice>,
    secrets: Cache<Secret>,
    /// Secrets that settings name, when only labelled ones are watched: nobody asks for a label on these.
    named: Arc<Mutex<HashMap<ObjectKey, Cache<Secret>>>>,
    on_secret: Arc<Mutex<Option<OnSecret>>>,
    config_maps: Cache<ConfigMap>,
}

type OnSecret = Arc<dyn Fn(&ObjectKey) + Send + Sync>;

pub(super) const BY_SERVICE: &str = "service";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const TRUST_BUNDLE: &str = "networking.knative.dev/trust-bundle";
const CERTIFICATE_UID: &str = "networking.internal.knative.dev/certificate-uid";

// === impl Caches ===

impl Caches {
    pub(super) fn start(ctx: &Context, options: &Options, config_maps: Cache<ConfigMap>) -> Self {
        let services = Cache::<Service>::builder().transform(strip_service).packed().start(ctx);
        let slices = Cache::<EndpointSlice>::builder()
            .label_selector(SERVICE_NAME)
            .index(BY_SERVICE, |slice| service_of(slice).map(|key| key.to_string()).into_iter().collect())
            .transform(strip_slice)
            .packed()
            .start(ctx);
        let secrets = Cache::<Secret>::builder().transform(strip_secret).packed();
        let secrets = if options.labelled_secrets { secrets.label_selector(CERTIFICATE_UID) } else { secrets };
        let secrets = secrets.start(ctx);
        Caches { services, slices, secrets, named: Arc::default(), on_secret: Arc::default(), config_maps }
    }

    pub(super) async fn synced(&self) {
        let named: Vec<Cache<Secret>> = self.named.lock().values().cloned().collect();
        tokio::join!(self.services.synced(), self.slices.synced(), self.secrets.synced());
        for secret in named {
            secret.synced().await;
        }
    }

    /// Watches the Secrets that the settings name, unless all are watched.
    pub(super) fn follow(&self, ctx: &Context, options: &Options, settings: &Settings) {
        if !options.labelled_secrets {
            return;
        }
        let routing = ObjectKey::new(options.system_namespace.clone(), ROUTING_CERTIFICATES);
        let routing = settings.internal_tls.then_some(&routing);
        let wanted = [settings.certificate.as_ref(), settings.cluster_certificate.as_ref(), routing];
        for key in wanted.into_iter().flatten() {
            if self.named.lock().contains_key(key) {
                continue;
            }
            let cache = Cache::<Secret>::builder()
                .namespace(&key.namespace)
                .field_selector(&format!("metadata.name={}", key.name))
                .transform(strip_secret)
                .start(ctx);
            self.named.lock().insert(key.clone(), cache.clone());
            self.notify(&cache);
        }
    }

    /// Calls `handler` for every Secret that changes.
    pub(super) fn on_secret(&self, handler: impl Fn(&ObjectKey) + Send + Sync + 'static) {
        *self.on_secret.lock() = Some(Arc::new(handler));
        self.notify(&self.secrets);
        let named: Vec<Cache<Secret>> = self.named.lock().values().cloned().collect();
        named.iter().for_each(|cache| self.notify(cache));
    }

    fn notify(&self, cache: &Cache<Secret>) {
        if let Some(handler) = self.on_secret.lock().clone() {
            cache.on_event(move |change| handler(&ObjectKey::of(&**change.object())));
        }
    }
}

impl Objects for Caches {
    fn service(&self, key: &ObjectKey) -> Option<Arc<Service>> {
        self.services.get_key(key)
    }

    fn slices(&self, service: &ObjectKey) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_SERVICE, &service.to_string())
    }

    fn secret(&self, key: &ObjectKey) -> Option<Arc<Secret>> {
        let named = || self.named.lock().get(key)?.get_key(key);
        self.secrets.get_key(key).or_else(named)
    }

    fn trust_bundles(&self) -> BTreeMap<String, String> {
        let bundles = self.config_maps.list().into_iter().filter(|map| is_trust_bundle(map));
        let values = bundles.flat_map(|map| {
            let name = map.name_any();
            let data = map.data.clone().unwrap_or_default();
            data.into_iter().map(move |(key, value)| (format!("{name}/{key}"), value))
        });
        values.collect()
    }
}

pub(super) fn is_trust_bundle(map: &ConfigMap) -> bool {
    map.labels().contains_key(TRUST_BUNDLE)
}

pub(super) fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.labels().get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.namespace().unwrap_or_default(), name.clone()))
}

/// The status is written over the object as it is known, so what belongs to it stays, except for a copy of all of it.
pub(super) fn strip_ingress(ingress: &mut Ingress) {
    ingress.annotations_mut().remove("kubectl.kubernetes.io/last-applied-configuration");
}

/// Only what [`crate::backend`] reads is kept in memory.
fn strip_service(service: &mut Service) {
    strip_metadata(&mut service.metadata);
    service.metadata.labels = None;
    service.status = None;
    if let Some(spec) = service.spec.take() {
        let ServiceSpec { ports, type_, external_name, .. } = spec;
        service.spec = Some(ServiceSpec { ports, type_, external_name, ..ServiceSpec::default() });
    }
}

fn strip_metadata(metadata: &mut ObjectMeta) {
    let ObjectMeta { name, namespace, labels, resource_version, .. } = std::mem::take(metadata);
    *metadata = ObjectMeta { name, namespace, labels, resource_version, ..ObjectMeta::default() };
}

/// Other Secrets are none of our business: only that they exist is kept.
fn strip_secret(secret: &mut Secret) {
    strip_metadata(&mut secret.metadata);
    if let Some(data) = &mut secret.data {
        data.retain(|name, _| matches!(name.as_str(), "tls.crt" | "tls.key" | "ca.crt"));
    }
}

fn strip_slice(slice: &mut EndpointSlice) {
    strip_metadata(&mut slice.metadata);
    if let Some(labels) = &mut slice.metadata.labels {
        labels.retain(|name, _| name == SERVICE_NAME);
    }
    for endpoint in &mut slice.endpoints {
        endpoint.target_ref = None;
        endpoint.node_name = None;
        endpoint.hints = None;
    }
}
