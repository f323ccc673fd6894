//! The pods of revisions, as the autoscaler counts and scrapes them.

use std::net::IpAddr;

use controller::{Cache, Context, ObjectKey};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

const REVISION: &str = "serving.knative.dev/revision";
const REVISION_UID: &str = "serving.knative.dev/revisionUID";
const BY_REVISION: &str = "revision";

/// How many pods of a revision are in which state; other phases are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub ready: i32,
    pub not_ready: i32,
    pub pending: i32,
    pub terminating: i32,
}

/// A pod that can be scraped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyPod {
    pub name: String,
    pub address: IpAddr,
    pub started: Option<Timestamp>,
}

/// One state of one pod, as far as counting is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Pending,
    Terminating,
    Ready,
    NotReady,
    Other,
}

/// The pods of all revisions.
#[derive(Debug, Clone)]
pub struct Pods(Cache<Pod>);

// === impl State ===

impl State {
    pub fn of(pod: &Pod) -> Self {
        let Some(status) = &pod.status else { return State::Other };
        match status.phase.as_deref() {
            Some("Pending") => State::Pending,
            Some("Running") if pod.metadata.deletion_timestamp.is_some() => State::Terminating,
            Some("Running") => {
                let conditions = status.conditions.as_deref().unwrap_or_default();
                if conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True") {
                    State::Ready
                } else {
                    State::NotReady
                }
            }
            _ => State::Other,
        }
    }
}

// === impl Counts ===

impl Counts {
    pub fn of<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Self {
        let mut counts = Counts::default();
        for pod in pods {
            match State::of(pod) {
                State::Pending => {
                    counts.pending += 1;
                    counts.not_ready += 1;
                }
                State::Terminating => {
                    counts.terminating += 1;
                    counts.not_ready += 1;
                }
                State::Ready => counts.ready += 1,
                State::NotReady => counts.not_ready += 1,
                State::Other => {}
            }
        }
        counts
    }
}

// === impl Pods ===

impl Pods {
    /// Watches the pods of revisions in all namespaces, keeping only what is used here.
    pub fn watch(ctx: &Context) -> Self {
        let cache = Cache::<Pod>::builder()
            .label_selector(REVISION_UID)
            .transform(|pod| {
                pod.spec = None;
                pod.metadata.annotations = None;
                if let Some(status) = &mut pod.status {
                    status.container_statuses = None;
                    status.init_container_statuses = None;
                }
            })
            .index(BY_REVISION, |pod| revision_of(pod).map(|key| key.to_string()).into_iter().collect())
            .start(ctx);
        Pods(cache)
    }

    /// A view without a watch, for tests: feed the cache.
    pub fn detached() -> (Self, Cache<Pod>) {
        let cache = Cache::detached(vec![(
            BY_REVISION,
            Box::new(|pod: &Pod| revision_of(pod).map(|key| key.to_string()).into_iter().collect()),
        )]);
        (Pods(cache.clone()), cache)
    }

    pub fn cache(&self) -> &Cache<Pod> {
        &self.0
    }

    pub fn counts(&self, revision: &ObjectKey) -> Counts {
        Counts::of(self.0.by_index(BY_REVISION, &revision.to_string()).iter().map(AsRef::as_ref))
    }

    /// Whether there is anything to watch over, in whatever state.
    pub fn any(&self, revision: &ObjectKey) -> bool {
        let pods = self.0.by_index(BY_REVISION, &revision.to_string());
        pods.iter().any(|pod| State::of(pod) != State::Other)
    }

    pub fn ready(&self, revision: &ObjectKey) -> Vec<ReadyPod> {
        let pods = self.0.by_index(BY_REVISION, &revision.to_string());
        let ready = pods.iter().filter(|pod| State::of(pod) == State::Ready);
        ready
            .filter_map(|pod| {
                let status = pod.status.as_ref()?;
                Some(ReadyPod {
                    name: pod.name_any(),
                    address: status.pod_ip.as_ref()?.parse().ok()?,
                    started: status.start_time.as_ref().map(|time| time.0),
                })
            })
            .collect()
    }
}

/// The revision a pod belongs to; its PodAutoscaler has the same name.
pub fn revision_of(pod: &Pod) -> Option<ObjectKey> {
    let revision = pod.labels().get(REVISION)?;
    Some(ObjectKey::new(pod.namespace()?, revision))
}
