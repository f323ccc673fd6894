//! The status column of pods: the one cell that is an algorithm.
//!
//! It condenses phase, init containers, containers and deletion into one word, in the order in which a reader would ask.

use jiff::Timestamp;
use serde_json::Value;

use super::format::{NONE, items, number, or_none, text};
use crate::duration;

struct Summary {
    reason: String,
    ready: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

/// Name, Ready, Status, Restarts, Age, IP, Node, Nominated Node, Readiness Gates.
pub(super) fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod);
    let restarts = match summary.last_restart {
        Some(last) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, duration::human(now.duration_since(last).as_secs()))
        }
        _ => summary.restarts.to_string(),
    };
    let gates = items(pod, "/spec/readinessGates");
    let open = gates.iter().filter(|gate| {
        let wanted = text(gate, "/conditionType");
        items(pod, "/status/conditions").iter().any(|c| text(c, "/type") == wanted && text(c, "/status") == "True")
    });
    let gates = if gates.is_empty() { NONE.to_owned() } else { format!("{}/{}", open.count(), gates.len()) };
    vec![
        super::name(pod),
        format!("{}/{}", summary.ready, items(pod, "/spec/containers").len() + restartable(pod).len()).into(),
        summary.reason.into(),
        restarts.into(),
        super::age(pod, now),
        or_none(text(pod, "/status/podIPs/0/ip")).into(),
        or_none(text(pod, "/spec/nodeName")).into(),
        or_none(text(pod, "/status/nominatedNodeName")).into(),
        gates.into(),
    ]
}

// === impl Summary ===

impl Summary {
    fn of(pod: &Value) -> Self {
        let phase = text(pod, "/status/phase");
        let status_reason = text(pod, "/status/reason");
        let mut summary = Self {
            reason: if status_reason.is_empty() { phase } else { status_reason }.to_owned(),
            ready: 0,
            restarts: 0,
            last_restart: None,
        };
        let gated = |c: &&Value| text(c, "/type") == "PodScheduled" && text(c, "/reason") == "SchedulingGated";
        if items(pod, "/status/conditions").iter().any(|c| gated(&c)) {
            summary.reason = "SchedulingGated".to_owned();
        }
        let initializing = summary.init_containers(pod);
        if !initializing || condition(pod, "Initialized") {
            summary.restarts = 0;
            summary.last_restart = None;
            for sidecar in restartable(pod) {
                summary.count_restarts(init_status(pod, sidecar));
            }
            summary.containers(pod);
        }
        if pod.pointer("/metadata/deletionTimestamp").is_some() {
            if status_reason == "NodeLost" {
                summary.reason = "Unknown".to_owned();
            } else if !matches!(phase, "Succeeded" | "Failed") {
                summary.reason = "Terminating".to_owned();
            }
        }
        summary
    }

    /// Whether some init container is not done yet.
    fn init_containers(&mut self, pod: &Value) -> bool {
        let total = items(pod, "/spec/initContainers").len();
        let sidecars = restartable(pod);
        for (index, status) in items(pod, "/status/initContainerStatuses").iter().enumerate() {
            self.count_restarts(status);
            let terminated = status.pointer("/state/terminated").filter(|t| !t.is_null());
            let waiting = text(status, "/state/waiting/reason");
            if terminated.is_some_and(|t| number(t, "/exitCode") == 0) {
                continue;
            }
            if sidecars.contains(&text(status, "/name")) && flag(status, "/started") {
                self.ready += usize::from(flag(status, "/ready"));
                continue;
            }
            self.reason = match terminated {
                Some(terminated) => format!("Init:{}", exit(terminated)),
                None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
                None => format!("Init:{index}/{total}"),
            };
            return true;
        }
        false
    }

    fn containers(&mut self, pod: &Value) {
        let mut running = false;
        for status in items(pod, "/status/containerStatuses").iter().rev() {
            self.count_restarts(status);
            let waiting = text(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if let Some(terminated) = status.pointer("/state/terminated").filter(|t| !t.is_null()) {
                self.reason = exit(terminated);
            } else if flag(status, "/ready") && status.pointer("/state/running").is_some_and(|r| !r.is_null()) {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            self.reason = if condition(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
        }
    }

    fn count_restarts(&mut self, status: &Value) {
        self.restarts += number(status, "/restartCount");
        let finished = text(status, "/lastState/terminated/finishedAt").parse::<Timestamp>().ok();
        self.last_restart = self.last_restart.max(finished);
    }
}

fn exit(terminated: &Value) -> String {
    match (text(terminated, "/reason"), number(terminated, "/signal")) {
        ("", 0) => format!("ExitCode:{}", number(terminated, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn flag(status: &Value, pointer: &str) -> bool {
    status.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
}

fn condition(pod: &Value, wanted: &str) -> bool {
    items(pod, "/status/conditions").iter().any(|c| text(c, "/type") == wanted && text(c, "/status") == "True")
}

/// Init containers that keep running beside the others.
fn restartable(pod: &Value) -> Vec<&str> {
    let init = items(pod, "/spec/initContainers").iter();
    init.filter(|c| text(c, "/restartPolicy") == "Always").map(|c| text(c, "/name")).collect()
}

fn init_status<'a>(pod: &'a Value, name: &str) -> &'a Value {
    items(pod, "/status/initContainerStatuses").iter().find(|s| text(s, "/name") == name).unwrap_or(&Value::Null)
}
