//! The prober against listeners that answer what a test wants.

use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{net::TcpListener, sync::mpsc};

use super::*;

const PORTS: Ports = Ports { external: 8090, external_tls: 9443, local: 8081, local_tls: 8444 };

/// A gateway on 127.0.0.1 that answers the n-th request (from 0) with a status and a hash.
async fn gateway(answer: impl Fn(usize) -> (u16, Option<&'static str>) + Clone + Send + 'static) -> (u16, Requests) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (count, requests) = (Arc::new(AtomicUsize::new(0)), Requests::default());
    let seen = requests.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (count, seen, answer) = (count.clone(), seen.clone(), answer.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let head = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
                let names = ["host", "user-agent", "k-network-probe", "k-network-hash"];
                seen.lock().push(format!("{} {}", request.uri(), names.map(head).join(" ")));
                let (status, hash) = answer(count.fetch_add(1, Ordering::Relaxed));
                let mut response = Response::builder().status(status);
                if let Some(hash) = hash {
                    response = response.header("k-network-hash", hash);
                }
                let response = response.body(http_body_util::Empty::<hyper::body::Bytes>::new());
                async move { Ok::<_, std::convert::Infallible>(response.unwrap()) }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (port, requests)
}

type Requests = Arc<Mutex<Vec<String>>>;

fn start() -> (Prober, mpsc::UnboundedReceiver<ObjectKey>) {
    let prober = Prober::new(Duration::from_millis(100));
    let (sender, answered) = mpsc::unbounded_channel();
    tokio::spawn(prober.clone().run(move |key| drop(sender.send(key))));
    (prober, answered)
}

fn target(port: u16) -> Target {
    Target { host: "a.example.com".to_owned(), port, tls: false }
}

fn key() -> ObjectKey {
    ObjectKey::new("default", "a")
}

fn here() -> BTreeSet<IpAddr> {
    ["127.0.0.1".parse().unwrap()].into()
}

#[tokio::test]
async fn asks_as_upstream_does_until_the_hash_comes_back() {
    let (port, requests) = gateway(|n| match n {
        0 => (404, None),
        1 => (503, None),
        2 => (200, Some("old")),
        _ => (200, Some("new")),
    })
    .await;
    let (prober, mut answered) = start();
    let targets = [target(port)];
    assert!(!prober.check(&key(), "new", &targets, &here()));
    assert_eq!(answered.recv().await, Some(key()));
    assert!(prober.check(&key(), "new", &targets, &here()), "the answer is kept");
    let requests = requests.lock().clone();
    assert_eq!(requests.len(), 4);
    assert_eq!(requests[0], "/healthz a.example.com Knative-Ingress-Probe probe override");
}

#[tokio::test]
async fn an_answer_that_knows_no_handshake_is_an_answer() {
    for answer in [(200, None), (301, None), (403, None), (200, Some("new"))] {
        let (port, requests) = gateway(move |_| answer).await;
        let (prober, mut answered) = start();
        assert!(!prober.check(&key(), "new", &[target(port)], &here()));
        assert_eq!(answered.recv().await, Some(key()), "{answer:?}");
        assert_eq!(requests.lock().len(), 1);
    }
}

#[tokio::test]
async fn a_new_state_ends_the_round_before_and_a_gateway_that_left_is_not_waited_for() {
    let (port, _requests) = gateway(|_| (200, Some("two"))).await;
    let (prober, mut answered) = start();
    assert!(!prober.check(&key(), "one", &[target(port)], &here()));
    assert!(!prober.check(&key(), "two", &[target(port)], &here()));
    assert_eq!(answered.recv().await, Some(key()));
    assert!(prober.check(&key(), "two", &[target(port)], &here()));
    // Nobody listens there.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    assert!(!prober.check(&key(), "three", &[target(nobody)], &here()));
    assert!(prober.check(&key(), "three", &[target(nobody)], &BTreeSet::new()));
    assert!(answered.try_recv().is_err());
}

#[tokio::test]
async fn one_that_never_answers_holds_up_nobody_else() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (port, _requests) = gateway(|_| (200, Some("new"))).await;
    let (prober, mut answered) = start();
    for n in 0..200 {
        prober.check(&ObjectKey::new("bad", n.to_string()), "new", &[target(nobody)], &here());
    }
    prober.check(&key(), "new", &[target(port)], &here());
    assert_eq!(answered.recv().await, Some(key()));
}

#[test]
fn repetitions_are_paced_together() {
    let mut state = State::default();
    let hash: Arc<str> = "x".into();
    for n in 0..1000 {
        let item = Item {
            key: ObjectKey::new("a", n.to_string()),
            hash: hash.clone(),
            pod: "127.0.0.1".parse().unwrap(),
            target: Arc::new(target(1)),
            failures: 0,
        };
        state.again(item, Duration::from_secs(30));
    }
    let first = state.timeline.first_key_value().unwrap().0.0;
    let last = state.timeline.last_key_value().unwrap().0.0;
    // 900 of them at 50 per second.
    assert!(last - first > Duration::from_secs(17), "{:?}", last - first);
}

#[test]
fn targets_by_visibility_and_tls() {
    let spec = |tls: &[&str]| -> IngressSpec {
        serde_json::from_value(json!({
            "rules": [
                {"hosts": ["a.b", "a.b.svc"], "visibility": "ClusterLocal"},
                {"hosts": ["a.example.com"], "visibility": "ExternalIP"},
            ],
            "tls": [{"hosts": tls, "secretName": "s", "secretNamespace": "b"}],
        }))
        .unwrap()
    };
    let list = |spec: &IngressSpec, part| -> Vec<String> {
        let targets = targets(spec, part, PORTS);
        targets.iter().map(|t| format!("{}:{}{}", t.host, t.port, if t.tls { " tls" } else { "" })).collect()
    };
    assert_eq!(list(&spec(&["other"]), Part::All), ["a.b:8081", "a.b.svc:8081", "a.example.com:8090"]);
    assert_eq!(list(&spec(&["other"]), Part::External), ["a.example.com:8090"]);
    assert_eq!(list(&spec(&["a.example.com"]), Part::External), ["a.example.com:9443 tls"]);
    let local = ["a.b:8444 tls", "a.b.svc:8444 tls", "a.example.com:8090"];
    assert_eq!(list(&spec(&["a.b", "a.b.svc"]), Part::All), local);
    assert_eq!(list(&spec(&["a.b"]), Part::Local), ["a.b:8081", "a.b.svc:8081"]);
}
