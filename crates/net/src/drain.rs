//! Counting what is in flight, and waiting until nothing is.
//!
//! Every request counts, whatever it is for, so the count is spread over cells: a thread touches its own, and only who
//! asks for the count looks at all of them.

use std::sync::{
    Arc,
    atomic::{
        AtomicU64, AtomicUsize,
        Ordering::{Relaxed, SeqCst},
    },
};

use tokio::sync::Notify;

/// More than threads that serve, mostly.
const CELLS: usize = 8;

/// A count of requests (tunnels included) that someone can wait on to become zero.
#[derive(Debug, Clone)]
pub struct InFlight {
    cells: Arc<[Arc<Cell>; CELLS]>,
    signal: Arc<Signal>,
}

/// Two threads' cells are never in the same cache line.
#[derive(Debug)]
#[repr(align(128))]
struct Cell {
    entered: AtomicU64,
    left: AtomicU64,
    signal: Arc<Signal>,
}

#[derive(Debug, Default)]
struct Signal {
    /// How many wait for the count to become zero.
    waiting: AtomicUsize,
    left: Notify,
}

/// Counts one while it lives.
#[derive(Debug)]
pub struct InFlightGuard(Arc<Cell>);

/// One that waits.
struct Waiting<'a>(&'a Signal);

// === impl InFlight ===

impl Default for InFlight {
    fn default() -> Self {
        Self::new()
    }
}

impl InFlight {
    pub fn new() -> Self {
        let signal = Arc::<Signal>::default();
        let cell = |_| {
            let (entered, left) = (AtomicU64::new(0), AtomicU64::new(0));
            Arc::new(Cell { entered, left, signal: signal.clone() })
        };
        Self { cells: Arc::new(std::array::from_fn(cell)), signal }
    }

    pub fn enter(&self) -> InFlightGuard {
        let cell = &self.cells[own_cell()];
        cell.entered.fetch_add(1, SeqCst);
        InFlightGuard(cell.clone())
    }

    /// Zero only if there was a moment, during the call, at which nothing was in flight: whoever has left by the first
    /// look had entered by the second.
    pub fn current(&self) -> usize {
        let left: u64 = self.cells.iter().map(|cell| cell.left.load(SeqCst)).sum();
        usize::try_from(self.started() - left).unwrap_or(usize::MAX)
    }

    /// How many have ever started: unchanged means that nothing came in between.
    pub fn started(&self) -> u64 {
        self.cells.iter().map(|cell| cell.entered.load(SeqCst)).sum()
    }

    /// Completes at a moment when nothing is in flight.
    pub async fn idle(&self) {
        let _waiting = Waiting::begin(&self.signal);
        loop {
            let mut left = std::pin::pin!(self.signal.left.notified());
            left.as_mut().enable();
            if self.current() == 0 {
                return;
            }
            left.await;
        }
    }
}

/// The cell of this thread, the same for its life.
fn own_cell() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Relaxed) % CELLS;
    }
    OWN.with(|own| *own)
}

// === impl InFlightGuard ===

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.left.fetch_add(1, SeqCst);
        // Who waits has said so before it looked at the count.
        if self.0.signal.waiting.load(SeqCst) > 0 {
            self.0.signal.left.notify_waiters();
        }
    }
}

// === impl Waiting ===

impl<'a> Waiting<'a> {
    fn begin(signal: &'a Signal) -> Self {
        signal.waiting.fetch_add(1, SeqCst);
        Self(signal)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
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

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn idle_sees_the_last_one_leave_on_whatever_thread() {
        let in_flight = InFlight::new();
        for _ in 0..200 {
            let guards: Vec<_> = (0..8).map(|_| in_flight.enter()).collect();
            let leaving: Vec<_> = guards.into_iter().map(|guard| tokio::spawn(async move { drop(guard) })).collect();
            in_flight.idle().await;
            assert_eq!(in_flight.current(), 0);
            for task in leaving {
                task.await.expect("no panic");
            }
        }
        assert_eq!(in_flight.started(), 1600);
    }
}
