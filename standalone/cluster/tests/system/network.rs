//! From ready pods to endpoints, names and connections.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::harness::World;
use crate::workloads::deployment;

/// The ready addresses of the Service's only slice.
async fn slice(world: &World, service: &str, ready: usize) -> EndpointSlice {
    let selector = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let name = loop {
        let found = world.api::<EndpointSlice>().list(&selector).await.unwrap().items;
        if let Some(slice) = found.first() {
            break slice.name_any();
        }
        tokio::task::yield_now().await;
    };
    let count = |slice: &EndpointSlice| {
        let endpoints = slice.endpoints.iter();
        endpoints.filter(|e| e.conditions.as_ref().is_some_and(|c| c.ready == Some(true))).count()
    };
    world.until(&name, |slice: Option<&EndpointSlice>| slice.is_some_and(|slice| count(slice) == ready)).await;
    world.api().get(&name).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_pods_are_endpoints_and_answer_under_the_service_address() {
    let world = World::start().await;
    let service: Service = world
        .create(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 8080, "targetPort": "web"}]},
        }))
        .await;
    assert_eq!(slice(&world, "web", 0).await.endpoints.len(), 0, "a slice from the start");
    world.create::<Deployment>(deployment("web", 1)).await;
    let found = slice(&world, "web", 1).await;
    assert_eq!(found.ports.as_ref().unwrap()[0].port, Some(7777));
    let ip = found.endpoints[0].addresses[0].clone();
    world
        .until("web", |endpoints: Option<&Endpoints>| {
            let subsets = endpoints.and_then(|endpoints| endpoints.subsets.as_ref());
            subsets.into_iter().flatten().flat_map(|s| s.addresses.iter().flatten()).any(|address| address.ip == ip)
        })
        .await;

    // The pod's program, on the address the agent gave it.
    let program = TcpListener::bind((ip.as_str(), 7777)).await.unwrap();
    let serve = tokio::spawn(async move {
        let (mut stream, _) = program.accept().await.unwrap();
        let mut word = [0; 4];
        stream.read_exact(&mut word).await.unwrap();
        stream.write_all(&word).await.unwrap();
    });
    let vip = service.spec.unwrap().cluster_ip.unwrap();
    // Refused until the listener has seen what we saw.
    let echoed = async {
        loop {
            if let Ok(word) = echo(&vip).await {
                break word;
            }
            tokio::task::yield_now().await;
        }
    };
    let word = tokio::time::timeout(std::time::Duration::from_secs(60), echoed).await.unwrap();
    assert_eq!(&word, b"echo");
    serve.await.unwrap();
    assert_eq!(world.handle.service_address_problem(), None);

    assert_eq!(ask(&world, "web.default.svc.cluster.local").await, Some(vip));
    assert_eq!(ask(&world, "none.default.svc.cluster.local").await, None);

    world.patch::<Deployment>("web", json!({"spec": {"replicas": 0}})).await;
    slice(&world, "web", 0).await;
    world.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
    world.until("web", |endpoints: Option<&Endpoints>| endpoints.is_none()).await;
    world.until(&found.name_any(), |slice: Option<&EndpointSlice>| slice.is_none()).await;
    world.stop().await;
}

async fn echo(vip: &str) -> std::io::Result<[u8; 4]> {
    let mut client = TcpStream::connect((vip, 8080)).await?;
    client.write_all(b"echo").await?;
    let mut word = [0; 4];
    client.read_exact(&mut word).await?;
    Ok(word)
}

/// The last four bytes of a one-record answer.
async fn ask(world: &World, name: &str) -> Option<String> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(world.handle.dns().unwrap()).await.unwrap();
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    socket.send(&query).await.unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).await.unwrap();
    let [.., a, b, c, d] = answer[..length] else { return None };
    (answer[7] == 1).then(|| format!("{a}.{b}.{c}.{d}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_by_hand_are_mirrored() {
    let world = World::start().await;
    world
        .create::<Service>(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "public"},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8012}]},
        }))
        .await;
    world
        .create::<Endpoints>(json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": "public", "labels": {"a": "b"}},
            "subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"name": "http", "port": 8012}]}],
        }))
        .await;
    let first = slice(&world, "public", 1).await;
    assert_eq!(first.labels()["a"], "b");
    let subsets = json!({"subsets": [{
        "addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"name": "http", "port": 8012}],
    }]});
    world.patch::<Endpoints>("public", subsets).await;
    assert_eq!(slice(&world, "public", 2).await.name_any(), first.name_any(), "the same slice");
    world.patch::<Endpoints>("public", json!({"subsets": []})).await;
    world.until(&first.name_any(), |slice: Option<&EndpointSlice>| slice.is_none()).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_stops_being_ready_leaves_the_slice_at_once() {
    let world = World::start().await;
    world
        .create::<Service>(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
        }))
        .await;
    world.create::<Deployment>(deployment("web", 2)).await;
    let found = slice(&world, "web", 2).await;
    let pod = found.endpoints[0].target_ref.as_ref().unwrap().name.clone().unwrap();
    let conditions = json!([{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:09Z"}]);
    let patch = kube::api::Patch::Merge(json!({"status": {"conditions": conditions}}));
    world.api::<Pod>().patch_status(&pod, &kube::api::PatchParams::default(), &patch).await.unwrap();
    slice(&world, "web", 1).await;
    world.stop().await;
}
