//! A revision's life as the autoscaler sees it, against the embedded API: asleep, woken by a stat, active, asleep again.
//!
//! Played by the test: the activator (a WebSocket that reports, and the answer to the probe), the queue-proxy (figures), and what the
//! other controllers would write (ServerlessService status, Endpoints, Pod).

use std::fmt::Debug;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use api::Conditioned;
use api::autoscaling::v1alpha1::{Metric, PodAutoscaler};
use api::networking::v1alpha1::ServerlessService;
use apiserver::Server;
use autoscaler::{Handle, Options, ServiceLookup};
use bytes::Bytes;
use controller::{Context, Tasks};
use futures::SinkExt;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Pod};
use kube::Resource;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use proto::{Message as _, Stat, WireStatMessage, WireStatMessages};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

const NAME: &str = "hello-00001";
const DEFINITIONS: [&str; 3] = [
    include_str!("../../../charts/crds/podautoscalers.autoscaling.internal.knative.dev.yaml"),
    include_str!("../../../charts/crds/metrics.autoscaling.internal.knative.dev.yaml"),
    include_str!("../../../charts/crds/serverlessservices.networking.internal.knative.dev.yaml"),
];

struct Rig {
    client: kube::Client,
    tasks: Tasks,
    handle: Handle,
    /// What the pod reports, in thousandths.
    load: Arc<AtomicU64>,
    activator: SocketAddr,
}

impl Rig {
    async fn start(config: Value) -> Self {
        let server = Server::open(apiserver::Options::default()).await.unwrap();
        for definition in DEFINITIONS {
            server.apply_manifest(definition).unwrap();
        }
        let map = |name: &str, data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "knative-serving"}, "data": data});
        server
            .ensure(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "knative-serving"}}))
            .unwrap();
        server.ensure(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})).unwrap();
        server.ensure(&map("config-autoscaler", config)).unwrap();
        server.ensure(&map("config-deployment", json!({"queue-sidecar-image": "dev.local/queue-proxy"}))).unwrap();

        let tasks = Tasks::new();
        let load = Arc::new(AtomicU64::new(0));
        let figures = load.clone();
        let queue_proxy = serve(&tasks, move |request| {
            assert_eq!(request.uri().path(), "/metrics");
            let concurrency = figures.load(Ordering::SeqCst) as f64 / 1000.0;
            let stat = Stat { pod_name: "p".into(), average_concurrent_requests: concurrency, ..Stat::default() };
            ("application/protobuf", stat.encode_to_vec())
        });
        let activator = serve(&tasks, |request| {
            assert_eq!(request.headers()["k-network-probe"], "activator");
            ("text/plain", b"activator".to_vec())
        });
        let (queue_proxy, activator) = tokio::join!(queue_proxy, activator);
        let client = server.client();
        let options = Options {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            metrics_port: queue_proxy.port(),
            service_lookup: ServiceLookup::Endpoints,
            ..Options::default()
        };
        let handle = autoscaler::run(Context::new(client.clone(), tasks.clone()), options).await.unwrap();
        Rig { client, tasks, handle, load, activator }
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

    /// Waits until the object is there and as wanted.
    async fn until<K>(&self, name: &str, what: &str, wanted: impl Fn(&K) -> bool) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        let api = self.api::<K>();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let seen = api.get_opt(name).await.unwrap();
            if let Some(object) = seen.as_ref().filter(|object| wanted(object)) {
                return object.clone();
            }
            assert!(Instant::now() < deadline, "{what}: never; last seen {seen:#?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn replicas(&self, wanted: i32) {
        let is = |deployment: &Deployment| deployment.spec.as_ref().unwrap().replicas == Some(wanted);
        self.until("hello-00001-deployment", &format!("{wanted} replicas"), is).await;
    }

    /// What the revision and ServerlessService controllers do.
    async fn revision(&self, replicas: i32, annotations: Value) {
        let labels = json!({"serving.knative.dev/revision": NAME, "serving.knative.dev/configuration": "hello",
            "serving.knative.dev/revisionUID": "u", "serving.knative.dev/service": "hello"});
        self.create::<Deployment>(json!({
            "metadata": {"name": "hello-00001-deployment", "namespace": "default", "labels": labels},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}},
        }))
        .await;
        let mut annotations = annotations;
        annotations["autoscaling.knative.dev/class"] = json!("kpa.autoscaling.knative.dev");
        self.create::<PodAutoscaler>(json!({
            "metadata": {"name": NAME, "namespace": "default", "labels": labels, "annotations": annotations},
            "spec": {"protocolType": "http1", "reachability": "Reachable",
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "hello-00001-deployment"}},
        }))
        .await;
        self.until::<ServerlessService>(NAME, "ServerlessService", |_| true).await;
        self.create::<Endpoints>(json!({
            "metadata": {"name": NAME, "namespace": "default"},
            "subsets": [{"addresses": [{"ip": self.activator.ip().to_string()}],
                "ports": [{"name": "http", "port": self.activator.port()}]}],
        }))
        .await;
        let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": jiff::Timestamp::now().to_string()});
        let status = json!({"serviceName": NAME, "privateServiceName": "hello-00001-private", "observedGeneration": 1,
            "conditions": [condition("ActivatorEndpointsPopulated"), condition("EndpointsPopulated"), condition("Ready")]});
        self.status::<ServerlessService>(NAME, status).await;
        self.until::<Metric>(NAME, "Metric collected", |metric| metric.is_ready()).await;
    }

    async fn pod(&self, name: &str) {
        self.create::<Pod>(json!({
            "metadata": {"name": name, "namespace": "default",
                "labels": {"serving.knative.dev/revision": NAME, "serving.knative.dev/revisionUID": "u"}},
            "spec": {"containers": [{"name": "c", "image": "x"}]},
        }))
        .await;
        let status =
            json!({"phase": "Running", "podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]});
        self.status::<Pod>(name, status).await;
    }

    async fn report(&self, concurrency: f64) {
        let stream = TcpStream::connect(self.handle.address).await.unwrap();
        let (mut socket, _) =
            tokio_tungstenite::client_async(format!("ws://{}", self.handle.address), stream).await.unwrap();
        let stat = Stat { average_concurrent_requests: concurrency, request_count: concurrency, ..Stat::default() };
        let message = WireStatMessage { namespace: "default".into(), name: NAME.into(), stat: Some(stat) };
        let batch = WireStatMessages { messages: vec![message] };
        socket.send(Message::Binary(batch.encode_to_vec().into())).await.unwrap();
        socket.close(None).await.unwrap();
    }

    async fn autoscaler(&self, what: &str, active: &str) -> PodAutoscaler {
        self.until(NAME, what, |pa: &PodAutoscaler| pa.condition("Active").is_some_and(|c| c.status == active)).await
    }
}

async fn serve<F>(tasks: &Tasks, answer: F) -> SocketAddr
where
    F: Fn(&Request<Incoming>) -> (&'static str, Vec<u8>) + Clone + Send + Sync + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let group = tasks.clone();
    tasks.spawn("server", async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let (content_type, body) = answer(&request);
                let response =
                    Response::builder().header("content-type", content_type).body(Full::new(Bytes::from(body)));
                async move { response }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            group.spawn("connection", async move { drop(connection.await) });
        }
    });
    address
}

fn is_true(pa: &PodAutoscaler, kind: &str) -> bool {
    pa.condition(kind).is_some_and(|condition| condition.is_true())
}

#[tokio::test]
async fn from_zero_and_back() {
    let rig = Rig::start(json!({"scale-to-zero-grace-period": "1s"})).await;
    rig.revision(0, json!({})).await;
    let pa = rig.autoscaler("activating", "Unknown").await;
    assert_eq!(pa.condition("Active").unwrap().reason, "Queued");

    // 0 -> 1.
    rig.report(1.0).await;
    rig.replicas(1).await;
    rig.pod("a").await;
    let pa = rig.autoscaler("active", "True").await;
    assert!(is_true(&pa, "ScaleTargetInitialized") && is_true(&pa, "SKSReady") && is_true(&pa, "Ready"));
    let status = pa.status().unwrap();
    assert_eq!((status.service_name.as_str(), status.metrics_service_name.as_str()), (NAME, "hello-00001-private"));
    assert_eq!(status.actual_scale, Some(1));

    // Load scales out: the pod reports 300 requests at a time, a pod is to carry 70.
    rig.load.store(300_000, Ordering::SeqCst);
    let is_more = |deployment: &Deployment| deployment.spec.as_ref().unwrap().replicas > Some(3);
    rig.until::<Deployment>("hello-00001-deployment", "scaled out", is_more).await;

    // Applied without a restart; without it the rest would take a minute.
    rig.load.store(0, Ordering::SeqCst);
    let maps = Api::<ConfigMap>::namespaced(rig.client.clone(), "knative-serving");
    let patch = Patch::Merge(json!({"data": {"stable-window": "6s"}}));
    maps.patch("config-autoscaler", &PatchParams::default(), &patch).await.unwrap();
    rig.until::<Metric>(NAME, "new window", |metric| metric.spec.stable_window == 6_000_000_000).await;

    let pa = rig.autoscaler("inactive", "False").await;
    assert_eq!(pa.condition("Active").unwrap().reason, "NoTraffic");
    assert_eq!(
        rig.until::<ServerlessService>(NAME, "proxied", |sks| sks.spec.mode == "Proxy").await.spec.num_activators,
        4
    );
    rig.replicas(0).await;
    assert_eq!(rig.handle.awake(), 1, "there is a pod still");
    rig.api::<Pod>().delete("a", &DeleteParams::default().grace_period(0)).await.unwrap();
    let asleep = async {
        while rig.handle.awake() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), asleep).await.expect("asleep: no wake-ups any more");
    let pa = rig.until(NAME, "no pods", |pa: &PodAutoscaler| pa.status().unwrap().actual_scale == Some(0)).await;
    assert_eq!(pa.status().unwrap().desired_scale, Some(0));
    rig.report(1.0).await;
    rig.replicas(1).await;
    rig.tasks.shutdown().await;
}

#[tokio::test]
async fn bounds_are_kept() {
    let rig = Rig::start(json!({})).await;
    rig.revision(1, json!({"autoscaling.knative.dev/min-scale": "2", "autoscaling.knative.dev/max-scale": "3"})).await;
    rig.report(1000.0).await;
    rig.replicas(3).await;
    rig.pod("a").await;
    rig.pod("b").await;
    let pa = rig.autoscaler("active", "True").await;
    assert_eq!(pa.status().unwrap().desired_scale, Some(3));
    // Somebody's manual scale is put right.
    let patch = Patch::Merge(json!({"spec": {"replicas": 1}}));
    rig.api::<Deployment>().patch("hello-00001-deployment", &PatchParams::default(), &patch).await.unwrap();
    rig.replicas(3).await;
    rig.api::<PodAutoscaler>().delete(NAME, &DeleteParams::default()).await.unwrap();
    rig.tasks.shutdown().await;
}
