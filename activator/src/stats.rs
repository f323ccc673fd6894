//! What the activator tells the autoscaler about each revision.
//!
//! The first request of a revision that was not in use is reported the moment it arrives: that report is what wakes a
//! sleeping revision. After that there is a report per second as long as the revision is in use, and one of zeros at
//! the end. The task behind it sleeps when no revision is in use.

#[cfg(test)]
mod interleaved;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use net::RequestStats;
use parking_lot::Mutex;
use proto::{Stat, WireStatMessage, WireStatMessages};
use tokio::sync::Notify;

use crate::{
    clock,
    preempt::{lock, point},
    revisions::Revision,
    sink::Sink,
};

const PERIOD: Duration = Duration::from_secs(1);

/// The statistics of a revision in use.
pub(crate) struct Activity {
    requests: RequestStats,
    /// What was reported at once and is left out of the next report.
    reported: f64,
}

/// Collects and sends.
pub(crate) struct Reporter {
    pod_name: String,
    sink: Sink,
    active: Mutex<Vec<Arc<Revision>>>,
    activated: Notify,
}

/// Counts one request while it lives.
pub(crate) struct Counted {
    revision: Arc<Revision>,
    /// When it ended, if somebody knows that.
    ended: Option<Instant>,
}

// === impl Reporter ===

impl Reporter {
    pub(crate) fn new(pod_name: String, sink: Sink) -> Arc<Self> {
        Arc::new(Self { pod_name, sink, active: Mutex::default(), activated: Notify::new() })
    }

    /// Counts a request that comes `now`, and wakes the revision if it is the first.
    pub(crate) fn enter(&self, revision: &Arc<Revision>, now: Instant) -> Counted {
        let counted = Counted { revision: revision.clone(), ended: None };
        let mut slot = lock(&revision.activity);
        if let Some(activity) = &mut *slot {
            activity.requests.enter(now, false);
            return counted;
        }
        let mut requests = RequestStats::new(now);
        requests.enter(now, false);
        *slot = Some(Activity { requests, reported: 1.0 });
        drop(slot);
        // Listed first: a connection that drops what is queued takes its snapshot from the list afterwards.
        lock(&self.active).push(revision.clone());
        point();
        self.sink.send(WireStatMessages { messages: vec![self.message(revision, 1.0, 1.0)] });
        self.activated.notify_one();
        counted
    }

    /// Reports every second while there is something to report.
    pub(crate) async fn run(&self) {
        loop {
            if self.active.lock().is_empty() {
                self.activated.notified().await;
            }
            tokio::time::sleep(PERIOD).await;
            self.tick(clock::now());
        }
    }

    /// Reports the period that ends now.
    pub(crate) fn tick(&self, now: Instant) {
        let messages = self.report(now);
        if !messages.is_empty() {
            self.sink.send(WireStatMessages { messages });
        }
    }

    /// The revisions in use.
    pub(crate) fn active(&self) -> Vec<Arc<Revision>> {
        self.active.lock().clone()
    }

    /// What is in flight now, for an autoscaler that may have missed reports.
    pub(crate) fn snapshot(&self) -> WireStatMessages {
        let active = lock(&self.active);
        let in_flight = active.iter().filter_map(|revision| {
            let concurrency = revision.concurrency();
            (concurrency > 0).then(|| self.message(revision, concurrency as f64, 0.0))
        });
        WireStatMessages { messages: in_flight.collect() }
    }

    fn report(&self, now: Instant) -> Vec<WireStatMessage> {
        let mut messages = Vec::new();
        lock(&self.active).retain(|revision| {
            let mut slot = lock(&revision.activity);
            let Some(activity) = &mut *slot else { return false };
            let report = activity.requests.report(now);
            let reported = std::mem::take(&mut activity.reported);
            let average = (report.average_concurrency - reported).max(0.0);
            let count = (report.request_count - reported).max(0.0);
            messages.push(self.message(revision, average, count));
            let in_use = report.average_concurrency > 0.0 || activity.requests.concurrency() > 0;
            if !in_use {
                *slot = None;
            }
            in_use
        });
        messages
    }

    fn message(&self, revision: &Revision, average: f64, count: f64) -> WireStatMessage {
        let stat = Stat {
            pod_name: self.pod_name.clone(),
            average_concurrent_requests: average,
            request_count: count,
            ..Stat::default()
        };
        let key = &revision.key;
        WireStatMessage { namespace: key.namespace.clone(), name: key.name.clone(), stat: Some(stat) }
    }
}

// === impl Activity ===

impl Activity {
    pub(crate) fn concurrency(&self) -> u64 {
        self.requests.concurrency()
    }
}

// === impl Counted ===

impl Counted {
    /// The request ends `now`.
    pub(crate) fn leave(mut self, now: Instant) {
        self.ended = Some(now);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(activity) = &mut *lock(&self.revision.activity) {
            activity.requests.leave(self.ended.unwrap_or_else(clock::now), false);
        }
    }
}
