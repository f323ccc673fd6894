//! What is told about requests elsewhere: lines of the request log, spans at a collector, profiles.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use api::config::{Exporter, Observability, Tracing};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use net::Incoming;
use parking_lot::Mutex;
use telemetry::otlp::wire::{ExportMetrics, ExportTraces};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::{Cluster, PATIENCE, Pod, Setup, WAYS, for_revision, get_on, get_path};

/// A collector that passes on what it gets.
async fn collector<M: proto::Message + Default + 'static>() -> (SocketAddr, mpsc::UnboundedReceiver<M>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(net::serve(listener, net::Connections::new(), move |request: Request<Incoming>, _| {
        let sender = sender.clone();
        async move {
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            let _ = sender.send(M::decode(body).expect("sound"));
            net::empty::<()>(StatusCode::OK)
        }
    }));
    (address, receiver)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_leaves_spans_and_the_pod_sees_their_trace() {
    let (collector, mut spans) = collector::<ExportTraces>().await;
    let tracing =
        Tracing { protocol: "http/protobuf".to_owned(), endpoint: format!("http://{collector}"), sampling_rate: 1.0 };
    let observability = Observability { tracing, ..Observability::default() };
    let setup = Setup::with(Cluster::default(), |options| {
        options.observability = controller::Config::fixed(observability);
    })
    .await;
    setup.revision("traced", 0, 300).await;
    setup.cluster.endpoints("traced", &[Pod::default().start().await], &[]);
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let headers = format!("{}traceparent: 00-{trace}-{parent}-01\r\n", for_revision("traced"));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut next = async || {
        let exported = tokio::time::timeout(PATIENCE, spans.recv()).await.expect("spans in time").expect("spans");
        exported.resource_spans[0].scope_spans[0].clone()
    };
    for way in ["", WAYS[1]] {
        let answer = get_on(way, setup.address(), "/path", &headers).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let scope = next().await;
        assert_eq!(scope.scope.as_ref().expect("a scope").name, "knative.dev/serving/pkg/activator");
        let by_name: BTreeMap<_, _> = scope.spans.iter().map(|span| (&*span.name, span)).collect();
        assert_eq!(
            by_name.keys().copied().collect::<Vec<_>>(),
            ["GET /path", "activator_proxy", "handle", "throttler_try"]
        );
        assert!(scope.spans.iter().all(|span| hex(&span.trace_id) == trace));
        assert_eq!(hex(&by_name["handle"].parent_span_id), parent);
        for name in ["throttler_try", "activator_proxy"] {
            assert_eq!(by_name[name].parent_span_id, by_name["handle"].span_id, "{name}");
        }
        // The pod's parent is the request to it.
        let client = hex(&by_name["GET /path"].span_id);
        let seen = answer.to_lowercase();
        assert!(seen.contains(&format!("traceparent: 00-{trace}-{client}-01")), "{answer}");
        assert_eq!(seen.matches("traceparent:").count(), 1, "{answer}");
    }
    // A request for nobody leaves one as well.
    let answer = get_on("", setup.address(), "/path", &for_revision("unknown")).await;
    assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{answer}");
    let scope = next().await;
    let [span] = &scope.spans[..] else { panic!("{:?}", scope.spans) };
    assert_eq!(span.name, "handle");
    assert!(!span.attributes.iter().any(|attribute| attribute.key.starts_with("kn.")));
}

/// What was written.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An activator whose request log is on, and what it wrote there.
async fn logging() -> (Setup, Written) {
    let written = Written::default();
    let setup = Setup::with(Cluster::default(), |options| {
        options.request_log = telemetry::Lines::to(written.clone());
        let observability = Observability { enable_request_log: true, ..Observability::default() };
        options.observability = controller::Config::fixed(observability);
    })
    .await;
    (setup, written)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_is_a_line_of_the_log_and_probes_are_none() {
    let (setup, written) = logging().await;
    setup.revision("logged", 0, 300).await;
    setup.cluster.endpoints("logged", &[Pod::default().start().await], &[]);
    let probe = "K-Network-Probe: activator\r\n";
    let headers = format!("{}User-Agent: it\r\nReferer: there\r\n", for_revision("logged"));
    for (way, path, headers) in [("", "/a?b=1", &*headers), ("", "/probe", probe), (WAYS[1], "/c", &headers)] {
        let answer = get_on(way, setup.address(), path, headers).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    let lines = || String::from_utf8(written.0.lock().clone()).expect("text");
    crate::until("two lines", || lines().lines().count() >= 2).await;
    let lines = lines();
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let request = |line: usize, field: &str| lines[line]["httpRequest"][field].clone();
    assert_eq!(lines.len(), 2);
    for (line, url) in ["/a?b=1", "/c"].into_iter().enumerate() {
        assert_eq!(request(line, "requestMethod"), "GET");
        assert_eq!(request(line, "requestUrl"), url);
        assert_eq!(request(line, "status"), 200);
        assert_eq!(request(line, "userAgent"), "it");
        assert_eq!(request(line, "referer"), "there");
        assert_eq!(request(line, "protocol"), "HTTP/1.1");
        assert_eq!(lines[line]["traceId"], "", "as upstream's activator");
    }
}

/// As upstream: what waited has met an error, and what a pod had was about to be answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_client_leaves_is_told_of_once() {
    let (setup, written) = logging().await;
    let pod = Pod::gated();
    setup.revision("left", 1, 300).await;
    setup.cluster.endpoints("left", &[pod.start().await], &[]);
    let lines = || String::from_utf8(written.0.lock().clone()).expect("text");
    let line = |number: usize| -> serde_json::Value {
        serde_json::from_str(lines().lines().nth(number).expect("written")).expect("JSON")
    };
    let open = async |way: &str, path: &str| {
        let mut stream = TcpStream::connect(setup.address()).await.expect("listening");
        let headers = for_revision("left");
        let request = format!("GET {path} HTTP/1.1\r\nHost: hello.example.com\r\n{way}{headers}\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        stream
    };
    for (round, way) in WAYS.into_iter().enumerate() {
        let sent = open(way, "/sent").await;
        crate::until("one to run", || pod.current.load(SeqCst) == 1).await;
        let waiting = open(way, "/waiting").await;
        setup.held(2).await;
        for (number, client, path, status) in
            [(2 * round, waiting, "/waiting", 500), (2 * round + 1, sent, "/sent", 200)]
        {
            drop(client);
            crate::until("a line", || lines().lines().count() > number).await;
            let request = line(number)["httpRequest"].clone();
            assert_eq!((&request["requestUrl"], &request["status"]), (&path.into(), &status.into()), "{way}");
            assert_eq!(request["responseSize"], "0", "{way}");
        }
        setup.held(0).await;
        pod.open();
        crate::until("the pod to be free", || pod.current.load(SeqCst) == 0).await;
    }
    let text = get_path(setup.activator.metrics_address().expect("asked for"), "/metrics").await;
    let count = |name: &str, labels: &[&str]| {
        let mut series = text.lines().filter(|line| line.starts_with(name));
        let found =
            series.find(|line| labels.iter().all(|label| line.contains(label))).map(|line| line.rsplit_once(' '));
        found.flatten().map(|(_, count)| count.to_owned())
    };
    let served = "http_server_request_duration_seconds_count";
    for status in ["200", "500"] {
        let status = format!("http_response_status_code=\"{status}\"");
        let found = count(served, &[&status, "kn_revision_name=\"left\"", "kn_service_name="]);
        assert_eq!(found.as_deref(), Some("2"), "{status} in {text}");
    }
    // That no answer came is known of those that a pod had.
    let failed = count("http_client_request_duration_seconds_count", &["error_type=", "kn_revision_name=\"left\""]);
    assert_eq!(failed.as_deref(), Some("2"), "{text}");
    assert_eq!(lines().lines().count(), 4, "{}", lines());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_go_to_a_collector() {
    let (collector, mut exported) = collector::<ExportMetrics>().await;
    let metrics = Exporter {
        protocol: "http/protobuf".to_owned(),
        endpoint: format!("http://{collector}/v1/metrics"),
        interval: Duration::from_millis(20),
    };
    let setup = Setup::with(Cluster::default(), |options| {
        options.metrics = None;
        options.observability = controller::Config::fixed(Observability { metrics, ..Observability::default() });
    })
    .await;
    setup.revision("seen", 0, 300).await;
    setup.cluster.endpoints("seen", &[Pod::default().start().await], &[]);
    setup.request("seen").await.expect("no panic");
    let found = async {
        loop {
            let message = exported.recv().await.expect("more");
            let scopes = message.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
            let names: Vec<_> = scopes.flat_map(|scope| &scope.metrics).map(|metric| metric.name.clone()).collect();
            if ["http.server.request.duration", "http.client.request.duration", "kn.activator.stats.conn.reachable"]
                .iter()
                .all(|name| names.iter().any(|known| known == name))
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("all of them in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_may_be_encrypted() {
    let folder = tempfile::tempdir().expect("writable");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let files =
        telemetry::tls::Paths { certificate: folder.path().join("tls.crt"), key: folder.path().join("tls.key") };
    std::fs::write(&files.certificate, made.cert.pem()).expect("writable");
    std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("writable");
    let trusted = telemetry::tls::client::config(Some(&files.certificate), false).expect("a certificate");
    let setup = Setup::with(Cluster::default(), |options| {
        options.metrics_tls =
            Some(telemetry::tls::Fixed { files, settings: telemetry::tls::TlsSettings::default(), auth: None });
    })
    .await;
    let stream = TcpStream::connect(setup.activator.metrics_address().expect("asked for")).await.expect("listening");
    let name = rustls_pki_types::ServerName::try_from("localhost").expect("a name");
    let mut stream = tokio_rustls::TlsConnector::from(trusted).connect(name, stream).await.expect("trusted");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("process_open_fds "), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn profiles_are_served_where_they_are_enabled() {
    for (enabled, status) in [(true, "200 OK"), (false, "404 Not Found")] {
        let observability = Observability { runtime_profiling: enabled, ..Observability::default() };
        let setup = Setup::with(Cluster::default(), |options| {
            options.observability = controller::Config::fixed(observability);
            options.profiling = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        })
        .await;
        let address = setup.activator.profiling_address().expect("asked for");
        let answer = get_path(address, "/debug/pprof/heap?debug=1").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        assert_eq!(answer.contains("Rss:"), enabled, "{answer}");
    }
}
