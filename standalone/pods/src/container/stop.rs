//! Ending a process kindly: hook, SIGTERM, and SIGKILL when its time is over.

use std::time::Duration;

use k8s_openapi::api::core::v1::LifecycleHandler;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::time::Instant;

use super::attempt::Running;
use super::{Runner, Stop};
use crate::probe::{Target, exec, http_get};
use crate::sandbox::Exit;

/// However little time is left, a process gets this long between SIGTERM and SIGKILL.
const LEAST_GRACE: Duration = Duration::from_secs(2);

impl Runner {
    /// Ends the process; returns its exit status.
    pub(super) async fn terminate(&mut self, running: &mut Running, stop: Stop) -> Exit {
        let pid = Pid::from_raw(running.child.pid);
        let mut stop = stop;
        if !stop.force {
            let hook = self.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.clone());
            if let Some(hook) = hook.filter(|_| !stop.brief) {
                let target = running.target.clone();
                let hook = async {
                    if let Err(error) = self.pre_stop(&hook, &target).await {
                        tracing::debug!(container = self.container.name, error, "preStop hook failed");
                        self.warn("FailedPreStopHook", &format!("PreStopHook failed: {error}"));
                    }
                };
                let mut stops = self.stop.clone();
                // A pod that is deleted again, with less time, does not wait for the hook.
                let sooner = async {
                    let sooner = |new: &Option<Stop>| new.is_some_and(|new| new.force || new.deadline < stop.deadline);
                    if stops.wait_for(sooner).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    () = hook => {}
                    () = sooner => {}
                    () = tokio::time::sleep_until(stop.deadline) => {}
                    () = running.ended_early() => {}
                }
            }
            if let Some(pid) = pid {
                let _ = kill_process(pid, Signal::TERM);
            }
            let least = Instant::now() + LEAST_GRACE;
            loop {
                if let Some(new) = *self.stop.borrow_and_update() {
                    stop = Stop { deadline: new.deadline.min(stop.deadline), ..new };
                }
                if stop.force {
                    break;
                }
                let deadline = if stop.brief { stop.deadline } else { stop.deadline.max(least) };
                tokio::select! {
                    status = running.child.wait() => return status,
                    () = tokio::time::sleep_until(deadline) => break,
                    changed = self.stop.changed() => if changed.is_err() { break },
                }
            }
        }
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::KILL);
            let _ = kill_process_group(pid, Signal::KILL);
        }
        running.child.wait().await
    }

    async fn pre_stop(&self, hook: &LifecycleHandler, target: &Target) -> Result<(), String> {
        if let Some(action) = &hook.http_get {
            return http_get(action, &self.container, target, &[("user-agent", "kube-lifecycle/")]).await.map(drop);
        }
        if let Some(action) = &hook.exec {
            return match exec(action.command.clone().unwrap_or_default(), target).await? {
                (0, _) => Ok(()),
                (code, output) => Err(format!("command exited with {code}: {output}")),
            };
        }
        if let Some(action) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(action.seconds.max(0).cast_unsigned())).await;
        }
        Ok(())
    }
}
