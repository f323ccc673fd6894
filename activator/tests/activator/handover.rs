//! A service whose traffic moves between the activator and its pods while requests go on, behind a real gateway.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use activator::{Handle, Options};
use controller::{Context, Tasks};
use ingress::{Admin, Bootstrap};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    process::Child,
    task::JoinHandle,
};

use crate::{Autoscaler, PATIENCE, ok, read_answer, read_head, sidecar, until};

const REVISION: &str = "rev";

/// A gateway, its control plane, an activator and the API between them.
struct Rig {
    server: apiserver::Server,
    tasks: Tasks,
    activator: Handle,
    gateway: SocketAddr,
    _autoscaler: Autoscaler,
    // The gateway ends before its files go.
    _envoy: Child,
    _files: tempfile::TempDir,
}

/// A program behind a sidecar.
struct Pod {
    sidecar: queue_proxy::Handle,
    address: SocketAddr,
    /// Requests it got from the activator, and from the gateway.
    served: Arc<[AtomicUsize; 2]>,
}

/// Clients that ask again and again, and what went wrong.
struct Traffic {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

fn envoy() -> Option<PathBuf> {
    let named = std::env::var_os("ENVOY").map(PathBuf::from);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/envoy");
    let on_path = std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join("envoy")).collect::<Vec<_>>();
    named.into_iter().chain(on_path).chain([root]).find(|path| path.is_file())
}

/// Listening sockets that are closed again: Envoy and the role bind the ports themselves.
async fn free_ports<const N: usize>() -> [SocketAddr; N] {
    let mut listeners = Vec::new();
    let mut next = 20_000 + std::process::id() % 12_000;
    while listeners.len() < N {
        // Below those that outgoing connections take.
        next = if next >= 32_000 { 20_000 } else { next + 1 };
        let port = u16::try_from(next).expect("a port");
        listeners.extend(TcpListener::bind(("127.0.0.1", port)).await.ok());
    }
    std::array::from_fn(|index| listeners[index].local_addr().expect("bound"))
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("valid")
}

// === impl Rig ===

impl Rig {
    /// `None`, with a message, when there is no Envoy on this machine.
    async fn start() -> Option<Self> {
        let Some(program) = envoy() else {
            eprintln!("skipped: no Envoy; name one in ENVOY or put it on PATH");
            return None;
        };
        let server = apiserver::Server::open(apiserver::Options::default()).await.expect("an API");
        for manifest in [
            include_str!("../../../charts/crds/ingresses.networking.internal.knative.dev.yaml"),
            include_str!("../../../charts/crds/revisions.serving.knative.dev.yaml"),
        ] {
            server.apply_manifest(manifest).expect("a definition");
        }
        let tasks = Tasks::new();
        let ctx = Context::new(server.client(), tasks.clone());
        let autoscaler = Autoscaler::start().await;
        let [xds, gateway, internal, probe, admin] = free_ports().await;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = Options {
            listen_http: any,
            listen_h2c: any,
            autoscaler_url: autoscaler.url(),
            drain_limit: PATIENCE,
            ..Options::default()
        };
        let activator = activator::run(ctx.clone(), options).await.expect("free ports");
        let options = ingress::Options {
            xds_listen: xds,
            external_listen: vec![gateway],
            internal_listen: vec![internal],
            probe_listen: vec![probe],
            ..ingress::Options::default()
        };
        ingress::run(ctx, options).await.expect("free ports");
        let files = tempfile::tempdir().expect("a folder");
        let config = files.path().join("envoy.json");
        let bootstrap = Bootstrap::new(xds, Admin::Tcp(admin));
        std::fs::write(&config, bootstrap.render()).expect("writable");
        let envoy = tokio::process::Command::new(program)
            .args(bootstrap.arguments(&config))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(files.path().join("envoy.log")).expect("writable"))
            .kill_on_drop(true)
            .spawn()
            .expect("Envoy");
        Some(Self { server, tasks, activator, gateway, _autoscaler: autoscaler, _envoy: envoy, _files: files })
    }

    /// The objects that exist for a sleeping revision with a route.
    async fn create(&self) {
        let client = self.server.client();
        let revision: api::serving::v1::Revision = object(json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision", "metadata": {"name": REVISION},
            "spec": {"containerConcurrency": 0, "timeoutSeconds": 300, "containers": [{"image": "dev.local/hello"}]},
        }));
        let service: Service = object(json!({"metadata": {"name": REVISION},
            "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": 80, "targetPort": 8012}]}}));
        let split = json!({"serviceNamespace": "default", "serviceName": REVISION, "servicePort": 80, "percent": 100,
            "appendHeaders": {"Knative-Serving-Namespace": "default", "Knative-Serving-Revision": REVISION}});
        let ingress: api::networking::v1alpha1::Ingress = object(json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
            "metadata": {"name": REVISION, "annotations": {
                "networking.knative.dev/ingress.class": "kourier.ingress.networking.knative.dev"}},
            "spec": {"rules": [{"hosts": ["hello.example.com"], "visibility": "ExternalIP",
                "http": {"paths": [{"splits": [split]}]}}]},
        }));
        let create = PostParams::default();
        Api::default_namespaced(client.clone()).create(&create, &revision).await.expect("created");
        Api::default_namespaced(client.clone()).create(&create, &service).await.expect("created");
        self.route(&[]).await;
        self.pods(&[]).await;
        Api::default_namespaced(client).create(&create, &ingress).await.expect("created");
        until("the revision to be known", || self.activator.knows("default", REVISION)).await;
    }

    /// Where the gateway sends requests: to these pods, or without any to the activator.
    async fn route(&self, pods: &[&Pod]) {
        let addresses: BTreeSet<_> = match pods {
            [] => [self.activator.http_address()].into(),
            pods => pods.iter().map(|pod| pod.address).collect(),
        };
        self.slices(REVISION, json!({}), addresses).await;
    }

    /// What the activator may use.
    async fn pods(&self, pods: &[&Pod]) {
        let labels =
            json!({"networking.internal.knative.dev/serviceType": "Private", "serving.knative.dev/revision": REVISION});
        self.slices(&format!("{REVISION}-private"), labels, pods.iter().map(|pod| pod.address).collect()).await;
    }

    /// What is behind a Service: one slice for each address, since those of one machine have different ports.
    async fn slices(&self, service: &str, mut labels: Value, addresses: BTreeSet<SocketAddr>) {
        const SERVICE: &str = "kubernetes.io/service-name";
        labels[SERVICE] = json!(service);
        let slices = Api::<EndpointSlice>::default_namespaced(self.server.client());
        let of_service = ListParams::default().labels(&format!("{SERVICE}={service}"));
        let listed = slices.list(&of_service).await.expect("listed");
        let name = |address: &SocketAddr| format!("{service}-{}", address.port());
        // Make before break.
        let known: BTreeSet<_> = listed.items.iter().filter_map(|slice| slice.metadata.name.clone()).collect();
        for address in addresses.iter().filter(|address| !known.contains(&name(address))) {
            let slice = object(json!({
                "metadata": {"name": name(address), "labels": labels},
                "addressType": "IPv4", "ports": [{"name": "http", "port": address.port()}],
                "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}]}));
            slices.create(&PostParams::default(), &slice).await.expect("created");
        }
        let kept: BTreeSet<_> = addresses.iter().map(name).collect();
        for old in known.difference(&kept) {
            slices.delete(old, &DeleteParams::default()).await.expect("deleted");
        }
    }
}

// === impl Pod ===

impl Pod {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let served: Arc<[AtomicUsize; 2]> = Arc::default();
        let counts = served.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let counts = counts.clone();
                tokio::spawn(async move {
                    while let Some(head) = read_head(&mut stream).await {
                        let way = usize::from(!head.contains("K-Proxy-Request: activator"));
                        counts[way].fetch_add(1, Ordering::SeqCst);
                        // Some are still under way when their route goes.
                        if counts[way].load(Ordering::SeqCst).is_multiple_of(7) {
                            tokio::time::sleep(Duration::from_millis(30)).await;
                        }
                        if stream.write_all(ok("hello").as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let config = queue_proxy::Config {
            drain: queue_proxy::DrainRule { quiet: PATIENCE, idle: Some(Duration::from_millis(500)) },
            ..sidecar(0, port)
        };
        let sidecar = queue_proxy::start(config).await.expect("free ports");
        let address = SocketAddr::from(([127, 0, 0, 1], sidecar.serving_address().port()));
        Self { sidecar, address, served }
    }
}

// === impl Traffic ===

impl Traffic {
    /// Clients that keep their connection to the gateway.
    fn start(gateway: SocketAddr, clients: usize) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients = (0..clients).map(|number| {
            let (stop, answered) = (stop.clone(), answered.clone());
            tokio::spawn(async move {
                let mut failures = Vec::new();
                let mut stream = TcpStream::connect(gateway).await.expect("the gateway listens");
                while !stop.load(Ordering::SeqCst) {
                    // Half of them ask for what makes the activator take them apart.
                    let request: &[u8] = if number % 2 == 0 {
                        b"GET / HTTP/1.1\r\nHost: hello.example.com\r\n\r\n"
                    } else {
                        b"GET / HTTP/1.1\r\nHost: hello.example.com\r\nTE: trailers\r\n\r\n"
                    };
                    stream.write_all(request).await.expect("sent");
                    let answer = tokio::time::timeout(PATIENCE, read_answer(&mut stream)).await;
                    match answer {
                        Ok(answer) if answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello") => {}
                        other => failures.push(format!("{other:?}")),
                    }
                    answered.fetch_add(1, Ordering::SeqCst);
                }
                failures
            })
        });
        Self { clients: clients.collect(), stop, answered }
    }

    /// Waits for so many answers.
    async fn answers(&self, count: usize) {
        let goal = self.answered.load(Ordering::SeqCst) + count;
        until("answers", || self.answered.load(Ordering::SeqCst) >= goal).await;
    }

    async fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        let mut failures = Vec::new();
        for client in self.clients {
            failures.extend(client.await.expect("no panic"));
        }
        (self.answered.load(Ordering::SeqCst), failures)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_traffic_moves_between_the_activator_and_the_pods() {
    let Some(rig) = Rig::start().await else { return };
    rig.create().await;
    // Until the gateway has its routes, it refuses or says 404.
    let ready = async {
        loop {
            if let Ok(mut stream) = TcpStream::connect(rig.gateway).await {
                let probe =
                    b"GET / HTTP/1.1\r\nHost: hello.example.com\r\nK-Network-Probe: probe\r\nK-Network-Hash: x\r\n\r\n";
                stream.write_all(probe).await.expect("sent");
                if read_head(&mut stream).await.is_some_and(|head| head.starts_with("HTTP/1.1 200")) {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.expect("the gateway in time");

    let traffic = Traffic::start(rig.gateway, 8);
    until("requests to be held", || rig.activator.in_flight() == 8).await;
    let mut pod = Pod::start().await;
    for round in 0..12 {
        // Awake: the activator may use the pod, then the gateway.
        rig.pods(&[&pod]).await;
        traffic.answers(30).await;
        rig.route(&[&pod]).await;
        until("the gateway to use the pod", || pod.served[1].load(Ordering::SeqCst) > 0).await;
        traffic.answers(30).await;
        if round % 3 == 2 {
            // A second pod takes over from the first.
            let next = Pod::start().await;
            rig.pods(&[&pod, &next]).await;
            rig.route(&[&pod, &next]).await;
            until("the gateway to use both", || next.served[1].load(Ordering::SeqCst) > 0).await;
            rig.route(&[&next]).await;
            rig.pods(&[&next]).await;
            pod.sidecar.terminate().await;
            pod = next;
            traffic.answers(30).await;
        }
        // Little to do: the activator comes back.
        let before = pod.served[0].load(Ordering::SeqCst);
        rig.route(&[]).await;
        until("the gateway to use the activator", || pod.served[0].load(Ordering::SeqCst) > before).await;
        traffic.answers(30).await;
        if round % 3 == 1 {
            // Nothing to do: the pod goes, and the next request wakes another.
            rig.pods(&[]).await;
            pod.sidecar.terminate().await;
            until("all to be held", || rig.activator.in_flight() == 8).await;
            pod = Pod::start().await;
        }
    }
    let (answered, failures) = traffic.stop().await;
    assert!(failures.is_empty(), "{} of {answered} failed: {:?}", failures.len(), &failures[..failures.len().min(5)]);
    rig.tasks.shutdown().await;
    rig.server.shutdown().await.expect("stopped");
}
