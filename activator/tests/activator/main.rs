//! The activator over real sockets, against a Kubernetes API of two kinds and an autoscaler that listens.

mod fakes;
mod handover;
mod mesh;
mod observed;
mod sidecars;
mod slices;
mod streams;
mod tls;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use activator::{Handle, Options};
use controller::{Context, Tasks};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use fakes::{Autoscaler, Cluster};

const PATIENCE: Duration = Duration::from_secs(60);

struct Setup {
    cluster: Cluster,
    autoscaler: Autoscaler,
    activator: Handle,
    tasks: Tasks,
    requests: AtomicUsize,
}

impl Setup {
    async fn new() -> Self {
        Self::with(Cluster::default(), |_| {}).await
    }

    async fn with(cluster: Cluster, change: impl FnOnce(&mut Options)) -> Self {
        let autoscaler = Autoscaler::start().await;
        let tasks = Tasks::new();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut options = Options {
            listen_http: any,
            listen_h2c: any,
            listen_tls: any,
            autoscaler_url: autoscaler.url(),
            pod_name: "activator-1".into(),
            metrics: Some(any),
            ..Options::default()
        };
        change(&mut options);
        let ctx = Context::new(cluster.client(), tasks.clone());
        let activator = activator::run(ctx, options).await.expect("free ports");
        activator.synced().await;
        until("a connection to the autoscaler", || activator.autoscaler_connected()).await;
        Self { cluster, autoscaler, activator, tasks, requests: AtomicUsize::new(0) }
    }

    fn address(&self) -> SocketAddr {
        self.activator.http_address()
    }

    /// One request, the short way or the long one in turn.
    fn request(&self, revision: &str) -> tokio::task::JoinHandle<String> {
        let (address, revision) = (self.address(), revision.to_owned());
        let way = WAYS[self.requests.fetch_add(1, Ordering::SeqCst) % WAYS.len()];
        tokio::spawn(async move { get_on(way, address, "/path?q=1", &for_revision(&revision)).await })
    }

    /// Creates a revision and waits until the activator has heard of it.
    async fn revision(&self, name: &str, concurrency: i64, timeout: i64) {
        self.cluster.revision(name, concurrency, timeout);
        until("the revision to be known", || self.activator.knows("default", name)).await;
    }

    async fn held(&self, count: usize) {
        until("requests to be held", || self.activator.in_flight() == count).await;
    }
}

fn for_revision(name: &str) -> String {
    format!("Knative-Serving-Namespace: default\r\nKnative-Serving-Revision: {name}\r\n")
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).expect("text"))
}

async fn get_path(address: SocketAddr, path: &str) -> String {
    get_on(WAYS[1], address, path, "").await
}

/// Two ways that a request may say the same: plainly, and so that it is taken apart.
const WAYS: [&str; 2] = ["Connection: close\r\n", "Connection: close, x-none\r\n"];

async fn get_on(way: &str, address: SocketAddr, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("listening");
    let request = format!("GET {path} HTTP/1.1\r\nHost: hello.example.com\r\n{way}{headers}\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    tokio::time::timeout(PATIENCE, read_answer(&mut stream)).await.expect("in time")
}

/// Reads one response with a body of a known length.
async fn read_answer(stream: &mut TcpStream) -> String {
    let head = read_head(stream).await.expect("an answer");
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().expect("a number"))
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.expect("the body");
    head + std::str::from_utf8(&body).expect("text")
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A pod: answers probes as its sidecar does, and requests once it lets them.
#[derive(Clone, Default)]
struct Pod {
    current: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    served: Arc<AtomicUsize>,
    gate: Option<Arc<Notify>>,
}

impl Pod {
    fn gated() -> Self {
        Self { gate: Some(Arc::default()), ..Self::default() }
    }

    async fn start(&self) -> SocketAddr {
        self.listen(TcpListener::bind("127.0.0.1:0").await.expect("a free port"))
    }

    fn listen(&self, listener: TcpListener) -> SocketAddr {
        let address = listener.local_addr().expect("bound");
        let pod = self.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let pod = pod.clone();
                tokio::spawn(async move {
                    while let Some(head) = read_head(&mut stream).await {
                        let answer = pod.answer(head).await;
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        address
    }

    async fn answer(&self, head: String) -> String {
        if head.to_lowercase().contains("k-network-probe: queue") {
            return ok("queue");
        }
        let current = self.current.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(current, Ordering::SeqCst);
        if let Some(gate) = &self.gate {
            gate.notified().await;
        }
        self.current.fetch_sub(1, Ordering::SeqCst);
        self.served.fetch_add(1, Ordering::SeqCst);
        ok(&head)
    }

    fn open(&self) {
        self.gate.as_ref().expect("a gated pod").notify_one();
    }
}

/// The settings of a sidecar on this port in front of a program.
fn sidecar(port: u16, program: u16) -> queue_proxy::Config {
    let env = [
        ("CONTAINER_CONCURRENCY", "0".to_owned()),
        ("QUEUE_SERVING_PORT", port.to_string()),
        ("QUEUE_SERVING_TLS_PORT", "0".to_owned()),
        ("USER_PORT", program.to_string()),
        ("REVISION_TIMEOUT_SECONDS", "300".to_owned()),
        ("SERVING_READINESS_PROBE", format!(r#"{{"tcpSocket":{{"port":{program}}},"successThreshold":1}}"#)),
        ("SERVING_LOGGING_CONFIG", String::new()),
        ("SERVING_LOGGING_LEVEL", "error".to_owned()),
        ("SERVING_NAMESPACE", "default".to_owned()),
        ("SERVING_CONFIGURATION", "rev".to_owned()),
        ("SERVING_REVISION", "rev".to_owned()),
        ("SERVING_POD", "rev-pod".to_owned()),
        ("SERVING_POD_IP", "127.0.0.1".to_owned()),
    ];
    let env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let config = queue_proxy::Config::parse(&env).expect("a complete environment");
    queue_proxy::Config { admin_port: 0, autoscaling_port: 0, ..config }
}

/// A socket that is bound but does not listen: whoever connects to it is refused.
fn bound() -> (tokio::net::TcpSocket, SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_requests_to_a_sleeping_revision_are_all_answered() {
    let mut setup = Setup::new().await;
    setup.revision("sleeper", 0, 300).await;
    setup.cluster.endpoints("sleeper", &[], &[]);
    let requests: Vec<_> = (0..100).map(|_| setup.request("sleeper")).collect();

    let first = setup.autoscaler.next().await;
    assert_eq!((first.namespace.as_str(), first.name.as_str()), ("default", "sleeper"));
    let stat = first.stat.expect("a stat");
    assert_eq!((stat.average_concurrent_requests, stat.request_count), (1.0, 1.0));
    assert_eq!(stat.pod_name, "activator-1");

    setup.held(100).await;
    // The pod's address is known before anything listens there.
    let (listener, address) = bound();
    setup.cluster.endpoints("sleeper", &[], &[address]);
    let pod = Pod::default();
    tokio::time::sleep(Duration::from_millis(20)).await;
    pod.listen(listener.listen(100).expect("bound"));
    for request in requests {
        let answer = request.await.expect("no panic");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    assert_eq!(pod.served.load(Ordering::SeqCst), 100);
    until("nothing in flight", || setup.activator.in_flight() == 0).await;
    let metrics = get_path(setup.activator.metrics_address().expect("asked for"), "/metrics").await;
    let scope = r#"otel_scope_name="knative.dev/serving/pkg/activator",otel_scope_schema_url="",otel_scope_version="""#;
    let labels = format!("k8s_namespace_name=\"default\",kn_revision_name=\"sleeper\",{scope}");
    assert!(metrics.contains(&format!("cold_start_duration_seconds_count{{{labels}}} 100\n")), "{metrics}");
    assert!(metrics.contains(&format!("kn_revision_request_queued{{{labels}}} 0\n")), "{metrics}");
    let served =
        r#"http_server_request_duration_seconds_count{http_request_method="GET",http_response_status_code="200","#;
    let served = metrics.lines().find(|line| line.starts_with(served)).expect("requests are counted");
    assert!(served.contains(r#"server_address="hello.example.com""#) && served.ends_with(" 100"), "{served}");
    let sent =
        r#"http_client_request_duration_seconds_count{http_request_method="GET",http_response_status_code="200","#;
    let sent = metrics.lines().find(|line| line.starts_with(sent)).expect("so are those to pods");
    assert!(sent.contains(&format!("server_port=\"{}\"", address.port())) && sent.ends_with(" 100"), "{sent}");
    assert!(metrics.contains("service_name=\"activator\""), "{metrics}");
    assert!(
        metrics.contains(&format!("kn_activator_stats_conn_reachable{{{scope},peer=\"autoscaler\"}} 1\n")),
        "{metrics}"
    );
}

/// The whole of a cold start that happens after the pod has an address: sidecar and program start, in this order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_start_ends_when_the_program_listens() {
    let setup = Setup::new().await;
    setup.revision("cold", 1, 300).await;
    let (sidecar, (program, port)) = (bound().1, bound());
    setup.cluster.endpoints("cold", &[], &[sidecar]);
    let requests: Vec<_> = (0..20).map(|_| setup.request("cold")).collect();
    setup.held(20).await;

    let config = queue_proxy::Config { container_concurrency: 1, ..self::sidecar(sidecar.port(), port.port()) };
    let _sidecar = queue_proxy::start(config).await.expect("the port is free");
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(requests.iter().all(|request| !request.is_finished()));

    let pod = Pod::default();
    pod.listen(program.listen(100).expect("bound"));
    for request in requests {
        let answer = request.await.expect("no panic");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    assert_eq!(pod.most.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pod_sees_what_upstream_sends() {
    let setup = Setup::new().await;
    let address = Pod::default().start().await;
    setup.revision("rev", 0, 300).await;
    setup.cluster.endpoints("rev", &[address], &[]);
    let headers = format!("{}X-Forwarded-For: 1.2.3.4\r\nK-Network-Hash: h\r\nKeep-Alive: 1\r\n", for_revision("rev"));
    for way in WAYS {
        let answer = get_on(way, setup.address(), "/path?q=1", &headers).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let mut lines: Vec<_> = answer.split("\r\n\r\n").nth(1).expect("a body").lines().collect();
        assert_eq!(lines.remove(0), "GET /path?q=1 HTTP/1.1");
        lines.sort_unstable();
        let host = format!("Host: {address}");
        assert_eq!(
            lines,
            [
                host.as_str(),
                "K-Original-Host: hello.example.com",
                "K-Proxy-Request: activator",
                "X-Forwarded-For: 1.2.3.4, 127.0.0.1",
            ]
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn container_concurrency_is_never_exceeded() {
    let setup = Setup::new().await;
    let pods = [Pod::gated(), Pod::gated()];
    let addresses = [pods[0].start().await, pods[1].start().await];
    setup.revision("limited", 2, 300).await;
    setup.cluster.endpoints("limited", &addresses, &[]);
    let requests: Vec<_> = (0..40).map(|_| setup.request("limited")).collect();
    setup.held(40).await;
    until("both pods to be full", || pods.iter().all(|pod| pod.current.load(Ordering::SeqCst) == 2)).await;
    for request in requests {
        while !request.is_finished() {
            pods.iter().for_each(Pod::open);
            tokio::task::yield_now().await;
        }
        assert!(request.await.expect("no panic").starts_with("HTTP/1.1 200 OK\r\n"));
    }
    assert!(pods.iter().all(|pod| pod.most.load(Ordering::SeqCst) <= 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_frees_its_place() {
    let setup = Setup::new().await;
    let pod = Pod::gated();
    setup.revision("one", 1, 300).await;
    setup.cluster.endpoints("one", &[pod.start().await], &[]);
    let running = setup.request("one");
    until("one to run", || pod.current.load(Ordering::SeqCst) == 1).await;
    let leaving: Vec<_> = (0..10).map(|_| setup.request("one")).collect();
    setup.held(11).await;
    leaving.iter().for_each(tokio::task::JoinHandle::abort);
    setup.held(1).await;
    let staying = setup.request("one");
    setup.held(2).await;
    for request in [running, staying] {
        pod.open();
        assert!(request.await.expect("no panic").starts_with("HTTP/1.1 200 OK\r\n"));
    }
    assert_eq!(pod.served.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_connection_sends_the_request_elsewhere() {
    let setup = Setup::new().await;
    let pod = Pod::default();
    setup.revision("half", 0, 300).await;
    let (_refuses, address) = bound();
    setup.cluster.endpoints("half", &[address, pod.start().await], &[]);
    for _ in 0..50 {
        let answer = setup.request("half").await.expect("no panic");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    assert_eq!(pod.served.load(Ordering::SeqCst), 50);
}

/// Endpoints as long as those of a thousand pods.
#[tokio::test]
async fn pods_come_and_go_among_many_addresses() {
    let setup = Setup::new().await;
    setup.revision("rev-00001", 0, 60).await;
    let pods: [Pod; 4] = Default::default();
    let mut addresses = Vec::new();
    for pod in &pods {
        addresses.push(pod.start().await);
    }
    // Nothing for requests.
    let other = |number: u32| {
        let ip = format!("127.1.{}.{}", number / 250, number % 250);
        json!({"ip": ip, "nodeName": "node-1", "targetRef": {"kind": "Pod", "name": format!("pod-{number}"), "uid": ip}})
    };
    let others: Vec<_> = (0..1000).map(other).collect();
    for ready in [&[0, 1][..], &[0, 2], &[2, 1], &[2, 3], &[3], &[1, 3]] {
        let subset = |pod: &usize| {
            let port = json!([{"name": "http", "port": addresses[*pod].port()}]);
            json!({"addresses": [{"ip": addresses[*pod].ip().to_string()}], "ports": port})
        };
        let mut subsets: Vec<_> = ready.iter().map(subset).collect();
        subsets.push(json!({"addresses": others[ready.len()..], "ports": [{"name": "other", "port": 80}]}));
        setup.cluster.subsets("rev-00001", json!(subsets));
        // All of these and no others, from some request on.
        let started = Instant::now();
        loop {
            for _ in 0..30 {
                assert!(setup.request("rev-00001").await.expect("answered").starts_with("HTTP/1.1 200"));
            }
            let served: Vec<_> = pods.iter().map(|pod| pod.served.swap(0, Ordering::SeqCst) > 0).collect();
            if (0..4).all(|pod| served[pod] == ready.contains(&pod)) {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "{ready:?} are to serve, and these did: {served:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_disappears_gets_no_further_request() {
    let setup = Setup::new().await;
    let (old, new) = (Pod::default(), Pod::default());
    setup.revision("moving", 0, 300).await;
    setup.cluster.endpoints("moving", &[old.start().await], &[]);
    setup.request("moving").await.expect("no panic");
    setup.cluster.endpoints("moving", &[], &[]);
    let held = setup.request("moving");
    setup.cluster.endpoints("moving", &[new.start().await], &[]);
    held.await.expect("no panic");
    for _ in 0..20 {
        setup.request("moving").await.expect("no panic");
    }
    assert!(old.served.load(Ordering::SeqCst) <= 2, "one before, and at most the one that raced with the event");
    assert!(new.served.load(Ordering::SeqCst) >= 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_becomes_a_tunnel() {
    let setup = Setup::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    setup.revision("ws", 1, 300).await;
    setup.cluster.endpoints("ws", &[listener.local_addr().expect("bound")], &[]);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        read_head(&mut stream).await.expect("a head");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.expect("sent");
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.expect("echoed");
    });
    let mut client = TcpStream::connect(setup.address()).await.expect("listening");
    let head = for_revision("ws");
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{head}\r\n");
    client.write_all(request.as_bytes()).await.expect("sent");
    assert!(read_head(&mut client).await.expect("a head").starts_with("HTTP/1.1 101 "));
    client.write_all(b"there").await.expect("sent");
    let mut buffer = [0; 5];
    client.read_exact(&mut buffer).await.expect("the echo");
    assert_eq!((&buffer, setup.activator.in_flight()), (b"there", 1));
    drop(client);
    until("the tunnel to end", || setup.activator.in_flight() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_goes_through_as_http2_with_trailers() {
    use http::{Request, Uri, Version};
    use http_body_util::BodyExt;

    let setup = Setup::new().await;
    // Any HTTP/2 server will do: this one is the proxies' own.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(net::serve(listener, net::Connections::new(), |request: Request<net::Incoming>, _| async move {
        let version = format!("{:?}", request.version());
        let body = request.into_body().collect().await.expect("a body").to_bytes();
        net::text::<()>(http::StatusCode::OK, format!("{version} {}", String::from_utf8_lossy(&body)))
    }));
    setup.revision("grpc", 0, 300).await;
    setup.cluster.endpoints("grpc", &[address], &[]);
    let client = net::Pool::new(setup.activator.h2c_address(), net::PoolOptions::default());
    let mut request = Request::new(net::RequestBody::Full("hello".into()));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = Uri::from_static("http://hello.example.com/pkg.Service/Method");
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().insert("knative-serving-namespace", "default".parse().unwrap());
    request.headers_mut().insert("knative-serving-revision", "grpc".parse().unwrap());
    let response = client.send_http2(request).await.expect("a response");
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(body, "HTTP/2.0 hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_and_errors_are_answered_as_upstream_answers_them() {
    let setup = Setup::new().await;
    setup.revision("slow", 0, 1).await;
    let cases = [
        ("User-Agent: kube-probe/1.35\r\n".to_owned(), "200 OK", ""),
        ("K-Network-Probe: activator\r\n".to_owned(), "200 OK", "activator"),
        ("K-Network-Probe: probe\r\nK-Network-Hash: h\r\n".to_owned(), "200 OK", ""),
        (
            "K-Network-Probe: probe\r\n".to_owned(),
            "400 Bad Request",
            "a probe request must contain a non-empty \"K-Network-Hash\" header\n",
        ),
        (
            "K-Network-Probe: <queue>\r\n".to_owned(),
            "400 Bad Request",
            "unexpected probe header value: \"&lt;queue&gt;\"\n",
        ),
        (
            for_revision("nobody"),
            "404 Not Found",
            "Error getting active endpoint: revision.serving.knative.dev \"nobody\" not found\n",
        ),
        (for_revision("slow"), "504 Gateway Timeout", "activator request timeout"),
    ];
    for (headers, status, body) in cases {
        for way in WAYS {
            let answer = get_on(way, setup.address(), "/", &headers).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{headers}: {answer}");
            assert_eq!(answer.split_once("\r\n\r\n").expect("a head").1, body, "{headers}");
        }
    }
    // Requests for nobody are counted without a revision, and probes not at all.
    let metrics = get_path(setup.activator.metrics_address().expect("asked for"), "/metrics").await;
    let counted: Vec<_> =
        metrics.lines().filter(|line| line.starts_with("http_server_request_duration_seconds_count")).collect();
    let nobody = counted.iter().filter(|line| line.contains(r#"http_response_status_code="404""#)).collect::<Vec<_>>();
    assert_eq!(nobody.len(), 1, "{counted:?}");
    assert!(!nobody[0].contains("kn_revision_name") && nobody[0].ends_with(" 2"), "{nobody:?}");
    assert!(counted.iter().all(|line| !line.contains(r#"status_code="400""#)), "{counted:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_connection_to_the_autoscaler_says_what_is_in_flight() {
    let mut setup = Setup::new().await;
    setup.revision("held", 0, 300).await;
    let _request = setup.request("held");
    setup.autoscaler.next().await;
    setup.autoscaler.disconnect();
    loop {
        let message = setup.autoscaler.next().await;
        let stat = message.stat.expect("a stat");
        if stat.average_concurrent_requests == 1.0 && stat.request_count == 0.0 {
            assert_eq!(message.name, "held");
            return;
        }
    }
}
