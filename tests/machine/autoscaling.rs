//! To zero and back, out and in, and the limits that annotations set.

use crate::harness::{Machine, eventually};
use crate::http_client::assert_all_ok;

const PREFIX: &str = "autoscaling.knative.dev";

fn key(name: &str) -> String {
    format!("{PREFIX}/{name}")
}

fn sleeps(machine: &Machine, service: &str) {
    eventually(&format!("{service} at zero"), || machine.pods(service).is_empty().then_some(()));
}

pub fn wakes_for_hundred_requests(machine: &Machine) {
    machine.hello("sleepy", &[], "");
    sleeps(machine, "sleepy");
    let answers = machine.client("sleepy").burst("/", 100);
    assert_all_ok(&answers);
    assert!(!machine.pods("sleepy").is_empty());
    sleeps(machine, "sleepy");
    let one = machine.get("sleepy", "/");
    assert_eq!(one.status, 200);
    machine.delete("sleepy");
}

pub fn scales_out_and_in(machine: &Machine) {
    machine.hello("busy", &[(&key("target"), "5")], "");
    let (answers, most) = machine.client("busy").during("/?sleep=100", 30, || {
        eventually("more pods under load", || Some(machine.pods("busy").len()).filter(|count| *count >= 4))
    });
    assert_all_ok(&answers);
    assert!(most >= 4);
    eventually("fewer pods without load", || (machine.pods("busy").len() <= 1).then_some(()));
    machine.delete("busy");
}

pub fn annotations(machine: &Machine) {
    let limits = [(key("min-scale"), "2"), (key("max-scale"), "3"), (key("target"), "1"), (key("window"), "7s")];
    let limits: Vec<_> = limits.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    machine.hello("limits", &limits, "");
    eventually("min-scale pods", || (machine.pods("limits").len() == 2).then_some(()));
    let (answers, ()) = machine.client("limits").during("/?sleep=50", 20, || {
        eventually("max-scale pods", || (machine.pods("limits").len() == 3).then_some(()));
        for _ in 0..20 {
            assert!(machine.pods("limits").len() <= 3, "never above max-scale");
        }
    });
    assert_all_ok(&answers);
    eventually("min-scale again", || (machine.pods("limits").len() == 2).then_some(()));
    let autoscaler = machine.json(&["get", "podautoscaler", "limits-00001"]);
    assert_eq!(autoscaler["metadata"]["annotations"][key("class")], "kpa.autoscaling.knative.dev");
    let metric = machine.json(&["get", "metric.autoscaling.internal.knative.dev", "limits-00001"]);
    assert_eq!(metric["spec"]["stableWindow"], 7_000_000_000_i64);
    machine.delete("limits");
}

/// With containerConcurrency 1 and one pod allowed, requests that take 50 ms cannot overlap.
pub fn hard_limit(machine: &Machine) {
    machine.hello("single", &[(&key("max-scale"), "1")], "      containerConcurrency: 1\n");
    let start = std::time::Instant::now();
    let answers = machine.client("single").burst("/?sleep=50", 10);
    assert_all_ok(&answers);
    let floor = std::time::Duration::from_millis(10 * 50);
    assert!(start.elapsed() >= floor, "ten requests one at a time cannot take {:?}", start.elapsed());
    machine.delete("single");
}
