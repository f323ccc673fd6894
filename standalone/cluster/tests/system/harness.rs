//! One machine without processes.

use std::fmt::Debug;
use std::time::Duration;

use apiserver::Server;
use cluster::{Handle, Options};
use controller::{Cache, Change, Context, Tasks};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) handle: Handle,
    tasks: Tasks,
    _server: Server,
}

impl World {
    /// With a node of two cpus and an agent that runs everything at once.
    pub(crate) async fn start() -> Self {
        let options = apiserver::Options { service_cidr: "127.77.0.0/16".into(), ..apiserver::Options::default() };
        let server = Server::open(options).await.expect("the API opens");
        let tasks = Tasks::new();
        let ctx = Context::new(server.client(), tasks.clone());
        let options =
            Options { dns: Some("127.0.0.1:0".parse().unwrap()), resolvers: Vec::new(), ..Options::default() };
        let handle = cluster::run(ctx.clone(), options).await.expect("the controllers start");
        let world = Self { client: server.client(), handle, tasks, _server: server };
        let node: Node = of(json!({"metadata": {"name": "box"}}));
        Api::all(world.client.clone()).create(&PostParams::default(), &node).await.expect("the node");
        let status = json!({"status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "110"}}});
        let nodes: Api<Node> = Api::all(world.client.clone());
        nodes.patch_status("box", &PatchParams::default(), &Patch::Merge(&status)).await.expect("its status");
        agent(&ctx);
        world
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned,
    {
        self.api::<K>().create(&PostParams::default(), &of(object)).await.expect("it is created")
    }

    pub(crate) async fn patch<K>(&self, name: &str, patch: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("it is patched")
    }

    /// Until the object is as wanted.
    pub(crate) async fn until<K>(&self, name: &str, condition: impl Fn(Option<&K>) -> bool)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        until(self.api::<K>(), name, condition).await;
    }

    pub(crate) async fn stop(self) {
        self.tasks.shutdown().await;
    }
}

pub(crate) async fn until<K>(api: Api<K>, name: &str, condition: impl Fn(Option<&K>) -> bool)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let condition = |object: Option<&K>| condition(object);
    let waiting = await_condition(api.clone(), name, condition);
    if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
        panic!("{} {name} stays {:#?}", K::kind(&()), api.get_opt(name).await);
    }
}

pub(crate) fn of<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a valid object")
}

/// Pods of the node become ready, and go when they should.
fn agent(ctx: &Context) {
    let client = ctx.client.clone();
    let tasks = ctx.tasks.clone();
    let next = std::sync::atomic::AtomicU32::new(2);
    Cache::<Pod>::builder()
        .on_event(move |change: &Change<'_, Pod>| {
            let pod = change.object().clone();
            let assigned = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
            if change.is_deleted() || !assigned {
                return;
            }
            let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
            if pod.metadata.deletion_timestamp.is_some() {
                tasks.spawn("agent", async move {
                    let _ = api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
                });
            } else if pod.status.as_ref().is_none_or(|status| status.pod_ip.is_none()) {
                let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
                let ip = format!("127.78.0.{number}");
                let status = json!({"status": {"phase": "Running", "podIP": ip, "conditions": [ready]}});
                tasks.spawn("agent", async move {
                    let _ = api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(status)).await;
                });
            }
        })
        .start(ctx);
}
