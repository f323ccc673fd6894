//! The activator's metrics, named as upstream names them.
//!
//! What is in flight is looked up when somebody scrapes, not kept: requests pay for a cold start's observation and
//! nothing else.

use std::{sync::Arc, time::Duration};

use observe::{LATENCY_SECONDS, Registry};

use crate::{revisions::Revision, sink::Status, stats::Reporter};

const CONCURRENCY: &str = "kn_revision_request_concurrency";
const QUEUED: &str = "kn_revision_request_queued";
const ACTIVE: &str = "kn_revision_request_active";
const REACHABLE: &str = "kn_activator_stats_conn_reachable";
const ERRORS: &str = "kn_activator_stats_conn_errors_total";
const COLD_START: &str = "kn_activator_cold_start_duration_seconds";

/// Where the activator notes what happened.
#[derive(Clone, Default)]
pub(crate) struct Metrics {
    registry: Registry,
}

// === impl Metrics ===

impl Metrics {
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A request found its revision without pods and waited this long for one.
    pub(crate) fn cold_start(&self, revision: &Revision, waited: Duration) {
        let labels = labels(revision);
        let help = "Time a request waited for a revision that had no pods";
        self.registry.histogram(COLD_START, help, LATENCY_SECONDS, &labels).observe(waited.as_secs_f64());
    }

    /// Looks up what is current whenever somebody scrapes.
    pub(crate) fn collect(&self, reporter: Arc<Reporter>, autoscaler: Arc<Status>) {
        self.registry.on_render(move |registry| {
            let peer = [("peer", "autoscaler")];
            let reachable = if autoscaler.connected() { 1.0 } else { 0.0 };
            registry.gauge(REACHABLE, "Whether the autoscaler is reachable", &peer).set(reachable);
            let errors = registry.counter(ERRORS, "Connections to the autoscaler that failed or broke", &peer);
            errors.add(autoscaler.errors().saturating_sub(errors.get()));

            for name in [CONCURRENCY, QUEUED, ACTIVE] {
                registry.clear(name);
            }
            for revision in reporter.active() {
                let labels = labels(&revision);
                let queued = revision.throttler.waiting() as f64;
                let concurrency = revision.concurrency() as f64;
                registry.gauge(CONCURRENCY, "Requests in the activator", &labels).set(concurrency);
                registry.gauge(QUEUED, "Requests that wait for a pod", &labels).set(queued);
                let active = (concurrency - queued).max(0.0);
                registry.gauge(ACTIVE, "Requests that a pod works on", &labels).set(active);
            }
        });
    }
}

fn labels(revision: &Revision) -> [(&'static str, &str); 2] {
    [("k8s_namespace_name", &revision.key.namespace), ("kn_revision_name", &revision.key.name)]
}
