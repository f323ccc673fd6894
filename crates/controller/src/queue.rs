//! The work queue of a controller, with client-go's semantics and without its clocks.
//!
//! A key is in the queue at most once and is never handled by two workers at a time; an add during its handling makes
//! it run once more afterwards. There are two lanes: changes and retries go first, global resyncs after them. Delays
//! cost one timer while something is delayed and nothing otherwise. A failing key backs off by itself (5 ms doubling
//! to 1,000 s); unlike upstream there is no shared token bucket, so one failing object never delays another.

mod figures;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::figures::Counts;
pub use self::figures::{Figures, Queues};
use crate::{Error, ObjectKey, Tasks};

const BACKOFF_BASE: Duration = Duration::from_millis(5);
const BACKOFF_CAP: Duration = Duration::from_secs(1000);

/// What a queue can hold: small values that name work.
pub trait Key: Clone + Eq + Ord + Hash + Debug + Display + Send + Sync + 'static {}
impl<T: Clone + Eq + Ord + Hash + Debug + Display + Send + Sync + 'static> Key for T {}

/// See the module documentation. Clones are the same queue.
#[derive(Debug)]
pub struct Queue<K = ObjectKey> {
    shared: Arc<Shared<K>>,
}

#[derive(Debug)]
struct Shared<K> {
    state: Mutex<State<K>>,
    wake: Notify,
    counts: Counts,
}

#[derive(Debug)]
struct State<K> {
    fast: VecDeque<K>,
    slow: VecDeque<K>,
    /// In one of the lanes, or to be put there when its handling ends; since when.
    dirty: HashMap<K, Instant>,
    /// Since when.
    handling: HashMap<K, Instant>,
    delayed: BinaryHeap<Reverse<(Instant, K)>>,
    /// The earliest wanted time of each delayed key; later entries in the heap are stale.
    due: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
}

// === impl Queue ===

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K: Key> Default for Queue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Key> Queue<K> {
    pub fn new() -> Self {
        let state = State {
            fast: VecDeque::new(),
            slow: VecDeque::new(),
            dirty: HashMap::new(),
            handling: HashMap::new(),
            delayed: BinaryHeap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), wake: Notify::new(), counts: Counts::default() }) }
    }

    /// Puts `key` in the fast lane unless it is waiting already.
    pub fn add(&self, key: K) {
        self.shared.counts.adds.increment();
        if self.shared.state.lock().add(key, false, Instant::now()) {
            self.shared.wake.notify_one();
        }
    }

    /// For resyncs of everything: handled when nothing else waits.
    pub fn add_slow(&self, key: K) {
        self.shared.counts.adds.increment();
        if self.shared.state.lock().add(key, true, Instant::now()) {
            self.shared.wake.notify_one();
        }
    }

    /// Adds `key` after `delay`; of several delays for one key the earliest counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay;
        {
            let mut state = self.shared.state.lock();
            if state.due.get(&key).is_some_and(|due| *due <= at) {
                return;
            }
            state.due.insert(key.clone(), at);
            state.delayed.push(Reverse((at, key)));
        }
        self.shared.wake.notify_one();
    }

    /// Adds `key` after its own back-off.
    pub fn add_rate_limited(&self, key: K) {
        self.shared.counts.retries.increment();
        let delay = {
            let mut state = self.shared.state.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            let delay = backoff(*failures);
            *failures = failures.saturating_add(1);
            delay
        };
        self.add_after(key, delay);
    }

    /// Starts the back-off of `key` from the beginning.
    pub fn forget(&self, key: &K) {
        self.shared.state.lock().failures.remove(key);
    }

    /// Keys waiting in both lanes.
    pub fn len(&self) -> usize {
        let state = self.shared.state.lock();
        state.fast.len() + state.slow.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Starts `workers` loops that handle keys until the task group is cancelled. A handler is dropped at its await
    /// point on cancellation.
    pub fn run<F, Fut>(&self, tasks: &Tasks, name: &'static str, workers: usize, handle: F)
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let handle = Arc::new(handle);
        for _ in 0..workers {
            let queue = self.clone();
            let handle = handle.clone();
            tasks.spawn(name, async move {
                loop {
                    let key = queue.next().await;
                    let result = handle(key.clone()).await;
                    queue.finish(key, result);
                }
            });
        }
    }

    /// The next key to handle; [`Queue::finish`] must follow. Cancel safe.
    pub async fn next(&self) -> K {
        loop {
            let wait = {
                let now = Instant::now();
                let mut state = self.shared.state.lock();
                state.promote(now);
                if let Some((key, waited)) = state.take(now) {
                    self.shared.counts.waits.observe(waited.as_secs_f64());
                    if !state.fast.is_empty() || !state.slow.is_empty() {
                        self.shared.wake.notify_one();
                    }
                    return key;
                }
                state.delayed.peek().map(|Reverse((at, _))| *at)
            };
            match wait {
                None => self.shared.wake.notified().await,
                Some(at) => {
                    tokio::select! {
                        () = self.shared.wake.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
            }
        }
    }

    /// Ends the handling of `key` and applies what its result asks for.
    pub fn finish(&self, key: K, result: Result<(), Error>) {
        let again = {
            let mut state = self.shared.state.lock();
            if let Some(since) = state.handling.remove(&key) {
                self.shared.counts.handlings.observe(since.elapsed().as_secs_f64());
            }
            let again = state.dirty.contains_key(&key);
            if again {
                state.fast.push_back(key.clone());
            }
            again
        };
        if again {
            self.shared.wake.notify_one();
        }
        match result {
            Ok(()) | Err(Error::Skip | Error::Permanent(_)) => self.forget(&key),
            Err(Error::RequeueAfter(delay)) => {
                self.forget(&key);
                self.add_after(key, delay);
            }
            Err(Error::Conflict(_) | Error::Retry(_)) => self.add_rate_limited(key),
        }
    }
}

fn backoff(failures: u32) -> Duration {
    BACKOFF_BASE.saturating_mul(2u32.saturating_pow(failures)).min(BACKOFF_CAP)
}

// === impl State ===

impl<K: Key> State<K> {
    /// Returns whether a worker should look.
    fn add(&mut self, key: K, slow: bool, now: Instant) -> bool {
        if self.dirty.contains_key(&key) {
            if !slow && let Some(at) = self.slow.iter().position(|waiting| *waiting == key) {
                self.slow.remove(at);
                self.fast.push_back(key);
            }
            return false;
        }
        self.dirty.insert(key.clone(), now);
        if self.handling.contains_key(&key) {
            return false;
        }
        if slow {
            self.slow.push_back(key)
        } else {
            self.fast.push_back(key)
        }
        true
    }

    /// What is next, and how long it has waited.
    fn take(&mut self, now: Instant) -> Option<(K, Duration)> {
        let key = self.fast.pop_front().or_else(|| self.slow.pop_front())?;
        let since = self.dirty.remove(&key).unwrap_or(now);
        self.handling.insert(key.clone(), now);
        Some((key, now.duration_since(since)))
    }

    fn promote(&mut self, now: Instant) {
        while let Some(Reverse((at, _))) = self.delayed.peek()
            && *at <= now
        {
            let Some(Reverse((at, key))) = self.delayed.pop() else { break };
            if self.due.get(&key) == Some(&at) {
                self.due.remove(&key);
                self.add(key, false, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> Queue<String> {
        Queue::new()
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_runs_again_when_added_while_handled() {
        let queue = queue();
        queue.add("a".into());
        queue.add("a".into());
        assert_eq!(queue.len(), 1);
        let key = queue.next().await;
        queue.add("a".into());
        assert_eq!(queue.len(), 0, "not handed out twice at a time");
        queue.finish(key, Ok(()));
        assert_eq!(queue.next().await, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn changes_go_before_resyncs_and_overtake_their_own() {
        let queue = queue();
        queue.add_slow("slow".into());
        queue.add_slow("both".into());
        queue.add("fast".into());
        queue.add("both".into());
        let mut order = Vec::new();
        for _ in 0..3 {
            let key = queue.next().await;
            order.push(key.clone());
            queue.finish(key, Ok(()));
        }
        assert_eq!(order, ["fast", "both", "slow"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_delay_counts() {
        let queue = queue();
        let start = Instant::now();
        queue.add_after("a".into(), Duration::from_secs(9));
        queue.add_after("a".into(), Duration::from_secs(3));
        queue.add_after("a".into(), Duration::from_secs(6));
        let key = queue.next().await;
        assert_eq!(start.elapsed(), Duration::from_secs(3));
        queue.finish(key, Ok(()));
        let again = tokio::time::timeout(Duration::from_secs(60), queue.next()).await;
        assert!(again.is_err(), "stale delays are dropped");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_by_key_and_success_forgets() {
        let queue = queue();
        let start = Instant::now();
        queue.add("a".into());
        for _ in 0..3 {
            let key = queue.next().await;
            queue.finish(key, Err(Error::retry("no")));
        }
        let key = queue.next().await;
        assert_eq!(start.elapsed(), Duration::from_millis(5 + 10 + 20));
        queue.finish(key, Ok(()));
        assert_eq!(backoff(30), BACKOFF_CAP);
        assert!(queue.shared.state.lock().failures.is_empty());
    }
}
