//! Route -> placeholder Services and Ingress (controllers.md 7; upstream `pkg/reconciler/route`).
//!
//! Targets that do not resolve stop the reconcile before anything is written: what was routed stays routed. The names
//! exist before the Ingress that serves them, and the Ingress before the names point at its gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::config::{Domain, Features, Network};
use api::networking::v1alpha1::Ingress;
use api::serving::v1::{Route, TrafficTarget};
use api::{Addressable, Conditioned, go, keys};
use controller::key::is_controlled_by;
use controller::reconcile::{enqueue_all, enqueue_controllers, resync};
use controller::{Error, ObjectKey, Queue, Reconcile, Recorder, Tracker, drive, error};
use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams};

use crate::Shared;
use crate::shared::BY_ROUTE;
use hosts::{Naming, Visibility};
use placeholders::Change;
use rollout::Rollout;
use traffic::{BadTarget, Caches, Traffic};

pub mod certificates;
pub mod hosts;
pub mod ingress;
pub mod placeholders;
pub mod rollout;
#[cfg(test)]
mod tests;
pub mod traffic;

const ALL_TRAFFIC_ASSIGNED: &str = "AllTrafficAssigned";
const INGRESS_READY: &str = "IngressReady";

#[derive(Debug)]
pub struct Reconciler {
    shared: Arc<Shared>,
    recorder: Recorder,
    queue: Queue,
    tracker: Tracker,
}

/// The configuration of one reconcile.
struct Settings {
    domain: Arc<Domain>,
    network: Arc<Network>,
    features: Arc<Features>,
    cluster_domain: String,
}

/// Starts the controller.
pub fn start(shared: &Arc<Shared>, workers: usize) {
    let queue = Queue::new();
    let tracker = Tracker::new();
    enqueue_all(&shared.routes, &queue);
    enqueue_controllers::<_, Route>(&shared.ingresses, &queue);
    enqueue_controllers::<_, Route>(&shared.k8s_services, &queue);
    tracker.feed(traffic::CONFIGURATION, &shared.configurations, &queue);
    tracker.feed(traffic::REVISION, &shared.revisions, &queue);
    for on_change in [&shared.network as &dyn OnChange, &shared.domain] {
        let (routes, queue) = (shared.routes.clone(), queue.clone());
        on_change.on_change(Box::new(move || resync(&routes, &queue)));
    }
    let recorder = shared.recorder.named(Reconciler::NAME);
    let reconciler =
        Arc::new(Reconciler { shared: shared.clone(), recorder: recorder.clone(), queue: queue.clone(), tracker });
    drive(&shared.ctx, &shared.routes, &queue, reconciler, &recorder, workers);
}

trait OnChange {
    fn on_change(&self, listener: Box<dyn Fn() + Send + Sync>);
}

impl<T: Send + Sync + 'static> OnChange for controller::Config<T> {
    fn on_change(&self, listener: Box<dyn Fn() + Send + Sync>) {
        self.on_change(listener);
    }
}

// === impl Settings ===

impl Settings {
    fn naming(&self) -> Naming<'_> {
        Naming { domain: &self.domain, network: &self.network, cluster_domain: &self.cluster_domain }
    }
}

// === impl Reconciler ===

impl Reconcile for Reconciler {
    type Kind = Route;
    const NAME: &'static str = "route-controller";
    const QUEUE: &'static str = "knative.dev.serving.pkg.reconciler.route.Reconciler";

    fn prepare(&self, route: &mut Route) {
        api::defaults::route(route);
        route.mark().init();
    }

    async fn reconcile(&self, route: &mut Route) -> Result<(), Error> {
        let settings = self.settings();
        let naming = settings.naming();
        if !route.observed() {
            ingress_not_configured(route);
        }
        let visibility = self.visibility(route, naming).map_err(|error| domain_error(route, &error))?;
        let host = naming
            .domain_name(route, &route.name_any(), visibility[""])
            .map_err(|error| domain_error(route, &error))?;
        route.status_mut().url = Some(naming.url(&host));

        let traffic = match self.resolve(route) {
            Ok(traffic) => traffic,
            Err(bad) => {
                mark_bad_target(route, &bad);
                return Ok(());
            }
        };
        let assigned = status_traffic(route, naming, &visibility, &traffic, &Rollout::default())
            .map_err(|error| domain_error(route, &error))?;
        let status = route.status_mut();
        status.traffic = assigned;
        route.mark().mark_true(ALL_TRAFFIC_ASSIGNED);
        let address = naming.address(route);
        route.status_mut().address = Some(Addressable { url: Some(address), ..Addressable::default() });

        let services = self.placeholders(route, naming, &traffic).await?;
        let tls = certificates::provision(route, &settings.network);
        let input = ingress::Input {
            route: &route.clone(),
            naming,
            traffic: &traffic,
            rollout: &Rollout::steady(&traffic),
            visibility: &visibility,
            tls,
            route_by_tag_header: settings.features.tag_header_based_routing.is_enabled(),
        };
        let (ingress, rollout) = self.ingress(route, input).await?;
        if !ingress.observed() || ingress.ready().is_none() {
            ingress_not_configured(route);
        } else if rollout.is_done() {
            route.mark().mirror(INGRESS_READY, ingress.ready());
        }
        self.point_at_gateway(route, &services, &ingress).await?;
        if !rollout.is_done() {
            let message = "A gradual rollout of the latest revision(s) is in progress.";
            route.mark().mark_unknown(INGRESS_READY, "RolloutInProgress", message);
            let assigned = status_traffic(route, naming, &visibility, &traffic, &rollout)
                .map_err(|error| domain_error(route, &error))?;
            route.status_mut().traffic = assigned;
        }
        Ok(())
    }

    fn deleted(&self, key: &ObjectKey) {
        self.tracker.forget(key);
    }
}

impl Reconciler {
    fn settings(&self) -> Settings {
        Settings {
            domain: self.shared.domain.load(),
            network: self.shared.network.load(),
            features: self.shared.features.load(),
            cluster_domain: self.shared.ctx.cluster_domain.clone(),
        }
    }

    /// By tag. A placeholder Service labelled local makes its name local.
    fn visibility(&self, route: &Route, naming: Naming<'_>) -> Result<BTreeMap<String, Visibility>, String> {
        let services = self.shared.k8s_services.by_index(BY_ROUTE, &ObjectKey::of(route).to_string());
        let local: BTreeSet<String> = services
            .iter()
            .filter(|s| s.labels().get(keys::networking::VISIBILITY).is_some_and(|v| !v.is_empty()))
            .map(|s| s.name_any())
            .collect();
        traffic::names(route)
            .into_iter()
            .map(|tag| {
                let hostname = naming.hostname(route, &tag)?;
                Ok((tag, naming.visibility(route, &hostname, |name| local.contains(name))))
            })
            .collect()
    }

    /// Resolved a second time once the references are tracked, so that no change in between is missed.
    fn resolve(&self, route: &Route) -> Result<Traffic, BadTarget> {
        let caches = Caches { configurations: &self.shared.configurations, revisions: &self.shared.revisions };
        let mut resolution = traffic::resolve(route, &caches);
        loop {
            self.tracker.set(&ObjectKey::of(route), resolution.references.clone());
            let again = traffic::resolve(route, &caches);
            if again.references == resolution.references {
                return again.traffic;
            }
            resolution = again;
        }
    }

    /// One Service per name; those of names no longer used go.
    async fn placeholders(
        &self,
        route: &mut Route,
        naming: Naming<'_>,
        traffic: &Traffic,
    ) -> Result<Vec<Arc<Service>>, Error> {
        let namespace = route.namespace().unwrap_or_default();
        let api = Api::<Service>::namespaced(self.shared.ctx.client.clone(), &namespace);
        let mut present = Vec::new();
        let mut missing = Vec::new();
        for tag in traffic.groups.keys() {
            let hostname = naming.hostname(route, tag).map_err(|error| domain_error(route, &error))?;
            let endpoints = self.shared.endpoints.get(&namespace, &hostname);
            if endpoints.is_some_and(|endpoints| !is_controlled_by(&*endpoints, route)) {
                return Err(not_owned(route, "Endpoint", &hostname));
            }
            match self.shared.k8s_services.get(&namespace, &hostname) {
                Some(service) if !is_controlled_by(&*service, route) => {
                    return Err(not_owned(route, "Service", &hostname));
                }
                Some(service) => present.push(service),
                None => {
                    let name = naming.own_domain_name(route, &hostname).map_err(|error| domain_error(route, &error))?;
                    missing.push(placeholders::initial(route, &hostname, name));
                }
            }
        }
        let of_route: &Route = route;
        let created = try_join_all(missing.iter().map(|service| self.create_placeholder(of_route, &api, service)));
        present.extend(created.await?);
        self.delete_orphans(route, &api, &present).await?;
        Ok(present)
    }

    async fn create_placeholder(
        &self,
        route: &Route,
        api: &Api<Service>,
        service: &Service,
    ) -> Result<Arc<Service>, Error> {
        let name = service.name_any();
        match api.create(&PostParams::default(), service).await {
            Ok(created) => {
                self.recorder.normal(route, "Created", &format!("Created placeholder service {name:?}"));
                Ok(Arc::new(created))
            }
            Err(failure) if error::is_already_exists(&failure) => Err(Error::Conflict(failure.to_string())),
            Err(failure) => {
                let failure = Error::from(failure);
                let message = format!("Failed to create placeholder service {name:?}: {failure}");
                self.recorder.warning(route, "CreationFailed", &message);
                Err(failure.context("failed to create placeholder service"))
            }
        }
    }

    async fn delete_orphans(&self, route: &Route, api: &Api<Service>, used: &[Arc<Service>]) -> Result<(), Error> {
        let used: BTreeSet<String> = used.iter().map(|s| s.name_any()).collect();
        let all = self.shared.k8s_services.by_index(BY_ROUTE, &ObjectKey::of(route).to_string());
        for orphan in all.iter().filter(|s| !used.contains(&s.name_any())) {
            let name = orphan.name_any();
            delete(api, &name).await.map_err(|e| e.context("failed to delete placeholder service"))?;
            if self.shared.endpoints.get(&route.namespace().unwrap_or_default(), &name).is_some() {
                delete(&self.endpoints_api(route), &name).await?;
            }
        }
        Ok(())
    }

    /// Creates or updates the Ingress; what it serves of a gradual rollout.
    async fn ingress(&self, route: &Route, input: ingress::Input<'_>) -> Result<(Arc<Ingress>, Rollout), Error> {
        let namespace = route.namespace().unwrap_or_default();
        let name = ingress::name(route);
        let api = Api::<Ingress>::namespaced(self.shared.ctx.client.clone(), &namespace);
        let Some(existing) = self.shared.ingresses.get(&namespace, &name) else {
            let desired = input.ingress().map_err(Error::Retry)?;
            return match api.create(&PostParams::default(), &desired).await {
                Ok(created) => {
                    self.recorder.normal(route, "Created", &format!("Created Ingress {name:?}"));
                    Ok((Arc::new(created), input.rollout.clone()))
                }
                Err(failure) if error::is_already_exists(&failure) => Err(Error::Conflict(failure.to_string())),
                Err(failure) => {
                    let failure = Error::from(failure);
                    self.recorder.warning(route, "CreationFailed", &format!("Failed to create Ingress: {failure}"));
                    Err(failure.context("failed to create Ingress"))
                }
            };
        };
        let rollout = self.rollout(route, input.rollout, &existing, input.naming.network);
        let desired = ingress::Input { rollout: &rollout, ..input }.ingress().map_err(Error::Retry)?;
        let same = existing.spec == desired.spec
            && existing.annotations() == desired.annotations()
            && existing.labels() == desired.labels();
        if same {
            return Ok((existing, rollout));
        }
        let mut updated = (*existing).clone();
        updated.metadata.labels = desired.metadata.labels;
        updated.metadata.annotations = desired.metadata.annotations;
        updated.spec = desired.spec;
        let updated = api.replace(&name, &PostParams::default(), &updated).await;
        let updated = updated.map_err(|failure| Error::from(failure).context("failed to update Ingress"))?;
        Ok((Arc::new(updated), rollout))
    }

    /// The next state of the rollout; comes back when the one after is due.
    fn rollout(&self, route: &Route, goal: &Rollout, existing: &Ingress, network: &Network) -> Rollout {
        let seconds = rollout_seconds(route, network);
        if seconds <= 0.0 {
            return goal.clone();
        }
        let now = i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
        let mut previous = existing.annotations().get(keys::networking::ROLLOUT).and_then(|a| Rollout::parse(a));
        if let Some(previous) = &mut previous
            && existing.is_ready()
            && !route.condition(INGRESS_READY).is_some_and(api::Condition::is_true)
        {
            previous.observe_ready(now, seconds);
        }
        let rollout = goal.clone().step(previous.as_ref(), now);
        if let Some(next) = rollout.next_step_time() {
            let delay = Duration::from_nanos(u64::try_from(next - now).unwrap_or(0));
            self.queue.add_after(ObjectKey::of(route), delay.max(Duration::from_millis(1)));
        }
        rollout
    }

    /// Once the Ingress tells its gateway, the names point there.
    async fn point_at_gateway(&self, route: &Route, services: &[Arc<Service>], ingress: &Ingress) -> Result<(), Error> {
        try_join_all(services.iter().map(|existing| self.point_one(route, existing, ingress))).await.map(drop)
    }

    async fn point_one(&self, route: &Route, existing: &Service, ingress: &Ingress) -> Result<(), Error> {
        let name = existing.name_any();
        let desired = match placeholders::from_ingress(route, &name, existing, ingress) {
            Ok(desired) => desired,
            Err(why) => {
                tracing::debug!(route = %ObjectKey::of(route), service = name, why, "placeholder left as it is");
                return Ok(());
            }
        };
        let api = Api::<Service>::namespaced(self.shared.ctx.client.clone(), &route.namespace().unwrap_or_default());
        match placeholders::change(existing, &desired.service) {
            Change::Nothing => {}
            Change::Update(updated) => {
                api.replace(&name, &PostParams::default(), &updated)
                    .await
                    .map_err(|e| Error::from(e).context("failed to update placeholder service"))?;
            }
            Change::Replace => {
                delete(&api, &name).await?;
                api.create(&PostParams::default(), &desired.service)
                    .await
                    .map_err(|e| Error::from(e).context("failed to create placeholder service"))?;
            }
        }
        self.endpoints(route, &name, desired.endpoints).await
    }

    async fn endpoints(&self, route: &Route, name: &str, desired: Option<Endpoints>) -> Result<(), Error> {
        let api = self.endpoints_api(route);
        match (self.shared.endpoints.get(&route.namespace().unwrap_or_default(), name), desired) {
            (None, None) => Ok(()),
            (None, Some(desired)) => api.create(&PostParams::default(), &desired).await.map(drop).map_err(Error::from),
            (Some(_), None) => delete(&api, name).await,
            (Some(existing), Some(desired)) => {
                if existing.subsets == desired.subsets {
                    return Ok(());
                }
                let mut updated = (*existing).clone();
                updated.subsets = desired.subsets;
                api.replace(name, &PostParams::default(), &updated).await.map(drop).map_err(Error::from)
            }
        }
    }

    fn endpoints_api(&self, route: &Route) -> Api<Endpoints> {
        Api::namespaced(self.shared.ctx.client.clone(), &route.namespace().unwrap_or_default())
    }
}

async fn delete<K>(api: &Api<K>, name: &str) -> Result<(), Error>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    match api.delete(name, &DeleteParams::default()).await {
        Err(failure) if !error::is_not_found(&failure) => Err(failure.into()),
        _ => Ok(()),
    }
}

/// Annotation, else the ConfigMap's.
fn rollout_seconds(route: &Route, network: &Network) -> f64 {
    let annotation = keys::first(route.annotations(), keys::serving::ROLLOUT_DURATION_ALIASES);
    let seconds = annotation.and_then(|(_, value)| go::parse_duration(value).ok()).map_or(0, |n| n / 1_000_000_000);
    (if seconds == 0 { network.rollout_duration_seconds } else { seconds }) as f64
}

fn ingress_not_configured(route: &mut Route) {
    route.mark().mark_unknown(INGRESS_READY, "IngressNotConfigured", "Ingress has not yet been reconciled.");
}

fn mark_bad_target(route: &mut Route, bad: &BadTarget) {
    if bad.failed {
        route.mark().mark_false(ALL_TRAFFIC_ASSIGNED, &bad.reason, &bad.message);
    } else {
        route.mark().mark_unknown(ALL_TRAFFIC_ASSIGNED, &bad.reason, &bad.message);
    }
}

/// A name that cannot be made: the templates or the domain are to blame.
fn domain_error(route: &mut Route, error: &str) -> Error {
    let message = format!("domain name error: {error}");
    route.mark().mark_false(ALL_TRAFFIC_ASSIGNED, "ErrorConfig", &message);
    Error::Retry(message)
}

fn not_owned(route: &mut Route, what: &str, name: &str) -> Error {
    let message = format!("There is an existing placeholder {what} {name:?} that we do not own.");
    route.mark().mark_false(INGRESS_READY, "NotOwned", &message);
    Error::Retry(format!("route: {:?} does not own {what}: {name:?}", route.name_any()))
}

/// Targets as the status shows them; a rollout spreads a latest-revision target over its revisions.
fn status_traffic(
    route: &Route,
    naming: Naming<'_>,
    visibility: &BTreeMap<String, Visibility>,
    traffic: &Traffic,
    rollout: &Rollout,
) -> Result<Vec<TrafficTarget>, String> {
    let mut result = Vec::new();
    for target in &traffic.targets {
        let url = if target.tag.is_empty() {
            None
        } else {
            let hostname = naming.hostname(route, &target.tag)?;
            let visibility = visibility.get(&target.tag).copied().unwrap_or(Visibility::ExternalIp);
            Some(naming.url(&naming.domain_name(route, &hostname, visibility)?))
        };
        let entry = |revision: &str, percent: i64| TrafficTarget {
            tag: target.tag.clone(),
            revision_name: revision.to_owned(),
            percent: Some(percent),
            latest_revision: Some(target.latest),
            url: url.clone(),
            ..TrafficTarget::default()
        };
        match ingress::in_rollout(rollout, &target.tag, target) {
            Some(rolling) => result.extend(rolling.revisions.iter().map(|r| entry(&r.revision_name, r.percent))),
            None => result.push(entry(&target.revision, target.percent)),
        }
    }
    Ok(result)
}
