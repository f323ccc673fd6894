//! The program itself against a served API: as an ordinary pod's process, with a kubeconfig, no home and no root.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    time::Duration,
};

use api::{Conditioned, networking::v1alpha1::Ingress};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use ingress::{Admin, Bootstrap};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    task::JoinHandle,
};

const TOKEN: &str = "a-token";
const DEADLINE: Duration = Duration::from_secs(60);
/// Whom pods of the manifests run as.
const NOBODY: u32 = 65534;

const DEFINITIONS: [&str; 10] = [
    include_str!("../../charts/crds/certificates.networking.internal.knative.dev.yaml"),
    include_str!("../../charts/crds/configurations.serving.knative.dev.yaml"),
    include_str!("../../charts/crds/domainmappings.serving.knative.dev.yaml"),
    include_str!("../../charts/crds/images.caching.internal.knative.dev.yaml"),
    include_str!("../../charts/crds/ingresses.networking.internal.knative.dev.yaml"),
    include_str!("../../charts/crds/metrics.autoscaling.internal.knative.dev.yaml"),
    include_str!("../../charts/crds/podautoscalers.autoscaling.internal.knative.dev.yaml"),
    include_str!("../../charts/crds/revisions.serving.knative.dev.yaml"),
    include_str!("../../charts/crds/routes.serving.knative.dev.yaml"),
    include_str!("../../charts/crds/serverlessservices.networking.internal.knative.dev.yaml"),
];

const CONFIGURATION: [&str; 11] = [
    "config-autoscaler",
    "config-certmanager",
    "config-defaults",
    "config-deployment",
    "config-domain",
    "config-features",
    "config-gc",
    "config-leader-election",
    "config-logging",
    "config-network",
    "config-observability",
];

/// An API over HTTPS, and the kubeconfig for it.
struct Cluster {
    server: apiserver::Server,
    files: tempfile::TempDir,
    address: SocketAddr,
}

// === impl Cluster ===

impl Cluster {
    async fn start() -> Self {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let server = apiserver::Server::open(apiserver::Options::default()).await.unwrap();
        for definition in DEFINITIONS {
            server.apply_manifest(definition).unwrap();
        }
        server.apply_manifest(include_str!("../../charts/crds/services.serving.knative.dev.yaml")).unwrap();
        for name in ["knative-serving", "kourier-system"] {
            server.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})).unwrap();
        }
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::from_pem_slice(signing_key.serialize_pem().as_bytes()).unwrap();
        let tls = rustls::ServerConfig::builder().with_no_client_auth();
        let tls = tls.with_single_cert(vec![cert.der().clone()], key).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        server.serve(listener, Some(Arc::new(tls)), TOKEN);
        let files = tempfile::tempdir().unwrap();
        let ca = files.path().join("ca.crt");
        std::fs::write(&ca, cert.pem()).unwrap();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here",
                "cluster": {"server": format!("https://{address}"), "certificate-authority": ca}}],
            "users": [{"name": "role", "user": {"token": TOKEN}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "role"}}],
        });
        std::fs::write(files.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        // For programs that are not root.
        readable(files.path(), 0o755);
        Cluster { server, files, address }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.files.path().join("kubeconfig")
    }

    fn config_map(&self, name: &str, data: Value) {
        let metadata = json!({"name": name, "namespace": "knative-serving"});
        self.server
            .apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}))
            .unwrap();
    }

    /// A Service and its only EndpointSlice.
    fn service(&self, namespace: &str, name: &str, address: SocketAddr) {
        let metadata = json!({"name": name, "namespace": namespace});
        let port = address.port();
        self.server
            .apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata,
                "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": 80, "targetPort": port}]}}))
            .unwrap();
        self.server
            .apply(&json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": format!("{name}-1"), "namespace": namespace,
                    "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "ports": [{"name": "http", "port": port}],
                "endpoints": [{"addresses": [address.ip().to_string()], "conditions": {"ready": true}}]}))
            .unwrap();
    }

    /// The program with nothing but this environment.
    fn program(&self, arguments: &[&str], environment: &[(&str, &str)], log: &str) -> Program {
        let log = self.files.path().join(log);
        let mut command = Command::new(env!("CARGO_BIN_EXE_control-plane"));
        command
            .args(arguments)
            .env_clear()
            .env("SYSTEM_NAMESPACE", "knative-serving")
            .envs(environment.iter().copied())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .kill_on_drop(true);
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        Program { child: command.spawn().unwrap(), log }
    }
}

struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// As Kubernetes ends a pod.
    async fn stop(mut self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = tokio::time::timeout(DEADLINE, self.child.wait()).await;
        assert!(status.is_ok_and(|status| status.unwrap().success()), "{}", self.log());
    }

    async fn until(&mut self, what: &str, condition: impl AsyncFn() -> bool) {
        let wait = async {
            while !condition().await {
                if let Some(status) = self.child.try_wait().unwrap() {
                    panic!("ended with {status} before {what}: {}", self.log());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(DEADLINE, wait).await.is_err() {
            panic!("waited in vain for {what}: {}", self.log());
        }
    }
}

fn readable(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Addresses for others to bind, below the range of outgoing connections; each is given out once.
fn free<const N: usize>() -> [SocketAddr; N] {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 12_000 + u16::try_from(std::process::id() % 6_000).unwrap();
    let mut found = Vec::new();
    while found.len() < N {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            found.push(address);
        }
    }
    std::array::from_fn(|n| found[n])
}

/// One request: status and body.
async fn get(to: SocketAddr, host: &str, path: &str) -> Option<(u16, String)> {
    let stream = tokio::net::TcpStream::connect(to).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let connection = tokio::spawn(connection);
    let request = hyper::Request::get(path).header("host", host).body(Full::<hyper::body::Bytes>::default()).ok()?;
    let response = sender.send_request(request).await.ok()?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.ok()?.to_bytes();
    connection.abort();
    Some((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Requests without pause, until stopped.
struct Traffic {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(usize, usize)>,
}

impl Traffic {
    fn start(to: SocketAddr, host: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (mut answered, mut failed) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                match get(to, host, "/").await {
                    Some((200, _)) => answered += 1,
                    _ => failed += 1,
                }
            }
            (answered, failed)
        });
        Traffic { stop, task }
    }

    /// How many were answered, and how many failed.
    async fn stop(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn backend() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(|_| async {
                Ok::<_, std::convert::Infallible>(hyper::Response::new(Full::<hyper::body::Bytes>::from("hello")))
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

/// Takes metrics, and keeps what it was sent.
async fn collector() -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, messages) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<Vec<u8>>>>::default());
    let kept = messages.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let kept = kept.clone();
            let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let kept = kept.clone();
                async move {
                    let body = request.into_body().collect().await?.to_bytes();
                    kept.lock().push(body.to_vec());
                    Ok::<_, hyper::Error>(hyper::Response::new(Full::<hyper::body::Bytes>::default()))
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, messages)
}

fn envoy() -> Option<PathBuf> {
    let named = std::env::var_os("ENVOY").map(PathBuf::from);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/envoy");
    let on_path = std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join("envoy")).collect::<Vec<_>>();
    named.into_iter().chain(on_path).chain([root]).find(|path| path.is_file())
}

fn ingress(name: &str, host: &str) -> Ingress {
    let split = json!({"serviceNamespace": "default", "serviceName": "app", "servicePort": 80, "percent": 100});
    serde_json::from_value(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
        "metadata": {"name": name, "namespace": "default",
            "annotations": {"networking.knative.dev/ingress.class": "kourier.ingress.networking.knative.dev"}},
        "spec": {"rules": [{"hosts": [host], "visibility": "ExternalIP", "http": {"paths": [{"splits": [split]}]}}]},
    }))
    .unwrap()
}

/// The listeners of a gateway have the contract's ports, so several tests or machines' users would collide on them:
/// here they are on loopback addresses of this process alone.
fn loopback() -> Ipv4Addr {
    let id = std::process::id();
    Ipv4Addr::new(127, 77, u8::try_from(id / 250 % 250).unwrap(), u8::try_from(id % 250 + 1).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ingress_role_serves_a_gateway_with_a_kubeconfig_and_nothing_else() {
    let Some(program) = envoy() else {
        eprintln!("skipped: no Envoy; name one in ENVOY or put it on PATH");
        return;
    };
    let cluster = Cluster::start().await;
    let here = loopback();
    let [xds, metrics, admin, profiles] = free();
    cluster.config_map("config-kourier", json!({"listen-ip-addresses": here.to_string()}));
    cluster.config_map("config-network", json!({}));
    let times = json!({"lease-duration": "3s", "renew-deadline": "2s", "retry-period": "1s"});
    cluster.config_map("config-leader-election", times);
    let endpoint = json!({"metrics-protocol": "prometheus", "metrics-endpoint": metrics.to_string()});
    cluster.config_map("config-observability", endpoint.clone());
    cluster.config_map("config-logging", json!({}));
    let profiling_port = profiles.port().to_string();
    let app = backend().await;
    cluster.service("default", "app", app);
    // As upstream's manifest starts it, from a kubeconfig: a flag with one dash, flags of Go's logger, its environment.
    let kubeconfig = format!("-kubeconfig={}", cluster.kubeconfig().display());
    let xds_address = xds.to_string();
    let arguments = ["--roles", "ingress", &kubeconfig, "-v", "2", "--xds-address", &xds_address];
    let environment = [
        ("KOURIER_GATEWAY_NAMESPACE", "kourier-system"),
        ("CERTS_SECRET_NAMESPACE", ""),
        ("CERTS_SECRET_NAME", ""),
        ("METRICS_DOMAIN", "knative.dev/samples"),
        ("ENABLE_SECRET_INFORMER_FILTERING_BY_CERT_UID", "false"),
        ("KUBE_API_QPS", "200"),
        ("KUBE_API_BURST", "200"),
        ("KUBERNETES_MIN_VERSION", "v1.30.0"),
        ("PROFILING_PORT", &profiling_port),
    ];
    let mut role = cluster.program(&arguments, &environment, "role.log");
    role.until("the xDS port", async || tokio::net::TcpStream::connect(xds).await.is_ok()).await;

    let bootstrap = Bootstrap { concurrency: 1, ..Bootstrap::new(xds, Admin::Tcp(admin)) };
    let config = cluster.files.path().join("envoy.json");
    std::fs::write(&config, bootstrap.render()).unwrap();
    let _gateway = Command::new(&program)
        .args(bootstrap.arguments(&config))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(cluster.files.path().join("envoy.log")).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let api: Api<Ingress> = Api::default_namespaced(cluster.server.client());
    let create = PostParams::default();
    api.create(&create, &ingress("one", "one.example.com")).await.unwrap();
    let ready = async |name: &str| api.get(name).await.unwrap().is_ready();
    let gateway = SocketAddr::from((here, 8080));
    role.until("one to be Ready", async || ready("one").await).await;
    assert_eq!(get(gateway, "one.example.com", "/").await, Some((200, "hello".to_owned())));
    let one = serde_json::to_value(&api.get("one").await.unwrap().status).unwrap();
    let address = &one["publicLoadBalancer"]["ingress"][0]["domainInternal"];
    assert!(address.as_str().unwrap().starts_with("kourier.kourier-system.svc."), "{one}");

    let (status, text) = get(metrics, "metrics", "/metrics").await.unwrap();
    assert_eq!(status, 200);
    let lines = ["kourier_gateways{fleet=\"default\"} 1", "kourier_ingresses{fleet=\"default\"} 1"];
    for line in lines {
        assert!(text.contains(line), "{text}");
    }
    let queue = "knative.dev.net-kourier.pkg.reconciler.ingress.Reconciler";
    for family in ["adds_total", "queue_duration_seconds_count", "process_duration_seconds_sum", "depth"] {
        assert!(text.contains(&format!("kn_workqueue_{family}{{name=\"{queue}\",otel_scope_name=")), "{text}");
    }
    let calls =
        "kn_k8s_client_http_response_status_code_total{http_request_method=\"GET\",http_response_status_code=\"200\"";
    assert!(text.contains(calls), "{text}");
    let template = "url_template=\"/api/v1/namespaces/{namespace}/configmaps\"";
    assert!(text.contains(template), "{text}");
    assert!(text.contains("service_name=\"net-kourier-controller\""), "{text}");
    assert!(text.contains("process_resident_memory_bytes"), "{text}");

    // Profiles are served when somebody wants them.
    assert!(tokio::net::TcpStream::connect(profiles).await.is_err());
    let mut profiled = endpoint;
    profiled["runtime-profiling"] = json!("enabled");
    cluster.config_map("config-observability", profiled);
    role.until("profiles", async || {
        let answer = get(profiles, "profiles", "/debug/pprof/cmdline").await;
        answer.is_some_and(|(status, text)| status == 200 && text.contains("control-plane"))
    })
    .await;

    // What is logged follows config-logging.
    assert!(!role.log().contains("\"level\":\"DEBUG\""), "{}", role.log());
    cluster.config_map("config-logging", json!({"loglevel.net-kourier-controller": "debug"}));
    role.until("more in the log", async || {
        let log = std::fs::read_to_string(cluster.files.path().join("role.log")).unwrap();
        log.contains("the log level is that of the ConfigMap now")
    })
    .await;

    // Gone and back, orderly and by a crash: the gateway goes on meanwhile, and takes what is new.
    let traffic = Traffic::start(gateway, "one.example.com");
    role.stop().await;
    let mut role = cluster.program(&arguments, &environment, "again.log");
    api.create(&create, &ingress("two", "two.example.com")).await.unwrap();
    role.until("two to be Ready", async || ready("two").await).await;
    assert_eq!(get(gateway, "two.example.com", "/").await, Some((200, "hello".to_owned())));
    role.child.kill().await.unwrap();
    let mut role = cluster.program(&arguments, &environment, "crashed.log");
    api.create(&create, &ingress("three", "three.example.com")).await.unwrap();
    role.until("three to be Ready", async || ready("three").await).await;
    assert_eq!(get(gateway, "three.example.com", "/").await, Some((200, "hello".to_owned())));
    let (answered, failed) = traffic.stop().await;
    assert!(answered > 10, "only {answered} requests");
    assert_eq!(failed, 0, "of {answered} requests");
    role.stop().await;
    cluster.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_pod_the_service_account_is_enough() {
    // The files of a service account have one place, so this takes a file system of its own.
    let private = std::process::Command::new("unshare").args(["--mount", "true"]).output();
    if !rustix::process::geteuid().is_root() || !private.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: not allowed to mount");
        return;
    }
    let cluster = Cluster::start().await;
    cluster.config_map("config-kourier", json!({}));
    cluster.config_map("config-network", json!({}));
    std::fs::write(cluster.files.path().join("token"), TOKEN).unwrap();
    std::fs::write(cluster.files.path().join("namespace"), "knative-serving").unwrap();
    let [xds] = free();
    let script = format!(
        "set -e; mount -t tmpfs tmpfs /run; [ -e /var/run ] || ln -s /run /var/run
         mkdir -p /var/run/secrets/kubernetes.io/serviceaccount; cd {}
         cp ca.crt token namespace /var/run/secrets/kubernetes.io/serviceaccount
         cd /; exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups {} --roles=ingress --xds-address={xds}",
        cluster.files.path().display(),
        env!("CARGO_BIN_EXE_control-plane"),
    );
    let log = cluster.files.path().join("pod.log");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", &script])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("SYSTEM_NAMESPACE", "knative-serving")
        .env("KUBERNETES_SERVICE_HOST", cluster.address.ip().to_string())
        .env("KUBERNETES_SERVICE_PORT", cluster.address.port().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .kill_on_drop(true);
    let mut role = Program { child: command.spawn().unwrap(), log };
    role.until("the xDS port", async || tokio::net::TcpStream::connect(xds).await.is_ok()).await;
    role.stop().await;
    cluster.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_cannot_succeed_says_what_to_do() {
    let cluster = Cluster::start().await;
    let kubeconfig = cluster.kubeconfig().display().to_string();
    for (name, arguments, environment, expected) in [
        ("a", vec!["--roles", "ingress"], vec![], "name a kubeconfig"),
        ("b", vec!["--roles", "ingress", "--kubeconfig", "/nowhere"], vec![], "cannot read /nowhere"),
        (
            "c",
            vec!["--roles", "ingress", "--kubeconfig", &kubeconfig],
            vec![("KUBERNETES_MIN_VERSION", "v9.0.0")],
            "need at least \"v9.0.0\"",
        ),
        (
            "d",
            vec!["--roles", "ingress", "--kubeconfig", &kubeconfig],
            vec![("KOURIER_GATEWAYS", "[{}]")],
            "KOURIER_GATEWAYS",
        ),
        (
            "f",
            vec!["--roles", "controller", "--kubeconfig", &kubeconfig, "--disable-ha"],
            vec![("SYSTEM_RESOURCE_LABEL", "example.com/ours")],
            "is missing, or has no label example.com/ours",
        ),
        ("e", vec!["--roles", "autoscaler", "--kubeconfig", &kubeconfig], vec![], "POD_NAME"),
    ] {
        let mut program = cluster.program(&arguments, &environment, name);
        let status = tokio::time::timeout(DEADLINE, program.child.wait()).await.unwrap().unwrap();
        assert!(!status.success() && program.log().contains(expected), "{expected}: {}", program.log());
    }
    cluster.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_and_the_autoscaler_start_as_ordinary_pods() {
    let cluster = Cluster::start().await;
    for name in CONFIGURATION {
        cluster.config_map(name, json!({}));
    }
    let image = json!({"queue-sidecar-image": "dev.local/queue", "registries-skipping-tag-resolving": "dev.local"});
    cluster.config_map("config-deployment", image);
    let (collector, exported) = collector().await;
    let otlp =
        json!({"metrics-protocol": "http/protobuf", "metrics-endpoint": format!("http://{collector}/v1/metrics")});
    cluster.config_map("config-observability", otlp);
    // Leases that are given back, not ones that end: a slow machine is no reason for the other replica.
    let times = json!({"lease-duration": "50s", "renew-deadline": "40s", "retry-period": "1s"});
    cluster.config_map("config-leader-election", times);
    let server = format!("https://{}", cluster.address);
    let kubeconfig = cluster.kubeconfig().display().to_string();
    let [health, other_health, stats] = free();
    // KUBECONFIG and a server beside it, which is the same one here.
    let health_text = health.to_string();
    let arguments = ["--roles", "controller", "--server", &server, "--health-address", &health_text];
    let mut controller = cluster.program(&arguments, &[("KUBECONFIG", &kubeconfig)], "controller.log");
    controller.until("health", async || get(health, "x", "/readiness").await.is_some_and(|(s, _)| s == 200)).await;

    let stats_text = stats.to_string();
    let arguments = ["--roles", "autoscaler", "--kubeconfig", &kubeconfig, "--stat-address", &stats_text];
    let pod = [("POD_NAME", "autoscaler-1"), ("POD_IP", "127.0.0.1")];
    let mut autoscaler = cluster.program(&arguments, &pod, "autoscaler.log");
    autoscaler.until("the stat server", async || tokio::net::TcpStream::connect(stats).await.is_ok()).await;

    let service = |name: &str| {
        json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"template": {"spec": {"containers": [{"name": "user-container", "image": "dev.local/hello"}]}}}})
    };
    let deployments: Api<k8s_openapi::api::apps::v1::Deployment> = Api::default_namespaced(cluster.server.client());
    let deployed = async |name: &str| deployments.get_opt(&format!("{name}-00001-deployment")).await.unwrap().is_some();
    cluster.server.apply(&service("first")).unwrap();
    controller.until("a Deployment", async || deployed("first").await).await;

    // Of two replicas the one with the Leases writes; when it ends the other one has them, and does.
    let leases: Api<Lease> = Api::namespaced(cluster.server.client(), "knative-serving");
    let holder = async || {
        let lease = leases.get_opt("controller.knative.dev.serving.pkg.reconciler.service.reconciler.00-of-01").await;
        lease.unwrap().and_then(|lease| lease.spec?.holder_identity).unwrap_or_default()
    };
    let leader = holder().await;
    let other_text = other_health.to_string();
    let arguments = ["--roles", "controller", "--server", &server, "--health-address", &other_text];
    let mut other = cluster.program(&arguments, &[("KUBECONFIG", &kubeconfig)], "other.log");
    other.until("health", async || get(other_health, "x", "/readiness").await.is_some_and(|(s, _)| s == 200)).await;
    assert!(!leader.is_empty() && holder().await == leader, "{leader:?}");
    controller.stop().await;
    cluster.server.apply(&service("second")).unwrap();
    other.until("a Deployment of the other replica", async || deployed("second").await).await;
    assert_ne!(holder().await, leader);

    // What was counted is exported when a process ends.
    let exported = exported.lock().concat();
    let exported = String::from_utf8_lossy(&exported);
    for expected in ["service.name", "controller", "kn.workqueue.adds", "pkg.reconciler.service.Reconciler"] {
        assert!(exported.contains(expected), "no {expected} in {exported}");
    }
    other.stop().await;
    autoscaler.stop().await;
    cluster.server.shutdown().await.unwrap();
}
