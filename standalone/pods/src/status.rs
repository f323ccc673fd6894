//! A pod's status as a function of what its containers do. Phases, conditions and their reasons are the kubelet's.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP,
    Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What the agent knows of one container.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ContainerRuntime {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) state: State,
    pub(crate) last: Option<Terminated>,
    pub(crate) ready: bool,
    pub(crate) started: bool,
    pub(crate) restarts: i32,
    pub(crate) id: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum State {
    Waiting { reason: String, message: Option<String> },
    Running { at: Timestamp },
    Terminated(Terminated),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Terminated {
    pub(crate) exit_code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) reason: String,
    pub(crate) message: Option<String>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Timestamp,
    pub(crate) id: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PodRuntime {
    pub(crate) ip: Option<Ipv4Addr>,
    pub(crate) started_at: Timestamp,
    pub(crate) init: Vec<ContainerRuntime>,
    pub(crate) containers: Vec<ContainerRuntime>,
}

// === impl ContainerRuntime ===

impl ContainerRuntime {
    pub(crate) fn waiting(name: &str, image: &str, reason: &str, restarts: i32) -> Self {
        Self {
            name: name.to_owned(),
            image: image.to_owned(),
            state: State::Waiting { reason: reason.to_owned(), message: None },
            last: None,
            ready: false,
            started: false,
            restarts,
            id: None,
        }
    }

    fn status(&self) -> ContainerStatus {
        ContainerStatus {
            name: self.name.clone(),
            image: self.image.clone(),
            image_id: if self.id.is_some() { self.image.clone() } else { String::new() },
            container_id: self.id.clone(),
            ready: self.ready,
            started: Some(self.started),
            restart_count: self.restarts,
            state: Some(self.state.status()),
            last_state: Some(ContainerState {
                terminated: self.last.as_ref().map(Terminated::status),
                ..ContainerState::default()
            }),
            ..ContainerStatus::default()
        }
    }
}

// === impl State ===

impl State {
    fn status(&self) -> ContainerState {
        let mut state = ContainerState::default();
        match self {
            State::Waiting { reason, message } => {
                state.waiting = Some(ContainerStateWaiting { reason: Some(reason.clone()), message: message.clone() });
            }
            State::Running { at } => state.running = Some(ContainerStateRunning { started_at: Some(Time(*at)) }),
            State::Terminated(terminated) => state.terminated = Some(terminated.status()),
        }
        state
    }
}

// === impl Terminated ===

impl Terminated {
    fn status(&self) -> ContainerStateTerminated {
        ContainerStateTerminated {
            container_id: self.id.clone(),
            exit_code: self.exit_code,
            signal: self.signal,
            reason: Some(self.reason.clone()),
            message: self.message.clone(),
            started_at: self.started_at.map(Time),
            finished_at: Some(Time(self.finished_at)),
        }
    }
}

/// The status to write. Conditions of others are kept, unchanged conditions keep their time.
pub(crate) fn build(
    pod: &Pod,
    runtime: &PodRuntime,
    previous: Option<&PodStatus>,
    host_ip: Ipv4Addr,
    now: Timestamp,
) -> PodStatus {
    let phase = phase(pod, runtime);
    let ip = runtime.ip.map(|ip| ip.to_string());
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions(pod, runtime, phase, previous, now)),
        host_ip: Some(host_ip.to_string()),
        host_ips: Some(vec![HostIP { ip: host_ip.to_string() }]),
        pod_ips: ip.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip: ip,
        start_time: Some(Time(runtime.started_at)),
        qos_class: Some(qos_class(pod).to_owned()),
        init_container_statuses: (!runtime.init.is_empty())
            .then(|| runtime.init.iter().map(ContainerRuntime::status).collect()),
        container_statuses: Some(runtime.containers.iter().map(ContainerRuntime::status).collect()),
        ..PodStatus::default()
    }
}

fn phase(pod: &Pod, runtime: &PodRuntime) -> &'static str {
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    let failed_init =
        runtime.init.iter().any(|init| matches!(&init.state, State::Terminated(end) if end.exit_code != 0));
    if failed_init && policy == "Never" {
        return "Failed";
    }
    let (mut waiting, mut running, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for container in &runtime.containers {
        match &container.state {
            State::Running { .. } => running += 1,
            State::Terminated(end) => {
                stopped += 1;
                succeeded += i32::from(end.exit_code == 0);
            }
            State::Waiting { .. } if container.last.is_some() => stopped += 1,
            State::Waiting { .. } => waiting += 1,
        }
    }
    if waiting > 0 {
        "Pending"
    } else if running > 0 {
        "Running"
    } else if stopped > 0 {
        match policy {
            "Always" => "Running",
            _ if stopped == succeeded => "Succeeded",
            "Never" => "Failed",
            _ => "Running",
        }
    } else {
        "Pending"
    }
}

fn conditions(
    pod: &Pod,
    runtime: &PodRuntime,
    phase: &str,
    previous: Option<&PodStatus>,
    now: Timestamp,
) -> Vec<PodCondition> {
    let mut conditions = Vec::new();
    let own = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let before = previous.and_then(|status| status.conditions.as_deref()).unwrap_or(own);
    let mut put = |kind: &str, problem: Option<(&str, String)>| {
        let status = if problem.is_none() { "True" } else { "False" };
        let kept = before.iter().find(|condition| condition.type_ == kind && condition.status == status);
        let (reason, message) = problem.map(|(reason, message)| (reason.to_owned(), message)).unzip();
        conditions.push(PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason,
            message: message.filter(|message| !message.is_empty()),
            last_transition_time: kept.and_then(|kept| kept.last_transition_time.clone()).or(Some(Time(now))),
            ..PodCondition::default()
        });
    };
    let names = |containers: &[ContainerRuntime], bad: fn(&ContainerRuntime) -> bool| {
        containers.iter().filter(|container| bad(container)).map(|c| c.name.as_str()).collect::<Vec<_>>().join(" ")
    };
    put("PodReadyToStartContainers", runtime.ip.is_none().then(|| ("", String::new())));
    let uninitialized = names(&runtime.init, |init| match &init.state {
        State::Terminated(end) => end.exit_code != 0,
        // A sidecar counts once it has started.
        _ => !init.started,
    });
    let not_initialized = (!uninitialized.is_empty())
        .then(|| ("ContainersNotInitialized", format!("containers with incomplete status: [{uninitialized}]")));
    put("Initialized", not_initialized);
    let unready = names(&runtime.containers, |container| !container.ready);
    let problem = match phase {
        "Succeeded" => Some(("PodCompleted", String::new())),
        "Failed" => Some(("PodFailed", String::new())),
        _ if !unready.is_empty() => {
            Some(("ContainersNotReady", format!("containers with unready status: [{unready}]")))
        }
        _ => None,
    };
    let gates = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_deref()).unwrap_or_default();
    let open = |gate: &str| own.iter().any(|condition| condition.type_ == gate && condition.status == "True");
    let closed = gates.iter().find(|gate| !open(&gate.condition_type)).map(|gate| {
        let message =
            format!("corresponding condition of pod readiness gate {:?} does not exist.", gate.condition_type);
        ("ReadinessGatesNotReady", message)
    });
    put("Ready", problem.clone().or(closed));
    put("ContainersReady", problem);
    put("PodScheduled", None);
    let ours = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    conditions.extend(own.iter().filter(|condition| !ours.contains(&condition.type_.as_str())).cloned());
    conditions
}

fn qos_class(pod: &Pod) -> &'static str {
    let Some(spec) = &pod.spec else { return "BestEffort" };
    let mut guaranteed = true;
    let mut any = false;
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let resources = container.resources.as_ref();
        let requests = resources.and_then(|resources| resources.requests.as_ref());
        let limits = resources.and_then(|resources| resources.limits.as_ref());
        for name in ["cpu", "memory"] {
            let limit = limits.and_then(|limits| limits.get(name));
            let request = requests.and_then(|requests| requests.get(name)).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn pod() -> Pod {
        from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "25m"}}}]},
            "status": {"conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-20T09:00:00Z"},
                {"type": "example.com/other", "status": "True"},
            ]},
        }))
        .unwrap()
    }

    fn runtime(states: [State; 2]) -> PodRuntime {
        let mut containers =
            vec![ContainerRuntime::waiting("a", "i", "x", 0), ContainerRuntime::waiting("b", "i", "x", 0)];
        for (container, state) in containers.iter_mut().zip(states) {
            container.started = matches!(state, State::Running { .. });
            container.state = state;
        }
        PodRuntime { ip: Some([10, 0, 0, 2].into()), started_at: at(0), init: Vec::new(), containers }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn ended(exit_code: i32) -> State {
        State::Terminated(Terminated {
            exit_code,
            signal: None,
            reason: "Error".into(),
            message: None,
            started_at: Some(at(0)),
            finished_at: at(1),
            id: None,
        })
    }

    fn waiting() -> State {
        State::Waiting { reason: "CrashLoopBackOff".into(), message: None }
    }

    #[test]
    fn phases_are_the_kubelets() {
        let running = || State::Running { at: at(0) };
        let policy = |policy: &str| {
            let mut pod = pod();
            pod.spec.as_mut().unwrap().restart_policy = Some(policy.to_owned());
            pod
        };
        assert_eq!(phase(&policy("Always"), &runtime([running(), waiting()])), "Pending");
        let mut crashing = runtime([running(), waiting()]);
        crashing.containers[1].last = Some(Terminated {
            exit_code: 1,
            ..match ended(1) {
                State::Terminated(end) => end,
                _ => unreachable!(),
            }
        });
        assert_eq!(phase(&policy("Always"), &crashing), "Running");
        assert_eq!(phase(&policy("Always"), &runtime([ended(1), ended(0)])), "Running");
        assert_eq!(phase(&policy("Never"), &runtime([ended(1), ended(0)])), "Failed");
        assert_eq!(phase(&policy("OnFailure"), &runtime([ended(0), ended(0)])), "Succeeded");
    }

    #[test]
    fn conditions_name_the_unready_and_keep_times() {
        let pod = pod();
        let mut runtime = runtime([State::Running { at: at(0) }, State::Running { at: at(0) }]);
        runtime.containers[0].ready = true;
        let first = build(&pod, &runtime, None, [10, 0, 0, 1].into(), at(1));
        let get = |status: &PodStatus, kind: &str| {
            status.conditions.iter().flatten().find(|condition| condition.type_ == kind).cloned().unwrap()
        };
        let ready = get(&first, "Ready");
        assert_eq!(ready.reason.as_deref(), Some("ContainersNotReady"));
        assert_eq!(ready.message.as_deref(), Some("containers with unready status: [b]"));
        assert_eq!(
            get(&first, "PodScheduled").last_transition_time,
            pod.status.as_ref().unwrap().conditions.as_ref().unwrap()[0].last_transition_time
        );
        assert_eq!(first.qos_class.as_deref(), Some("Burstable"));
        runtime.containers[1].ready = true;
        let second = build(&pod, &runtime, Some(&first), [10, 0, 0, 1].into(), at(5));
        assert_eq!(get(&second, "Ready").last_transition_time, Some(Time(at(5))));
        assert_eq!(get(&second, "Initialized").last_transition_time, Some(Time(at(1))));
        assert_eq!(get(&second, "example.com/other").status, "True");
    }
}
