//! What a role gets from whoever started it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use tokio::sync::OnceCell;

use crate::{Cache, Leadership, Replica, Tasks, elect, queue::Queues};

/// Client, task group and names that every role needs. A role never knows whether the client speaks to a cluster or to
/// the embedded API.
#[derive(Clone)]
pub struct Context {
    pub client: kube::Client,
    pub tasks: Tasks,
    /// Where Knative's own ConfigMaps live (`SYSTEM_NAMESPACE`).
    pub system_namespace: String,
    /// Only ConfigMaps with this label are watched (`SYSTEM_RESOURCE_LABEL`).
    pub resource_label: Option<String>,
    /// DNS suffix of the cluster, `cluster.local` by default.
    pub cluster_domain: String,
    /// The ConfigMap with the times of Leases (`CONFIG_LEADERELECTION_NAME`).
    pub leader_election: &'static str,
    /// With this, controllers write only for the objects whose Leases they hold.
    pub replica: Option<Replica>,
    /// For whoever shows what controllers do.
    pub queues: Queues,
    config_maps: Arc<OnceCell<Cache<ConfigMap>>>,
}

// === impl Context ===

impl Context {
    pub fn new(client: kube::Client, tasks: Tasks) -> Self {
        Self {
            client,
            tasks,
            system_namespace: "knative-serving".to_owned(),
            resource_label: None,
            cluster_domain: "cluster.local".to_owned(),
            leader_election: api::config::names::LEADER_ELECTION,
            replica: None,
            queues: Queues::default(),
            config_maps: Arc::default(),
        }
    }

    /// The same context with its own task group, cancelled with the parent's.
    pub fn child(&self) -> Self {
        Self { tasks: self.tasks.child(), config_maps: Arc::default(), ..self.clone() }
    }

    /// Which objects of the controller with this queue are this process's to write.
    pub(crate) fn leadership(&self, queue: &str) -> Leadership {
        self.replica.as_ref().map_or_else(Leadership::alone, |replica| elect(self, replica, queue))
    }

    /// The ConfigMaps of the system namespace: one watch, shared by every [`crate::Config`] of this context.
    pub async fn config_maps(&self) -> Cache<ConfigMap> {
        let cache = self
            .config_maps
            .get_or_init(|| async {
                let all = Cache::builder().namespace(&self.system_namespace);
                let cache = match &self.resource_label {
                    None => all,
                    Some(label) => all.label_selector(label),
                };
                let cache = cache.start(self);
                cache.synced().await;
                cache
            })
            .await;
        cache.clone()
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("system_namespace", &self.system_namespace)
            .field("cluster_domain", &self.cluster_domain)
            .finish_non_exhaustive()
    }
}
