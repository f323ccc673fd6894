//! All Serving controllers on the embedded API, with admission, and with what is outside of them (autoscaler, ingress
//! implementation) reduced to writing the status they would.

use std::fmt::Debug;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use api::admission::{self, ConfigSnapshot, Request};
use api::autoscaling::v1alpha1::PodAutoscaler;
use api::networking::v1alpha1::{ClusterDomainClaim, Ingress};
use api::serving::v1::{Configuration, Revision, Route, Service};
use api::serving::v1beta1::DomainMapping;
use api::{Conditioned, keys};
use apiserver::admission::{Admission, AdmissionRequest, Denied, Operation};
use controller::{Context, Tasks};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Service as CoreService;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const GATEWAY: &str = "kourier-internal.kourier-system.svc.cluster.local";
const PATIENCE: Duration = Duration::from_secs(60);

struct Knative;

impl Admission for Knative {
    fn mutate(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> Result<(), Denied> {
        admission::default_object(&translate(request), object, &ConfigSnapshot::default())
            .map_err(|message| Denied::new(admission::DEFAULTING_WEBHOOK, message))
    }

    fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> Result<Vec<String>, Denied> {
        admission::validate_object(&translate(request), object, &ConfigSnapshot::default())
            .map_err(|message| Denied::new(admission::VALIDATION_WEBHOOK, message))
    }
}

fn translate<'a>(request: &AdmissionRequest<'a>) -> Request<'a> {
    Request {
        group: request.group,
        kind: request.kind,
        operation: match request.operation {
            Operation::Create => admission::Operation::Create,
            Operation::Update => admission::Operation::Update,
            Operation::Delete => admission::Operation::Delete,
        },
        subresource: Some(request.subresource).filter(|name| !name.is_empty()),
        namespace: request.namespace,
        user: request.user,
        old: request.old,
    }
}

struct Machine {
    client: kube::Client,
    tasks: Tasks,
}

impl Machine {
    async fn start() -> Self {
        let server = apiserver::Server::open(apiserver::Options {
            admission: vec![Arc::new(Knative)],
            ..apiserver::Options::default()
        })
        .await
        .unwrap();
        let crds = format!("{}/../../charts/crds", env!("CARGO_MANIFEST_DIR"));
        for entry in fs::read_dir(crds).unwrap() {
            server.apply_manifest(&fs::read_to_string(entry.unwrap().path()).unwrap()).unwrap();
        }
        server
            .apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "knative-serving"}}))
            .unwrap();
        for (name, data) in [
            ("autoscaler", json!({})),
            ("defaults", json!({})),
            ("deployment", json!({"queue-sidecar-image": "dev.local/queue-proxy"})),
            ("domain", json!({"example.com": ""})),
            ("features", json!({})),
            ("gc", json!({})),
            ("logging", json!({})),
            (
                "network",
                json!({
                    "ingress-class": keys::networking::KOURIER_INGRESS_CLASS,
                    "autocreate-cluster-domain-claims": "true",
                }),
            ),
            ("observability", json!({})),
        ] {
            let metadata = json!({"name": format!("config-{name}"), "namespace": "knative-serving"});
            server
                .apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}))
                .unwrap();
        }
        let client = server.client();
        let tasks = Tasks::new();
        tasks.spawn("autoscaler", autoscaler(client.clone()));
        tasks.spawn("ingress", ingress(client.clone()));
        serving::run(Context::new(client.clone(), tasks.clone()), serving::Options::default()).await.unwrap();
        Self { client, tasks }
    }

    fn api<K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Until the object is as asked; told what it is instead when that takes too long.
    async fn wait<K>(&self, name: &str, what: &str, wanted: impl Fn(Option<&K>) -> bool) -> Option<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let mut seen: Option<K> = None;
        let changes = watcher::watch_object(self.api::<K>(), name);
        let mut changes = std::pin::pin!(changes);
        let found = tokio::time::timeout(PATIENCE, async {
            while let Some(change) = changes.next().await {
                seen = change.unwrap();
                if wanted(seen.as_ref()) {
                    return;
                }
            }
        })
        .await;
        assert!(found.is_ok(), "{name} is not {what}: {seen:#?}");
        seen
    }

    async fn apply(&self, service: Value) {
        let name = service["metadata"]["name"].as_str().unwrap().to_owned();
        let api = self.api::<Service>();
        match api.get_opt(&name).await.unwrap() {
            None => drop(api.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap()),
            Some(_) => {
                drop(api.patch(&name, &PatchParams::default(), &Patch::Merge(&service)).await.unwrap());
            }
        }
    }

    async fn ready(&self, name: &str, generation: i64) -> Service {
        let service = self
            .wait::<Service>(name, "ready", |service| {
                service.is_some_and(|s| s.is_ready() && s.metadata.generation == Some(generation))
            })
            .await;
        service.unwrap()
    }
}

fn conditions(types: &[&str]) -> Value {
    types.iter().map(|t| json!({"type": t, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"})).collect()
}

async fn write_status<K>(api: &Api<K>, object: &K, mut status: Value)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    status["observedGeneration"] = object.meta().generation.unwrap_or_default().into();
    // The object may be gone by now.
    let patch = Patch::Merge(json!({"status": status}));
    drop(api.patch_status(&object.name_any(), &PatchParams::default(), &patch).await);
}

async fn autoscaler(client: kube::Client) {
    let api = Api::<PodAutoscaler>::namespaced(client, "default");
    let mut changes = std::pin::pin!(watcher(api.clone(), watcher::Config::default()).applied_objects());
    while let Some(Ok(pa)) = changes.next().await {
        if pa.is_ready() {
            continue;
        }
        let types = conditions(&["Active", "Ready", "SKSReady", "ScaleTargetInitialized"]);
        let name = pa.name_any();
        let status = json!({"conditions": types, "serviceName": name, "metricsServiceName": format!("{name}-private"), "actualScale": 1, "desiredScale": 1});
        write_status(&api, &pa, status).await;
    }
}

async fn ingress(client: kube::Client) {
    let api = Api::<Ingress>::namespaced(client, "default");
    let mut changes = std::pin::pin!(watcher(api.clone(), watcher::Config::default()).applied_objects());
    while let Some(Ok(ingress)) = changes.next().await {
        if ingress.observed() {
            continue;
        }
        let types = conditions(&["LoadBalancerReady", "NetworkConfigured", "Ready"]);
        let balancer = json!({"ingress": [{"domainInternal": GATEWAY}]});
        let status = json!({"conditions": types, "privateLoadBalancer": balancer, "publicLoadBalancer": balancer});
        write_status(&api, &ingress, status).await;
    }
}

fn hello(image: &str, traffic: Value) -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {"name": "hello", "namespace": "default"},
        "spec": {"template": {"spec": {"containers": [{"image": image}]}}, "traffic": traffic}
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_becomes_ready_changes_splits_and_is_renamed_by_tags() {
    let machine = Machine::start().await;

    machine.apply(hello("dev.local/one", json!(null))).await;
    let service = machine.ready("hello", 1).await;
    let status = service.status.unwrap();
    assert_eq!(status.url.as_deref(), Some("http://hello.default.example.com"));
    assert_eq!(status.address.unwrap().url.as_deref(), Some("http://hello.default.svc.cluster.local"));
    assert_eq!(status.traffic[0].revision_name, "hello-00001");
    let points_at_gateway = |service: Option<&CoreService>| {
        service.and_then(|s| s.spec.as_ref()).is_some_and(|s| s.external_name.as_deref() == Some(GATEWAY))
    };
    machine.wait::<CoreService>("hello", "pointing at the gateway", points_at_gateway).await;

    // A new template moves all traffic to the second revision.
    machine.apply(hello("dev.local/two", json!(null))).await;
    let service = machine.ready("hello", 2).await;
    assert_eq!(service.status.unwrap().traffic[0].revision_name, "hello-00002");

    // Split with tags: each has a name of its own.
    let split = json!([
        {"revisionName": "hello-00001", "percent": 20, "tag": "old"},
        {"latestRevision": true, "percent": 80}
    ]);
    machine.apply(hello("dev.local/two", split)).await;
    let service = machine.ready("hello", 3).await;
    let traffic = service.status.unwrap().traffic;
    assert_eq!(traffic[0].url.as_deref(), Some("http://old-hello.default.example.com"));
    assert_eq!((traffic[1].revision_name.as_str(), traffic[1].percent), ("hello-00002", Some(80)));
    machine.wait::<CoreService>("old-hello", "pointing at the gateway", points_at_gateway).await;
    let active = |revision: Option<&Revision>| {
        revision.is_some_and(|r| r.labels().get(keys::serving::ROUTING_STATE).is_some_and(|s| s == "active"))
    };
    machine.wait::<Revision>("hello-00001", "active", active).await;

    // A target that does not exist is told, and what was routed stays.
    let ingresses = machine.api::<Ingress>();
    let before = ingresses.get("hello").await.unwrap();
    machine.apply(hello("dev.local/two", json!([{"revisionName": "nobody", "percent": 100}]))).await;
    let told = machine
        .wait::<Service>("hello", "failed", |s| s.is_some_and(|s| s.is_failed() && s.metadata.generation == Some(4)))
        .await;
    assert_eq!(told.unwrap().ready().unwrap().message, "Revision \"nobody\" referenced in traffic not found.");
    assert_eq!(ingresses.get("hello").await.unwrap().spec, before.spec);

    // Back to the latest: the tag's name goes.
    machine.apply(hello("dev.local/two", json!([{"latestRevision": true, "percent": 100}]))).await;
    machine.ready("hello", 5).await;
    machine.wait::<CoreService>("old-hello", "gone", |service| service.is_none()).await;
    let route = machine.api::<Route>().get("hello").await.unwrap();
    assert_eq!(route.status.unwrap().traffic.len(), 1);
    machine.tasks.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gradual_rollout_takes_its_time_and_ends() {
    let machine = Machine::start().await;
    let mut service = hello("dev.local/one", json!(null));
    service["metadata"]["annotations"] = json!({"serving.knative.dev/rollout-duration": "3s"});
    machine.apply(service.clone()).await;
    machine.ready("hello", 1).await;

    service["spec"]["template"]["spec"]["containers"][0]["image"] = "dev.local/two".into();
    machine.apply(service).await;
    let rolling = machine
        .wait::<Route>("hello", "rolling out", |route| {
            route.and_then(|r| r.condition("IngressReady")).is_some_and(|c| c.reason == "RolloutInProgress")
        })
        .await;
    let traffic = rolling.unwrap().status.unwrap().traffic;
    assert_eq!(traffic.iter().map(|t| t.percent.unwrap()).sum::<i64>(), 100);
    assert_eq!(traffic.len(), 2, "{traffic:?}");
    let service = machine.ready("hello", 2).await;
    let traffic = service.status.unwrap().traffic;
    assert_eq!((traffic.len(), traffic[0].revision_name.as_str()), (1, "hello-00002"));
    machine.tasks.shutdown().await;
}

fn mapping(namespace: &str) -> DomainMapping {
    serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping",
        "metadata": {"name": "www.example.org", "namespace": namespace},
        "spec": {"ref": {"kind": "Service", "name": "hello", "apiVersion": "serving.knative.dev/v1"}},
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_belongs_to_one_namespace_for_as_long_as_it_is_mapped() {
    let machine = Machine::start().await;
    let mappings = machine.api::<DomainMapping>();
    let name = "www.example.org";
    mappings.create(&PostParams::default(), &mapping("default")).await.unwrap();
    let unresolved = |mapping: Option<&DomainMapping>| {
        mapping.and_then(|m| m.condition("ReferenceResolved")).is_some_and(|c| c.reason == "ResolveFailed")
    };
    machine.wait::<DomainMapping>(name, "unresolved", unresolved).await;

    // What it refers to may come later.
    machine.apply(hello("dev.local/one", json!(null))).await;
    let ready = |mapping: Option<&DomainMapping>| mapping.is_some_and(DomainMapping::is_ready);
    let mapped = machine.wait::<DomainMapping>(name, "ready", ready).await.unwrap();
    assert_eq!(mapped.status.unwrap().url.as_deref(), Some("http://www.example.org"));
    let ingress = machine.api::<Ingress>().get(name).await.unwrap();
    let paths = &ingress.spec.rules[0].http.as_ref().unwrap().paths;
    assert_eq!(paths[0].rewrite_host, "hello.default.svc.cluster.local");
    assert_eq!(paths[0].splits[0].service_name, "hello");

    let elsewhere = Api::<DomainMapping>::namespaced(machine.client.clone(), "knative-serving");
    elsewhere.create(&PostParams::default(), &mapping("knative-serving")).await.unwrap();
    let mut refused = std::pin::pin!(watcher::watch_object(elsewhere, name));
    let told = tokio::time::timeout(PATIENCE, async {
        while let Some(change) = refused.next().await {
            let mapping: Option<DomainMapping> = change.unwrap();
            if mapping.and_then(|m| m.condition("DomainClaimed").cloned()).is_some_and(|c| c.is_false()) {
                return;
            }
        }
    });
    told.await.expect("the second mapping is told that the domain is taken");

    let claims = Api::<ClusterDomainClaim>::all(machine.client.clone());
    assert_eq!(claims.get(name).await.unwrap().spec.namespace, "default");
    mappings.delete(name, &DeleteParams::default()).await.unwrap();
    machine.wait::<DomainMapping>(name, "gone", |mapping| mapping.is_none()).await;
    // Free again, or the other's already.
    let claim = claims.get_opt(name).await.unwrap();
    assert!(claim.is_none_or(|claim| claim.spec.namespace == "knative-serving"));
    machine.tasks.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admission_refuses_and_records_users() {
    let machine = Machine::start().await;
    let mut bad = hello("dev.local/one", json!([{"latestRevision": true, "percent": 70}]));
    bad["spec"]["template"]["spec"]["containerConcurrency"] = (-3).into();
    let bad: Service = serde_json::from_value(bad).unwrap();
    let error = machine.api::<Service>().create(&PostParams::default(), &bad).await.unwrap_err();
    let kube::Error::Api(status) = error else { panic!("{error}") };
    assert_eq!(
        status.message,
        "admission webhook \"validation.webhook.serving.knative.dev\" denied the request: validation failed: Traffic targets sum to 70, want 100: spec.traffic\nexpected 0 <= -3 <= 1000: spec.template.spec.containerConcurrency"
    );
    assert_eq!(status.code, 400);

    machine.apply(hello("dev.local/one", json!(null))).await;
    let service = machine.ready("hello", 1).await;
    let creator = service.annotations()[keys::serving::CREATOR].clone();
    let made = machine.api::<Configuration>().get("hello").await.unwrap();
    assert_eq!(made.annotations()[keys::serving::CREATOR], creator);
    machine.tasks.shutdown().await;
}
