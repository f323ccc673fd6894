//! Runs the deciders: at once where an event can tell, every two seconds while there is something to watch over, and not at all
//! for a revision that sleeps.
//!
//! ```text
//! stat ----record----> windows --(asleep, or more than wanted pods carry)--> decide now --> changed
//! pod event ---------> watch over it: scrape each second, decide each other second ------> changed
//! no pods, none wanted --> the task ends, windows are freed
//! ```
//!
//! The two-second tick shapes the arithmetic (panic, delay window), it is not the reaction time: a request for a sleeping revision
//! is decided in the call that received its stat.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use controller::{ObjectKey, Tasks};
use parking_lot::{Mutex, RwLock};
use proto::Stat;
use tokio::time::{Duration, MissedTickBehavior, interval};

use crate::clock::Clock;
use crate::collector::Collector;
use crate::decider::{Decider, Decision, Inputs};
use crate::pods::Pods;
use crate::scraper::Scraper;

pub const SCRAPE_PERIOD: Duration = Duration::from_secs(1);
/// One decision per this many scrapes.
const SCRAPES_PER_DECISION: u32 = 2;

type Callback = Box<dyn Fn(&ObjectKey) + Send + Sync>;

/// Who is told what, by key of the revision.
pub struct Callbacks {
    /// The wanted scale, or the need for an activator, changed.
    pub decision_changed: Callback,
    /// Scrapes began to fail, or to succeed again.
    pub scrapes_changed: Callback,
}

/// All deciders of this process. Clones are the same set.
#[derive(Clone)]
pub struct MultiScaler {
    shared: Arc<Shared>,
}

/// What a [`MultiScaler`] works with.
pub struct Setup {
    pub tasks: Tasks,
    pub clock: Clock,
    pub collector: Arc<Collector>,
    pub pods: Pods,
    /// Port of the queue-proxies' figures.
    pub metrics_port: u16,
    /// Time between scrapes: [`SCRAPE_PERIOD`] but in tests.
    pub period: Duration,
    pub callbacks: Callbacks,
}

struct Shared {
    setup: Setup,
    scalers: RwLock<HashMap<ObjectKey, Arc<Scaler>>>,
}

struct Scaler {
    key: ObjectKey,
    scraper: Scraper,
    state: Mutex<State>,
}

struct State {
    decider: Decider,
    decision: Decision,
    /// A task watches over the revision.
    awake: bool,
    removed: bool,
}

// === impl MultiScaler ===

impl MultiScaler {
    pub fn new(setup: Setup) -> Self {
        MultiScaler { shared: Arc::new(Shared { setup, scalers: RwLock::default() }) }
    }

    /// Makes sure `key` is decided with `inputs`, and tells the latest decision.
    pub fn ensure(&self, key: &ObjectKey, inputs: Inputs) -> Decision {
        if let Some(scaler) = self.get(key) {
            let mut state = scaler.state.lock();
            if *state.decider.inputs() != inputs {
                state.decider.update(inputs);
                self.shared.watch_over(&scaler, &mut state);
            }
            return state.decision;
        }
        let decision = inputs.initial_decision();
        let ready = self.shared.setup.pods.counts(key).ready;
        let decider = Decider::new(inputs, self.shared.setup.clock.seconds(), ready);
        let scaler = Arc::new(Scaler {
            key: key.clone(),
            scraper: Scraper::new(self.shared.setup.tasks.clone(), self.shared.setup.metrics_port),
            state: Mutex::new(State { decider, decision, awake: false, removed: false }),
        });
        // Reconciles of one key never overlap, so nobody else can have created it meanwhile.
        self.shared.scalers.write().insert(key.clone(), scaler.clone());
        self.shared.watch_over(&scaler, &mut scaler.state.lock());
        decision
    }

    pub fn remove(&self, key: &ObjectKey) {
        if let Some(scaler) = self.shared.scalers.write().remove(key) {
            scaler.state.lock().removed = true;
        }
    }

    pub fn is_panicking(&self, key: &ObjectKey) -> bool {
        self.get(key).is_some_and(|scaler| scaler.state.lock().decider.is_panicking())
    }

    /// How many revisions cost wake-ups at the moment.
    pub fn awake(&self) -> usize {
        self.shared.scalers.read().values().filter(|scaler| scaler.state.lock().awake).count()
    }

    /// Takes in a report from an activator (or another autoscaler), and decides at once if it cannot wait.
    pub fn report(&self, key: &ObjectKey, stat: &Stat) {
        let now = if stat.timestamp == 0 { self.shared.setup.clock.seconds() } else { stat.timestamp };
        if !self.shared.setup.collector.record(key, stat, now) {
            tracing::debug!(%key, "dropping a stat of a revision that has no Metric (yet)");
            return;
        }
        if stat.average_concurrent_requests <= 0.0 {
            return;
        }
        let Some(scaler) = self.get(key) else { return };
        let mut state = scaler.state.lock();
        let carried = f64::from(state.decision.desired) * state.decider.inputs().target;
        let changed =
            if stat.average_concurrent_requests > carried { self.shared.decide(&scaler, &mut state) } else { false };
        self.shared.watch_over(&scaler, &mut state);
        drop(state);
        if changed {
            (self.shared.setup.callbacks.decision_changed)(key);
        }
    }

    /// A pod of the revision came or changed: there is something to watch over.
    pub fn pod_changed(&self, key: &ObjectKey) {
        if let Some(scaler) = self.get(key) {
            self.shared.watch_over(&scaler, &mut scaler.state.lock());
        }
    }

    fn get(&self, key: &ObjectKey) -> Option<Arc<Scaler>> {
        self.shared.scalers.read().get(key).cloned()
    }
}

// === impl Shared ===

impl Shared {
    /// One decision. True if somebody has to act on it.
    fn decide(&self, scaler: &Scaler, state: &mut State) -> bool {
        let now = self.setup.clock.seconds();
        let observed = match self.setup.collector.observe(&scaler.key, state.decider.inputs().metric, now) {
            Ok(observed) => observed,
            Err(error) => {
                tracing::trace!(key = %scaler.key, %error, "no decision");
                return false;
            }
        };
        let ready = self.setup.pods.counts(&scaler.key).ready;
        let decision = state.decider.decide(now, ready, observed);
        let changed = state.decision.differs(&decision);
        if changed {
            tracing::debug!(key = %scaler.key, ?observed, ready, ?decision, "decided");
        }
        state.decision = decision;
        changed
    }

    /// Starts the task that scrapes and decides periodically, unless it runs.
    fn watch_over(self: &Arc<Self>, scaler: &Arc<Scaler>, state: &mut State) {
        if state.awake || state.removed {
            return;
        }
        state.awake = true;
        self.setup.tasks.spawn("scaler", self.clone().run(scaler.clone()));
    }

    async fn run(self: Arc<Self>, scaler: Arc<Scaler>) {
        let mut ticks = interval(self.setup.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut scrape: Option<Pin<Box<dyn Future<Output = ()> + Send + '_>>> = None;
        let mut count = 0u32;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = async { scrape.as_mut().expect("guarded").await }, if scrape.is_some() => {
                    scrape = None;
                    continue;
                }
            }
            if scrape.is_none() {
                scrape = Some(Box::pin(self.scrape(&scaler)));
            }
            if count.is_multiple_of(SCRAPES_PER_DECISION) {
                let (changed, asleep) = {
                    let mut state = scaler.state.lock();
                    let changed = !state.removed && self.decide(&scaler, &mut state);
                    (changed, self.fall_asleep(&scaler, &mut state))
                };
                if changed {
                    (self.setup.callbacks.decision_changed)(&scaler.key);
                }
                if asleep {
                    return;
                }
            }
            count = count.wrapping_add(1);
        }
    }

    async fn scrape(&self, scaler: &Scaler) {
        let Some(collection) = self.setup.collector.get(&scaler.key) else { return };
        let settings = collection.settings();
        if settings.scrape_target.is_empty() {
            return;
        }
        let window = Duration::from_secs(settings.stable_seconds.into());
        let trouble = match scaler.scraper.scrape(&self.setup.pods, &scaler.key, window, self.setup.clock.now()).await {
            Ok(stat) => {
                if let Some(stat) = stat {
                    collection.record(&stat, self.setup.clock.seconds());
                }
                None
            }
            Err(error) => {
                tracing::debug!(key = %scaler.key, %error, "scrape failed; the next one is in a second");
                Some(error.to_string())
            }
        };
        if collection.note(trouble) {
            (self.setup.callbacks.scrapes_changed)(&scaler.key);
        }
    }

    /// Ends the watch if there is nothing to watch over: no pods, and nothing that could change the decision.
    fn fall_asleep(&self, scaler: &Scaler, state: &mut State) -> bool {
        let now = self.setup.clock.seconds();
        let collection = self.setup.collector.get(&scaler.key);
        // Without data there is no decision, except where the activator's silence means no requests.
        let no_data = collection
            .as_ref()
            .is_none_or(|collection| collection.is_empty(now) && !collection.settings().scrape_target.is_empty());
        let rests = state.removed || (!self.setup.pods.any(&scaler.key) && (state.decision.desired == 0 || no_data));
        if rests {
            state.awake = false;
            scaler.scraper.rest();
            if let Some(collection) = collection {
                collection.release(now);
            }
        }
        rests
    }
}

#[cfg(test)]
mod tests;
