//! Asks the queue-proxies of a revision's pods for what they saw in the last second.
//!
//! A sample is enough: of N pods, n(N) are asked and the sum is scaled by N/n. Pods older than the stable window go first, since
//! young ones have little to tell; a pod that does not answer is replaced by the next candidate. Connections are kept between
//! scrapes and go away with the pod.
//!
//! Only pod addresses are scraped. The detour through the private Service (for a mesh that hides pods) belongs into
//! [`Scraper::scrape`], where all pods failed.

mod client;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use controller::{ObjectKey, Tasks};
use futures::future::try_join_all;
use jiff::Timestamp;
use proto::Stat;

use crate::pods::{Pods, ReadyPod};
use client::Connections;

/// What stands in for the pod name in a stat that was put together from several.
const SCRAPER_NAME: &str = "service-scraper";

/// z²·p·(1−p)/margin² for 95 % confidence: 1.96² · 100 / 5².
const SAMPLE_FACTOR: f64 = 15.3664;

/// One revision's scraper.
#[derive(Debug)]
pub struct Scraper {
    connections: Connections,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("GET {url}: {reason}")]
    Pod { url: String, reason: String },
    #[error("pods exhausted: {0}")]
    Exhausted(String),
}

// === impl Scraper ===

impl Scraper {
    pub fn new(tasks: Tasks, port: u16) -> Self {
        Scraper { connections: Connections::new(tasks, port) }
    }

    /// One round. `None` if there is no pod to ask. Cancel safe: dropping it closes the connections in use.
    pub async fn scrape(
        &self,
        pods: &Pods,
        revision: &ObjectKey,
        stable_window: Duration,
        now: Timestamp,
    ) -> Result<Option<Stat>, Error> {
        let ready = pods.ready(revision);
        self.connections.retain(|address| ready.iter().any(|pod| pod.address == address));
        if ready.is_empty() {
            return Ok(None);
        }
        let count = ready.len();
        let wanted = sample_size(count);
        let candidates = candidates(ready, wanted, stable_window, now);
        let next = AtomicUsize::new(0);
        let worker = || async {
            let mut last_error = None;
            while let Some(pod) = candidates.get(next.fetch_add(1, Ordering::Relaxed)) {
                match self.connections.stat(pod.address).await {
                    Ok(stat) => return Ok(stat),
                    Err(error) => last_error = Some(error),
                }
            }
            Err(Error::Exhausted(last_error.map_or_else(|| "no candidate left".to_owned(), |error| error.to_string())))
        };
        let stats = try_join_all((0..wanted).map(|_| worker())).await?;
        Ok(Some(aggregate(&stats, count)))
    }

    /// Drops the idle connections.
    pub fn rest(&self) {
        self.connections.retain(|_| false);
    }
}

/// How many of `pods` pods must be asked.
fn sample_size(pods: usize) -> usize {
    if pods <= 3 {
        return pods;
    }
    let population = pods as f64;
    (population * SAMPLE_FACTOR / (population + SAMPLE_FACTOR - 1.0)).ceil() as usize
}

/// The order in which pods are asked: old ones first, and the part of the list that a sample only partly covers shuffled.
fn candidates(pods: Vec<ReadyPod>, wanted: usize, window: Duration, now: Timestamp) -> Vec<ReadyPod> {
    let is_old = |pod: &ReadyPod| {
        pod.started.is_none_or(|started| now.duration_since(started).unsigned_abs() >= window && started <= now)
    };
    let (mut old, mut young): (Vec<_>, Vec<_>) = pods.into_iter().partition(is_old);
    if old.len() < wanted {
        fastrand::shuffle(&mut young);
    } else {
        fastrand::shuffle(&mut old);
    }
    old.append(&mut young);
    old
}

fn aggregate(stats: &[Stat], pods: usize) -> Stat {
    let scale = pods as f64 / stats.len() as f64;
    let sum = |field: fn(&Stat) -> f64| stats.iter().map(field).sum::<f64>() * scale;
    Stat {
        pod_name: SCRAPER_NAME.to_owned(),
        average_concurrent_requests: sum(|stat| stat.average_concurrent_requests),
        average_proxied_concurrent_requests: sum(|stat| stat.average_proxied_concurrent_requests),
        request_count: sum(|stat| stat.request_count),
        proxied_request_count: sum(|stat| stat.proxied_request_count),
        ..Stat::default()
    }
}

#[cfg(test)]
mod tests;
