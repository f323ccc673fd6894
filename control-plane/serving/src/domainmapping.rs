//! DomainMapping -> ClusterDomainClaim and Ingress (controllers.md 14; upstream `pkg/reconciler/domainmapping`).
//!
//! A claim reserves the host name for one namespace of the cluster. The Ingress takes requests for it and sends them
//! through the gateway once more, under the cluster-local host of what the mapping refers to.

use std::sync::Arc;

use api::config::Network;
use api::networking::v1alpha1::{ClusterDomainClaim, ClusterDomainClaimSpec, Ingress, IngressTls};
use api::serving::v1beta1::DomainMapping;
use api::{Addressable, Conditioned, go, keys};
use controller::key::is_controlled_by;
use controller::reconcile::{enqueue_all, enqueue_controllers, resync};
use controller::{Cache, Error, ObjectKey, Queue, Reconcile, Recorder, Tracker, drive, error};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};

use crate::Shared;
use target::Target;

pub mod ingress;
pub mod target;
#[cfg(test)]
mod tests;

const DOMAIN_CLAIMED: &str = "DomainClaimed";
const REFERENCE_RESOLVED: &str = "ReferenceResolved";
const INGRESS_READY: &str = "IngressReady";
const CERTIFICATE_PROVISIONED: &str = "CertificateProvisioned";

#[derive(Debug)]
pub struct Reconciler {
    shared: Arc<Shared>,
    recorder: Recorder,
    tracker: Tracker,
}

/// Starts the controller. It begins once the DomainMappings are there, and nothing else waits for that: an older
/// installation may not know the kind.
pub fn start(shared: &Arc<Shared>, workers: usize) {
    let tasks = &shared.ctx.tasks;
    tasks.spawn("domainmappings", begin(shared.clone(), workers));
}

async fn begin(shared: Arc<Shared>, workers: usize) {
    let queue = Queue::new();
    let tracker = Tracker::new();
    let mappings = Cache::<DomainMapping>::builder().start(&shared.ctx);
    mappings.synced().await;
    enqueue_all(&mappings, &queue);
    enqueue_controllers::<_, DomainMapping>(&shared.ingresses, &queue);
    tracker.feed(target::SERVICE, &shared.services, &queue);
    tracker.feed(target::ROUTE, &shared.routes, &queue);
    tracker.feed(target::CORE_SERVICE, &shared.k8s_services, &queue);
    let (all, of_all) = (mappings.clone(), queue.clone());
    shared.network.on_change(move || resync(&all, &of_all));
    let recorder = shared.recorder.named(Reconciler::NAME);
    let reconciler = Arc::new(Reconciler { shared: shared.clone(), recorder: recorder.clone(), tracker });
    drive(&shared.ctx, &mappings, &queue, reconciler, &recorder, workers);
}

// === impl Reconciler ===

impl Reconcile for Reconciler {
    type Kind = DomainMapping;
    const NAME: &'static str = "domainmapping-controller";
    const QUEUE: &'static str = "knative.dev.serving.pkg.reconciler.domainmapping.Reconciler";
    const FINALIZER: Option<&'static str> = Some("domainmappings.serving.knative.dev");

    fn prepare(&self, mapping: &mut DomainMapping) {
        if mapping.spec.reference.namespace.is_empty() {
            mapping.spec.reference.namespace = mapping.namespace().unwrap_or_default();
        }
        mapping.mark().init();
    }

    async fn reconcile(&self, mapping: &mut DomainMapping) -> Result<(), Error> {
        let network = self.shared.network.load();
        if !mapping.observed() {
            ingress_not_configured(mapping);
        }
        set_url(mapping, &network.default_external_scheme);
        self.claim(mapping, &network).await?;
        let tls = provision(mapping, &network);
        if !tls.is_empty() {
            set_url(mapping, "https");
        }
        let target = match self.target(mapping).await {
            Ok(target) => target,
            Err(why) => {
                mapping.mark().mark_false(REFERENCE_RESOLVED, "ResolveFailed", &why);
                return Err(Error::retry(format!("resolving reference: {why}")));
            }
        };
        mapping.mark().mark_true(REFERENCE_RESOLVED);
        let ingress = self.ingress(mapping, &network, &target, tls).await?;
        if ingress.observed() && ingress.ready().is_some() {
            mapping.mark().mirror(INGRESS_READY, ingress.ready());
        } else {
            ingress_not_configured(mapping);
        }
        Ok(())
    }

    /// A claim that was made for the mapping goes with it.
    async fn finalize(&self, mapping: &DomainMapping) -> Result<(), Error> {
        if !self.shared.network.load().autocreate_cluster_domain_claims {
            return Ok(());
        }
        let (claims, name) = (self.claims(), mapping.name_any());
        let claim = claims.get_opt(&name).await?;
        if claim.is_none_or(|claim| Some(claim.spec.namespace) != mapping.namespace()) {
            return Ok(());
        }
        match claims.delete(&name, &DeleteParams::default()).await {
            Err(failure) if error::is_not_found(&failure) => Ok(()),
            deleted => Ok(deleted.map(drop)?),
        }
    }

    fn deleted(&self, key: &ObjectKey) {
        self.tracker.forget(key);
    }
}

impl Reconciler {
    fn claims(&self) -> Api<ClusterDomainClaim> {
        Api::all(self.shared.ctx.client.clone())
    }

    async fn claim(&self, mapping: &mut DomainMapping, network: &Network) -> Result<(), Error> {
        let (name, namespace) = (mapping.name_any(), mapping.namespace().unwrap_or_default());
        let refused = match self.claims().get_opt(&name).await? {
            Some(claim) if claim.spec.namespace == namespace => None,
            Some(_) => Some(format!("namespace {namespace:?} does not own ClusterDomainClaim for {name:?}")),
            None if network.autocreate_cluster_domain_claims => {
                let claim = ClusterDomainClaim {
                    metadata: ObjectMeta { name: Some(name), ..ObjectMeta::default() },
                    spec: ClusterDomainClaimSpec { namespace, ..ClusterDomainClaimSpec::default() },
                };
                let created = self.claims().create(&PostParams::default(), &claim).await;
                created.map_err(|failure| Error::from(failure).context("failed to create ClusterDomainClaim"))?;
                None
            }
            None => Some(format!(
                "no ClusterDomainClaim found for domain {name:?} (and autocreate-cluster-domain-claims property is not true)"
            )),
        };
        match refused {
            None => mapping.mark().mark_true(DOMAIN_CLAIMED),
            Some(why) => {
                let message = "The domain name is already in use by another DomainMapping";
                mapping.mark().mark_false(DOMAIN_CLAIMED, "DomainAlreadyClaimed", message);
                return Err(Error::Retry(why));
            }
        }
        Ok(())
    }

    async fn target(&self, mapping: &DomainMapping) -> Result<Target, String> {
        let reference = &mapping.spec.reference;
        // Known before it is looked at, so that no change in between is missed.
        self.tracker.set(&ObjectKey::of(mapping), target::tracked(reference));
        let address = target::address(&self.shared, reference).await?;
        Target::parse(&address, &mapping.namespace().unwrap_or_default(), &self.shared.ctx.cluster_domain)
    }

    async fn ingress(
        &self,
        mapping: &DomainMapping,
        network: &Network,
        target: &Target,
        tls: Vec<IngressTls>,
    ) -> Result<Arc<Ingress>, Error> {
        let desired = ingress::desired(mapping, network, target, tls).map_err(Error::Retry)?;
        let (name, namespace) = (desired.name_any(), mapping.namespace().unwrap_or_default());
        let api = Api::<Ingress>::namespaced(self.shared.ctx.client.clone(), &namespace);
        let Some(existing) = self.shared.ingresses.get(&namespace, &name) else {
            return match api.create(&PostParams::default(), &desired).await {
                Ok(created) => {
                    self.recorder.normal(mapping, "Created", &format!("Created Ingress {name:?}"));
                    Ok(Arc::new(created))
                }
                Err(failure) if error::is_already_exists(&failure) => Err(Error::Conflict(failure.to_string())),
                Err(failure) => {
                    let failure = Error::from(failure);
                    self.recorder.warning(mapping, "CreationFailed", &format!("Failed to create Ingress: {failure}"));
                    Err(failure.context("failed to create Ingress"))
                }
            };
        };
        if !is_controlled_by(&*existing, mapping) {
            let owner = mapping.display_name();
            return Err(Error::Retry(format!("domain mapping: {owner} does not own ingress: {name:?}")));
        }
        let same = existing.spec == desired.spec
            && existing.annotations() == desired.annotations()
            && existing.labels() == desired.labels();
        if same {
            return Ok(existing);
        }
        let mut updated = (*existing).clone();
        updated.metadata.labels = desired.metadata.labels;
        updated.metadata.annotations = desired.metadata.annotations;
        updated.spec = desired.spec;
        let updated = api.replace(&name, &PostParams::default(), &updated).await;
        let updated = updated.map_err(|failure| Error::from(failure).context("failed to update Ingress"))?;
        Ok(Arc::new(updated))
    }
}

fn set_url(mapping: &mut DomainMapping, scheme: &str) {
    let url = Some(format!("{scheme}://{}", mapping.name_any()));
    let status = mapping.status_mut();
    status.address = Some(Addressable { url: url.clone(), ..Addressable::default() });
    status.url = url;
}

/// The certificate that the user brings, and the mapping's condition.
fn provision(mapping: &mut DomainMapping, network: &Network) -> Vec<IngressTls> {
    if let Some(secret) = mapping.spec.tls.as_ref().map(|tls| tls.secret_name.clone()) {
        let message = "TLS certificate was provided externally";
        mapping.mark().mark_true_with(CERTIFICATE_PROVISIONED, "CertificateExternallyProvided", message);
        return vec![IngressTls {
            hosts: vec![mapping.name_any()],
            secret_name: secret,
            secret_namespace: mapping.namespace().unwrap_or_default(),
        }];
    }
    let disabled = keys::first(mapping.annotations(), keys::networking::DISABLE_EXTERNAL_TLS)
        .is_some_and(|(_, value)| go::parse_bool(value).unwrap_or(false));
    if network.external_domain_tls && !disabled {
        // As for a Route: never reported as if a certificate were there.
        let message = "external-domain-tls is enabled in config-network, but certificates cannot be provisioned by this version; \
            name a Secret in spec.tls, or disable it";
        mapping.mark().mark_false(CERTIFICATE_PROVISIONED, "NotSupported", message);
    } else {
        let message = "external-domain-tls is not enabled";
        mapping.mark().mark_true_with(CERTIFICATE_PROVISIONED, "TLSNotEnabled", message);
    }
    Vec::new()
}

fn ingress_not_configured(mapping: &mut DomainMapping) {
    mapping.mark().mark_unknown(INGRESS_READY, "IngressNotConfigured", "Ingress has not yet been reconciled.");
}
