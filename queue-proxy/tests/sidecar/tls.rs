//! Over TLS: every row of the chain that a plain connection has.

use bytes::Bytes;
use tokio_rustls::client::TlsStream;

use super::{
    http2::{answer, read, request, streams},
    wire::{raw_program, unchunked},
    *,
};

type Stream = TlsStream<TcpStream>;

/// A sidecar with a certificate, and how to reach it.
struct Secure {
    proxy: Arc<Handle>,
    connector: tokio_rustls::TlsConnector,
    _folder: tempfile::TempDir,
}

impl Secure {
    async fn start(config: Config) -> Self {
        let made = rcgen::generate_simple_self_signed(["kn-user-default".to_owned()]).expect("a certificate");
        let folder = tempfile::tempdir().expect("writable");
        std::fs::write(folder.path().join("tls.crt"), made.cert.pem()).expect("writable");
        std::fs::write(folder.path().join("tls.key"), made.signing_key.serialize_pem()).expect("writable");
        let proxy = Arc::new(start(Config { certificates: folder.path().into(), ..config }).await);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { proxy, connector: tokio_rustls::TlsConnector::from(Arc::new(client)), _folder: folder }
    }

    async fn connect(&self) -> Stream {
        let stream = TcpStream::connect(self.proxy.tls_address().expect("a certificate")).await.expect("listening");
        let name = rustls_pki_types::ServerName::try_from("kn-user-default").expect("a name");
        self.connector.connect(name, stream).await.expect("a handshake")
    }

    /// HTTP/2 inside, with prior knowledge as an activator has it.
    async fn http2(&self) -> h2::client::SendRequest<Bytes> {
        let (sender, connection) = h2::client::handshake(self.connect().await).await.expect("a handshake");
        tokio::spawn(connection);
        sender.ready().await.expect("ready")
    }

    /// One request whose answer ends with its connection.
    async fn ask(&self, line: &str, fields: &str) -> String {
        let mut stream = self.connect().await;
        let request = format!("{line} HTTP/1.1\r\nHost: hello.example.com\r\nConnection: close\r\n{fields}\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        to_end(&mut stream).await
    }
}

async fn to_end(stream: &mut Stream) -> String {
    let mut all = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("in time");
    String::from_utf8(all).expect("text")
}

/// Reads until what came ends with `end`.
async fn up_to(stream: &mut Stream, end: &str) -> String {
    let mut seen = Vec::new();
    while !seen.ends_with(end.as_bytes()) {
        let byte = tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("in time");
        seen.push(byte.unwrap_or_else(|error| panic!("{error} after {}", String::from_utf8_lossy(&seen))));
    }
    String::from_utf8(seen).expect("text")
}

#[tokio::test]
async fn the_chain_is_the_same_over_tls() {
    let port = program(|head| async move { ok(&head) }).await;
    let observability = queue_proxy::Observability::parse(r#"{"requestMetrics":{"protocol":"prometheus"}}"#);
    let metrics = Scraped { host: String::new(), port: 0, tls: None };
    let observability = observability.expect("valid");
    let secure = Secure::start(Config { observability, metrics, ..config(port) }).await;
    let probe = secure.ask("GET /", "User-Agent: kube-probe/1.35\r\nK-Network-Probe: queue\r\n").await;
    assert!(probe.ends_with("\r\n\r\nqueue"), "{probe}");
    let hash = secure.ask("GET /", "K-Network-Probe: probe\r\nK-Network-Hash: abc\r\n").await;
    assert!(hash.starts_with("HTTP/1.1 200") && hash.contains("K-Network-Hash: abc\r\n"), "{hash}");
    let fields = "K-Original-Host: other.example.com\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-Proto: https\r\n\
                  Knative-Serving-Revision: r\r\nKnative-Serving-Tag: blue\r\n";
    let seen = secure.ask("GET /a?b=\"c\"", fields).await;
    for expected in [
        "GET /a?b=%22c%22 HTTP/1.1\r\n",
        "Host: other.example.com\r\n",
        "X-Forwarded-For: 1.1.1.1, 127.0.0.1\r\n",
        "Forwarded: for=1.1.1.1;proto=https\r\n",
    ] {
        assert!(seen.contains(expected), "{expected}: {seen}");
    }
    assert!(!seen.contains("Knative-Serving-Revision"), "{seen}");
    // Route tag and scheme in the metrics, and the request in the statistics.
    let metrics = get_path(secure.proxy.metrics_address().expect("on"), "/metrics").await;
    let line = metrics.lines().find(|line| {
        line.starts_with("http_server_request_duration_seconds_count") && line.contains("kn_route_tag=\"blue\"")
    });
    assert!(line.is_some_and(|line| line.contains("url_scheme=\"https\"") && line.ends_with(" 1")), "{metrics}");
    until("nothing in flight", || secure.proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn requests_over_tls_are_in_the_autoscalers_statistics() {
    let gate = Gate::default();
    let secure = Secure::start(config(gate.program().await)).await;
    let mut stream = secure.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
    until("a request at the program", || gate.current.load(Ordering::SeqCst) == 1).await;
    // A whole period with it in flight.
    let started = Instant::now();
    loop {
        let mut scrape = TcpStream::connect(secure.proxy.autoscaling_address()).await.expect("listening");
        scrape.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.expect("sent");
        let mut stat = Vec::new();
        scrape.read_to_end(&mut stat).await.expect("an answer");
        // Field 2, a double: one request at any time.
        let field = [&[0x11][..], &1.0_f64.to_le_bytes()].concat();
        if stat.windows(field.len()).any(|window| window == field) {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "it is not counted: {stat:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    gate.open.notify_one();
    assert!(up_to(&mut stream, "done").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn limits_hold_over_tls() {
    let port = program(|head| async move {
        if head.starts_with("GET /started ") {
            return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\npartial\r\n".to_owned();
        }
        std::future::pending().await
    })
    .await;
    let short = Duration::from_millis(150);
    let long = Duration::from_secs(300);
    for (timeout, response_start, idle) in [(short, None, None), (long, Some(short), None), (long, None, Some(short))] {
        let limits = Config { timeout, response_start_timeout: response_start, idle_timeout: idle, ..config(port) };
        let secure = Secure::start(limits).await;
        let answer = secure.ask("GET /never", "").await;
        assert!(answer.starts_with("HTTP/1.1 504") && answer.ends_with("request timeout"), "{answer}");
        if response_start.is_none() {
            let answer = secure.ask("GET /started", "").await;
            // On a busy machine a limit may come before the answer.
            let body = answer.split_once("\r\n\r\n").expect("a head").1;
            let cut = body.ends_with("0\r\n\r\n") && unchunked(body) == "partialrequest timeout";
            assert!(cut || answer.starts_with("HTTP/1.1 504"), "{answer}");
        }
        until("nothing in flight", || secure.proxy.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn the_queue_is_bounded_over_tls_and_who_leaves_frees_a_place() {
    let gate = Gate::default();
    let port = gate.program().await;
    let secure = Secure::start(Config { container_concurrency: 1, ..config(port) }).await;
    let mut waiting = Vec::new();
    for _ in 0..11 {
        let mut stream = secure.connect().await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
        waiting.push(stream);
    }
    until("a full queue", || secure.proxy.queued() == 11).await;
    let refused = secure.ask("GET /", "").await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("Retry-After: 1\r\n"), "{refused}");
    assert!(refused.ends_with("pending request queue full\n"), "{refused}");
    drop(waiting);
    until("every place to come back", || secure.proxy.queued() == 0 && secure.proxy.in_flight() == 0).await;
    assert_eq!((gate.most.load(Ordering::SeqCst), secure.proxy.pending_bytes()), (1, 0));
}

#[tokio::test]
async fn a_tunnel_over_tls_goes_both_ways_and_half_closes() {
    let (port, _) = raw_program(|mut stream| async move {
        read_head(&mut stream).await.expect("a head");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhi";
        stream.write_all(answer.as_bytes()).await.expect("sent");
        let mut all = String::new();
        stream.read_to_string(&mut all).await.expect("an end");
        stream.write_all(format!("got {all}").as_bytes()).await.expect("sent");
    })
    .await;
    let secure = Secure::start(config(port)).await;
    let mut stream = secure.connect().await;
    let head = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("sent");
    assert!(up_to(&mut stream, "\r\n\r\nhi").await.starts_with("HTTP/1.1 101"));
    assert_eq!(secure.proxy.in_flight(), 1);
    stream.write_all(b"GET /\"<all>").await.expect("sent");
    stream.shutdown().await.expect("half closed");
    assert_eq!(to_end(&mut stream).await, "got GET /\"<all>");
    until("nothing in flight", || secure.proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn bodies_stream_both_ways_over_tls_with_trailers_and_interim_responses() {
    let (port, _) = raw_program(|mut stream| async move {
        read_head(&mut stream).await.expect("a head");
        let start = "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\
                     Trailer: X-Sum\r\n\r\n";
        stream.write_all(start.as_bytes()).await.expect("sent");
        let mut seen = Vec::new();
        while !seen.ends_with(b"0\r\n\r\n") {
            seen.push(stream.read_u8().await.expect("the body"));
            if seen.ends_with(b"ping\r\n") {
                stream.write_all(b"4\r\npong\r\n").await.expect("sent");
            }
        }
        stream.write_all(b"0\r\nX-Sum: 2\r\n\r\n").await.expect("sent");
    })
    .await;
    let secure = Secure::start(config(port)).await;
    let mut stream = secure.connect().await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("sent");
    let interim = up_to(&mut stream, "\r\n\r\n").await;
    assert!(interim.starts_with("HTTP/1.1 103") && interim.contains("Link: a\r\n"), "{interim}");
    for _ in 0..2 {
        stream.write_all(b"4\r\nping\r\n").await.expect("sent");
        up_to(&mut stream, "pong\r\n").await;
    }
    stream.write_all(b"0\r\n\r\n").await.expect("sent");
    assert_eq!(up_to(&mut stream, "\r\n\r\n").await.to_lowercase(), "0\r\nx-sum: 2\r\n\r\n");
}

#[tokio::test]
async fn clients_over_tls_that_reset_or_half_close_end_the_work() {
    let (ended, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, began) = (ended.clone(), seen.clone());
    let (port, _) = raw_program(move |mut stream| {
        let (ended, seen) = (counted.clone(), began.clone());
        async move {
            let head = read_head(&mut stream).await.expect("a head");
            if head.starts_with("GET /started") {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin").await.expect("sent");
            }
            seen.fetch_add(1, Ordering::SeqCst);
            let _ = stream.read_u8().await;
            ended.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let secure = Secure::start(Config { container_concurrency: 1, ..config(port) }).await;
    for (round, (path, resets)) in
        [("/waiting", true), ("/started", true), ("/waiting", false), ("/started", false)].into_iter().enumerate()
    {
        let mut stream = secure.connect().await;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.expect("sent");
        until("the request at the program", || seen.load(Ordering::SeqCst) == round + 1).await;
        if path == "/started" {
            up_to(&mut stream, "begin").await;
        }
        if resets {
            stream.get_ref().0.set_zero_linger().expect("a socket option");
            drop(stream);
        } else {
            // Upstream takes the end of what a client sends for its leaving.
            stream.shutdown().await.expect("half closed");
            to_end(&mut stream).await;
        }
        until("the program to learn of it", || ended.load(Ordering::SeqCst) == round + 1).await;
        until("nothing in flight", || secure.proxy.in_flight() == 0 && secure.proxy.queued() == 0).await;
    }
}

#[tokio::test]
async fn a_slow_reader_over_tls_holds_the_program_back() {
    const TOTAL: usize = 64 << 20;
    let written = Arc::new(AtomicUsize::new(0));
    let progress = written.clone();
    let (port, _) = raw_program(move |mut stream| {
        let written = progress.clone();
        async move {
            read_head(&mut stream).await.expect("a head");
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {TOTAL}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.expect("sent");
            let piece = vec![b'x'; 64 << 10];
            for _ in 0..TOTAL / piece.len() {
                if stream.write_all(&piece).await.is_err() {
                    return;
                }
                written.fetch_add(piece.len(), Ordering::SeqCst);
            }
        }
    })
    .await;
    let secure = Secure::start(config(port)).await;
    let mut stream = secure.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
    up_to(&mut stream, "\r\n\r\n").await;
    let mut before = usize::MAX;
    while before != written.load(Ordering::SeqCst) || before == 0 {
        before = written.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(before < TOTAL, "all was taken although nobody reads");
    drop(stream);
    until("nothing in flight", || secure.proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn what_readers_disagree_about_is_refused_over_tls() {
    let (port, connections) = raw_program(|_| async {}).await;
    let secure = Secure::start(config(port)).await;
    for fields in [
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "Content-Length: +5\r\n\r\nhello",
        "Transfer-Encoding: xchunked\r\n\r\n",
        "Transfer-Encoding: gzip, chunked\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "X: a\rb\r\n\r\n",
        "X: a\0b\r\n\r\n",
        "X: a\r\n folded\r\n\r\n",
        "Host: b\r\n\r\n",
    ] {
        let mut stream = secure.connect().await;
        stream.write_all(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}").as_bytes()).await.expect("sent");
        let answer = to_end(&mut stream).await;
        let refused = answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.1 501 ");
        assert!(refused, "{fields:?}: {answer:?}");
    }
    assert_eq!((connections.load(Ordering::SeqCst), secure.proxy.in_flight()), (0, 0));
}

#[tokio::test]
async fn streams_over_tls_end_whole_with_a_reset_or_with_the_process() {
    let open = Arc::new(Notify::new());
    let gate = open.clone();
    let cancelled = Arc::new(AtomicUsize::new(0));
    let counted = cancelled.clone();
    let port = streams(move |request, mut respond| {
        let (gate, cancelled) = (gate.clone(), counted.clone());
        async move {
            match request.uri().path() {
                "/never" => {
                    let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                    assert!(reset.is_ok());
                    cancelled.fetch_add(1, Ordering::SeqCst);
                }
                "/gated" => {
                    gate.notified().await;
                    let mut stream = respond.send_response(answer(), false).expect("sent");
                    stream.send_data("finished".into(), true).expect("sent");
                }
                _ => {
                    let host = request.uri().authority().expect("a host").to_string();
                    let (sent, whole) = read(request.into_body()).await;
                    assert!(whole);
                    let mut stream = respond.send_response(answer(), false).expect("sent");
                    stream.send_data(format!("{host} {sent}").into(), false).expect("sent");
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                    stream.send_trailers(trailers).expect("sent");
                }
            }
        }
    })
    .await;
    let drain = DrainRule { quiet: Duration::from_millis(50), idle: None };
    let secure = Secure::start(Config { drain, ..config(port) }).await;
    let mut sender = secure.http2().await;
    let (response, mut body) = sender.send_request(request("/echo", &[]), false).expect("sent");
    body.send_data("ping".into(), true).expect("sent");
    let mut received = tokio::time::timeout(PATIENCE, response).await.expect("in time").expect("an answer").into_body();
    let mut all = Vec::new();
    while let Some(data) = received.data().await {
        all.extend_from_slice(&data.expect("whole"));
    }
    assert_eq!(all, b"hello.example.com ping");
    assert_eq!(received.trailers().await.expect("whole").expect("trailers")["grpc-status"], "0");

    let mut sender = sender.ready().await.expect("ready");
    let (response, mut body) = sender.send_request(request("/never", &[]), true).expect("sent");
    until("a stream in flight", || secure.proxy.in_flight() == 1).await;
    body.send_reset(h2::Reason::CANCEL);
    until("the program to learn of it", || cancelled.load(Ordering::SeqCst) == 1).await;
    drop(response);
    until("nothing in flight", || secure.proxy.in_flight() == 0).await;

    let mut sender = sender.ready().await.expect("ready");
    let (response, _) = sender.send_request(request("/gated", &[]), true).expect("sent");
    until("a stream in flight", || secure.proxy.in_flight() == 1).await;
    let ending = tokio::spawn({
        let proxy = secure.proxy.clone();
        async move { proxy.terminate().await }
    });
    let address = secure.proxy.tls_address().expect("a certificate");
    let started = Instant::now();
    while TcpStream::connect(address).await.is_ok() {
        assert!(started.elapsed() < PATIENCE, "still listening");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(!ending.is_finished(), "a stream is under way");
    open.notify_one();
    let response = tokio::time::timeout(PATIENCE, response).await.expect("in time").expect("an answer");
    assert_eq!(read(response.into_body()).await, ("finished".to_owned(), true));
    tokio::time::timeout(PATIENCE, ending).await.expect("in time").expect("no panic");
}

#[tokio::test]
async fn a_request_under_way_over_tls_is_finished_before_the_process_ends() {
    let gate = Gate::default();
    let drain = DrainRule { quiet: Duration::from_millis(50), idle: None };
    let secure = Secure::start(Config { drain, ..config(gate.program().await) }).await;
    let mut stream = secure.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
    until("a request at the program", || gate.current.load(Ordering::SeqCst) == 1).await;
    let proxy = secure.proxy.clone();
    let ending = tokio::spawn(async move { proxy.terminate().await });
    let address = secure.proxy.tls_address().expect("a certificate");
    let started = Instant::now();
    while TcpStream::connect(address).await.is_ok() {
        assert!(started.elapsed() < PATIENCE, "still listening");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    gate.open.notify_one();
    let answer = to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
    tokio::time::timeout(PATIENCE, ending).await.expect("in time").expect("no panic");
}
