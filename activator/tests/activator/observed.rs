//! What is told about requests elsewhere: spans at a collector, profiles.

use std::{collections::BTreeMap, net::SocketAddr};

use api::config::{Observability, Tracing};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use proto::Message as _;
use telemetry::otlp::wire::ExportTraces;
use tokio::{net::TcpListener, sync::mpsc};

use crate::{Cluster, PATIENCE, Pod, Setup, for_revision, get_on, get_path};

/// A collector that passes on what it gets.
async fn collector() -> (SocketAddr, mpsc::UnboundedReceiver<ExportTraces>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(net::serve(listener, net::Connections::new(), move |request: Request<Incoming>, _| {
        let sender = sender.clone();
        async move {
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            let _ = sender.send(ExportTraces::decode(body).expect("spans"));
            net::empty::<()>(StatusCode::OK)
        }
    }));
    (address, receiver)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_leaves_spans_and_the_pod_sees_their_trace() {
    let (collector, mut spans) = collector().await;
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
    let answer = get_on("", setup.address(), "/path", &headers).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");

    let exported = tokio::time::timeout(PATIENCE, spans.recv()).await.expect("spans in time").expect("spans");
    let scope = &exported.resource_spans[0].scope_spans[0];
    assert_eq!(scope.scope.as_ref().expect("a scope").name, "knative.dev/serving/pkg/activator");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
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
    assert!(answer.to_lowercase().contains(&format!("traceparent: 00-{trace}-{client}-01")), "{answer}");
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
