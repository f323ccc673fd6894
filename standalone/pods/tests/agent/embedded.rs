//! The agent under the embedded API, with a pod as Serving makes it: program and queue-proxy.

use std::time::{Duration, Instant};

use controller::{Cache, Change, Context, Tasks};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use pods::{Binary, NetworkMode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Clean, condition, hello, options};

fn serving_pod(name: &str) -> Pod {
    let field = |path: &str| json!({"fieldRef": {"apiVersion": "v1", "fieldPath": path}});
    let probe = json!({"tcpSocket": {"port": 8080, "host": "127.0.0.1"}, "successThreshold": 1}).to_string();
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"serving.knative.dev/revision": name}},
        "spec": {
            "nodeName": "node", "terminationGracePeriodSeconds": 300, "enableServiceLinks": false,
            "containers": [
                {
                    "name": "user-container", "image": "dev.local/hello",
                    "ports": [{"name": "user-port", "containerPort": 8080}],
                    "env": [{"name": "PORT", "value": "8080"}, {"name": "TARGET", "value": name}],
                    "lifecycle": {"preStop": {"httpGet": {"port": 8022, "path": "/wait-for-drain"}}},
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                },
                {
                    "name": "queue-proxy", "image": "dev.local/queue-proxy",
                    "ports": [{"name": "queue-port", "containerPort": 8012}],
                    "readinessProbe": {
                        "httpGet": {"port": 8012, "httpHeaders": [{"name": "K-Network-Probe", "value": "queue"}]},
                        "successThreshold": 1,
                    },
                    "resources": {"requests": {"cpu": "25m"}},
                    "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                        "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]}},
                    "env": [
                        {"name": "SERVING_LOGGING_CONFIG"}, {"name": "SERVING_LOGGING_LEVEL"},
                        {"name": "REVISION_RESPONSE_START_TIMEOUT_SECONDS", "value": "0"},
                        {"name": "REVISION_IDLE_TIMEOUT_SECONDS", "value": "0"},
                        {"name": "SERVING_NAMESPACE", "value": "default"}, {"name": "SERVING_SERVICE", "value": name},
                        {"name": "SERVING_CONFIGURATION", "value": name}, {"name": "SERVING_REVISION", "value": name},
                        {"name": "QUEUE_SERVING_PORT", "value": "8012"}, {"name": "QUEUE_SERVING_TLS_PORT", "value": "8112"},
                        {"name": "CONTAINER_CONCURRENCY", "value": "0"}, {"name": "REVISION_TIMEOUT_SECONDS", "value": "300"},
                        {"name": "SERVING_POD", "valueFrom": field("metadata.name")},
                        {"name": "SERVING_POD_IP", "valueFrom": field("status.podIP")},
                        {"name": "HOST_IP", "valueFrom": field("status.hostIP")},
                        {"name": "USER_PORT", "value": "8080"}, {"name": "SYSTEM_NAMESPACE", "value": "knative-serving"},
                        {"name": "SERVING_READINESS_PROBE", "value": probe},
                    ],
                },
            ],
        },
    }))
    .unwrap()
}

/// What happens to pods, as it happens.
fn follow(ctx: &Context) -> mpsc::UnboundedReceiver<(Instant, Value, bool)> {
    let (send, receive) = mpsc::unbounded_channel();
    let handler = move |change: &Change<'_, Pod>| {
        let pod = serde_json::to_value(change.object().as_ref()).unwrap();
        let _ = send.send((Instant::now(), pod, change.is_deleted()));
    };
    Cache::<Pod>::builder().on_event(handler).start(ctx);
    receive
}

async fn until(
    events: &mut mpsc::UnboundedReceiver<(Instant, Value, bool)>,
    wanted: impl Fn(&Value, bool) -> bool,
) -> (Instant, Value) {
    let mut last = Value::Null;
    let search = async {
        loop {
            let (at, pod, deleted) = events.recv().await.unwrap();
            if wanted(&pod, deleted) {
                return (at, pod);
            }
            last = pod;
        }
    };
    match tokio::time::timeout(Duration::from_secs(60), search).await {
        Ok(found) => found,
        Err(_) => panic!("not in time: {last:#}"),
    }
}

async fn serve_and_end(mode: NetworkMode, third: u8) {
    let Some(hello) = hello() else { return };
    let queue_proxy = hello.with_file_name("queue-proxy");
    if !queue_proxy.is_file() {
        return;
    }
    if std::env::var_os("TRACE").is_some() {
        let _ = tracing_subscriber::fmt().with_env_filter("pods::start=debug").try_init();
    }
    let data = tempfile::tempdir().unwrap();
    let mut options = options(data.path(), third, mode);
    options.binaries.insert("queue-proxy".to_owned(), Binary::new(queue_proxy));
    let _clean = Clean(options.clone());
    let authority = Some("PEM".to_owned());
    let api = apiserver::Options { root_certificate: authority, ..apiserver::Options::default() };
    let server = apiserver::Server::open(api).await.unwrap();
    let tasks = Tasks::new();
    let ctx = Context::new(server.client(), tasks.clone());
    let handle = pods::run(ctx.clone(), options).await.unwrap();
    handle.synced().await;
    let mut events = follow(&ctx);
    let pods = Api::<Pod>::namespaced(ctx.client.clone(), "default");

    for round in 0..5 {
        let name = format!("serving-{round}");
        let created = Instant::now();
        pods.create(&PostParams::default(), &serving_pod(&name)).await.unwrap();
        let started = std::cell::Cell::new(None);
        let ready = |pod: &Value, _| {
            let ours = pod["metadata"]["name"] == name.as_str();
            if ours && pod["status"]["phase"] == "Running" && started.get().is_none() {
                started.set(Some(created.elapsed()));
            }
            ours && condition(pod, "Ready") == "True"
        };
        let (at, pod) = until(&mut events, ready).await;
        println!("running seen after {:?}, ready after {:?}", started.get(), at - created);
        let ip: std::net::Ipv4Addr = pod["status"]["podIP"].as_str().unwrap().parse().unwrap();
        let answer = get(ip, 8012, "/").await;
        assert!(answer.contains("200 OK") && answer.ends_with(&format!("Hello {name}!\n")), "{answer}");
        if round > 0 {
            continue;
        }
        // The sidecar waits for requests that may still come until the grace ends; the program, until the sidecar says
        // that none will, or the grace ends.
        let params = DeleteParams { grace_period_seconds: Some(1), ..DeleteParams::default() };
        pods.delete(&name, &params).await.unwrap();
        let gone = |pod: &Value, deleted| deleted && pod["metadata"]["name"] == name.as_str();
        let (_, last) = until(&mut events, gone).await;
        let user = &last["status"]["containerStatuses"][0];
        assert_eq!(user["state"]["terminated"]["exitCode"], 0, "{user}");
    }
    let nodes = Api::<Node>::all(ctx.client.clone()).list(&ListParams::default()).await.unwrap();
    let node = serde_json::to_value(&nodes.items[0]).unwrap();
    assert_eq!((condition(&node, "Ready"), nodes.items.len()), ("True", 1));
    let events = Api::<Event>::namespaced(ctx.client.clone(), "default").list(&ListParams::default()).await.unwrap();
    let reasons: Vec<_> = events.items.iter().filter_map(|event| event.reason.as_deref()).collect();
    assert!(reasons.contains(&"Started") && reasons.contains(&"Killing"), "{reasons:?}");

    handle.drain(Duration::from_secs(1)).await;
    tasks.shutdown().await;
    assert!(handle.network().interfaces().await.unwrap().is_empty());
}

async fn get(ip: std::net::Ipv4Addr, port: u16, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect((ip, port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serving_pod_serves_and_drains() {
    serve_and_end(NetworkMode::Auto, 18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serving_pod_serves_without_privilege() {
    serve_and_end(NetworkMode::Loopback, 19).await;
}
