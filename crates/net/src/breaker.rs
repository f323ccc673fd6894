//! Admission: so many at once, so many waiting, the rest refused.
//!
//! Slots are handed out in the order of arrival. A waiter that is dropped (its client went away) frees its place at
//! once, and one that was just granted a slot passes it on. The capacity can be changed while requests run: raising
//! it admits waiters immediately, lowering it takes effect as slots come back.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// The queue has no room; the text is what upstream puts into the 503.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("pending request queue full")]
pub struct QueueFull;

#[derive(Clone)]
pub struct Breaker {
    shared: Arc<Shared>,
}

struct Shared {
    slots: Semaphore,
    depth: usize,
    waiting: AtomicUsize,
    executing: AtomicUsize,
    /// Slots to withdraw as they come back, after the capacity was lowered below what is in use.
    debt: AtomicUsize,
    capacity: Mutex<usize>,
}

/// The right to run one request; dropping it lets the next one in.
#[must_use = "dropping the slot gives it back"]
pub struct Slot {
    shared: Arc<Shared>,
}

/// Keeps the count of waiters right when the wait is cancelled.
struct Waiting<'a>(&'a AtomicUsize);

// === impl Breaker ===

impl Breaker {
    /// The largest capacity; more than any process can use.
    pub const MAX_CAPACITY: usize = i32::MAX as usize;

    /// `depth` requests may wait besides the `capacity` that run.
    pub fn new(depth: usize, capacity: usize) -> Self {
        let capacity = capacity.min(Self::MAX_CAPACITY);
        let shared = Shared {
            slots: Semaphore::new(capacity),
            depth,
            waiting: AtomicUsize::new(0),
            executing: AtomicUsize::new(0),
            debt: AtomicUsize::new(0),
            capacity: Mutex::new(capacity),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Waits for a slot, in order of arrival. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// `QueueFull` at once if nobody may wait any more.
    pub async fn acquire(&self) -> Result<Slot, QueueFull> {
        if let Some(slot) = self.try_acquire() {
            return Ok(slot);
        }
        let shared = &*self.shared;
        if shared.waiting.fetch_add(1, Ordering::Relaxed) >= shared.depth {
            shared.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(QueueFull);
        }
        let waiting = Waiting(&shared.waiting);
        let permit = shared.slots.acquire().await.expect("the semaphore is never closed");
        permit.forget();
        let slot = self.slot();
        drop(waiting);
        Ok(slot)
    }

    /// A slot if one is free and nobody waits for it.
    pub fn try_acquire(&self) -> Option<Slot> {
        self.shared.slots.try_acquire().ok()?.forget();
        Some(self.slot())
    }

    /// Changes how many may run at once.
    pub fn resize(&self, capacity: usize) {
        let new = capacity.min(Self::MAX_CAPACITY);
        let mut old = self.shared.capacity.lock();
        if new > *old {
            let mut grow = new - *old;
            grow -= self.shared.repay(grow);
            self.shared.slots.add_permits(grow);
        } else {
            let shrink = *old - new;
            let withdrawn = self.shared.slots.forget_permits(shrink);
            self.shared.debt.fetch_add(shrink - withdrawn, Ordering::AcqRel);
        }
        *old = new;
    }

    pub fn capacity(&self) -> usize {
        *self.shared.capacity.lock()
    }

    /// Requests that run or wait.
    pub fn in_flight(&self) -> usize {
        self.executing() + self.waiting()
    }

    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    pub fn executing(&self) -> usize {
        self.shared.executing.load(Ordering::Relaxed)
    }

    fn slot(&self) -> Slot {
        self.shared.executing.fetch_add(1, Ordering::Relaxed);
        Slot { shared: self.shared.clone() }
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Breaker({} of {}, {} waiting)", self.executing(), self.capacity(), self.waiting())
    }
}

// === impl Shared ===

impl Shared {
    /// Pays back up to `available` slots of the debt; returns how many.
    fn repay(&self, available: usize) -> usize {
        if self.debt.load(Ordering::Acquire) == 0 {
            return 0;
        }
        let before = self
            .debt
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |debt| Some(debt.saturating_sub(available)))
            .expect("the update always has a value");
        before.min(available)
    }
}

// === impl Slot ===

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.executing.fetch_sub(1, Ordering::Relaxed);
        if self.shared.repay(1) == 0 {
            self.shared.slots.add_permits(1);
        }
    }
}

// === impl Waiting ===

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin, task::Poll};

    use futures::task::noop_waker_ref;

    use super::*;

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut std::task::Context::from_waker(noop_waker_ref()))
    }

    #[test]
    fn admits_capacity_queues_depth_refuses_the_rest() {
        let breaker = Breaker::new(1, 1);
        let slot = breaker.try_acquire().expect("one is free");
        let mut second = pin!(breaker.acquire());
        assert!(poll(second.as_mut()).is_pending());
        let mut third = pin!(breaker.acquire());
        assert!(matches!(poll(third.as_mut()), Poll::Ready(Err(QueueFull))));
        assert_eq!(breaker.in_flight(), 2);
        drop(slot);
        assert!(matches!(poll(second.as_mut()), Poll::Ready(Ok(_))));
    }

    #[test]
    fn a_cancelled_waiter_frees_its_place_and_passes_a_granted_slot_on() {
        let breaker = Breaker::new(2, 1);
        let slot = breaker.try_acquire().expect("one is free");
        let mut leaving = Box::pin(breaker.acquire());
        let mut staying = pin!(breaker.acquire());
        assert!(poll(leaving.as_mut()).is_pending());
        assert!(poll(staying.as_mut()).is_pending());
        drop(slot); // granted to the first waiter, which never looks at it
        drop(leaving);
        assert_eq!(breaker.waiting(), 1);
        assert!(matches!(poll(staying.as_mut()), Poll::Ready(Ok(_))));
    }

    #[test]
    fn shrinking_below_use_withdraws_slots_as_they_come_back() {
        let breaker = Breaker::new(10, 3);
        let slots: Vec<_> = (0..3).map(|_| breaker.try_acquire().expect("free")).collect();
        breaker.resize(1);
        drop(slots);
        let only = breaker.try_acquire();
        assert!(only.is_some());
        assert!(breaker.try_acquire().is_none());
    }

    #[test]
    fn growing_after_a_shrink_pays_the_debt_first() {
        let breaker = Breaker::new(10, 2);
        let slots = (breaker.try_acquire(), breaker.try_acquire());
        breaker.resize(0);
        breaker.resize(3);
        assert!(breaker.try_acquire().is_some());
        drop(slots);
        let all: Vec<_> = std::iter::from_fn(|| breaker.try_acquire()).collect();
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn growing_wakes_waiters_in_order() {
        let breaker = Breaker::new(10, 0);
        let mut first = pin!(breaker.acquire());
        let mut second = pin!(breaker.acquire());
        assert!(poll(first.as_mut()).is_pending());
        assert!(poll(second.as_mut()).is_pending());
        breaker.resize(1);
        assert!(breaker.try_acquire().is_none(), "the slot belongs to the first waiter");
        assert!(poll(second.as_mut()).is_pending());
        assert!(poll(first.as_mut()).is_ready());
    }

    /// Arrivals, cancels, ends and changes of capacity in any order, from fixed seeds.
    #[test]
    fn no_slot_is_lost_or_made_up_in_any_order_of_events() {
        use std::{
            pin::Pin,
            task::{Context, Poll, Waker},
        };
        type Waiting<'a> = Pin<Box<dyn Future<Output = Result<Slot, QueueFull>> + 'a>>;
        for seed in 1..=300_u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut below = |bound: usize| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state % bound.max(1) as u64) as usize
            };
            let (depth, mut capacity) = (below(6), 1 + below(4));
            let breaker = Breaker::new(depth, capacity);
            let mut waiting: Vec<Waiting<'_>> = Vec::new();
            let mut running: Vec<Slot> = Vec::new();
            let cx = &mut Context::from_waker(Waker::noop());
            for _ in 0..400 {
                match below(6) {
                    0 | 1 => {
                        let mut arrival: Waiting<'_> = Box::pin(breaker.acquire());
                        match arrival.as_mut().poll(cx) {
                            Poll::Ready(Ok(slot)) => running.push(slot),
                            Poll::Ready(Err(QueueFull)) => assert_eq!(waiting.len(), depth, "seed {seed}"),
                            Poll::Pending => waiting.push(arrival),
                        }
                    }
                    2 if !waiting.is_empty() => drop(waiting.swap_remove(below(waiting.len()))),
                    3 | 4 if !running.is_empty() => drop(running.swap_remove(below(running.len()))),
                    5 if below(4) == 0 => {
                        capacity = below(5);
                        breaker.resize(capacity);
                    }
                    _ => {}
                }
                let before = running.len();
                let mut still = Vec::new();
                for mut one in waiting {
                    match one.as_mut().poll(cx) {
                        Poll::Ready(Ok(slot)) => running.push(slot),
                        Poll::Ready(Err(QueueFull)) => panic!("seed {seed}: refused after it was let in"),
                        Poll::Pending => still.push(one),
                    }
                }
                waiting = still;
                assert!(running.len() <= capacity.max(before), "seed {seed}: {} run of {capacity}", running.len());
                assert!(
                    waiting.is_empty() || running.len() >= capacity,
                    "seed {seed}: a free slot and someone waiting"
                );
                assert_eq!((breaker.executing(), breaker.waiting()), (running.len(), waiting.len()), "seed {seed}");
            }
            drop((waiting, running));
            assert_eq!(breaker.in_flight(), 0, "seed {seed}");
            let all: Vec<_> = std::iter::from_fn(|| breaker.try_acquire()).collect();
            assert_eq!(all.len(), capacity, "seed {seed}");
        }
    }
}
