//! What queues tell about themselves, with the meaning of client-go's workqueue metrics.

use std::{sync::Arc, time::Duration};

use observe::{Counter, Histogram, LATENCY_SECONDS};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Key, Queue};

/// What a queue has done so far, and holds now.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Keys that wait in both lanes.
    pub depth: usize,
    pub adds: Counter,
    pub retries: Counter,
    /// Seconds between a key's first add and its handling.
    pub waits: Histogram,
    /// Seconds that handling took.
    pub handlings: Histogram,
    /// Of what is being handled, all times together.
    pub unfinished: Duration,
    /// And the longest of them.
    pub longest: Duration,
}

/// The queues of a process by the names of their controllers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Queues(Arc<Mutex<Vec<(&'static str, Queue)>>>);

#[derive(Debug)]
pub(super) struct Counts {
    pub(super) adds: Counter,
    pub(super) retries: Counter,
    pub(super) waits: Histogram,
    pub(super) handlings: Histogram,
}

// === impl Counts ===

impl Default for Counts {
    fn default() -> Self {
        let times = || Histogram::new(LATENCY_SECONDS);
        Self { adds: Counter::default(), retries: Counter::default(), waits: times(), handlings: times() }
    }
}

// === impl Queue ===

impl<K: Key> Queue<K> {
    pub fn figures(&self) -> Figures {
        let Counts { adds, retries, waits, handlings } = &self.shared.counts;
        let now = Instant::now();
        let state = self.shared.state.lock();
        let running = || state.handling.values().map(|since| now.duration_since(*since));
        Figures {
            depth: state.fast.len() + state.slow.len(),
            adds: adds.clone(),
            retries: retries.clone(),
            waits: waits.clone(),
            handlings: handlings.clone(),
            unfinished: running().sum(),
            longest: running().max().unwrap_or_default(),
        }
    }
}

// === impl Queues ===

impl Queues {
    pub(crate) fn add(&self, name: &'static str, queue: &Queue) {
        self.0.lock().push((name, queue.clone()));
    }

    pub fn figures(&self) -> Vec<(&'static str, Figures)> {
        self.0.lock().iter().map(|(name, queue)| (*name, queue.figures())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn times_are_those_of_waiting_and_of_handling() {
        let queue = Queue::<String>::new();
        let pass = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        queue.add("a".into());
        pass(3).await;
        queue.add("a".into());
        let first = queue.next().await;
        queue.add("b".into());
        pass(2).await;
        let second = queue.next().await;
        pass(5).await;
        let figures = queue.figures();
        assert_eq!((figures.depth, figures.adds.get(), figures.retries.get()), (0, 3, 0));
        assert_eq!((figures.unfinished, figures.longest), (Duration::from_secs(7 + 5), Duration::from_secs(7)));
        assert_eq!((figures.waits.count(), figures.waits.sum()), (2, 3.0 + 2.0));
        assert_eq!(figures.handlings.count(), 0);
        queue.finish(first, Ok(()));
        queue.finish(second, Err(crate::Error::retry("no")));
        let figures = queue.figures();
        assert_eq!((figures.handlings.count(), figures.handlings.sum()), (2, 12.0));
        assert_eq!((figures.unfinished, figures.retries.get()), (Duration::ZERO, 1));
    }
}
