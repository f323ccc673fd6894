//! Counting what is in flight, and waiting until nothing is.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// A count of requests (tunnels included) that someone can wait on to become zero.
#[derive(Debug, Clone, Default)]
pub struct InFlight {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    current: AtomicUsize,
    started: AtomicU64,
    idle: Notify,
}

/// Counts one while it lives.
#[derive(Debug)]
pub struct InFlightGuard(Arc<Shared>);

// === impl InFlight ===

impl InFlight {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn enter(&self) -> InFlightGuard {
        self.shared.current.fetch_add(1, Ordering::AcqRel);
        self.shared.started.fetch_add(1, Ordering::Relaxed);
        InFlightGuard(self.shared.clone())
    }

    pub fn current(&self) -> usize {
        self.shared.current.load(Ordering::Acquire)
    }

    /// How many have ever started: unchanged means that nothing came in between.
    pub fn started(&self) -> u64 {
        self.shared.started.load(Ordering::Relaxed)
    }

    /// Completes at a moment when nothing is in flight.
    pub async fn idle(&self) {
        loop {
            let mut notified = std::pin::pin!(self.shared.idle.notified());
            notified.as_mut().enable();
            if self.current() == 0 {
                return;
            }
            notified.await;
        }
    }
}

// === impl InFlightGuard ===

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        if self.0.current.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn idle_waits_for_the_last_one() {
        let in_flight = InFlight::new();
        let guards = (in_flight.enter(), in_flight.enter());
        let waiting = tokio::spawn({
            let in_flight = in_flight.clone();
            async move { in_flight.idle().await }
        });
        drop(guards.0);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(guards.1);
        waiting.await.expect("no panic");
        assert_eq!((in_flight.current(), in_flight.started()), (0, 2));
    }
}
