//! The agent: which pods are ours, one task for each, and a handle for who started it.

use futures::future::BoxFuture;
use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use controller::{Cache, Change, Context, Recorder};
use futures::Stream;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::container::Stop;
use crate::facts::Facts;
use crate::groups::Groups;
use crate::logs::{self, Journals, LogOptions};
use crate::network::{self, Network};
use crate::node::{self, Machine};
use crate::pod::{self, Update};
use crate::sandbox::HostMounts;
use crate::volatile::Volatile;
use crate::{Error, LogError, Options, volumes};

/// How long a killed pod may take to be gone.
const AFTER_KILL: Duration = Duration::from_secs(3);

/// What all pods share.
pub(crate) struct Agent {
    pub(crate) ctx: Context,
    pub(crate) options: Options,
    pub(crate) network: Network,
    volatile: Volatile,
    pub(crate) host_mounts: Arc<HostMounts>,
    pub(crate) groups: Groups,
    pub(crate) journals: Journals,
    pub(crate) recorder: Recorder,
    machine: Machine,
    pods: Mutex<HashMap<String, watch::Sender<Update>>>,
    count: watch::Sender<usize>,
    draining: watch::Sender<Option<Stop>>,
}

/// A pod's task; taken off the list when the task ends or is dropped.
struct Present {
    agent: Arc<Agent>,
    uid: String,
}

/// The running agent. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    agent: Arc<Agent>,
    cache: Cache<Pod>,
}

/// Starts the agent: registers the node, then runs every pod bound to it until the context's tasks are cancelled. The
/// end of the tasks kills what still runs and removes the pod network; [`Handle::drain`] before that is kinder.
///
/// Boxed, so that the code behind it is compiled with this crate and not again in every program that starts it.
pub fn run(ctx: Context, options: Options) -> BoxFuture<'static, Result<Handle, Error>> {
    Box::pin(start_all(ctx, options))
}

async fn start_all(ctx: Context, options: Options) -> Result<Handle, Error> {
    let network = network::prepare(&options).await?;
    let volatile = Volatile::prepare(options.data_dir.join("run"), network.has_namespaces())?;
    let hidden = [options.hidden.clone(), vec![options.data_dir.clone()]].concat();
    let agent = Agent {
        host_mounts: Arc::new(HostMounts::read(&hidden).map_err(Error::file("/proc/self/mountinfo"))?),
        groups: Groups::prepare(&options.tag(), network.has_namespaces()),
        recorder: Recorder::new(&ctx, "kubelet"),
        machine: Machine::read(&options),
        journals: Journals::default(),
        pods: Mutex::default(),
        count: watch::Sender::new(0),
        draining: watch::Sender::new(None),
        network,
        volatile,
        options,
        ctx,
    };
    let agent = Arc::new(agent);
    for dir in [agent.scratch_dir(), agent.options.data_dir.join("logs")] {
        std::fs::create_dir_all(&dir).map_err(Error::file(&dir))?;
    }
    let tasks = &agent.ctx.tasks;
    tasks.spawn("pod-network", agent.network.clone().keep_pool());
    tasks.spawn("node", node::keep(agent.ctx.clone(), agent.options.clone(), agent.machine, agent.network.node_ip()));
    tasks.spawn_graceful("pods-end", end_with_tasks(agent.clone()));

    let selector = format!("spec.nodeName={}", agent.options.node_name);
    let handler = agent.clone();
    let cache = Cache::<Pod>::builder()
        .field_selector(&selector)
        .on_event(move |change| handler.changed(change))
        .start(&agent.ctx);
    let (sweeper, pods) = (agent.clone(), cache.clone());
    tasks.spawn("pods-sweep", async move { sweeper.sweep(&pods).await });
    Ok(Handle { agent, cache })
}

// === impl Agent ===

impl Agent {
    /// What a pod's containers write to volumes.
    pub(crate) fn pod_dir(&self, pod: &Pod) -> PathBuf {
        self.options.data_dir.join("pods").join(pod.uid().unwrap_or_default())
    }

    /// What the agent writes for a pod.
    pub(crate) fn volatile_dir(&self, pod: &Pod) -> PathBuf {
        self.volatile.pod(&pod.uid().unwrap_or_default())
    }

    pub(crate) fn volume_dirs(&self, pod: &Pod) -> volumes::Dirs {
        volumes::Dirs { disk: self.pod_dir(pod).join("volumes"), memory: self.volatile_dir(pod).join("volumes") }
    }

    pub(crate) fn logs_dir(&self, pod: &Pod) -> PathBuf {
        self.options.data_dir.join("logs").join(pod.uid().unwrap_or_default())
    }

    pub(crate) fn processes_dir(&self) -> PathBuf {
        self.volatile.processes()
    }

    pub(crate) fn scratch_dir(&self) -> PathBuf {
        self.options.data_dir.join("root")
    }

    pub(crate) fn facts(&self, pod_ip: Ipv4Addr) -> Facts {
        Facts {
            pod_ip,
            host_ip: self.network.node_ip(),
            kubernetes: self.options.kubernetes,
            node_millicpu: self.machine.millicpu,
            node_memory: self.machine.memory,
        }
    }

    pub(crate) fn draining(&self) -> watch::Receiver<Option<Stop>> {
        self.draining.subscribe()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.borrow().is_some()
    }

    pub(crate) fn updates(&self, pod: &Pod) -> Option<watch::Receiver<Update>> {
        self.pods.lock().get(&pod.uid().unwrap_or_default()).map(watch::Sender::subscribe)
    }

    fn changed(self: &Arc<Self>, change: &Change<'_, Pod>) {
        let pod = change.object().clone();
        let update = Update { gone: change.is_deleted(), pod };
        let uid = update.pod.uid().unwrap_or_default();
        let mut pods = self.pods.lock();
        if let Some(known) = pods.get(&uid) {
            known.send_replace(update);
            return;
        }
        if update.gone || self.is_draining() || self.ctx.tasks.is_cancelled() {
            return;
        }
        let (sender, updates) = watch::channel(update);
        pods.insert(uid.clone(), sender);
        self.count.send_replace(pods.len());
        let agent = self.clone();
        self.ctx.tasks.spawn("pod", async move {
            let present = Present { agent, uid };
            pod::run(present.agent.clone(), updates).await;
        });
    }

    /// Removes files of pods that no longer exist.
    async fn sweep(&self, cache: &Cache<Pod>) {
        cache.synced().await;
        let alive: HashSet<String> = cache.list().iter().filter_map(|pod| pod.uid()).collect();
        for kind in ["pods", "logs"] {
            let entries = std::fs::read_dir(self.options.data_dir.join(kind)).into_iter().flatten().flatten();
            for entry in entries {
                let name = entry.file_name().to_string_lossy().into_owned();
                if !alive.contains(&name) && !self.pods.lock().contains_key(&name) {
                    let _ = std::fs::remove_dir_all(entry.path());
                }
            }
        }
    }

    async fn drain(&self, grace: Duration) {
        let stop = Stop { deadline: Instant::now() + grace, brief: true, force: grace.is_zero() };
        self.draining.send_replace(Some(stop));
        let mut count = self.count.subscribe();
        let ended = count.wait_for(|count| *count == 0);
        if tokio::time::timeout(grace + AFTER_KILL, ended).await.is_err() {
            tracing::warn!("some pods did not end in time; they are killed with the agent");
        }
    }
}

/// When the tasks are cancelled, the pods' tasks, their threads and with them their processes end; this waits for it and
/// removes the network.
async fn end_with_tasks(agent: Arc<Agent>) {
    agent.ctx.tasks.token().cancelled().await;
    let mut count = agent.count.subscribe();
    let _ = count.wait_for(|count| *count == 0).await;
    agent.network.remove().await;
    agent.volatile.remove();
    agent.groups.remove();
}

impl Drop for Present {
    fn drop(&mut self) {
        let mut pods = self.agent.pods.lock();
        pods.remove(&self.uid);
        self.agent.count.send_replace(pods.len());
    }
}

// === impl Handle ===

impl Handle {
    /// The log of a container. An empty `container` means the pod's default one. Dropping the stream ends the reading.
    pub fn logs(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        options: LogOptions,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + 'static, LogError> {
        let found = self.cache.get(namespace, pod).ok_or_else(|| LogError::NoPod { pod: pod.to_owned() })?;
        let spec = found.spec.as_ref();
        let names: Vec<&str> = spec
            .iter()
            .flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
            .map(|container| container.name.as_str())
            .collect();
        let default = found.annotations().get("kubectl.kubernetes.io/default-container").map(String::as_str);
        let name = if container.is_empty() {
            default.filter(|name| names.contains(name)).or_else(|| names.first().copied()).unwrap_or_default()
        } else {
            container
        };
        let (pod, name) = (pod.to_owned(), name.to_owned());
        if !names.contains(&name.as_str()) {
            return Err(LogError::NoContainer { pod, container: name });
        }
        let journal = self.agent.journals.find(&found.uid().unwrap_or_default(), &name, options.previous);
        match journal {
            Some(journal) => Ok(logs::stream(journal, options)),
            None if options.previous => Err(LogError::NoPrevious { pod, container: name }),
            None => {
                let statuses = found.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
                let waiting = statuses
                    .filter(|status| status.name == name)
                    .find_map(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone());
                let reason = waiting.unwrap_or_else(|| "ContainerCreating".to_owned());
                Err(LogError::NotStarted { pod, container: name, reason })
            }
        }
    }

    /// Ends all pods' processes and leaves the pods in the API: the next start runs them again. Processes get SIGTERM at
    /// once and SIGKILL after `grace`; hooks are not called. Pods that appear afterwards are not started.
    pub async fn drain(&self, grace: Duration) {
        self.agent.drain(grace).await;
    }

    /// Ends what still runs and removes every interface. The context's tasks do the same when they are cancelled.
    pub async fn stop(&self) {
        self.agent.drain(Duration::ZERO).await;
        self.agent.network.remove().await;
        self.agent.volatile.remove();
        self.agent.groups.remove();
    }

    /// The host's address as pods see it.
    pub fn node_ip(&self) -> Ipv4Addr {
        self.agent.network.node_ip()
    }

    pub fn network(&self) -> &Network {
        &self.agent.network
    }

    /// Returns when the pods of the API are known and started.
    pub async fn synced(&self) {
        self.cache.synced().await;
    }

    /// Where the agent keeps its files.
    pub fn data_dir(&self) -> &Path {
        &self.agent.options.data_dir
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("node", &self.agent.options.node_name).finish_non_exhaustive()
    }
}
