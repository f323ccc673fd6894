//! The revision controller against the embedded API: what it writes is accepted, and what others write comes back as conditions.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use api::Conditioned;
use api::autoscaling::v1alpha1::PodAutoscaler;
use api::caching::v1alpha1::Image;
use api::serving::v1::Revision;
use apiserver::Server;
use controller::{Context, Tasks};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Resource;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const DEPLOYMENT: &str = "hello-00001-deployment";
const CONFIG: &str = include_str!("../../../standalone/manifests/config.yaml");
const DEFINITIONS: [&str; 8] = [
    include_str!("../../../charts/crds/configurations.serving.knative.dev.yaml"),
    include_str!("../../../charts/crds/images.caching.internal.knative.dev.yaml"),
    include_str!("../../../charts/crds/ingresses.networking.internal.knative.dev.yaml"),
    include_str!("../../../charts/crds/podautoscalers.autoscaling.internal.knative.dev.yaml"),
    include_str!("../../../charts/crds/revisions.serving.knative.dev.yaml"),
    include_str!("../../../charts/crds/routes.serving.knative.dev.yaml"),
    include_str!("../../../charts/crds/serverlessservices.networking.internal.knative.dev.yaml"),
    include_str!("../../../charts/crds/services.serving.knative.dev.yaml"),
];

struct Rig {
    client: kube::Client,
    tasks: Tasks,
}

impl Rig {
    async fn start() -> Self {
        let server = Server::open(apiserver::Options::default()).await.unwrap();
        for definition in DEFINITIONS {
            server.apply_manifest(definition).unwrap();
        }
        for namespace in ["default", "knative-serving"] {
            server.ensure(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})).unwrap();
        }
        server.apply_manifest(CONFIG).unwrap();
        let (client, tasks) = (server.client(), Tasks::new());
        serving::run(Context::new(client.clone(), tasks.clone()), serving::Options::default()).await.unwrap();
        Rig { client, tasks }
    }

    fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Serialize + Debug,
    {
        self.api::<K>().create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
    }

    async fn status<K>(&self, name: &str, status: Value)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        let patch = Patch::Merge(json!({"status": status}));
        self.api::<K>().patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }

    async fn until<K>(&self, name: &str, what: &str, wanted: impl Fn(&K) -> bool) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        let api = self.api::<K>();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let seen = api.get_opt(name).await.unwrap();
            if let Some(object) = seen.as_ref().filter(|object| wanted(object)) {
                return object.clone();
            }
            assert!(Instant::now() < deadline, "{what}: never; last seen {seen:#?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn revision(&self, name: &str, image: &str) {
        let labels = json!({"serving.knative.dev/configuration": "hello", "serving.knative.dev/service": "hello",
            "serving.knative.dev/routingState": "active"});
        self.create::<Revision>(json!({
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "spec": {"timeoutSeconds": 300, "containers": [{"name": "user-container", "image": image}]},
        }))
        .await;
    }

    /// Waits until a condition has this status and reason; returns its message.
    async fn says(&self, name: &str, kind: &str, status: &str, reason: &str) -> String {
        let is =
            |revision: &Revision| revision.condition(kind).is_some_and(|c| c.status == status && c.reason == reason);
        let revision = self.until(name, &format!("{kind} {status} {reason}"), is).await;
        revision.condition(kind).unwrap().message.clone()
    }
}

#[tokio::test]
async fn children_and_what_they_say() {
    let rig = Rig::start().await;
    rig.revision("hello-00001", "dev.local/hello").await;
    rig.says("hello-00001", "Active", "Unknown", "Deploying").await;
    let deployment: Deployment = rig.until(DEPLOYMENT, "Deployment", |_| true).await;
    let autoscaler: PodAutoscaler = rig.until("hello-00001", "PodAutoscaler", |_| true).await;
    assert_eq!(autoscaler.spec.reachability, "Reachable");
    rig.until::<Image>("hello-00001-cache-user-container", "Image", |_| true).await;
    let uid = rig.api::<Revision>().get("hello-00001").await.unwrap().metadata.uid.unwrap();

    // A program that exits is told as soon as its pod tells.
    let labels = json!({"serving.knative.dev/revision": "hello-00001", "serving.knative.dev/revisionUID": uid});
    rig.create::<Pod>(json!({"metadata": {"name": "a", "namespace": "default", "labels": labels},
        "spec": {"containers": [{"name": "user-container", "image": "dev.local/hello"}]}}))
        .await;
    let container = |last: Value| {
        json!({"containerStatuses": [{"name": "user-container", "image": "", "imageID": "", "ready": false, "restartCount": 1,
            "lastState": last}]})
    };
    rig.status::<Pod>("a", container(json!({"terminated": {"exitCode": 3, "message": "boom"}}))).await;
    let message = rig.says("hello-00001", "ContainerHealthy", "False", "ExitCode3").await;
    assert_eq!(message, "Container failed with: boom");
    rig.until("hello-00001", "unreachable", |autoscaler: &PodAutoscaler| autoscaler.spec.reachability == "Unreachable")
        .await;

    // It recovers, and the autoscaler is content.
    let progress = json!([{"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}]);
    let ready = json!({"replicas": 1, "readyReplicas": 1, "availableReplicas": 1, "conditions": progress});
    rig.status::<Deployment>(DEPLOYMENT, ready).await;
    rig.says("hello-00001", "ContainerHealthy", "True", "").await;
    let generation = rig.api::<PodAutoscaler>().get("hello-00001").await.unwrap().metadata.generation;
    let conditions = ["Active", "Ready", "SKSReady", "ScaleTargetInitialized"]
        .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}));
    rig.status::<PodAutoscaler>(
        "hello-00001",
        json!({"serviceName": "hello-00001", "metricsServiceName": "hello-00001-private", "actualScale": 1, "desiredScale": 1,
            "observedGeneration": generation, "conditions": conditions}),
    )
    .await;
    let revision: Revision = rig.until("hello-00001", "ready", |revision: &Revision| revision.is_ready()).await;
    assert_eq!(revision.status().unwrap().actual_replicas, Some(1));

    // A new queue-proxy image rolls the pods and keeps the scale somebody else set.
    let scale = Patch::Merge(json!({"spec": {"replicas": 4}}));
    rig.api::<Deployment>().patch(DEPLOYMENT, &PatchParams::default(), &scale).await.unwrap();
    let maps = Api::<ConfigMap>::namespaced(rig.client.clone(), "knative-serving");
    let image = Patch::Merge(json!({"data": {"queue-sidecar-image": "dev.local/other"}}));
    maps.patch("config-deployment", &PatchParams::default(), &image).await.unwrap();
    let image = |deployment: &Deployment| deployment.spec.as_ref()?.template.spec.as_ref()?.containers[1].image.clone();
    assert_ne!(image(&deployment).as_deref(), Some("dev.local/other"));
    let rolled =
        rig.until(DEPLOYMENT, "new image", |d: &Deployment| image(d).as_deref() == Some("dev.local/other")).await;
    assert_eq!(rolled.spec.unwrap().replicas, Some(4));
    rig.tasks.shutdown().await;
}

#[tokio::test]
async fn an_image_that_cannot_be_resolved_is_told_and_makes_no_pods() {
    let rig = Rig::start().await;
    rig.revision("bad-00001", "registry.invalid/nothing:v1").await;
    let message = rig.says("bad-00001", "ContainerHealthy", "False", "ContainerMissing").await;
    let start = r#"Unable to fetch image "registry.invalid/nothing:v1": failed to resolve image to digest: "#;
    assert!(message.starts_with(start), "{message}");
    rig.says("bad-00001", "Ready", "False", "ContainerMissing").await;
    assert!(rig.api::<Deployment>().get_opt("bad-00001-deployment").await.unwrap().is_none());
    rig.tasks.shutdown().await;
}
