//! Rollouts, splits, tags and rollbacks.

use crate::harness::{Machine, eventually, hello_yaml};
use crate::http_client::{Client, assert_all_ok};

pub fn rollout(machine: &Machine) {
    let keep = [("autoscaling.knative.dev/min-scale", "1")];
    machine.hello("roll", &keep, "");
    let (answers, ()) = machine.client("roll").during("/", 4, || {
        for version in ["two", "three"] {
            machine.apply(&hello_yaml("roll", version, &keep, ""));
            let greeting = format!("Hello {version}!");
            eventually("the new revision's answer", || machine.get("roll", "/").body.contains(&greeting).then_some(()));
        }
    });
    assert_all_ok(&answers);
    let revisions = machine.kubectl(&["get", "rev", "-l", "serving.knative.dev/service=roll", "-o", "name"]);
    assert_eq!(revisions.lines().count(), 3, "{revisions}");
    machine.delete("roll");
}

const SPLIT: &str =
    "  traffic:\n  - {revisionName: REV1, percent: 80, tag: stable}\n  - {revisionName: REV2, percent: 20}\n";

fn with_traffic(name: &str, target: &str, traffic: &str) -> String {
    format!("{}{traffic}", hello_yaml(name, target, &[("autoscaling.knative.dev/min-scale", "1")], ""))
}

/// 2,000 requests at 80/20: the share of the first is within five standard deviations (0.9 points each) of 80 %.
pub fn split(machine: &Machine) {
    machine.apply(&with_traffic("split", "one", ""));
    machine.wait_ready("split");
    machine.apply(&with_traffic("split", "two", ""));
    machine.wait_ready("split");
    eventually("the second revision's answer", || machine.get("split", "/").body.contains("Hello two!").then_some(()));
    let traffic = SPLIT.replace("REV1", "split-00001").replace("REV2", "split-00002");
    machine.apply(&with_traffic("split", "two", &traffic));
    machine.wait_ready("split");
    eventually("the split", || machine.get("split", "/").body.contains("Hello one!").then_some(()));
    let answers = machine.client("split").many("/", 2000, 8);
    assert_all_ok(&answers);
    let ones = answers.iter().filter(|answer| answer.body.contains("Hello one!")).count();
    let twos = answers.iter().filter(|answer| answer.body.contains("Hello two!")).count();
    assert_eq!(ones + twos, 2000);
    assert!((1510..=1690).contains(&ones), "80 % of 2000 is 1600, not {ones}");
}

pub fn tags_and_rollback(machine: &Machine) {
    let service = machine.json(&["get", "ksvc", "split"]);
    let tagged = service["status"]["traffic"].as_array().expect("traffic").iter().find(|t| t["tag"] == "stable");
    let url = tagged.and_then(|t| t["url"].as_str()).expect("a tagged URL");
    assert_eq!(url, "http://stable-split.default.example.com");
    let stable = Client::new(machine.gateway, "stable-split.default.example.com");
    for _ in 0..20 {
        assert!(stable.get("/").body.contains("Hello one!"), "a tag always means its revision");
    }
    let back = "  traffic:\n  - {revisionName: split-00001, percent: 100}\n";
    machine.apply(&with_traffic("split", "two", back));
    machine.wait_ready("split");
    eventually("only the old revision", || {
        let answers = machine.client("split").many("/", 40, 8);
        answers.iter().all(|answer| answer.body.contains("Hello one!")).then_some(())
    });
    eventually("no tag any more", || (stable.get("/").status == 404).then_some(()));
    machine.delete("split");
}
