//! Over HTTP/2: streams, trailers, resets, interim responses, limits and shutdown.

use bytes::Bytes;
use h2::{Reason, client, server};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;

use super::*;

pub(crate) async fn http2_program() -> u16 {
    counting_http2_program(Arc::default()).await
}

/// Speaks HTTP/2 alone: answers with the request's host and its body, never on `/never`; counts requests that were
/// broken off.
async fn counting_http2_program(closed: Arc<AtomicUsize>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let closed = closed.clone();
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let guard = Guard(closed.clone());
                async move {
                    if request.uri().path() == "/never" {
                        std::future::pending::<()>().await;
                    }
                    std::mem::forget(guard);
                    let host = request.uri().authority().map_or("", |host| host.as_str()).to_owned();
                    let sent = request.into_body().collect().await.expect("whole").to_bytes();
                    let body = Bytes::from([host.as_bytes(), &sent].concat());
                    let body = http_body_util::Full::new(body).with_trailers(async {
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                        Some(Ok(trailers))
                    });
                    Ok::<_, std::convert::Infallible>(http::Response::new(body))
                }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let server = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
            tokio::spawn(server.serve_connection(io, service));
        }
    });
    port
}

#[tokio::test]
async fn http2_streams_share_a_connection_and_resets_reach_the_program() {
    let closed = Arc::new(AtomicUsize::new(0));
    let port = counting_http2_program(closed.clone()).await;
    let proxy = start(config(port)).await;
    let stream = TcpStream::connect(proxy.serving_address()).await.expect("listening");
    let executor = hyper_util::rt::TokioExecutor::new();
    let (sender, connection) =
        http2::handshake(executor, hyper_util::rt::TokioIo::new(stream)).await.expect("a handshake");
    tokio::spawn(connection);
    let request = |path: &str| {
        http::Request::get(format!("http://hello.example.com{path}")).body(Empty::<Bytes>::new()).expect("valid")
    };
    let all = (0..50).map(|_| {
        let (mut sender, request) = (sender.clone(), request("/"));
        tokio::spawn(async move {
            let body =
                sender.send_request(request).await.expect("an answer").into_body().collect().await.expect("whole");
            assert_eq!(body.trailers().expect("trailers")["grpc-status"], "0");
            assert_eq!(body.to_bytes(), "hello.example.com");
        })
    });
    for one in all.collect::<Vec<_>>() {
        one.await.expect("no panic");
    }
    let mut cancelled = sender.clone();
    let request = request("/never");
    let waiting = tokio::spawn(async move { cancelled.send_request(request).await.map(drop) });
    until("a stream in flight", || proxy.in_flight() == 1).await;
    waiting.abort();
    until("nothing in flight", || proxy.in_flight() == 0).await;
    until("the program to learn of it", || closed.load(Ordering::SeqCst) == 1).await;
}

/// Counts when it goes.
struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A program that hands every stream to `serve`.
pub(crate) async fn streams<F, R>(serve: F) -> u16
where
    F: Fn(http::Request<h2::RecvStream>, server::SendResponse<Bytes>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serve = serve.clone();
            tokio::spawn(async move {
                let mut connection = server::handshake(stream).await.expect("a handshake");
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(serve(request, respond));
                }
            });
        }
    });
    port
}

pub(crate) fn answer() -> http::Response<()> {
    http::Response::new(())
}

pub(crate) async fn connect(address: SocketAddr) -> client::SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.expect("listening");
    let (sender, connection) = client::handshake(stream).await.expect("a handshake");
    tokio::spawn(connection);
    sender.ready().await.expect("ready")
}

pub(crate) fn request(path: &str, fields: &[(&'static str, &str)]) -> http::Request<()> {
    let mut request = http::Request::get(format!("http://hello.example.com{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).expect("valid")
}

/// All data of a stream, and whether it came to its end.
pub(crate) async fn read(mut body: h2::RecvStream) -> (String, bool) {
    let mut all = Vec::new();
    loop {
        match tokio::time::timeout(PATIENCE, body.data()).await.expect("in time") {
            Some(Ok(data)) => {
                let _ = body.flow_control().release_capacity(data.len());
                all.extend_from_slice(&data);
            }
            end => return (String::from_utf8(all).expect("text"), end.is_none()),
        }
    }
}

/// One request without a body, to the end of its answer.
async fn ask(address: SocketAddr, path: &str, fields: &[(&'static str, &str)]) -> (http::Response<()>, String, bool) {
    let mut sender = connect(address).await;
    let (response, _) = sender.send_request(request(path, fields), true).expect("sent");
    let response = tokio::time::timeout(PATIENCE, response).await.expect("in time").expect("an answer");
    let (parts, body) = response.into_parts();
    let (text, whole) = read(body).await;
    (http::Response::from_parts(parts, ()), text, whole)
}

#[tokio::test]
async fn interim_responses_pass_over_http2() {
    let port = streams(|request, mut respond| async move {
        for hint in ["first", "second"] {
            let hint = http::Response::builder().status(103).header("link", hint);
            respond.send_informational(hint.body(()).expect("valid")).expect("sent");
        }
        assert_eq!(request.uri().path(), "/hints");
        let mut stream = respond.send_response(answer(), false).expect("sent");
        stream.send_data("done".into(), true).expect("sent");
    })
    .await;
    for json in ["{}", r#"{"requestMetrics":{"protocol":"prometheus"}}"#] {
        let observability = queue_proxy::Observability::parse(json).expect("valid");
        let metrics = Scraped { host: String::new(), port: 0, tls: None };
        let proxy = start(Config { observability, metrics, ..config(port) }).await;
        let mut sender = connect(proxy.serving_address()).await;
        let (mut response, _) = sender.send_request(request("/hints", &[]), true).expect("sent");
        for hint in ["first", "second"] {
            let early = std::future::poll_fn(|cx| response.poll_informational(cx));
            let early = tokio::time::timeout(PATIENCE, early).await.expect("in time").expect("a hint").expect("valid");
            assert_eq!((early.status().as_u16(), early.headers()["link"].as_bytes()), (103, hint.as_bytes()));
        }
        let response = tokio::time::timeout(PATIENCE, response).await.expect("in time").expect("an answer");
        assert_eq!(read(response.into_body()).await, ("done".to_owned(), true));
    }
}

#[tokio::test]
async fn the_chain_is_the_same_over_http2() {
    let port = streams(|request, mut respond| async move {
        let host = request.uri().authority().expect("a host").to_string();
        let mut names: Vec<_> = request.headers().iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        names.sort();
        let mut stream = respond.send_response(answer(), false).expect("sent");
        stream.send_data(format!("{host} {}", names.join(" ")).into(), true).expect("sent");
    })
    .await;
    let proxy = start(config(port)).await;
    let address = proxy.serving_address();
    let fields = [
        ("k-original-host", "echo.example.com"),
        ("knative-serving-revision", "r"),
        ("knative-serving-namespace", "n"),
        ("x-forwarded-for", "1.1.1.1"),
    ];
    let (response, body, whole) = ask(address, "/", &fields).await;
    assert!(response.headers().contains_key("date") && whole);
    assert_eq!(body, "echo.example.com forwarded=\"for=1.1.1.1\" x-forwarded-for=\"1.1.1.1, 127.0.0.1\"");
    for (fields, status, expected) in [
        (&[("user-agent", "kube-probe/1"), ("k-network-probe", "queue")][..], 200, "queue"),
        (&[("user-agent", "Knative-Activator-Probe"), ("k-network-probe", "queue")][..], 200, "queue"),
        (&[("user-agent", "kube-probe/1")][..], 400, "unexpected probe header value: \n"),
        (&[("k-network-probe", "probe"), ("k-network-hash", "abc")][..], 200, ""),
    ] {
        let (response, body, _) = ask(address, "/", fields).await;
        assert_eq!((response.status().as_u16(), &*body), (status, expected), "{fields:?}");
    }
    let nobody = start(config(1)).await;
    let (response, body, _) = ask(nobody.serving_address(), "/", &[]).await;
    assert_eq!(response.status().as_u16(), 502);
    assert_eq!(body, "dial tcp 127.0.0.1:1: connect: connection refused\n");
}

#[tokio::test]
async fn a_full_queue_and_a_client_that_leaves_it_over_http2() {
    let open = Arc::new(Notify::new());
    let gate = open.clone();
    let port = streams(move |_, mut respond| {
        let gate = gate.clone();
        async move {
            gate.notified().await;
            let _ = respond.send_response(answer(), true);
        }
    })
    .await;
    let proxy = start(Config { container_concurrency: 1, ..config(port) }).await;
    let address = proxy.serving_address();
    let mut waiting: Vec<_> = (0..11).map(|_| tokio::spawn(async move { ask(address, "/", &[]).await })).collect();
    until("a full queue", || proxy.queued() == 11).await;
    let (response, body, _) = ask(address, "/", &[]).await;
    assert_eq!((response.status().as_u16(), &*body), (503, "pending request queue full\n"));
    assert_eq!(response.headers()["retry-after"], "1");
    for one in waiting.drain(1..) {
        one.abort();
    }
    until("the queue to empty", || proxy.queued() <= 1).await;
    for one in waiting {
        one.abort();
    }
    until("every place to come back", || (proxy.queued(), proxy.in_flight(), proxy.pending_bytes()) == (0, 0, 0)).await;
    open.notify_one();
}

#[tokio::test]
async fn limits_end_streams_with_504_or_the_message_appended() {
    let port = streams(|request, mut respond| async move {
        if request.uri().path() == "/started" {
            let mut stream = respond.send_response(answer(), false).expect("sent");
            stream.send_data("partial ".into(), false).expect("sent");
            let _ = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
        } else {
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        }
    })
    .await;
    let (short, long) = (Some(Duration::from_millis(50)), Duration::from_secs(300));
    for (timeout, response_start_timeout, idle_timeout) in
        [(Duration::from_millis(50), None, None), (long, short, None), (long, None, short)]
    {
        let proxy = start(Config { timeout, response_start_timeout, idle_timeout, ..config(port) }).await;
        let (response, body, _) = ask(proxy.serving_address(), "/", &[]).await;
        assert_eq!((response.status().as_u16(), &*body), (504, "request timeout"));
        until("nothing in flight", || proxy.in_flight() == 0).await;
    }
    let proxy = start(Config { timeout: Duration::from_millis(300), ..config(port) }).await;
    let (response, body, _) = ask(proxy.serving_address(), "/started", &[]).await;
    // A busy machine may not have started the answer by then.
    if response.status() == 200 {
        assert_eq!(body, "partial request timeout");
    }
}

#[tokio::test]
async fn a_program_that_breaks_off_breaks_the_stream_off() {
    let port = streams(|request, mut respond| async move {
        if request.uri().path() == "/before" {
            respond.send_reset(Reason::INTERNAL_ERROR);
            return;
        }
        let mut stream = respond.send_response(answer(), false).expect("sent");
        stream.send_data("part".into(), false).expect("sent");
        // Until it is on its way.
        stream.reserve_capacity(1 << 20);
        let _ = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        stream.send_reset(Reason::INTERNAL_ERROR);
    })
    .await;
    let proxy = start(config(port)).await;
    let (response, _, _) = ask(proxy.serving_address(), "/before", &[]).await;
    assert_eq!(response.status().as_u16(), 502);
    let (response, body, whole) = ask(proxy.serving_address(), "/after", &[]).await;
    assert_eq!((response.status().as_u16(), &*body, whole), (200, "part", false));
    until("nothing in flight", || proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn messages_go_both_ways_and_either_side_is_held_back() {
    const TOTAL: usize = 8 << 20;
    let (go, written) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (wait, progress) = (go.clone(), written.clone());
    let port = streams(move |request, mut respond| {
        let (wait, written) = (wait.clone(), progress.clone());
        async move {
            let mut body = request.into_body();
            let mut stream = respond.send_response(answer(), false).expect("sent");
            // Each message is answered before the next comes.
            for _ in 0..2 {
                let message = body.data().await.expect("a message").expect("whole");
                let _ = body.flow_control().release_capacity(message.len());
                stream.send_data(message, false).expect("sent");
            }
            wait.notified().await;
            let (text, whole) = read(body).await;
            assert_eq!((text.len(), whole), (TOTAL, true));
            for _ in 0..TOTAL / (16 << 10) {
                stream.reserve_capacity(16 << 10);
                while stream.capacity() < 16 << 10 {
                    std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.expect("open").expect("room");
                }
                stream.send_data(vec![b'y'; 16 << 10].into(), false).expect("sent");
                written.fetch_add(16 << 10, Ordering::SeqCst);
            }
            stream.send_data(Bytes::new(), true).expect("sent");
        }
    })
    .await;
    let proxy = start(config(port)).await;
    let mut sender = connect(proxy.serving_address()).await;
    let (response, mut stream) = sender.send_request(request("/", &[]), false).expect("sent");
    let mut answers = tokio::time::timeout(PATIENCE, response).await.expect("in time").expect("an answer").into_body();
    for message in ["ping", "pong"] {
        stream.send_data(message.into(), false).expect("sent");
        let echoed = tokio::time::timeout(PATIENCE, answers.data()).await.expect("in time");
        assert_eq!(echoed.expect("a message").expect("whole"), message);
        let _ = answers.flow_control().release_capacity(message.len());
    }
    // A program that does not read holds the writer back.
    let mut sent = 0;
    while sent < TOTAL {
        stream.reserve_capacity(16 << 10);
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx));
        match tokio::time::timeout(Duration::from_millis(500), room).await {
            Ok(room) => {
                let step = room.expect("open").expect("room").min(TOTAL - sent);
                stream.send_data(vec![b'x'; step].into(), false).expect("sent");
                sent += step;
            }
            Err(_) => break,
        }
    }
    assert!(sent < TOTAL, "all was taken although nobody reads");
    go.notify_one();
    while sent < TOTAL {
        stream.reserve_capacity(16 << 10);
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.expect("open").expect("room");
        let step = room.min(TOTAL - sent);
        stream.send_data(vec![b'x'; step].into(), false).expect("sent");
        sent += step;
    }
    stream.send_data(Bytes::new(), true).expect("sent");
    // A client that does not read holds the program back.
    let mut before = usize::MAX;
    while before != written.load(Ordering::SeqCst) || before == 0 {
        before = written.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(before < TOTAL, "all was taken although nobody reads");
    let (text, whole) = read(answers).await;
    assert_eq!((text.len(), whole), (TOTAL, true));
    until("nothing in flight", || proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn streams_are_counted_and_described_as_requests_are() {
    let open = Arc::new(Notify::new());
    let gate = open.clone();
    let port = streams(move |_, mut respond| {
        let gate = gate.clone();
        async move {
            gate.notified().await;
            let mut stream = respond.send_response(answer(), false).expect("sent");
            stream.send_data("hello".into(), true).expect("sent");
        }
    })
    .await;
    let observability = queue_proxy::Observability::parse(r#"{"requestMetrics":{"protocol":"prometheus"}}"#);
    let metrics = Scraped { host: String::new(), port: 0, tls: None };
    let proxy = start(Config { observability: observability.expect("valid"), metrics, ..config(port) }).await;
    let mut sender = connect(proxy.serving_address()).await;
    let fields = [("knative-serving-tag", "blue"), ("k-proxy-request", "activator")];
    let (response, _) = sender.send_request(request("/", &fields), true).expect("sent");
    until("a stream in flight", || proxy.in_flight() == 1).await;
    // Fields 2 and 3, doubles: one request at any time, and from an activator.
    let one = 1.0_f64.to_le_bytes();
    let expected = [&[0x11][..], &one, &[0x19], &one].concat();
    let started = Instant::now();
    loop {
        let mut stream = TcpStream::connect(proxy.autoscaling_address()).await.expect("listening");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.expect("sent");
        let mut stat = Vec::new();
        stream.read_to_end(&mut stat).await.expect("an answer");
        if stat.windows(expected.len()).any(|window| window == expected) {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "it is not counted: {stat:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    open.notify_one();
    let response = tokio::time::timeout(PATIENCE, response).await.expect("in time").expect("an answer");
    assert_eq!(read(response.into_body()).await, ("hello".to_owned(), true));
    let metrics = get_path(proxy.metrics_address().expect("on"), "/metrics").await;
    let line = metrics.lines().find(|line| line.starts_with("http_server_response_body_size_bytes_sum"));
    let said = ["kn_route_tag=\"blue\"", "network_protocol_version=\"2.0\"", "server_address=\"hello.example.com\""];
    assert!(line.is_some_and(|line| said.iter().all(|part| line.contains(part)) && line.ends_with(" 5")), "{metrics}");
}

#[tokio::test]
async fn the_process_writes_streams_to_its_log() {
    let port = streams(|_, mut respond| async move {
        let _ = respond.send_response(answer(), true);
    })
    .await;
    let json = r#"{"enableRequestLog":true,"requestLogTemplate":"{{with .Request}}{{.Proto}} {{.Host}} {{.RequestURI}}{{end}} {{range $name, $all := .Request.Header}}{{if eq $name \"X-A\"}}{{printf \"%q\" $all}}{{end}}{{end}} {{.Response.Code}}"}"#;
    let mut sidecar = process::Sidecar::start(port, &[("OBSERVABILITY_CONFIG", json)]).await;
    let (response, ..) = ask(sidecar.address, "/a?b=c", &[("x-a", "1"), ("x-a", "2")]).await;
    assert_eq!(response.status(), 200);
    let lines = tokio::time::timeout(PATIENCE, sidecar.lines(1)).await.expect("in time");
    assert_eq!(lines, ["HTTP/2.0 hello.example.com /a?b=c [\"1\" \"2\"] 200"]);
}
