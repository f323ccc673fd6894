//! What several controllers read: one watch per kind, one value per ConfigMap.

use api::autoscaling::v1alpha1::PodAutoscaler;
use api::config;
use api::keys;
use api::networking::v1alpha1::{Ingress, ServerlessService};
use api::serving::v1::{Configuration, Revision, Route, Service};
use controller::{Cache, Config, Context, Error, ObjectKey, Recorder};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Resource, ResourceExt};

use crate::labeler::marks;

/// Index of Revisions by `namespace/configuration` of their configuration label.
pub const BY_CONFIGURATION: &str = "configuration";
/// Index of core Services by `namespace/route` of their route label.
pub const BY_ROUTE: &str = "route";
/// Index of Revisions and Configurations by each `namespace/route` of their routes annotation.
pub const BY_MARK: &str = "mark";

/// Caches and configuration shared by the controllers of this process.
#[derive(Debug)]
pub struct Shared {
    pub ctx: Context,
    pub recorder: Recorder,

    pub services: Cache<Service>,
    pub configurations: Cache<Configuration>,
    pub revisions: Cache<Revision>,
    pub routes: Cache<Route>,
    pub deployments: Cache<Deployment>,
    pub pod_autoscalers: Cache<PodAutoscaler>,
    pub ingresses: Cache<Ingress>,
    pub serverless_services: Cache<ServerlessService>,
    pub k8s_services: Cache<k8s_openapi::api::core::v1::Service>,
    pub endpoints: Cache<k8s_openapi::api::core::v1::Endpoints>,

    pub autoscaler: Config<config::Autoscaler>,
    pub defaults: Config<config::Defaults>,
    pub deployment: Config<config::Deployment>,
    pub domain: Config<config::Domain>,
    pub features: Config<config::Features>,
    pub gc: Config<config::Gc>,
    pub logging: Config<config::Logging>,
    pub network: Config<config::Network>,
    pub observability: Config<config::Observability>,
}

// === impl Shared ===

impl Shared {
    /// Starts the watches and waits for their first lists.
    ///
    /// # Errors
    /// If a ConfigMap is missing or does not parse.
    pub async fn start(ctx: &Context) -> Result<Self, Error> {
        let shared = Self {
            ctx: ctx.clone(),
            recorder: Recorder::new(ctx, "controller"),
            services: Cache::builder().start(ctx),
            configurations: Cache::builder().index(BY_MARK, marked).start(ctx),
            revisions: Cache::builder()
                .index(BY_CONFIGURATION, |r: &Revision| labelled(r, keys::serving::CONFIGURATION))
                .index(BY_MARK, marked)
                .start(ctx),
            routes: Cache::builder().start(ctx),
            deployments: Cache::builder().label_selector(keys::serving::REVISION_UID).start(ctx),
            pod_autoscalers: Cache::builder().start(ctx),
            ingresses: Cache::builder().start(ctx),
            serverless_services: Cache::builder().start(ctx),
            k8s_services: Cache::builder()
                .index(BY_ROUTE, |s: &k8s_openapi::api::core::v1::Service| labelled(s, keys::serving::ROUTE))
                .start(ctx),
            endpoints: Cache::builder().start(ctx),
            autoscaler: Config::watch(ctx, "config-autoscaler", config::Autoscaler::parse).await?,
            defaults: Config::watch(ctx, "config-defaults", config::Defaults::parse).await?,
            deployment: Config::watch(ctx, "config-deployment", config::Deployment::parse).await?,
            domain: Config::watch(ctx, "config-domain", config::Domain::parse).await?,
            features: Config::watch(ctx, "config-features", config::Features::parse).await?,
            gc: Config::watch(ctx, "config-gc", config::Gc::parse).await?,
            logging: Config::watch(ctx, "config-logging", config::Logging::parse).await?,
            network: Config::watch(ctx, "config-network", config::Network::parse).await?,
            observability: Config::watch(ctx, "config-observability", config::Observability::parse).await?,
        };
        shared.synced().await;
        Ok(shared)
    }

    async fn synced(&self) {
        self.services.synced().await;
        self.configurations.synced().await;
        self.revisions.synced().await;
        self.routes.synced().await;
        self.deployments.synced().await;
        self.pod_autoscalers.synced().await;
        self.ingresses.synced().await;
        self.serverless_services.synced().await;
        self.k8s_services.synced().await;
        self.endpoints.synced().await;
    }

    /// The Revisions labelled with this Configuration, in name order.
    pub fn revisions_of(&self, configuration: &Configuration) -> Vec<std::sync::Arc<Revision>> {
        self.revisions.by_index(BY_CONFIGURATION, &ObjectKey::of(configuration).to_string())
    }
}

/// `namespace/value` of a label, for indexes.
fn labelled<K: Resource>(object: &K, label: &str) -> Vec<String> {
    let value = object.labels().get(label).filter(|value| !value.is_empty());
    value.map(|value| format!("{}/{value}", object.namespace().unwrap_or_default())).into_iter().collect()
}

/// `namespace/route` of each route the object is marked with.
fn marked<K: Resource>(object: &K) -> Vec<String> {
    let namespace = object.namespace().unwrap_or_default();
    marks::routes(object.annotations()).into_iter().map(|route| format!("{namespace}/{route}")).collect()
}
