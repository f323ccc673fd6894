//! What revisions reported lately: four windows per Metric ({concurrency, requests per second} x {stable, panic}).
//!
//! Pods and activators report the same requests; whoever reported first counts, so what a pod got through an activator is
//! subtracted. A stat for a revision without a Metric is dropped: its reporter sends the next one in a second.

use std::collections::HashMap;
use std::sync::Arc;

use controller::ObjectKey;
use parking_lot::{Mutex, RwLock};
use proto::Stat;

use crate::decider::{Observed, ScalingMetric};
use crate::window::{Average, Seconds, Window};

#[derive(Debug, Default)]
pub struct Collector {
    collections: RwLock<HashMap<ObjectKey, Arc<Collection>>>,
}

/// The settings of one collection, from its Metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub stable_seconds: u32,
    pub panic_seconds: u32,
    /// The private Service whose pods are scraped; empty when the activator sees every request.
    pub scrape_target: String,
    /// Fixed when the collection starts.
    pub average: Average,
}

#[derive(Debug)]
pub struct Collection {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    settings: Settings,
    concurrency: Pair,
    requests: Pair,
    /// Why the last scrape failed.
    trouble: Option<String>,
}

#[derive(Debug)]
struct Pair {
    stable: Window,
    panic: Window,
}

/// Why there is nothing to decide from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("no metrics are being collected for the requested resource")]
    NotCollecting,
    #[error("no data available")]
    NoData,
}

// === impl Collector ===

impl Collector {
    /// Starts a collection, or adjusts its windows in place.
    pub fn ensure(&self, key: &ObjectKey, settings: Settings, now: Seconds) {
        if let Some(collection) = self.get(key) {
            return collection.update(settings, now);
        }
        self.collections.write().entry(key.clone()).or_insert_with(|| Arc::new(Collection::new(settings)));
    }

    pub fn remove(&self, key: &ObjectKey) {
        self.collections.write().remove(key);
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<Collection>> {
        self.collections.read().get(key).cloned()
    }

    /// Adds a report; false if nobody collects for `key`.
    pub fn record(&self, key: &ObjectKey, stat: &Stat, at: Seconds) -> bool {
        let collection = self.get(key);
        if let Some(collection) = &collection {
            collection.record(stat, at);
        }
        collection.is_some()
    }

    pub fn observe(&self, key: &ObjectKey, metric: ScalingMetric, now: Seconds) -> Result<Observed, Error> {
        self.get(key).ok_or(Error::NotCollecting)?.observe(metric, now)
    }
}

// === impl Collection ===

impl Collection {
    fn new(settings: Settings) -> Self {
        let pair = || Pair { stable: Window::new(settings.stable_seconds), panic: Window::new(settings.panic_seconds) };
        let (concurrency, requests) = (pair(), pair());
        Collection { state: Mutex::new(State { settings, concurrency, requests, trouble: None }) }
    }

    fn update(&self, settings: Settings, now: Seconds) {
        let mut state = self.state.lock();
        let average = state.settings.average;
        for pair in state.pairs() {
            pair.stable.resize(settings.stable_seconds, now);
            pair.panic.resize(settings.panic_seconds, now);
        }
        state.settings = Settings { average, ..settings };
    }

    pub fn settings(&self) -> Settings {
        self.state.lock().settings.clone()
    }

    pub fn record(&self, stat: &Stat, at: Seconds) {
        let mut state = self.state.lock();
        let concurrency = stat.average_concurrent_requests - stat.average_proxied_concurrent_requests;
        let requests = stat.request_count - stat.proxied_request_count;
        for (pair, value) in state.pairs().into_iter().zip([concurrency, requests]) {
            pair.stable.record(at, value);
            pair.panic.record(at, value);
        }
    }

    /// Why pods could not be scraped, if so.
    pub fn trouble(&self) -> Option<String> {
        self.state.lock().trouble.clone()
    }

    /// Notes how the last scrape went; true if that is news (failing or not, whatever the reason).
    pub fn note(&self, trouble: Option<String>) -> bool {
        let before = std::mem::replace(&mut self.state.lock().trouble, trouble.clone());
        before.is_some() != trouble.is_some()
    }

    /// True if nothing was reported within the stable window.
    pub fn is_empty(&self, now: Seconds) -> bool {
        self.state.lock().concurrency.stable.is_empty(now)
    }

    /// Gives back the memory of windows that hold nothing any more.
    pub fn release(&self, now: Seconds) {
        for pair in self.state.lock().pairs() {
            for window in [&mut pair.stable, &mut pair.panic] {
                if window.is_empty(now) {
                    window.clear();
                }
            }
        }
    }

    fn observe(&self, metric: ScalingMetric, now: Seconds) -> Result<Observed, Error> {
        let state = self.state.lock();
        let pair = match metric {
            ScalingMetric::Concurrency => &state.concurrency,
            ScalingMetric::Rps => &state.requests,
        };
        // Without a scrape target silence means no requests, because the activator sees them all.
        if pair.stable.is_empty(now) && !state.settings.scrape_target.is_empty() {
            return Err(Error::NoData);
        }
        let average = |window: &Window| if window.is_empty(now) { 0.0 } else { state.settings.average.of(window, now) };
        Ok(Observed { stable: average(&pair.stable), panic: average(&pair.panic) })
    }
}

// === impl State ===

impl State {
    fn pairs(&mut self) -> [&mut Pair; 2] {
        [&mut self.concurrency, &mut self.requests]
    }
}

#[cfg(test)]
mod tests {
    use controller::ObjectKey;
    use proto::Stat;

    use super::{Collector, Error, Settings};
    use crate::decider::{Observed, ScalingMetric};
    use crate::window::Average;

    const NOW: i64 = 1_700_000_000;

    fn settings(scrape_target: &str) -> Settings {
        Settings {
            stable_seconds: 60,
            panic_seconds: 6,
            scrape_target: scrape_target.to_owned(),
            average: Average::Linear,
        }
    }

    #[test]
    fn what_the_activator_reported_is_not_counted_twice() {
        let collector = Collector::default();
        let key = ObjectKey::new("default", "hello-00001");
        let pod = Stat {
            average_concurrent_requests: 5.0,
            average_proxied_concurrent_requests: 2.0,
            request_count: 10.0,
            proxied_request_count: 4.0,
            ..Stat::default()
        };
        assert!(!collector.record(&key, &pod, NOW));
        collector.ensure(&key, settings("hello-00001-private"), NOW);
        assert_eq!(collector.observe(&key, ScalingMetric::Concurrency, NOW), Err(Error::NoData));
        assert!(collector.record(&key, &pod, NOW));
        let activator = Stat { average_concurrent_requests: 2.0, request_count: 4.0, ..Stat::default() };
        collector.record(&key, &activator, NOW);
        let observed = |metric| collector.observe(&key, metric, NOW).unwrap();
        assert_eq!(observed(ScalingMetric::Concurrency), Observed { stable: 5.0, panic: 5.0 });
        assert_eq!(observed(ScalingMetric::Rps), Observed { stable: 10.0, panic: 10.0 });
        // The panic window ran dry, the stable one did not.
        let later = collector.observe(&key, ScalingMetric::Concurrency, NOW + 10).unwrap();
        assert_eq!(later, Observed { stable: 5.0, panic: 0.0 });
    }

    #[test]
    fn silence_is_zero_when_only_the_activator_reports() {
        let collector = Collector::default();
        let key = ObjectKey::new("default", "hello-00001");
        assert_eq!(collector.observe(&key, ScalingMetric::Concurrency, NOW), Err(Error::NotCollecting));
        collector.ensure(&key, settings(""), NOW);
        let nothing = Observed { stable: 0.0, panic: 0.0 };
        assert_eq!(collector.observe(&key, ScalingMetric::Concurrency, NOW), Ok(nothing));
    }
}
