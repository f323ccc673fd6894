//! What watchers see of a wake-up, by service and step, stamped on arrival.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;

/// One step on the way from a request to its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Step {
    ScaleWritten,
    PodCreated,
    ProcessStarted,
    ReadinessSeen,
}

/// First arrivals. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timeline {
    seen: Arc<Mutex<HashMap<(String, Step), Instant>>>,
}

// === impl Timeline ===

impl Timeline {
    /// Follows Deployments and Pods from now on.
    pub(crate) async fn follow(client: &Client) -> Result<Self> {
        let timeline = Self::default();
        let deployments = Api::<Deployment>::namespaced(client.clone(), "default");
        let version = deployments.list(&Default::default()).await?.metadata.resource_version.unwrap_or_default();
        let events = deployments.watch(&WatchParams::default(), &version).await?.boxed();
        timeline.record(events, |deployment: &Deployment| {
            let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default() > 0;
            if wanted { vec![Step::ScaleWritten] } else { vec![] }
        });
        let pods = Api::<Pod>::namespaced(client.clone(), "default");
        let version = pods.list(&Default::default()).await?.metadata.resource_version.unwrap_or_default();
        let events = pods.watch(&WatchParams::default(), &version).await?.boxed();
        timeline.record(events, pod_steps);
        Ok(timeline)
    }

    pub(crate) fn at(&self, service: &str, step: Step) -> Option<Instant> {
        self.seen.lock().get(&(service.to_owned(), step)).copied()
    }

    /// Forgets everything, before the next round.
    pub(crate) fn clear(&self) {
        self.seen.lock().clear();
    }

    fn record<K, S>(&self, mut events: S, steps: impl Fn(&K) -> Vec<Step> + Send + 'static)
    where
        K: ResourceExt + Send + 'static,
        S: Stream<Item = kube::Result<WatchEvent<K>>> + Send + Unpin + 'static,
    {
        let seen = self.seen.clone();
        tokio::spawn(async move {
            while let Ok(Some(event)) = events.try_next().await {
                let (WatchEvent::Added(object) | WatchEvent::Modified(object)) = event else { continue };
                let now = Instant::now();
                let Some(service) = object.labels().get("serving.knative.dev/service").cloned() else { continue };
                let mut seen = seen.lock();
                for step in steps(&object) {
                    seen.entry((service.clone(), step)).or_insert(now);
                }
            }
        });
    }
}

fn pod_steps(pod: &Pod) -> Vec<Step> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let mut steps = vec![Step::PodCreated];
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    if !containers.is_empty() && containers.iter().all(|c| c.state.as_ref().is_some_and(|s| s.running.is_some())) {
        steps.push(Step::ProcessStarted);
    }
    if status.conditions.unwrap_or_default().iter().any(|c| c.type_ == "Ready" && c.status == "True") {
        steps.push(Step::ReadinessSeen);
    }
    steps
}
