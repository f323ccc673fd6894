//! The Metric controller: says whether what a Metric asks for is being collected.
//!
//! The collection itself starts in the event that shows the Metric ([`follow`]), before anything is written.

use std::sync::Arc;

use api::Conditioned;
use api::autoscaling::v1alpha1::Metric;
use api::keys::{autoscaling as keys, first, serving};
use controller::{Cache, Change, Error, ObjectKey, Reconcile};
use kube::ResourceExt;

use crate::clock::Clock;
use crate::collector::{Collector, Settings};
use crate::window::Average;

const NANOS: u64 = 1_000_000_000;

pub struct Metrics {
    pub collector: Arc<Collector>,
}

/// Keeps the collector's set of collections equal to the Metrics there are.
pub fn follow(cache: &Cache<Metric>, collector: Arc<Collector>, clock: Clock) {
    cache.on_event(move |change| {
        let metric = change.object();
        match change {
            Change::Applied { .. } => collector.ensure(&ObjectKey::of(&**metric), settings(metric), clock.seconds()),
            Change::Deleted(_) => collector.remove(&ObjectKey::of(&**metric)),
        }
    });
}

fn settings(metric: &Metric) -> Settings {
    let seconds = |nanos: i64| u32::try_from((nanos.max(0) as u64).div_ceil(NANOS)).unwrap_or(u32::MAX);
    let algorithm = first(metric.annotations(), keys::METRIC_AGGREGATION).map(|(_, value)| value);
    Settings {
        // An hour is the longest window there may be; the bound keeps a Metric that nobody validated from taking the memory.
        stable_seconds: seconds(metric.spec.stable_window).min(3600),
        panic_seconds: seconds(metric.spec.panic_window).min(3600),
        scrape_target: metric.spec.scrape_target.clone(),
        average: Average::parse(algorithm),
    }
}

// === impl Metrics ===

impl Reconcile for Metrics {
    type Kind = Metric;
    const NAME: &'static str = "metric-controller";
    const QUEUE: &'static str = "knative.dev.serving.pkg.reconciler.metric.reconciler";

    fn prepare(&self, metric: &mut Metric) {
        metric.mark().init();
    }

    async fn reconcile(&self, metric: &mut Metric) -> Result<(), Error> {
        let failure = if metric.labels().get(serving::REVISION).is_none_or(String::is_empty) {
            Some(format!("label {:?} not found or empty in Metric {}", serving::REVISION, metric.name_any()))
        } else {
            self.collector.get(&ObjectKey::of(metric)).and_then(|collection| collection.trouble())
        };
        match failure {
            None => metric.mark().mark_true("Ready"),
            Some(error) => {
                let message = format!("Failed to reconcile metric collection: {error}");
                metric.mark().set("Ready", "False", "CollectionFailed", &message);
            }
        }
        Ok(())
    }
}
