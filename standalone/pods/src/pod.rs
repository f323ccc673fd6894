//! One pod's life: a place in the network, volumes, init containers, containers; then their end and the object's.
//!
//! One task per pod. Three things run in it side by side: the life itself, a writer that puts the newest status into
//! the API whenever something changed, and a controller that turns changes of the object into a stop. Nothing is
//! written before the containers were started (or it takes long), so a cold start costs two status writes.

mod shared;
mod write;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;
use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) use shared::{Shared, Slot};

use crate::agent::Agent;
use crate::container::{Restart, Runner, Stop, wanted_port};
use crate::network::{self, Cell};
use crate::status::{ContainerRuntime, PodRuntime, State};
use crate::{env, volumes};

/// First and longest wait before something that failed is tried again. Short at first: what a pod needs is often made
/// at the same time as the pod.
const RETRY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(10));
/// Failures are told to users when they have lasted this long.
const TELL_AFTER: Duration = Duration::from_millis(80);
/// How often volumes made from ConfigMaps and Secrets are compared with them.
const REFRESH: Duration = Duration::from_secs(30);
const DEFAULT_GRACE: i64 = 30;

/// The newest version of a pod, and whether the API still has it.
#[derive(Debug, Clone)]
pub(crate) struct Update {
    pub(crate) pod: Arc<Pod>,
    pub(crate) gone: bool,
}

/// What the pod holds of the machine; given back at its end.
#[derive(Default)]
struct Held {
    cell: Option<Arc<Cell>>,
    port: Option<u16>,
}

/// Runs `updates`' pod to its end, and removes it from the API if that is what ended it.
pub(crate) async fn run(agent: Arc<Agent>, mut updates: watch::Receiver<Update>) {
    let pod = updates.borrow().pod.clone();
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let finished = matches!(phase, Some("Succeeded" | "Failed"));
    if pod.metadata.deletion_timestamp.is_some() || finished {
        // Nothing of it runs: what ran in an earlier life of the agent ended with it.
        let wanted = |update: &Update| update.gone || update.pod.metadata.deletion_timestamp.is_some();
        if updates.wait_for(wanted).await.is_ok() {
            write::delete(&agent, &pod).await;
        }
        return;
    }
    let shared = Arc::new(Shared::new(first_state(&pod)));
    let (stop, stopped) = watch::channel(None);
    let mut held = Held::default();
    {
        let life = live(&agent, &pod, &shared, &stopped, &mut held);
        let writer = write::keep_status(&agent, updates.clone(), &shared);
        let control = control(&agent, updates.clone(), &stop);
        tokio::select! {
            () = life => {}
            never = writer => match never {},
            never = control => match never {},
        }
    }
    if let Some(netns) = held.cell.as_ref().and_then(|cell| cell.netns) {
        network::kill_namespace(netns).await;
    }
    let update = updates.borrow().clone();
    if !update.gone && !agent.is_draining() {
        write::status(&agent, &update.pod, &shared).await;
        write::delete(&agent, &pod).await;
    }
    give_back(&agent, &pod, held).await;
}

/// The state before anything was done. A pod that ran under an earlier agent starts again in its place, which is the
/// quickest way back to service; that it once ran shows in its restart count.
fn first_state(pod: &Pod) -> PodRuntime {
    let status = pod.status.as_ref();
    let restarts = |name: &str| {
        let known = status.iter().flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses)).flatten();
        let known = known.into_iter().find(|status| status.name == name);
        known.map_or(0, |status| {
            let ran = status.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some());
            status.restart_count + i32::from(ran)
        })
    };
    let runtime = |container: &Container, reason: &str| {
        let image = container.image.as_deref().unwrap_or_default();
        ContainerRuntime::waiting(&container.name, image, reason, restarts(&container.name))
    };
    let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let init: Vec<_> = init.map(|container| runtime(container, "PodInitializing")).collect();
    let reason = if init.is_empty() { "ContainerCreating" } else { "PodInitializing" };
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    PodRuntime {
        ip: None,
        started_at: status.and_then(|s| s.start_time.as_ref()).map_or_else(Timestamp::now, |time| time.0),
        init,
        containers: containers.map(|container| runtime(container, reason)).collect(),
    }
}

/// From a place in the network to the end of the last container.
async fn live(
    agent: &Arc<Agent>,
    pod: &Arc<Pod>,
    shared: &Arc<Shared>,
    stopped: &watch::Receiver<Option<Stop>>,
    held: &mut Held,
) {
    let mut stop = stopped.clone();
    let Some(cell) = until(&mut stop, settle_in(agent, pod, held)).await else { return };
    shared.set_ip(cell.ip);
    let moved_port = held.port.zip(wanted_port(pod)).map(|(to, from)| (from, to));
    shared.trace(pod, "network", "");
    let Some(renew) = until(&mut stop, make_volumes(agent, pod, &cell)).await else { return };
    shared.trace(pod, "volumes", "");

    let runner = |container: &Container, slot| Runner {
        agent: agent.clone(),
        pod: pod.clone(),
        container: container.clone(),
        shared: shared.clone(),
        slot,
        cell: cell.clone(),
        moved_port,
        stop: stopped.clone(),
    };
    let spec = pod.spec.as_ref();
    let restart = Restart::of(pod);
    let mut sidecars = Vec::new();
    for (n, container) in spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()).enumerate() {
        let slot = Slot::Init(n);
        if container.restart_policy.as_deref() == Some("Always") {
            let mut sidecar = Box::pin(runner(container, slot).run(Restart::Always));
            tokio::select! {
                _ = &mut sidecar => return,
                () = shared.started(slot) => {}
            }
            sidecars.push(sidecar);
            continue;
        }
        let restart = if restart == Restart::Never { Restart::Never } else { Restart::OnFailure };
        match runner(container, slot).run(restart).await {
            Some(0) => shared.update(slot, |container| container.ready = true),
            Some(_) => {
                // The pod has failed; it stays until it is deleted.
                let _ = stop.wait_for(Option::is_some).await;
                return;
            }
            None => return,
        }
    }
    shared.expect_containers();
    if spec.is_some_and(|spec| spec.init_containers.as_ref().is_some_and(|init| !init.is_empty())) {
        shared.update_all(|container| {
            if let State::Waiting { reason, .. } = &mut container.state {
                "ContainerCreating".clone_into(reason);
            }
        });
    }
    let containers = spec.iter().flat_map(|spec| &spec.containers).enumerate();
    let runners: Vec<_> = containers.map(|(n, container)| runner(container, Slot::Main(n)).run(restart)).collect();
    let refresh = refresh(agent, pod, &cell, renew);
    let main = join_all(runners);
    let all = async {
        let sidecars = join_all(sidecars);
        tokio::select! {
            ends = main => {
                if ends.iter().all(Option::is_some) {
                    // Finished by itself: its status stays until someone deletes it.
                    let _ = stop.wait_for(Option::is_some).await;
                }
            }
            _ = async { sidecars.await; std::future::pending::<()>().await } => {}
        }
    };
    tokio::select! {
        () = all => {}
        never = refresh => match never {},
    }
}

/// The value of `work`, or `None` if the pod is stopped before.
async fn until<T>(stop: &mut watch::Receiver<Option<Stop>>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        _ = stop.wait_for(Option::is_some) => None,
        value = work => Some(value),
    }
}

/// A cell with the pod's name, retried until there is one.
async fn settle_in(agent: &Arc<Agent>, pod: &Arc<Pod>, held: &mut Held) -> Arc<Cell> {
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    let mut wait = RETRY.0;
    loop {
        let taken = if host_network { agent.network.take_host().await } else { agent.network.take().await };
        match taken {
            Ok(cell) => {
                if cell.netns.is_some() {
                    let name = env::hostname(pod);
                    let _ = cell.sandbox.run(move |_| rustix::system::sethostname(name.as_bytes())).await;
                }
                if !agent.network.has_namespaces() && wanted_port(pod).is_some() {
                    held.port = agent.network.take_port();
                }
                let cell = Arc::new(cell);
                held.cell = Some(cell.clone());
                return cell;
            }
            Err(error) => {
                let message = format!("Failed to create pod sandbox: {error}");
                agent.recorder.warning(pod.as_ref(), "FailedCreatePodSandBox", &message);
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY.1);
            }
        }
    }
}

/// Makes the volumes, retried until all are there; returns when a token in them has to be renewed.
async fn make_volumes(agent: &Arc<Agent>, pod: &Arc<Pod>, cell: &Cell) -> Option<Duration> {
    let dirs = agent.volume_dirs(pod);
    let mut wait = RETRY.0;
    loop {
        match volumes::prepare(&agent.ctx.client, pod, &agent.facts(cell.ip), &dirs).await {
            Ok(renew) => return renew,
            // An ordinary user's pods do not see the volume anyway.
            Err(error) if !agent.network.has_namespaces() && error.volume.starts_with("kube-api-access-") => {
                return None;
            }
            Err(error) => {
                if wait >= TELL_AFTER {
                    agent.recorder.warning(pod.as_ref(), "FailedMount", &error.to_string());
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY.1);
            }
        }
    }
}

/// Writes volumes anew when what they show may have changed.
async fn refresh(
    agent: &Arc<Agent>,
    pod: &Arc<Pod>,
    cell: &Cell,
    mut renew: Option<Duration>,
) -> std::convert::Infallible {
    let dirs = agent.volume_dirs(pod);
    let (metadata, objects) = (volumes::follow_metadata(pod), volumes::follow_objects(pod));
    let mut updates = agent.updates(pod);
    loop {
        let due = match (objects, renew) {
            (true, Some(renew)) => REFRESH.min(renew),
            (true, None) => REFRESH,
            (false, Some(renew)) => renew,
            (false, None) if metadata => Duration::MAX,
            (false, None) => std::future::pending().await,
        };
        let changed = async {
            match &mut updates {
                Some(updates) if metadata => {
                    if updates.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                _ => std::future::pending().await,
            }
        };
        let _ = tokio::time::timeout(due, changed).await;
        let newest = updates.as_mut().map_or_else(|| pod.clone(), |updates| updates.borrow_and_update().pod.clone());
        match volumes::prepare(&agent.ctx.client, &newest, &agent.facts(cell.ip), &dirs).await {
            Ok(next) => renew = next,
            Err(error) => tracing::warn!(pod = pod.name_any(), %error, "volumes not refreshed"),
        }
    }
}

/// Turns deletion, and the end of the agent, into a stop.
async fn control(
    agent: &Arc<Agent>,
    mut updates: watch::Receiver<Update>,
    stop: &watch::Sender<Option<Stop>>,
) -> std::convert::Infallible {
    let mut draining = agent.draining();
    loop {
        let wanted = wanted_stop(&updates.borrow_and_update(), *draining.borrow_and_update());
        if let Some(wanted) = wanted {
            stop.send_if_modified(|stop| {
                // A stop only ever gets nearer.
                let nearer = stop.is_none_or(|stop| wanted.deadline < stop.deadline || (wanted.force && !stop.force));
                if nearer {
                    *stop = Some(wanted);
                }
                nearer
            });
        }
        tokio::select! {
            changed = updates.changed() => if changed.is_err() { std::future::pending::<()>().await },
            changed = draining.changed() => if changed.is_err() { std::future::pending::<()>().await },
        }
    }
}

fn wanted_stop(update: &Update, draining: Option<Stop>) -> Option<Stop> {
    let meta = &update.pod.metadata;
    let now = Instant::now();
    if update.gone {
        return Some(Stop { deadline: now, brief: true, force: true });
    }
    let deleted = meta.deletion_timestamp.as_ref().map(|at| {
        let grace = meta.deletion_grace_period_seconds.unwrap_or(DEFAULT_GRACE).max(0).cast_unsigned();
        // The time says when the grace ends, in whole seconds; the clock that wrote it may differ from ours.
        let left = at.0.duration_since(Timestamp::now()) + jiff::SignedDuration::from_secs(1);
        let left = Duration::try_from(left).unwrap_or_default().min(Duration::from_secs(grace));
        Stop { deadline: now + left, brief: false, force: false }
    });
    match (deleted, draining) {
        (Some(deleted), Some(draining)) => Some(if draining.deadline < deleted.deadline { draining } else { deleted }),
        (deleted, draining) => deleted.or(draining),
    }
}

/// Gives back what the pod held. Nothing of it runs any more.
async fn give_back(agent: &Arc<Agent>, pod: &Arc<Pod>, held: Held) {
    if let Some(cell) = held.cell {
        match Arc::try_unwrap(cell) {
            Ok(cell) => agent.network.release(cell).await,
            Err(_) => tracing::warn!(pod = pod.name_any(), "the pod's network is still in use"),
        }
    }
    if let Some(port) = held.port {
        agent.network.release_port(port);
    }
    remove_dir(&agent.pod_dir(pod));
    remove_dir(&agent.volatile_dir(pod));
    if !agent.is_draining() {
        agent.journals.forget(&pod.uid().unwrap_or_default());
        remove_dir(&agent.logs_dir(pod));
    }
}

fn remove_dir(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "not removed");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn update(metadata: serde_json::Value, gone: bool) -> Update {
        let pod: Pod = from_value(json!({"metadata": metadata, "spec": {"containers": []}})).unwrap();
        Update { pod: Arc::new(pod), gone }
    }

    #[tokio::test]
    async fn deletion_gives_the_grace_that_is_left() {
        assert_eq!(wanted_stop(&update(json!({"name": "p"}), false), None), None);
        let at = Timestamp::now() + jiff::SignedDuration::from_secs(100);
        let deleted = update(json!({"deletionTimestamp": at.to_string(), "deletionGracePeriodSeconds": 300}), false);
        let stop = wanted_stop(&deleted, None).unwrap();
        let left = stop.deadline - Instant::now();
        assert!(!stop.force && left <= Duration::from_secs(101) && left > Duration::from_secs(90), "{left:?}");
        let draining = Stop { deadline: Instant::now() + Duration::from_secs(1), brief: true, force: false };
        assert_eq!(wanted_stop(&deleted, Some(draining)), Some(draining));
        assert!(wanted_stop(&update(json!({}), true), None).unwrap().force);
    }

    #[test]
    fn a_pod_of_an_earlier_agent_counts_its_restart() {
        let pod: Pod = from_value(json!({"metadata": {}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
            "status": {"startTime": "2026-11-20T10:00:00Z", "containerStatuses": [
                {"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 2,
                 "state": {"running": {"startedAt": "2026-11-20T10:00:00Z"}}},
                {"name": "b", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": {}}}]}}))
        .unwrap();
        let state = first_state(&pod);
        assert_eq!((state.containers[0].restarts, state.containers[1].restarts), (3, 0));
        assert_eq!(state.started_at, "2026-11-20T10:00:00Z".parse().unwrap());
    }
}
