//! The sidecar over real sockets: what a gateway, a program, the kubelet and the autoscaler see.

mod contract;
mod process;
mod simulation;
mod telemetry;
mod wire;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use proto::Message;
use queue_proxy::{Config, DrainRule, Environment, Handle, MetricsListener};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn config(user_port: u16) -> Config {
    let env: Environment = [
        ("CONTAINER_CONCURRENCY", "0"),
        ("QUEUE_SERVING_PORT", "0"),
        ("QUEUE_SERVING_TLS_PORT", "0"),
        ("REVISION_TIMEOUT_SECONDS", "300"),
        ("SERVING_LOGGING_CONFIG", ""),
        ("SERVING_LOGGING_LEVEL", "error"),
        ("SERVING_NAMESPACE", "default"),
        ("SERVING_CONFIGURATION", "hello"),
        ("SERVING_REVISION", "hello-00001"),
        ("SERVING_POD", "hello-pod"),
        ("SERVING_POD_IP", "127.0.0.1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into_iter()
    .chain([("USER_PORT".to_owned(), user_port.to_string())])
    .collect();
    Config { admin_port: 0, autoscaling_port: 0, ..Config::parse(&env).expect("a complete environment") }
}

/// A program: every connection is handled by `serve`, which gets each request's head and answers it.
async fn program<F, R>(answer: F) -> u16
where
    F: Fn(String) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = String> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                while let Some(head) = read_head(&mut stream).await {
                    if stream.write_all(answer(head).await.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).expect("text"))
}

/// Sends raw bytes and reads until the other side closes.
async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("listening");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("in time").expect("text");
    answer
}

/// Which of the two implementations a request takes.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// A plain request.
    Short,
    /// The same with a `Connection` header that names more, which is not plain.
    Full,
}

const BOTH: [Way; 2] = [Way::Short, Way::Full];

async fn get(way: Way, address: SocketAddr, headers: &str) -> String {
    let head = format!("GET / HTTP/1.1\r\nHost: hello.example.com\r\n{headers}");
    match way {
        Way::Full => raw(address, &format!("{head}Connection: close, x-none\r\n\r\n")).await,
        Way::Short => {
            let mut stream = TcpStream::connect(address).await.expect("listening");
            stream.write_all(format!("{head}\r\n").as_bytes()).await.expect("sent");
            tokio::time::timeout(PATIENCE, read_answer(&mut stream)).await.expect("in time")
        }
    }
}

/// One response, by its own account of its length.
async fn read_answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
            if length == Some(body.len()) || (length.is_none() && body.ends_with("0\r\n\r\n")) {
                return text.into_owned();
            }
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return String::from_utf8_lossy(&answer).into_owned(),
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
        }
    }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A loopback address that nobody else uses, neither for listening nor for outgoing connections.
fn own_address() -> std::net::Ipv4Addr {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    let process = std::process::id();
    let next = NEXT.fetch_add(1, Ordering::SeqCst) as u8;
    [127, 64 + (process / 256 % 128) as u8, (process % 256) as u8, next].into()
}

/// Where nobody listens yet, and where listening will be possible.
async fn unused() -> SocketAddr {
    let listener = TcpListener::bind((own_address(), 0)).await.expect("a free port");
    listener.local_addr().expect("bound")
}

async fn start(config: Config) -> Handle {
    queue_proxy::start(config).await.expect("free ports")
}

#[tokio::test]
async fn the_program_sees_what_upstream_shows_it() {
    for way in BOTH {
        let port = program(|head| async move { ok(&head) }).await;
        let proxy = start(config(port)).await;
        let seen = get(way,
            proxy.serving_address(),
            "X-Forwarded-For: 10.244.0.21\r\nX-Forwarded-Proto: http\r\nK-Proxy-Request: activator\r\n\
             K-Original-Host: echo.default.example.com\r\nKnative-Serving-Revision: r\r\nKnative-Serving-Namespace: n\r\n\
             Keep-Alive: 5\r\n",
        )
        .await;
        assert!(seen.starts_with("HTTP/1.1 200 OK\r\n"), "{seen}");
        let mut lines: Vec<_> = seen.split("\r\n\r\n").nth(1).expect("a body").lines().collect();
        assert_eq!(lines.remove(0), "GET / HTTP/1.1");
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "Forwarded: for=10.244.0.21;proto=http",
                "Host: echo.default.example.com",
                "K-Proxy-Request: activator",
                "X-Forwarded-For: 10.244.0.21, 127.0.0.1",
                "X-Forwarded-Proto: http",
            ]
        );
    }
}

#[tokio::test]
async fn probes_are_answered_as_upstream_answers_them() {
    for way in BOTH {
        let port = program(|_| async { ok("program") }).await;
        let proxy = start(config(port)).await;
        let kubelet = "User-Agent: kube-probe/1.35\r\n";
        let cases = [
            ("K-Network-Probe: queue\r\n".to_owned(), "200 OK", "program"),
            ("K-Network-Probe: probe\r\nK-Network-Hash: abc\r\n".to_owned(), "200 OK", ""),
            (
                "K-Network-Probe: probe\r\n".to_owned(),
                "400 Bad Request",
                "a probe request must contain a non-empty \"K-Network-Hash\" header\n",
            ),
            (kubelet.to_owned(), "400 Bad Request", "unexpected probe header value: \n"),
            (format!("{kubelet}K-Network-Probe: queue\r\n"), "200 OK", "queue"),
            ("User-Agent: Knative-Activator-Probe\r\nK-Network-Probe: queue\r\n".to_owned(), "200 OK", "queue"),
            (
                "User-Agent: Knative-Autoscaling-Probe\r\nK-Network-Probe: activator\r\n".to_owned(),
                "400 Bad Request",
                "unexpected probe header value: activator\n",
            ),
            ("K-Kubelet-Probe: yes\r\n".to_owned(), "200 OK", "program"),
        ];
        for (headers, status, body) in cases {
            let answer = get(way, proxy.serving_address(), &headers).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{headers}: {answer}");
            assert_eq!(answer.split_once("\r\n\r\n").expect("a head").1, body, "{headers}");
        }
        let echoed = get(way, proxy.serving_address(), "K-Network-Probe: probe\r\nK-Network-Hash: abc\r\n").await;
        assert!(echoed.contains("K-Network-Hash: abc\r\n"), "{echoed}");
    }
}

#[tokio::test]
async fn a_held_probe_is_answered_when_the_port_opens() {
    let address = unused().await;
    let mut config = config(address.port());
    let (port, host) = (address.port(), address.ip());
    let json = format!(r#"{{"tcpSocket":{{"port":{port},"host":"{host}"}},"successThreshold":1}}"#);
    config.readiness_probes = queue_proxy::Probe::parse(&json, address.port()).expect("valid");
    let proxy = start(config).await;
    let serving = proxy.serving_address();
    let probe = tokio::spawn(async move {
        let answer = get(Way::Full, serving, "User-Agent: kube-probe/1.35\r\nK-Network-Probe: queue\r\n").await;
        (answer, Instant::now())
    });
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert!(!probe.is_finished(), "answered although nobody listens");
    let opened = Instant::now();
    let _listener = TcpListener::bind(address).await.expect("still free");
    let (answer, answered) = probe.await.expect("no panic");
    assert!(answer.ends_with("\r\n\r\nqueue"), "{answer}");
    assert!(answered - opened < Duration::from_millis(150), "{:?} after the port opened", answered - opened);
}

/// A program that counts how many requests it has at once and answers when it is told to.
#[derive(Clone, Default)]
struct Gate {
    current: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    open: Arc<Notify>,
}

impl Gate {
    async fn program(&self) -> u16 {
        let gate = self.clone();
        program(move |_| {
            let gate = gate.clone();
            async move {
                let current = gate.current.fetch_add(1, Ordering::SeqCst) + 1;
                gate.most.fetch_max(current, Ordering::SeqCst);
                gate.open.notified().await;
                gate.current.fetch_sub(1, Ordering::SeqCst);
                ok("done")
            }
        })
        .await
    }
}

#[tokio::test]
async fn container_concurrency_is_never_exceeded_and_the_queue_is_bounded() {
    for way in BOTH {
        let gate = Gate::default();
        let proxy = start(Config { container_concurrency: 2, ..config(gate.program().await) }).await;
        let address = proxy.serving_address();
        let requests: Vec<_> = (0..22).map(|_| tokio::spawn(get(way, address, ""))).collect();
        until("a full queue", || proxy.queued() == 22).await;
        let refused = get(way, address, "").await;
        assert!(refused.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{refused}");
        assert!(refused.ends_with("\r\n\r\npending request queue full\n"), "{refused}");
        for request in requests {
            while !request.is_finished() {
                gate.open.notify_one();
                tokio::task::yield_now().await;
            }
            assert!(request.await.expect("no panic").ends_with("done"));
        }
        assert_eq!(gate.most.load(Ordering::SeqCst), 2);
        until("an empty queue", || proxy.queued() == 0).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    for way in BOTH {
        let gate = Gate::default();
        let proxy = start(Config { container_concurrency: 1, ..config(gate.program().await) }).await;
        let address = proxy.serving_address();
        let first = tokio::spawn(get(way, address, ""));
        until("the first request to run", || gate.current.load(Ordering::SeqCst) == 1).await;
        let queued: Vec<_> = (0..10).map(|_| tokio::spawn(get(way, address, ""))).collect();
        until("a full queue", || proxy.queued() == 11).await;
        for request in &queued {
            request.abort();
        }
        until("the queue to empty", || proxy.queued() == 1).await;
        gate.open.notify_one();
        assert!(first.await.expect("no panic").ends_with("done"));
    }
}

#[tokio::test]
async fn time_limits_end_a_request_with_504() {
    for way in BOTH {
        let port = program(|_| std::future::pending()).await;
        let short = Some(Duration::from_millis(30));
        let long = Duration::from_secs(300);
        for (timeout, response_start, idle) in
            [(Duration::from_millis(30), None, None), (long, short, None), (long, None, short)]
        {
            let config = Config { timeout, response_start_timeout: response_start, idle_timeout: idle, ..config(port) };
            let proxy = start(config).await;
            let answer = get(way, proxy.serving_address(), "").await;
            assert!(answer.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"), "{answer}");
            assert!(answer.ends_with("\r\n\r\nrequest timeout"), "{answer}");
            until("nothing in flight", || proxy.in_flight() == 0).await;
        }
    }
}

#[tokio::test]
async fn a_started_response_is_cut_with_the_message_appended() {
    for way in BOTH {
        let port =
            program(|_| async { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\npartial\r\n".into() }).await;
        let proxy = start(Config { timeout: Duration::from_millis(50), ..config(port) }).await;
        let answer = get(way, proxy.serving_address(), "").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("partial") && answer.contains("request timeout"), "{answer}");
    }
}

#[tokio::test]
async fn a_program_that_does_not_listen_gives_502() {
    for way in BOTH {
        let proxy = start(config(1)).await;
        let answer = get(way, proxy.serving_address(), "").await;
        assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
        assert!(answer.contains("dial tcp 127.0.0.1:1: "), "{answer}");
    }
}

#[tokio::test]
async fn a_kept_alive_connection_that_the_program_closes_costs_no_request() {
    for way in BOTH {
        // Answers one request per connection and closes it without having said so.
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    read_head(&mut stream).await;
                    let _ = stream.write_all(ok("once").as_bytes()).await;
                });
            }
        });
        let proxy = start(config(port)).await;
        for _ in 0..200 {
            assert!(get(way, proxy.serving_address(), "").await.ends_with("once"));
        }
    }
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let head = read_head(&mut stream).await.expect("a head");
        assert!(head.contains("Upgrade: websocket\r\n") && head.contains("Connection: Upgrade\r\n"), "{head}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello";
        stream.write_all(answer.as_bytes()).await.expect("sent");
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.expect("echoed");
    });
    let proxy = start(config(port)).await;
    let mut client = TcpStream::connect(proxy.serving_address()).await.expect("listening");
    let request = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\r\n";
    client.write_all(request.as_bytes()).await.expect("sent");
    let head = read_head(&mut client).await.expect("a head");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut buffer = [0; 5];
    client.read_exact(&mut buffer).await.expect("what came with the head");
    assert_eq!(&buffer, b"hello");
    client.write_all(b"there").await.expect("sent");
    client.read_exact(&mut buffer).await.expect("the echo");
    assert_eq!(&buffer, b"there");
    assert_eq!(proxy.in_flight(), 1);
    drop(client);
    until("the tunnel to end", || proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn requests_stream_in_both_directions_with_trailers() {
    // Echoes the chunks of a request of unknown length, each before the next is sent.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let head = read_head(&mut stream).await.expect("a head");
        assert!(head.contains("Transfer-Encoding: chunked"), "{head}");
        let start = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
        stream.write_all(start.as_bytes()).await.expect("sent");
        let mut seen = Vec::new();
        while !seen.ends_with(b"0\r\n\r\n") {
            let byte = stream.read_u8().await.expect("the body");
            seen.push(byte);
            if seen.ends_with(b"ping\r\n") {
                stream.write_all(b"4\r\npong\r\n").await.expect("sent");
            }
        }
        stream.write_all(b"0\r\nX-Sum: 2\r\n\r\n").await.expect("sent");
    });
    let proxy = start(config(port)).await;
    let mut client = TcpStream::connect(proxy.serving_address()).await.expect("listening");
    let head = "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.write_all(head.as_bytes()).await.expect("sent");
    for _ in 0..2 {
        client.write_all(b"4\r\nping\r\n").await.expect("sent");
        let mut seen = Vec::new();
        while !seen.ends_with(b"pong\r\n") {
            seen.push(client.read_u8().await.expect("an answer before the request ends"));
        }
    }
    client.write_all(b"0\r\n\r\n").await.expect("sent");
    let mut rest = Vec::new();
    while !rest.ends_with(b"\r\n\r\n") {
        rest.push(client.read_u8().await.expect("the end"));
    }
    assert_eq!(String::from_utf8_lossy(&rest).to_lowercase(), "0\r\nx-sum: 2\r\n\r\n");
}

#[tokio::test]
async fn the_autoscaler_scrapes_a_bare_stat() {
    let proxy = start(config(1)).await;
    let answer =
        raw(proxy.autoscaling_address(), "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains("Content-Type: application/protobuf"), "{head}");
    let stat = proto::Stat::decode(body.as_bytes()).expect("a stat");
    assert_eq!(stat, proto::Stat { pod_name: "hello-pod".into(), ..proto::Stat::default() });
    assert!(get(Way::Full, proxy.autoscaling_address(), "").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn a_drain_loses_nothing_and_ends_when_nothing_is_left() {
    for way in BOTH {
        let gate = Gate::default();
        let drain = DrainRule { idle: Some(Duration::from_millis(100)), ..DrainRule::default() };
        let proxy = Arc::new(start(Config { drain, ..config(gate.program().await) }).await);
        let address = proxy.serving_address();
        let before = tokio::spawn(get(way, address, ""));
        until("a request in flight", || gate.current.load(Ordering::SeqCst) == 1).await;

        let hook = tokio::spawn(get_path(proxy.admin_address(), "/wait-for-drain"));
        let ending = tokio::spawn({
            let proxy = proxy.clone();
            async move { proxy.terminate().await }
        });
        let probe = "User-Agent: kube-probe/1.35\r\nK-Network-Probe: queue\r\n";
        while !get(way, address, probe).await.ends_with("shutting down\n") {
            tokio::task::yield_now().await;
        }
        let after = tokio::spawn(get(way, address, ""));
        until("a late request in flight", || gate.current.load(Ordering::SeqCst) == 2).await;
        assert!(!ending.is_finished() && !hook.is_finished());
        for request in [before, after] {
            gate.open.notify_one();
            assert!(request.await.expect("no panic").ends_with("done"));
        }
        let finished = Instant::now();
        assert!(hook.await.expect("no panic").starts_with("HTTP/1.1 200 "));
        ending.await.expect("no panic");
        assert!(finished.elapsed() < Duration::from_secs(5), "waited for the quiet period of upstream");
        assert!(TcpStream::connect(address).await.is_err(), "still listening");
    }
}

async fn get_path(address: SocketAddr, path: &str) -> String {
    raw(address, &format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await
}

#[tokio::test]
async fn a_drain_of_the_program_alone_is_taken_back() {
    let port = program(|_| async { ok("program") }).await;
    let proxy = start(config(port)).await;
    let answer = get_path(proxy.admin_address(), "/wait-for-drain").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let probe =
        get(Way::Full, proxy.serving_address(), "User-Agent: kube-probe/1.35\r\nK-Network-Probe: queue\r\n").await;
    assert!(probe.ends_with("\r\n\r\nqueue"), "{probe}");
}

#[tokio::test]
async fn request_metrics_have_upstreams_names_and_labels() {
    let port = program(|_| async { ok("hello") }).await;
    let mut config = Config {
        metrics: MetricsListener { host: None, port: 0, tls: None },
        container_concurrency: 3,
        ..config(port)
    };
    config.observability =
        queue_proxy::Observability::parse(r#"{"requestMetrics":{"protocol":"prometheus"}}"#).unwrap();
    let proxy = start(config).await;
    for headers in ["", "Knative-Serving-Tag: blue\r\nKnative-Serving-Default-Route: false\r\n"] {
        get(Way::Short, proxy.serving_address(), headers).await;
    }
    // Not counted.
    get(Way::Short, proxy.serving_address(), "K-Network-Probe: queue\r\n").await;
    let metrics = get_path(proxy.metrics_address().expect("on"), "/metrics").await;
    let http = "http_request_method=\"GET\",http_response_status_code=\"200\",kn_route_tag=\"kn:disabled\",\
                network_protocol_name=\"http\",network_protocol_version=\"1.1\",\
                otel_scope_name=\"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp\",\
                otel_scope_schema_url=\"\",otel_scope_version=\"0.69.0\"";
    for expected in [
        format!("http_client_request_duration_seconds_count{{{http},server_address=\"127.0.0.1\",server_port=\"{port}\",url_scheme=\"http\"}} 1"),
        format!("http_server_response_body_size_bytes_sum{{{http},server_address=\"hello.example.com\",server_port=\"0\",url_scheme=\"http\"}} 5"),
        "kn_serving_invocation_duration_seconds_bucket{http_response_status_code=\"200\",otel_scope_name=\"knative.dev/serving/pkg/queue\",otel_scope_schema_url=\"\",otel_scope_version=\"\",le=\"+Inf\"} 2".into(),
        "kn_serving_queue_depth{otel_scope_name=\"knative.dev/serving/pkg/queue\",otel_scope_schema_url=\"\",otel_scope_version=\"\"} 1".into(),
        "kn_route_tag=\"blue\"".into(),
        "target_info{container_name=\"queue-proxy\",k8s_namespace_name=\"default\"".into(),
    ] {
        assert!(metrics.contains(&expected), "{expected}\n{metrics}");
    }
}

#[tokio::test]
async fn server_timing_is_said_where_it_is_wanted() {
    let port = program(|_| async { ok("hello") }).await;
    let proxy = start(Config { server_timing: true, ..config(port) }).await;
    let answer = get(Way::Short, proxy.serving_address(), "").await;
    assert!(answer.contains("Server-Timing: queue;dur="), "{answer}");
    let proxy = start(config(port)).await;
    assert!(!get(Way::Short, proxy.serving_address(), "").await.contains("Server-Timing"));
}

#[tokio::test]
async fn spans_continue_the_callers_trace_and_reach_the_collector() {
    let port = program(|head| async move { ok(&head) }).await;
    let collector = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}/v1/traces", collector.local_addr().expect("bound"));
    let mut config = config(port);
    let json = format!(r#"{{"tracing":{{"protocol":"http/protobuf","endpoint":"{endpoint}","samplingRate":0.5}}}}"#);
    config.observability = queue_proxy::Observability::parse(&json).expect("valid");
    let proxy = start(config).await;
    let sent = "4bf92f3577b34da6a3ce929d0e0e4736";
    let seen =
        get(Way::Short, proxy.serving_address(), &format!("traceparent: 00-{sent}-00f067aa0ba902b7-01\r\n")).await;
    let parent = seen.split("Traceparent: ").nth(1).expect("passed on").lines().next().expect("a line").to_owned();
    assert!(parent.starts_with(&format!("00-{sent}-")) && parent.ends_with("-01"), "{parent}");
    assert!(!parent.contains("00f067aa0ba902b7"), "{parent}");

    let (mut stream, _) = tokio::time::timeout(PATIENCE, collector.accept()).await.expect("in time").expect("a call");
    let head = read_head(&mut stream).await.expect("a head");
    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
    let length =
        head.to_lowercase().split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
    let mut body = vec![0; length.expect("a length")];
    stream.read_exact(&mut body).await.expect("the body");
    let has = |bytes: &[u8]| body.windows(bytes.len()).any(|window| window == bytes);
    let trace: Vec<_> = (0..16).map(|at| u8::from_str_radix(&sent[2 * at..2 * at + 2], 16).expect("hex")).collect();
    assert!(has(&trace) && has(b"queue") && has(b"kn.queueproxy.proxy") && has(b"HTTP GET"), "{body:?}");
}

#[tokio::test]
async fn tls_serves_the_same_without_negotiation() {
    let port = program(|head| async move { ok(&head) }).await;
    let made = rcgen::generate_simple_self_signed(["kn-user-default".to_owned()]).expect("a certificate");
    let folder = tempfile::tempdir().expect("writable");
    std::fs::write(folder.path().join("tls.crt"), made.cert.pem()).expect("writable");
    std::fs::write(folder.path().join("tls.key"), made.signing_key.serialize_pem()).expect("writable");
    let proxy = start(Config { certificates: folder.path().into(), ..config(port) }).await;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let name = rustls_pki_types::ServerName::try_from("kn-user-default").expect("a name");
    let address = proxy.tls_address().expect("there is a certificate");
    let connect = async || {
        let stream = TcpStream::connect(address).await.expect("listening");
        connector.connect(name.clone(), stream).await.expect("a handshake")
    };
    let mut stream = connect().await;
    stream.write_all(b"GET /tls HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(String::from_utf8_lossy(&answer).contains("GET /tls HTTP/1.1"), "{}", String::from_utf8_lossy(&answer));

    // HTTP/2 with prior knowledge inside: the server's preface is a SETTINGS frame.
    let mut stream = connect().await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("sent");
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).await.expect("a frame");
    assert_eq!(frame[3], 4, "{frame:?}");
}
