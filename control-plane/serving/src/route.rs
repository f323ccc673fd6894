//! Route -> Ingress and placeholder Services (controllers.md 7; upstream `pkg/reconciler/route`).
//!
//! Traffic that cannot be assigned leaves the Ingress as it is, so that what was routed before goes on being served.
//! Not here yet: certificates (external and cluster-local TLS); with TLS off the condition says so, as upstream.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::networking::v1alpha1::Ingress;
use api::serving::v1::{Route, TrafficTarget};
use api::{Addressable, Conditioned, keys};
use controller::key::is_controlled_by;
use controller::reconcile::{enqueue_all, enqueue_controllers, resync};
use controller::{Error, ObjectKey, Queue, Reconcile, Recorder, Tracker, drive, error};
use k8s_openapi::api::core::v1::{Endpoints, Service};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams};

use crate::Shared;
use crate::service::children::{differs, onto};
use crate::shared::BY_ROUTE;

pub mod hosts;
pub mod ingress;
pub mod rollout;
pub mod services;
#[cfg(test)]
mod tests;
pub mod traffic;

use hosts::{Naming, Visibility};
use ingress::GroupHosts;
use rollout::Rollout;
use traffic::{Lookup, Target, Traffic};

const ALL_TRAFFIC_ASSIGNED: &str = "AllTrafficAssigned";
const CERTIFICATE_PROVISIONED: &str = "CertificateProvisioned";
const INGRESS_READY: &str = "IngressReady";

#[derive(Debug)]
pub struct Reconciler {
    shared: Arc<Shared>,
    recorder: Recorder,
    tracker: Tracker,
}

/// Starts the controller.
pub fn start(shared: &Arc<Shared>, workers: usize) {
    let (queue, tracker) = (Queue::new(), Tracker::new());
    enqueue_all(&shared.routes, &queue);
    enqueue_controllers::<_, Route>(&shared.k8s_services, &queue);
    enqueue_controllers::<_, Route>(&shared.ingresses, &queue);
    tracker.feed("Configuration", &shared.configurations, &queue);
    tracker.feed("Revision", &shared.revisions, &queue);
    let (routes, resynced) = (shared.routes.clone(), queue.clone());
    shared.domain.on_change(move || resync(&routes, &resynced));
    let (routes, resynced) = (shared.routes.clone(), queue.clone());
    shared.network.on_change(move || resync(&routes, &resynced));
    let recorder = shared.recorder.named(Reconciler::NAME);
    let reconciler = Arc::new(Reconciler { shared: shared.clone(), recorder: recorder.clone(), tracker });
    drive(&shared.ctx, &shared.routes, &queue, reconciler, &recorder, workers);
}

// === impl Reconciler ===

impl Reconcile for Reconciler {
    type Kind = Route;
    const NAME: &'static str = "route-controller";

    fn prepare(&self, route: &mut Route) {
        for target in &mut route.spec.traffic {
            target.latest_revision.get_or_insert(target.revision_name.is_empty());
            target.percent.get_or_insert(0);
        }
        route.mark().init();
    }

    async fn reconcile(&self, route: &mut Route) -> Result<(), Error> {
        let generation = route.metadata.generation.unwrap_or_default();
        if route.status.as_ref().is_none_or(|status| status.observed_generation != generation) {
            mark_ingress_not_configured(route);
        }
        let (domain, network) = (self.shared.domain.load(), self.shared.network.load());
        let cluster_domain = self.shared.ctx.cluster_domain.clone();
        let naming = Naming { domain: &domain, network: &network, cluster_domain: &cluster_domain };

        let Some((traffic, hosts)) = self.traffic(route, &naming)? else { return Ok(()) };
        let address = format!("http://{}", local_primary(&hosts, ""));
        route.status_mut().address = Some(Addressable { url: Some(address), ..Addressable::default() });
        self.placeholders(route, &naming, &traffic).await?;
        route.mark().mark_true_with(CERTIFICATE_PROVISIONED, "TLSNotEnabled", "external-domain-tls is not enabled");

        let ingress = self.ingress(route, &traffic, &hosts).await?;
        if ingress.observed() {
            match ingress.ready() {
                Some(ready) => route.mark().mirror(INGRESS_READY, Some(ready)),
                None => mark_ingress_not_configured(route),
            }
        } else {
            mark_ingress_not_configured(route);
        }
        self.point_placeholders(route, &naming, &traffic, &ingress).await
    }

    fn deleted(&self, key: &ObjectKey) {
        self.tracker.forget(key);
    }
}

type Hosts = BTreeMap<String, GroupHosts>;

impl Reconciler {
    /// Resolves traffic and names, and tells both in status. `None` if traffic cannot be assigned as asked.
    fn traffic(&self, route: &mut Route, naming: &Naming<'_>) -> Result<Option<(Traffic, Hosts)>, Error> {
        let namespace = route.namespace().unwrap_or_default();
        let traffic = Traffic::resolve(
            route,
            &Lookup {
                configuration: &|name| self.shared.configurations.get(&namespace, name),
                revision: &|name| self.shared.revisions.get(&namespace, name),
            },
        );
        let references = traffic.references.iter().map(|(kind, name)| (*kind, ObjectKey::new(&namespace, name)));
        self.tracker.set(&ObjectKey::of(route), references);

        let named = self.hosts(route, naming, &traffic).and_then(|hosts| {
            let main = self.external_or_local(route, naming, "")?;
            Ok((hosts, main))
        });
        let (hosts, main) = named.map_err(|message| {
            route.mark().mark_false(ALL_TRAFFIC_ASSIGNED, "ErrorConfig", &message);
            Error::Retry(message)
        })?;
        route.status_mut().url = Some(main);
        if let Some(problem) = &traffic.problem {
            let mut conditions = route.mark();
            if problem.failed {
                conditions.mark_false(ALL_TRAFFIC_ASSIGNED, &problem.reason, &problem.message);
            } else {
                conditions.mark_unknown(ALL_TRAFFIC_ASSIGNED, &problem.reason, &problem.message);
            }
            return Ok(None);
        }
        let status = traffic.entries.iter().map(|entry| self.status_entry(route, naming, entry));
        let status = status.collect::<Result<_, _>>().map_err(Error::Retry)?;
        route.status_mut().traffic = status;
        route.mark().mark_true(ALL_TRAFFIC_ASSIGNED);
        Ok(Some((traffic, hosts)))
    }

    fn status_entry(&self, route: &Route, naming: &Naming<'_>, entry: &Target) -> Result<TrafficTarget, String> {
        let url = if entry.tag.is_empty() { None } else { Some(self.external_or_local(route, naming, &entry.tag)?) };
        Ok(TrafficTarget {
            tag: entry.tag.clone(),
            revision_name: entry.revision.clone(),
            percent: Some(entry.percent),
            latest_revision: Some(entry.latest),
            url,
            ..TrafficTarget::default()
        })
    }

    /// The URL of a tag under its visibility.
    fn external_or_local(&self, route: &Route, naming: &Naming<'_>, tag: &str) -> Result<String, String> {
        let hostname = naming.hostname(route, tag)?;
        let visibility = self.visibility(route, naming, &hostname);
        let scheme = match visibility {
            Visibility::ClusterLocal => "http",
            Visibility::ExternalIp => naming.network.default_external_scheme.as_str(),
        };
        Ok(format!("{scheme}://{}", naming.domain_name(route, &hostname, visibility)?))
    }

    fn visibility(&self, route: &Route, naming: &Naming<'_>, hostname: &str) -> Visibility {
        let placeholder = self.shared.k8s_services.get(&route.namespace().unwrap_or_default(), hostname);
        let ours = placeholder.filter(|service| service.labels().get(keys::serving::ROUTE) == Some(&route.name_any()));
        naming.visibility(route, ours.as_deref().map(ResourceExt::labels))
    }

    fn hosts(&self, route: &Route, naming: &Naming<'_>, traffic: &Traffic) -> Result<Hosts, String> {
        let tags: BTreeSet<&str> = traffic.groups.keys().map(String::as_str).chain([""]).collect();
        let mut hosts = Hosts::new();
        for tag in tags {
            let hostname = naming.hostname(route, tag)?;
            let local = naming.domain_name(route, &hostname, Visibility::ClusterLocal)?;
            let external = match self.visibility(route, naming, &hostname) {
                Visibility::ClusterLocal => None,
                Visibility::ExternalIp => Some(naming.domain_name(route, &hostname, Visibility::ExternalIp)?),
            };
            let group = GroupHosts { local: naming.expand(&local), local_primary: local, external };
            hosts.insert(tag.to_owned(), group);
        }
        Ok(hosts)
    }

    /// Makes sure that every group has its placeholder Service, and that no other has.
    async fn placeholders(&self, route: &mut Route, naming: &Naming<'_>, traffic: &Traffic) -> Result<(), Error> {
        let namespace = route.namespace().unwrap_or_default();
        let api = Api::<Service>::namespaced(self.shared.ctx.client.clone(), &namespace);
        let mut active = BTreeSet::new();
        for tag in traffic.groups.keys() {
            let name = naming.hostname(route, tag).map_err(Error::Retry)?;
            active.insert(name.clone());
            match self.shared.k8s_services.get(&namespace, &name) {
                Some(existing) if is_controlled_by(&*existing, route) => {}
                Some(_) => return Err(not_owned(route, "Service", &name)),
                None => {
                    let visibility = self.visibility(route, naming, &name);
                    let domain = naming.domain_name(route, &name, visibility).map_err(Error::Retry)?;
                    let desired = services::placeholder(route, &name, &domain);
                    if let Err(failure) = api.create(&PostParams::default(), &desired).await {
                        let message = format!("Failed to create placeholder service {name:?}: {failure}");
                        self.recorder.warning(route, "CreationFailed", &message);
                        return Err(Error::from(failure).context("failed to create placeholder service"));
                    }
                    self.recorder.normal(route, "Created", &format!("Created placeholder service {name:?}"));
                }
            }
        }
        let key = ObjectKey::of(route).to_string();
        for orphan in self.shared.k8s_services.by_index(BY_ROUTE, &key) {
            let name = orphan.name_any();
            if !active.contains(&name) && is_controlled_by(&*orphan, route) {
                ignore_missing(api.delete(&name, &DeleteParams::default()).await)?;
                self.remove_endpoints(route, &name).await?;
            }
        }
        Ok(())
    }

    async fn ingress(&self, route: &Route, traffic: &Traffic, hosts: &Hosts) -> Result<Arc<Ingress>, Error> {
        let (network, features) = (self.shared.network.load(), self.shared.features.load());
        let rollout = Rollout::goal(traffic);
        let inputs = ingress::Inputs {
            route,
            traffic,
            hosts,
            rollout: &rollout,
            tls: Vec::new(),
            network: &network,
            features: &features,
        };
        let desired = ingress::ingress(&inputs).map_err(Error::Retry)?;
        let (namespace, name) = (route.namespace().unwrap_or_default(), desired.name_any());
        let api = Api::<Ingress>::namespaced(self.shared.ctx.client.clone(), &namespace);
        let Some(existing) = self.shared.ingresses.get(&namespace, &name) else {
            return match api.create(&PostParams::default(), &desired).await {
                Ok(created) => {
                    self.recorder.normal(route, "Created", &format!("Created Ingress {name:?}"));
                    Ok(Arc::new(created))
                }
                Err(failure) => {
                    self.recorder.warning(route, "CreationFailed", &format!("Failed to create Ingress: {failure}"));
                    Err(Error::from(failure).context("failed to create Ingress"))
                }
            };
        };
        if !differs(&*existing, &existing.spec, &desired, &desired.spec) {
            return Ok(existing);
        }
        let updated = api.replace(&name, &PostParams::default(), &onto(&*existing, desired)).await;
        updated.map(Arc::new).map_err(|failure| Error::from(failure).context("failed to update Ingress"))
    }

    /// Lets the placeholders point at where the Ingress is served.
    async fn point_placeholders(
        &self,
        route: &mut Route,
        naming: &Naming<'_>,
        traffic: &Traffic,
        ingress: &Ingress,
    ) -> Result<(), Error> {
        let Some(status) = &ingress.status else { return Ok(()) };
        let namespace = route.namespace().unwrap_or_default();
        let api = Api::<Service>::namespaced(self.shared.ctx.client.clone(), &namespace);
        for tag in traffic.groups.keys() {
            let name = naming.hostname(route, tag).map_err(Error::Retry)?;
            let Some(existing) = self.shared.k8s_services.get(&namespace, &name) else { continue };
            let desired = services::from_load_balancer(route, &name, existing.labels(), status);
            let Some((service, endpoints)) = desired else { continue };
            match services::change(&existing, &service) {
                services::Change::None => {}
                services::Change::Update(service) => drop(api.replace(&name, &PostParams::default(), &service).await?),
                services::Change::Replace(service) => {
                    ignore_missing(api.delete(&name, &DeleteParams::default()).await)?;
                    api.create(&PostParams::default(), &service).await?;
                }
            }
            match endpoints {
                Some(desired) => self.write_endpoints(route, &name, desired).await?,
                None => self.remove_endpoints(route, &name).await?,
            }
        }
        Ok(())
    }

    async fn write_endpoints(&self, route: &mut Route, name: &str, desired: Endpoints) -> Result<(), Error> {
        let namespace = route.namespace().unwrap_or_default();
        let api = Api::<Endpoints>::namespaced(self.shared.ctx.client.clone(), &namespace);
        match self.shared.endpoints.get(&namespace, name) {
            None => drop(api.create(&PostParams::default(), &desired).await?),
            Some(existing) if !is_controlled_by(&*existing, route) => return Err(not_owned(route, "Endpoint", name)),
            Some(existing) if existing.subsets == desired.subsets => {}
            Some(existing) => drop(api.replace(name, &PostParams::default(), &onto(&*existing, desired)).await?),
        }
        Ok(())
    }

    async fn remove_endpoints(&self, route: &Route, name: &str) -> Result<(), Error> {
        let namespace = route.namespace().unwrap_or_default();
        let ours = self.shared.endpoints.get(&namespace, name).is_some_and(|e| is_controlled_by(&*e, route));
        if !ours {
            return Ok(());
        }
        let api = Api::<Endpoints>::namespaced(self.shared.ctx.client.clone(), &namespace);
        ignore_missing(api.delete(name, &DeleteParams::default()).await)
    }
}

fn local_primary<'a>(hosts: &'a Hosts, tag: &str) -> &'a str {
    hosts.get(tag).map_or("", |hosts| hosts.local_primary.as_str())
}

fn mark_ingress_not_configured(route: &mut Route) {
    route.mark().mark_unknown(INGRESS_READY, "IngressNotConfigured", "Ingress has not yet been reconciled.");
}

fn not_owned(route: &mut Route, kind: &str, name: &str) -> Error {
    let message = format!("There is an existing placeholder {kind} {name:?} that we do not own.");
    route.mark().mark_false(INGRESS_READY, "NotOwned", &message);
    Error::Retry(format!("route: {:?} does not own {kind}: {name:?}", route.name_any()))
}

fn ignore_missing<T>(result: Result<T, kube::Error>) -> Result<(), Error> {
    match result {
        Ok(_) => Ok(()),
        Err(failure) if error::is_not_found(&failure) => Ok(()),
        Err(failure) => Err(failure.into()),
    }
}
