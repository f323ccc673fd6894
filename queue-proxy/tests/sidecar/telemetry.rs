//! What leaves the sidecar for others to look at: metrics and spans over both forms of OTLP, and the secured scrape.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use tokio::sync::mpsc;

use super::*;

/// A collector that speaks gRPC: passes on each call's path, content type and message.
async fn grpc_collector() -> (String, mpsc::UnboundedReceiver<(String, String, Bytes)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let sender = sender.clone();
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let sender = sender.clone();
                async move {
                    let path = request.uri().path().to_owned();
                    let kind = request.headers()["content-type"].to_str().expect("text").to_owned();
                    let body = request.into_body().collect().await.expect("whole").to_bytes();
                    let length = u32::from_be_bytes(body[1..5].try_into().expect("four")) as usize;
                    assert_eq!((body[0], length), (0, body.len() - 5), "one frame, not compressed");
                    let _ = sender.send((path, kind, body.slice(5..)));
                    let body = Full::new(Bytes::from_static(&[0; 5])).with_trailers(async {
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                        Some(Ok::<_, std::convert::Infallible>(trailers))
                    });
                    Ok::<_, std::convert::Infallible>(http::Response::new(body))
                }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let server = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
            tokio::spawn(server.serve_connection(io, service));
        }
    });
    (endpoint, receiver)
}

fn has(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

fn observing(config: Config, json: &str) -> Config {
    Config { observability: queue_proxy::Observability::parse(json).expect("valid"), ..config }
}

#[tokio::test]
async fn spans_and_metrics_reach_a_collector_over_grpc() {
    let (endpoint, mut calls) = grpc_collector().await;
    let port = program(|_| async { ok("hello") }).await;
    let json = format!(
        r#"{{"tracing":{{"protocol":"grpc","endpoint":"{endpoint}","samplingRate":1}},
            "requestMetrics":{{"protocol":"grpc","endpoint":"{endpoint}","exportInterval":50000000}}}}"#
    );
    let proxy = start(observing(config(port), &json)).await;
    assert!(proxy.metrics_address().is_none(), "there is nothing to scrape");
    get(Way::Short, proxy.serving_address(), "").await;
    let (mut spans, mut metrics) = (false, false);
    while !(spans && metrics) {
        let call = tokio::time::timeout(PATIENCE, calls.recv()).await.expect("in time");
        let (path, kind, message) = call.expect("a call");
        assert_eq!(kind, "application/grpc");
        match &*path {
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export" => {
                spans |= has(&message, "kn.queueproxy.proxy") && has(&message, "hello-pod");
            }
            "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export" => {
                metrics |= has(&message, "http.server.request.duration") && has(&message, "hello-pod");
            }
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn metrics_are_posted_and_the_last_ones_leave_when_the_process_ends() {
    let collector = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", collector.local_addr().expect("bound"));
    let port = program(|_| async { ok("hello") }).await;
    // Only at the end, as the interval is long.
    let json = format!(r#"{{"requestMetrics":{{"protocol":"http/protobuf","endpoint":"{endpoint}"}}}}"#);
    let drain = DrainRule { quiet: Duration::from_millis(20), idle: None };
    let proxy = Arc::new(start(Config { drain, ..observing(config(port), &json) }).await);
    get(Way::Short, proxy.serving_address(), "").await;
    let ending = tokio::spawn(async move { proxy.terminate().await });
    let (mut stream, _) = tokio::time::timeout(PATIENCE, collector.accept()).await.expect("in time").expect("a call");
    let head = read_head(&mut stream).await.expect("a head");
    assert!(head.starts_with("POST /v1/metrics HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("Content-Type: application/x-protobuf\r\n"), "{head}");
    let length = head.split("Content-Length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
    let mut body = vec![0; length.expect("a length")];
    stream.read_exact(&mut body).await.expect("the body");
    assert!(has(&body, "kn.serving.invocation.duration") && has(&body, "knative.dev/serving/pkg/queue"));
    assert!(!ending.is_finished(), "ended before the collector had answered");
    stream.write_all(ok("").as_bytes()).await.expect("sent");
    tokio::time::timeout(PATIENCE, ending).await.expect("in time").expect("no panic");
}

#[tokio::test]
async fn spans_that_a_collector_does_not_take_are_sent_again() {
    let collector = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = collector.local_addr().expect("bound");
    let port = program(|_| async { ok("hello") }).await;
    let json =
        format!(r#"{{"tracing":{{"protocol":"http/protobuf","endpoint":"http://{address}","samplingRate":1}}}}"#);
    let proxy = start(observing(config(port), &json)).await;
    get(Way::Short, proxy.serving_address(), "").await;
    for answer in ["HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", &ok("")] {
        let call = tokio::time::timeout(PATIENCE, collector.accept()).await.expect("in time");
        let (mut stream, _) = call.expect("a call");
        let head = read_head(&mut stream).await.expect("a head");
        let length = head.split("Content-Length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
        let mut body = vec![0; length.expect("a length")];
        stream.read_exact(&mut body).await.expect("the body");
        assert!(has(&body, "kn.queueproxy.proxy"));
        stream.write_all(answer.as_bytes()).await.expect("sent");
    }
}

#[tokio::test]
async fn the_scrape_can_be_secured_and_ask_for_certificates() {
    let folder = tempfile::tempdir().expect("writable");
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("writable");
        path
    };
    let server = rcgen::generate_simple_self_signed(["metrics".to_owned()]).expect("a certificate");
    let client = rcgen::generate_simple_self_signed(["prometheus".to_owned()]).expect("a certificate");
    let files = queue_proxy::Paths {
        certificate: write("crt", server.cert.pem()),
        key: write("key", server.signing_key.serialize_pem()),
    };
    let authorities = write("ca", client.cert.pem());
    for (required, shows, passes) in [(true, true, true), (true, false, false), (false, false, true)] {
        let auth = queue_proxy::ClientAuth { authorities: authorities.clone(), required };
        let tls = Some(queue_proxy::Fixed {
            files: files.clone(),
            settings: queue_proxy::TlsSettings::default(),
            auth: Some(auth),
        });
        let metrics = Scraped { host: "127.0.0.1".to_owned(), port: 0, tls };
        let config = observing(config(1), r#"{"requestMetrics":{"protocol":"prometheus"}}"#);
        let proxy = start(Config { metrics, ..config }).await;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(server.cert.der().clone()).expect("a root");
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let tls = if shows {
            let key = rustls_pki_types::PrivateKeyDer::try_from(client.signing_key.serialize_der()).expect("a key");
            builder.with_client_auth_cert(vec![client.cert.der().clone()], key).expect("valid")
        } else {
            builder.with_no_client_auth()
        };
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let stream = TcpStream::connect(proxy.metrics_address().expect("on")).await.expect("listening");
        let name = rustls_pki_types::ServerName::try_from("metrics").expect("a name");
        let mut answer = Vec::new();
        if let Ok(mut stream) = connector.connect(name, stream).await {
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            let _ = stream.read_to_end(&mut answer).await;
        }
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(answer.contains("target_info{"), passes, "required {required}, shown {shows}: {answer}");
    }
}

#[tokio::test]
async fn request_metrics_have_upstreams_names_and_labels() {
    let port = program(|_| async { ok("hello") }).await;
    let mut config = Config {
        metrics: Scraped { host: String::new(), port: 0, tls: None },
        container_concurrency: 3,
        ..config(port)
    };
    config.observability =
        queue_proxy::Observability::parse(r#"{"requestMetrics":{"protocol":"prometheus"}}"#).unwrap();
    let proxy = start(config).await;
    for (way, headers) in
        BOTH.into_iter().zip(["", "Knative-Serving-Tag: blue\r\nKnative-Serving-Default-Route: false\r\n"])
    {
        get(way, proxy.serving_address(), headers).await;
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
        format!("http_server_response_body_size_bytes_sum{{{http},server_address=\"hello.example.com\",url_scheme=\"http\"}} 5"),
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
    for way in BOTH {
        let answer = get(way, proxy.serving_address(), "").await;
        assert!(answer.contains("Server-Timing: queue;dur=") && answer.ends_with("hello"), "{way:?}: {answer}");
    }
    // Of answers of the sidecar's own too.
    let proxy_of_none = start(Config { server_timing: true, ..config(unused().await.port()) }).await;
    for way in BOTH {
        let answer = get(way, proxy_of_none.serving_address(), "").await;
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("Server-Timing: "), "{way:?}: {answer}");
    }
    let proxy = start(config(port)).await;
    assert!(!get(Way::Short, proxy.serving_address(), "").await.contains("Server-Timing"));
}

/// Metrics alone, to be scraped.
fn scraped(config: Config) -> Config {
    let config = observing(config, r#"{"requestMetrics":{"protocol":"prometheus"}}"#);
    Config { metrics: Scraped { host: String::new(), port: 0, tls: None }, ..config }
}

#[tokio::test]
async fn whatever_ends_a_request_is_counted_once() {
    let answers = program(|head| async move {
        match &*head {
            _ if head.starts_with("GET /chunked ") => {
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_owned()
            }
            _ if head.starts_with("GET /broken ") => "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello".to_owned(),
            _ if head.contains(" /late ") => std::future::pending().await,
            _ => ok("hello"),
        }
    })
    .await;
    for way in BOTH {
        let proxy = start(scraped(Config { timeout: Duration::from_millis(300), ..config(answers) })).await;
        let fields = match way {
            Way::Short => "Connection: close\r\n",
            Way::Full => "Connection: close, x-none\r\n",
        };
        let ask = async |path: &str, method: &str| {
            raw(proxy.serving_address(), &format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).await
        };
        assert!(ask("/", "HEAD").await.starts_with("HTTP/1.1 200"));
        assert!(ask("/chunked", "GET").await.contains("hello"));
        assert!(ask("/late", "GET").await.starts_with("HTTP/1.1 504"));
        ask("/broken", "GET").await;
        let metrics = get_path(proxy.metrics_address().expect("on"), "/metrics").await;
        let lines: Vec<_> = metrics.lines().collect();
        let counted = |start: &str, parts: &[&str]| -> f64 {
            let found =
                lines.iter().filter(|line| line.starts_with(start) && parts.iter().all(|part| line.contains(part)));
            found
                .map(|line| line.rsplit(' ').next().and_then(|number| number.parse::<f64>().ok()).expect("a number"))
                .sum()
        };
        let own = "kn_serving_invocation_duration_seconds_count";
        for (status, count) in [("200", 2.0), ("500", 1.0), ("504", 1.0)] {
            assert_eq!(
                counted(own, &[&format!("http_response_status_code=\"{status}\"")]),
                count,
                "{way:?}\n{metrics}"
            );
        }
        let size = "http_server_response_body_size_bytes_sum";
        assert_eq!(counted(size, &["method=\"HEAD\""]), 0.0, "{way:?}\n{metrics}");
        let message = "request timeout".len() as f64;
        assert_eq!(counted(size, &["method=\"GET\"", "code=\"504\""]), message, "{way:?}\n{metrics}");
        // The message fits into the length that was announced.
        assert_eq!(counted(size, &["method=\"GET\"", "code=\"200\""]), 10.0 + message, "{way:?}\n{metrics}");

        // One whose client leaves counts as upstream counts it: 200.
        let proxy = start(scraped(config(answers))).await;
        let mut leaving = TcpStream::connect(proxy.serving_address()).await.expect("listening");
        leaving.write_all(format!("GET /late HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes()).await.expect("sent");
        until("a request in flight", || proxy.in_flight() == 1).await;
        drop(leaving);
        until("nothing in flight", || proxy.in_flight() == 0).await;
        let metrics = get_path(proxy.metrics_address().expect("on"), "/metrics").await;
        assert!(metrics.lines().any(|line| line.starts_with(own) && line.ends_with(" 1")), "{way:?}\n{metrics}");
    }
}

#[tokio::test]
async fn targets_pass_as_they_are_whoever_looks_at_them() {
    let port = program(|head| async move { ok(head.lines().next().expect("a line")) }).await;
    let json = r#"{"tracing":{"protocol":"http/protobuf","endpoint":"http://127.0.0.1:1","samplingRate":1},
                   "requestMetrics":{"protocol":"prometheus"}}"#;
    let metrics = Scraped { host: String::new(), port: 0, tls: None };
    let watched = start(Config { metrics, ..observing(config(port), json) }).await;
    for proxy in [watched, start(config(port)).await] {
        let target = "/a\"b?q=\"c\"<d>&e=`#{f}";
        let line = format!("GET {target} HTTP/1.1");
        let encoded = "GET /a%22b?q=%22c%22%3Cd%3E&e=%60%23%7Bf%7D HTTP/1.1";
        let mut stream = TcpStream::connect(proxy.serving_address()).await.expect("listening");
        // Those that need to be taken apart arrive encoded, at the start of a connection or later.
        for (fields, expected) in
            [("", &*line), ("TE: trailers\r\n", encoded), ("", encoded), ("X-A: \"<\"\r\n", encoded)]
        {
            stream.write_all(format!("{line}\r\nHost: a\r\n{fields}\r\n").as_bytes()).await.expect("sent");
            let answer = tokio::time::timeout(PATIENCE, read_answer(&mut stream)).await.expect("in time");
            assert!(answer.ends_with(expected), "{fields:?}: {answer}");
        }
    }
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
