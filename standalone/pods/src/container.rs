//! One container's life: start, probes, end, and again after a wait, until the pod is stopped or done.

mod attempt;
mod stop;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::agent::Agent;
use crate::backoff::{Backoff, go_duration};
use crate::logs;
use crate::network::Cell;
use crate::pod::{Shared, Slot};
use crate::probe;
use crate::process;
use crate::sandbox::Exit;
use crate::status::{State, Terminated};
pub(crate) use attempt::wanted_port;
use attempt::{Failure, Running};

/// How long an image that cannot be had says so before it counts as backing off.
const PULL_BACKOFF: Duration = Duration::from_secs(10);
/// Longest wait before a missing ConfigMap or Secret is looked for again.
const CONFIG_RETRY: Duration = Duration::from_secs(10);
/// How long the end of a process may be ahead of the end of its output.
const OUTPUT_AFTER_EXIT: Duration = Duration::from_millis(200);
const MESSAGE_BYTES: usize = 4096;
const LOG_MESSAGE: (usize, usize) = (80, 2048);

/// The pod is to end: what runs then is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stop {
    pub(crate) deadline: Instant,
    /// The agent itself ends: SIGTERM at once, without hooks (a sidecar's drain takes half a minute, and nobody sends
    /// requests any more), and SIGKILL exactly at the deadline.
    pub(crate) brief: bool,
    /// Without hooks and without the time that a kind stop gives.
    pub(crate) force: bool,
}

/// Everything one container's life needs.
pub(crate) struct Runner {
    pub(crate) agent: Arc<Agent>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) container: Container,
    pub(crate) shared: Arc<Shared>,
    pub(crate) slot: Slot,
    pub(crate) cell: Arc<Cell>,
    /// The port given in place of the one the program asked for, when pods share the host's network.
    pub(crate) moved_port: Option<(u16, u16)>,
    pub(crate) stop: watch::Receiver<Option<Stop>>,
}

/// Whether a container that ended starts again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Restart {
    Always,
    OnFailure,
    Never,
}

// === impl Restart ===

impl Restart {
    pub(crate) fn of(pod: &Pod) -> Self {
        match pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    fn again(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

// === impl Runner ===

impl Runner {
    /// Returns when the container will not run again: its last exit code, or `None` if it was stopped.
    pub(crate) async fn run(mut self, restart: Restart) -> Option<i32> {
        let mut backoff = Backoff::default();
        let mut config_retry = Duration::from_millis(250);
        loop {
            if self.stop.borrow().is_some() {
                self.shared.settle(self.slot);
                return None;
            }
            let began = Instant::now();
            let end = match self.attempt().await {
                Ok(running) => {
                    config_retry = Duration::from_millis(250);
                    self.announce(&running);
                    self.watch(running).await
                }
                Err(Failure::Wait { reason, message }) => {
                    self.warn("Failed", &format!("Error: {message}"));
                    self.set_waiting(reason, Some(message));
                    self.shared.settle(self.slot);
                    self.pause(config_retry).await;
                    config_retry = (config_retry * 2).min(CONFIG_RETRY);
                    continue;
                }
                Err(Failure::Image(error)) => {
                    self.shared.settle(self.slot);
                    self.image_trouble(error).await;
                    return None;
                }
                Err(Failure::Start(message)) => {
                    self.warn("Failed", &format!("Error: {message}"));
                    let now = Timestamp::now();
                    let end = Terminated {
                        exit_code: 128,
                        signal: None,
                        reason: "StartError".to_owned(),
                        message: Some(message.clone()),
                        started_at: None,
                        finished_at: now,
                        id: None,
                    };
                    self.shared.update(self.slot, |container| {
                        container.last = Some(end.clone());
                        container.state =
                            State::Waiting { reason: "RunContainerError".to_owned(), message: Some(message) };
                    });
                    self.shared.settle(self.slot);
                    end
                }
            };
            if self.stop.borrow().is_some() {
                return None;
            }
            if !restart.again(end.exit_code) {
                self.shared.update(self.slot, |container| container.state = State::Terminated(end.clone()));
                return Some(end.exit_code);
            }
            let wait = backoff.after(began.elapsed());
            if !wait.is_zero() {
                self.back_off(wait, &end);
                self.pause(wait).await;
            }
            self.shared.update(self.slot, |container| {
                container.restarts += 1;
                container.last = Some(end);
            });
        }
    }

    fn announce(&self, running: &Running) {
        self.shared.trace(&self.pod, "process", &self.container.name);
        self.shared.update(self.slot, |container| {
            container.state = State::Running { at: running.started_at };
            container.id = Some(running.id.clone());
            container.started = self.container.startup_probe.is_none();
            container.ready = container.started && self.container.readiness_probe.is_none();
        });
        self.shared.settle(self.slot);
        self.shared.note(&self.container.name, &self.container.image.clone().unwrap_or_default());
    }

    /// Looks after a running process until it has ended.
    async fn watch(&mut self, mut running: Running) -> Terminated {
        let target = running.target.clone();
        let (container, slot) = (self.container.clone(), self.slot);
        let (agent, pod, shared) = (self.agent.clone(), self.pod.clone(), self.shared.clone());
        let name = container.name.clone();
        let tell = move |event| match event {
            probe::Event::Started => shared.update(slot, |container| container.started = true),
            probe::Event::Ready(ready) => {
                shared.trace(&pod, if ready { "ready" } else { "not ready" }, &name);
                shared.update(slot, |container| container.ready = ready);
            }
            probe::Event::Unhealthy(kind, message) => {
                let kind = format!("{kind:?}");
                agent.recorder.warning(pod.as_ref(), "Unhealthy", &format!("{kind} probe failed: {message}"));
            }
        };
        enum Next {
            Ended(Exit),
            Unhealthy(probe::Kind),
            Stop,
        }
        let next = {
            let probes = probe::run(&container, &target, tell);
            tokio::select! {
                status = running.child.wait() => Next::Ended(status),
                kind = probes => Next::Unhealthy(kind),
                _ = self.stop.wait_for(Option::is_some) => Next::Stop,
            }
        };
        let status = match next {
            Next::Ended(status) => status,
            Next::Unhealthy(kind) => {
                let name = &self.container.name;
                let what = format!("{kind:?}").to_lowercase();
                self.info("Killing", &format!("Container {name} failed {what} probe, will be restarted"));
                self.shared.update(self.slot, |container| container.ready = false);
                let deadline = Instant::now() + self.probe_grace(kind);
                self.terminate(&mut running, Stop { deadline, brief: false, force: false }).await
            }
            Next::Stop => {
                self.info("Killing", &format!("Stopping container {}", self.container.name));
                let stop = *self.stop.borrow();
                let stop = stop.unwrap_or_else(|| Stop { deadline: Instant::now(), brief: true, force: true });
                self.terminate(&mut running, stop).await
            }
        };
        self.ended(running, status).await
    }

    fn probe_grace(&self, kind: probe::Kind) -> Duration {
        let probe = match kind {
            probe::Kind::Startup => self.container.startup_probe.as_ref(),
            _ => self.container.liveness_probe.as_ref(),
        };
        let own = probe.and_then(|probe| probe.termination_grace_period_seconds);
        let pods = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        Duration::from_secs(own.or(pods).unwrap_or(30).max(0).cast_unsigned())
    }

    async fn ended(&self, running: Running, exit: Exit) -> Terminated {
        process::forget(&self.agent.processes_dir(), running.child.pid);
        // What the program started and left behind must not outlive it, nor hold its ports when it starts again. At the
        // end of a pod with a network of its own, everybody in it is killed anyway.
        if self.stop.borrow().is_none() || self.cell.netns.is_none() {
            let leader = running.child.pid;
            let _ = tokio::task::spawn_blocking(move || process::kill_session(leader)).await;
        }
        let output = futures::future::join_all(running.output);
        let _ = tokio::time::timeout(OUTPUT_AFTER_EXIT, output).await;
        running.journal.end();
        let exit_code = exit.code();
        let killed = running.group.as_ref().map_or(0, |group| group.killed());
        let starved = exit == Exit::Signal(9) && running.starved.is_some_and(|before| killed > before);
        let reason = match exit_code {
            _ if starved => "OOMKilled",
            0 => "Completed",
            _ => "Error",
        };
        let end = Terminated {
            exit_code,
            signal: None,
            reason: reason.to_owned(),
            message: self.message(exit_code, &running.message_file, &running.journal),
            started_at: Some(running.started_at),
            finished_at: Timestamp::now(),
            id: Some(running.id),
        };
        self.shared.update(self.slot, |container| {
            container.state = State::Terminated(end.clone());
            container.ready = false;
            container.started = false;
        });
        end
    }

    fn message(&self, exit_code: i32, file: &std::path::Path, journal: &Arc<logs::Journal>) -> Option<String> {
        let mut text = std::fs::read(file).unwrap_or_default();
        text.truncate(MESSAGE_BYTES);
        let text = String::from_utf8_lossy(&text).into_owned();
        if !text.is_empty() {
            return Some(text);
        }
        let policy = self.container.termination_message_policy.as_deref();
        if exit_code == 0 || policy != Some("FallbackToLogsOnError") {
            return None;
        }
        Some(logs::tail_text(journal, LOG_MESSAGE.0, LOG_MESSAGE.1)).filter(|text| !text.is_empty())
    }

    fn back_off(&self, wait: Duration, end: &Terminated) {
        let (name, namespace) = (self.pod.name_any(), self.pod.namespace().unwrap_or_default());
        let uid = self.pod.uid().unwrap_or_default();
        let container = &self.container.name;
        let wait = go_duration(wait);
        let message = format!("back-off {wait} restarting failed container={container} pod={name}_{namespace}({uid})");
        self.shared.update(self.slot, |container| {
            container.last = Some(end.clone());
            container.state = State::Waiting { reason: "CrashLoopBackOff".to_owned(), message: Some(message) };
        });
        let event = format!("Back-off restarting failed container {container} in pod {name}_{namespace}({uid})");
        self.warn("BackOff", &event);
    }

    async fn image_trouble(&mut self, error: crate::image::ImageError) {
        let image = self.container.image.clone().unwrap_or_default();
        self.warn("Failed", &format!("Failed to pull image {image:?}: {}", error.message));
        self.warn("Failed", &format!("Error: {}", error.reason));
        self.set_waiting(error.reason, Some(error.message.clone()));
        if error.reason == "ErrImagePull" {
            self.pause(PULL_BACKOFF).await;
            let message = format!("Back-off pulling image {image:?}: ErrImagePull: {}", error.message);
            self.info("BackOff", &format!("Back-off pulling image {image:?}"));
            self.set_waiting("ImagePullBackOff", Some(message));
        }
        // Which programs there are does not change while the agent runs.
        let _ = self.stop.wait_for(Option::is_some).await;
    }

    fn set_waiting(&self, reason: &str, message: Option<String>) {
        let state = State::Waiting { reason: reason.to_owned(), message };
        self.shared.update(self.slot, |container| container.state = state);
    }

    /// Waits, but not longer than the pod is wanted.
    async fn pause(&mut self, wait: Duration) {
        let _ = tokio::time::timeout(wait, self.stop.wait_for(Option::is_some)).await;
    }

    fn info(&self, reason: &str, message: &str) {
        self.agent.recorder.normal(self.pod.as_ref(), reason, message);
    }

    fn warn(&self, reason: &str, message: &str) {
        self.agent.recorder.warning(self.pod.as_ref(), reason, message);
    }
}
