//! What the containers of a pod tell its status writer.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::status::{ContainerRuntime, PodRuntime, State};

/// The first status waits at most this long for the first starts.
const FIRST_STATUS: Duration = Duration::from_millis(30);

/// Which container of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    Init(usize),
    Main(usize),
}

/// The state of a pod's containers, shared by their tasks.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<Inner>,
    /// Counts changes.
    version: watch::Sender<u64>,
    /// When the pod was first seen: what the steps of a start are measured from.
    seen: Instant,
}

#[derive(Debug)]
struct Inner {
    pod: PodRuntime,
    /// Containers whose first start has not been tried.
    unsettled: Vec<Slot>,
    /// Started containers that users have not been told of: name and image.
    notes: Vec<(String, String)>,
}

// === impl Shared ===

impl Shared {
    pub(crate) fn new(pod: PodRuntime) -> Self {
        let unsettled = if pod.init.is_empty() {
            (0..pod.containers.len()).map(Slot::Main).collect()
        } else {
            (0..pod.init.len()).take(1).map(Slot::Init).collect()
        };
        let (version, _) = watch::channel(0);
        Self { state: Mutex::new(Inner { pod, unsettled, notes: Vec::new() }), version, seen: Instant::now() }
    }

    /// Leaves a trace of how long after the pod was seen something happened.
    pub(crate) fn trace(&self, pod: &Pod, what: &str, container: &str) {
        let micros = u64::try_from(self.seen.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::debug!(target: "pods::start", pod = pod.metadata.name, container, micros, "{what}");
    }

    /// Changes one container; says so if it is different afterwards.
    pub(crate) fn update(&self, slot: Slot, change: impl FnOnce(&mut ContainerRuntime)) {
        let changed = {
            let mut inner = self.state.lock();
            let Some(container) = inner.pod.slot(slot) else { return };
            let before = container.clone();
            change(container);
            // An init container that is done is ready; no probe says so.
            before != *container
        };
        if changed {
            self.version.send_modify(|version| *version += 1);
        }
    }

    pub(crate) fn update_all(&self, change: impl Fn(&mut ContainerRuntime)) {
        self.state.lock().pod.containers.iter_mut().for_each(change);
    }

    pub(crate) fn set_ip(&self, ip: Ipv4Addr) {
        self.state.lock().pod.ip = Some(ip);
        self.version.send_modify(|version| *version += 1);
    }

    pub(crate) fn snapshot(&self) -> PodRuntime {
        self.state.lock().pod.clone()
    }

    pub(crate) fn restarts(&self, slot: Slot) -> i32 {
        self.state.lock().pod.slot(slot).map_or(0, |container| container.restarts)
    }

    /// The first start of `slot` was tried, with whatever result.
    pub(crate) fn settle(&self, slot: Slot) {
        let mut inner = self.state.lock();
        if inner.unsettled.contains(&slot) {
            inner.unsettled.retain(|other| *other != slot);
            drop(inner);
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// After the init containers: the next status waits for the containers' starts.
    pub(crate) fn expect_containers(&self) {
        let mut inner = self.state.lock();
        let waiting = |container: &ContainerRuntime| matches!(container.state, State::Waiting { .. });
        let slots = inner.pod.containers.iter().enumerate().filter(|(_, c)| waiting(c)).map(|(n, _)| Slot::Main(n));
        inner.unsettled = slots.collect();
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Returns when every expected first start was tried, or takes too long.
    pub(crate) async fn settled(&self) {
        let mut changes = self.version.subscribe();
        let settled = changes.wait_for(|_| self.state.lock().unsettled.is_empty());
        let _ = tokio::time::timeout(FIRST_STATUS, settled).await;
    }

    /// Returns when the container of `slot` has started (and its start-up probe succeeded).
    pub(crate) async fn started(&self, slot: Slot) {
        let mut changes = self.version.subscribe();
        let started = |_: &u64| self.state.lock().pod.slot(slot).is_some_and(|container| container.started);
        let _ = changes.wait_for(started).await;
    }

    /// Remembers that a container was started, to be told when the pod is ready.
    pub(crate) fn note(&self, name: &str, image: &str) {
        self.state.lock().notes.push((name.to_owned(), image.to_owned()));
    }

    pub(crate) fn has_notes(&self) -> bool {
        !self.state.lock().notes.is_empty()
    }

    pub(crate) fn take_notes(&self) -> Vec<(String, String)> {
        std::mem::take(&mut self.state.lock().notes)
    }
}

impl PodRuntime {
    fn slot(&mut self, slot: Slot) -> Option<&mut ContainerRuntime> {
        match slot {
            Slot::Init(n) => self.init.get_mut(n),
            Slot::Main(n) => self.containers.get_mut(n),
        }
    }
}
