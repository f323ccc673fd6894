//! The behaviours of Knative's KIngress conformance suite, each in a file of its own, each with a gateway that asks for
//! delta and one that asks for the state of the world.

mod backends;

mod basics;
mod basics_http2;
mod dispatch_path;
mod dispatch_path_and_percentage;
mod dispatch_percentage;
mod dispatch_rule;
mod grpc;
mod grpc_split;
mod headers_post_split;
mod headers_pre_split;
mod headers_probe;
mod headers_tags;
mod host_rewrite;
mod hosts_multiple;
mod http_option;
mod ingress_class;
mod retry;
mod timeout;
mod tls;
mod update;
mod visibility;
mod visibility_path;
mod visibility_split;
mod websocket;
mod websocket_split;

use std::{collections::BTreeMap, net::SocketAddr};

use serde_json::{Value, json};

pub(super) use super::support::{Backend, Certificate, Request, Rig, send, send_tls};

/// Runs a check with either protocol; not at all without an Envoy.
async fn both(check: impl AsyncFn(&Rig)) {
    for state_of_the_world in [false, true] {
        let Some(rig) = Rig::start(state_of_the_world).await else { return };
        check(&rig).await;
    }
}

fn to(service: &str, percent: u32) -> Value {
    json!({"serviceNamespace": "default", "serviceName": service, "servicePort": 80, "percent": percent})
}

fn rule(visibility: &str, hosts: &[&str], paths: Value) -> Value {
    json!({"hosts": hosts, "visibility": visibility, "http": {"paths": paths}})
}

fn external(hosts: &[&str], paths: Value) -> Value {
    json!({"rules": [rule("ExternalIP", hosts, paths)], "httpOption": "Enabled"})
}

fn local(hosts: &[&str], paths: Value) -> Value {
    json!({"rules": [rule("ClusterLocal", hosts, paths)], "httpOption": "Enabled"})
}

/// Ten backends with these shares of the requests.
async fn shares(rig: &Rig, shares: &[(&'static str, u32)]) -> (Vec<Backend>, Value) {
    let mut backends = Vec::new();
    let mut splits = Vec::new();
    for (name, percent) in shares {
        let backend = Backend::start(name).await;
        rig.service(name, "http", &[backend.address]);
        backends.push(backend);
        splits.push(to(name, *percent));
    }
    (backends, json!(splits))
}

const TENTHS: [(&str, u32); 10] =
    [("a", 1), ("b", 2), ("c", 4), ("d", 8), ("e", 16), ("f", 32), ("g", 37), ("h", 0), ("i", 0), ("j", 0)];

/// Sends this many requests, eight at a time, and counts who answered.
async fn count(address: SocketAddr, request: &Request<'_>, requests: usize) -> BTreeMap<String, usize> {
    use futures::StreamExt;
    let answers = futures::stream::iter(0..requests).map(|_| send(address, request)).buffer_unordered(8);
    let answers: Vec<_> = answers.collect().await;
    let mut counts = BTreeMap::new();
    for answer in answers {
        let answer = answer.unwrap();
        assert_eq!(answer.status, 200);
        *counts.entry(answer.text("backend").to_owned()).or_default() += 1;
    }
    counts
}

/// Each within ten points; who gets nothing gets nothing.
fn assert_shares(counts: &BTreeMap<String, usize>, shares: &[(&str, u32)], requests: usize) {
    for (name, percent) in shares {
        let got = counts.get(*name).copied().unwrap_or_default() as f64 * 100.0 / requests as f64;
        let wanted = f64::from(*percent);
        assert!((got - wanted).abs() <= 10.0 && (wanted > 0.0 || got == 0.0), "{name}: {got} % of {wanted} %");
    }
}
