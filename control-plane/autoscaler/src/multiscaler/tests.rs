use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use controller::{Cache, ObjectKey, Tasks};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use proto::{Message as _, Stat};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::{Callbacks, MultiScaler, Setup};
use crate::clock::Clock;
use crate::collector::{Collector, Settings};
use crate::decider::{Decision, Inputs, ScalingMetric};
use crate::pods::Pods;
use crate::window::Average;

const NOW: i64 = 1_700_000_000;

struct Rig {
    tasks: Tasks,
    scaler: MultiScaler,
    collector: Arc<Collector>,
    pods: Cache<Pod>,
    now: Arc<AtomicI64>,
    changes: mpsc::UnboundedReceiver<ObjectKey>,
    key: ObjectKey,
}

impl Rig {
    fn new(metrics_port: u16) -> Self {
        let tasks = Tasks::new();
        let now = Arc::new(AtomicI64::new(NOW));
        let clock = now.clone();
        let (pods, cache) = Pods::detached();
        let collector = Arc::new(Collector::default());
        let (sender, changes) = mpsc::unbounded_channel();
        let callbacks = Callbacks {
            decision_changed: Box::new(move |key| drop(sender.send(key.clone()))),
            scrapes_changed: Box::new(|_| {}),
        };
        let scaler = MultiScaler::new(Setup {
            tasks: tasks.clone(),
            clock: Clock::new(move || Timestamp::from_second(clock.load(Ordering::SeqCst)).unwrap()),
            collector: collector.clone(),
            pods,
            metrics_port,
            period: Duration::from_millis(2),
            callbacks,
        });
        let key = ObjectKey::new("default", "hello-00001");
        Rig { tasks, scaler, collector, pods: cache, now, changes, key }
    }

    fn collect(&self, scrape_target: &str) {
        let settings = Settings {
            stable_seconds: 60,
            panic_seconds: 6,
            scrape_target: scrape_target.to_owned(),
            average: Average::Linear,
        };
        self.collector.ensure(&self.key, settings, NOW);
    }

    fn report(&self, concurrency: f64) {
        let stat = Stat { average_concurrent_requests: concurrency, request_count: concurrency, ..Stat::default() };
        self.scaler.report(&self.key, &stat);
    }

    fn decision(&self) -> Decision {
        self.scaler.ensure(&self.key, inputs())
    }

    fn add_pod(&self, name: &str, address: &str) {
        let pod = json!({
            "metadata": {"name": name, "namespace": "default",
                         "labels": {"serving.knative.dev/revision": "hello-00001"}},
            "status": {"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": "True"}]},
        });
        self.pods.apply(serde_json::from_value(pod).unwrap());
        self.scaler.pod_changed(&self.key);
    }

    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
    }
}

fn inputs() -> Inputs {
    Inputs {
        metric: ScalingMetric::Concurrency,
        target: 70.0,
        total: 100.0,
        burst_capacity: 211.0,
        activator_capacity: 100.0,
        panic_threshold: 2.0,
        max_scale_up_rate: 1000.0,
        max_scale_down_rate: 2.0,
        stable_window: Duration::from_secs(60),
        panic_window: Duration::from_secs(6),
        scale_down_delay: Duration::ZERO,
        initial_scale: 1,
        activation_scale: 1,
        reachable: true,
    }
}

#[tokio::test]
async fn the_first_request_is_decided_in_the_call_that_reports_it() {
    let mut rig = Rig::new(1);
    rig.report(1.0);
    assert!(rig.changes.try_recv().is_err(), "unknown revisions are nobody's business");
    rig.collect("hello-00001-private");
    assert_eq!(rig.decision().desired, -1);
    rig.until("asleep", |rig| rig.scaler.awake() == 0).await;

    rig.report(1.0);
    // No await since the report: nothing but the call itself can have decided.
    assert_eq!(rig.changes.try_recv().unwrap(), rig.key);
    assert_eq!(rig.decision().desired, 1);
    assert_eq!(rig.scaler.awake(), 1);
    rig.report(1.0);
    assert!(rig.changes.try_recv().is_err(), "no news");
    // Many requests in a later second: more than one pod carries.
    rig.now.fetch_add(1, Ordering::SeqCst);
    rig.report(300.0);
    assert_eq!(rig.changes.try_recv().unwrap(), rig.key);
    assert!(rig.decision().desired >= 3);
    rig.tasks.shutdown().await;
}

#[tokio::test]
async fn a_revision_without_pods_and_reports_costs_nothing() {
    let mut rig = Rig::new(1);
    rig.collect("");
    rig.decision();
    // The activator sees everything and is silent: zero wanted, nothing to watch over.
    assert_eq!(rig.changes.recv().await.unwrap(), rig.key);
    assert_eq!(rig.decision().desired, 0);
    rig.until("asleep", |rig| rig.scaler.awake() == 0).await;
    rig.report(0.0);
    assert_eq!(rig.scaler.awake(), 0, "a report of nothing wakes nobody");
    rig.report(2.0);
    assert_eq!(rig.scaler.awake(), 1);
    assert_eq!(rig.changes.recv().await.unwrap(), rig.key);
    rig.now.fetch_add(61, Ordering::SeqCst);
    assert_eq!(rig.changes.recv().await.unwrap(), rig.key);
    assert_eq!(rig.decision().desired, 0);
    rig.until("asleep again", |rig| rig.scaler.awake() == 0).await;
    rig.scaler.remove(&rig.key);
    rig.report(2.0);
    assert_eq!(rig.scaler.awake(), 0);
    rig.tasks.shutdown().await;
}

/// A queue-proxy's figures.
async fn queue_proxy(tasks: &Tasks, stat: Stat) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let group = tasks.clone();
    tasks.spawn("queue-proxy", async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let stat = stat.clone();
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                assert_eq!(request.uri().path(), "/metrics");
                let response = http::Response::builder()
                    .header("content-type", "application/protobuf")
                    .body(Full::new(Bytes::from(stat.encode_to_vec())));
                async move { response }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            group.spawn("connection", async move { drop(connection.await) });
        }
    });
    port
}

#[tokio::test]
async fn pods_are_scraped_while_there_are_any() {
    let tasks = Tasks::new();
    let stat = Stat { pod_name: "a".into(), average_concurrent_requests: 150.0, ..Stat::default() };
    let port = queue_proxy(&tasks, stat).await;
    let mut rig = Rig::new(port);
    rig.collect("hello-00001-private");
    rig.decision();
    rig.until("asleep", |rig| rig.scaler.awake() == 0).await;
    rig.add_pod("a", "127.0.0.1");
    assert_eq!(rig.scaler.awake(), 1);
    assert_eq!(rig.changes.recv().await.unwrap(), rig.key);
    assert!(rig.decision().desired >= 3);
    // A pod that does not answer leaves the others' figures out: no data, no decision.
    rig.add_pod("b", "127.0.0.2");
    rig.until("trouble", |rig| rig.collector.get(&rig.key).unwrap().trouble().is_some()).await;
    rig.pods.remove(&ObjectKey::new("default", "b"));
    rig.until("well again", |rig| rig.collector.get(&rig.key).unwrap().trouble().is_none()).await;
    rig.pods.remove(&ObjectKey::new("default", "a"));
    rig.now.fetch_add(61, Ordering::SeqCst);
    rig.until("asleep again", |rig| rig.scaler.awake() == 0).await;
    tasks.shutdown().await;
    rig.tasks.shutdown().await;
}
