//! Admission to the pods of one revision: which request runs where, and who waits.
//!
//! A request takes a slot of a pod that has one free: any number for a revision without containerConcurrency, exactly
//! that many otherwise. If there is none it waits, in order of arrival. Taking and giving back a slot touch only the
//! pod's counter; the lock is for waiting, for waking who waits, and for changes of the pods.
//!
//! A slot belongs to its pod. When a pod goes away its slots go with it, so that a request that hangs there takes
//! nothing from the others. A request whose pod went away, or could not be reached, goes back to where it stood in
//! the queue, or to its head if it never waited.
//!
//! The queue is bounded in requests and in bytes. Within the total, a revision may hold a multiple of what is still
//! free: alone it gets most of the room, and however many it holds, there is room left for the others.
//!
//! No waiter is missed: a request announces itself (`waiting`) before it looks for a slot the last time, and a slot
//! is given back before `waiting` is looked at.

#[cfg(test)]
mod interleaved;
mod pod;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::oneshot;

pub use self::pod::Policy;
pub(crate) use self::pod::{Endpoint, Link, Pod};
use crate::preempt::{lock, point};

/// Why a request may not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("pending request queue full")]
    QueueFull,
    #[error("the revision was deleted")]
    Gone,
}

/// So many requests, or so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// For one revision, or for one pod.
    pub each: usize,
    /// For all together.
    pub total: usize,
}

/// What may wait, in all revisions together.
#[derive(Debug)]
pub(crate) struct QueueLimit {
    requests: Bound,
    bytes: Bound,
    all: Held,
}

/// What waits.
#[derive(Debug, Default)]
struct Held {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

/// How many times the free room one revision may hold.
const GREED: usize = 4;

/// Clones are the same throttler.
#[derive(Clone)]
pub(crate) struct Throttler {
    shared: Arc<Shared>,
}

struct Shared {
    pods: ArcSwap<Vec<Arc<Pod>>>,
    policy: Policy,
    cursor: AtomicUsize,
    held: Held,
    closed: AtomicBool,
    limit: Arc<QueueLimit>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    /// Counts the changes of the pods.
    generation: u64,
    /// The place behind everyone.
    last: i64,
    /// The place before everyone.
    first: i64,
    waiters: BTreeMap<i64, Waiter>,
}

struct Waiter {
    granted: oneshot::Sender<Lease>,
    bytes: usize,
}

/// A request as the queue sees it: what it takes, and where it stands, kept from one wait to the next.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    bytes: usize,
    /// Whether it had a slot before.
    returning: bool,
    place: Option<i64>,
}

/// The right to send one request to a pod.
#[must_use = "dropping the lease gives the slot back"]
pub(crate) struct Lease {
    pod: Arc<Pod>,
    shared: Arc<Shared>,
}

/// A wait. The place is declared, and so given up, before the receiver: nobody sends to a receiver that is gone.
struct Wait<'a> {
    _place: Place<'a>,
    granted: oneshot::Receiver<Lease>,
}

/// A place in the queue; leaves it when dropped.
struct Place<'a> {
    id: i64,
    shared: &'a Shared,
}

// === impl Refused ===

impl Refused {
    /// After how many seconds another try makes sense, if it does.
    pub(crate) fn retry_after(self) -> Option<u32> {
        match self {
            Self::QueueFull => Some(1),
            Self::Gone => None,
        }
    }
}

// === impl Bound ===

impl Bound {
    /// Whether a revision that holds `here` of the `all` that are held may add `more`.
    fn admits(&self, here: usize, all: usize, more: usize) -> bool {
        let free = self.total.saturating_sub(all);
        let share = free.saturating_mul(GREED).min(self.each);
        more <= free && here + more <= share
    }
}

// === impl Held ===

impl Held {
    fn add(&self, bytes: usize) {
        point();
        self.requests.fetch_add(1, SeqCst);
        self.bytes.fetch_add(bytes, SeqCst);
    }

    fn remove(&self, bytes: usize) {
        point();
        self.requests.fetch_sub(1, SeqCst);
        self.bytes.fetch_sub(bytes, SeqCst);
    }
}

// === impl QueueLimit ===

impl QueueLimit {
    pub(crate) fn new(requests: Bound, bytes: Bound) -> Arc<Self> {
        Arc::new(Self { requests, bytes, all: Held::default() })
    }

    /// Requests that wait, and their bytes.
    #[cfg(test)]
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.all.requests.load(SeqCst), self.all.bytes.load(SeqCst))
    }

    fn admits(&self, here: &Held, bytes: usize) -> bool {
        let load = |count: &AtomicUsize| count.load(SeqCst);
        self.requests.admits(load(&here.requests), load(&self.all.requests), 1)
            && self.bytes.admits(load(&here.bytes), load(&self.all.bytes), bytes)
    }
}

// === impl Turn ===

impl Turn {
    /// A request that takes so many bytes while it waits.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes, returning: false, place: None }
    }
}

// === impl Throttler ===

impl Throttler {
    pub(crate) fn new(limit: Arc<QueueLimit>, policy: Policy) -> Self {
        let shared = Shared {
            pods: ArcSwap::default(),
            policy,
            cursor: AtomicUsize::new(0),
            held: Held::default(),
            closed: AtomicBool::new(false),
            limit,
            queue: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Waits for a slot, in order of arrival. Dropping the future leaves the queue at once.
    ///
    /// The slot may be of a pod that goes away before the caller looks; see [`Pod::is_open`].
    pub(crate) async fn acquire(&self, turn: &mut Turn) -> Result<Lease, Refused> {
        let shared = &self.shared;
        point();
        if shared.held.requests.load(SeqCst) == 0
            && let Some(lease) = shared.reserve()
        {
            turn.returning = true;
            return Ok(lease);
        }
        let lease = match shared.enqueue(turn)? {
            Ok(lease) => lease,
            Err(mut wait) => (&mut wait.granted).await.map_err(|_| Refused::Gone)?,
        };
        turn.returning = true;
        Ok(lease)
    }

    /// Replaces the pods. Requests that wait go to them at once; those under way on a pod that is not among them
    /// finish there.
    pub(crate) fn set_pods(&self, pods: Vec<Arc<Pod>>) {
        let mut queue = lock(&self.shared.queue);
        let old = self.shared.pods.load_full();
        // Pods that stay are open all the time. Those that go are closed before they are out of sight: who takes a
        // slot of one looks afterwards whether it is still open.
        queue.generation += 1;
        pods.iter().for_each(|pod| pod.open(queue.generation));
        old.iter().for_each(|pod| pod.close_before(queue.generation));
        point();
        self.shared.pods.store(Arc::new(pods));
        self.shared.dispatch(&mut queue);
    }

    /// The revision is gone: nobody waits any more.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, SeqCst);
        let mut queue = lock(&self.shared.queue);
        for waiter in std::mem::take(&mut queue.waiters).into_values() {
            self.shared.leave(waiter.bytes);
        }
    }

    #[cfg(test)]
    pub(crate) fn pods(&self) -> Arc<Vec<Arc<Pod>>> {
        self.shared.pods.load_full()
    }

    /// Whether the pods have to be given in the order of their addresses.
    pub(crate) fn order_matters(&self) -> bool {
        matches!(self.shared.policy, Policy::FirstAvailable | Policy::RoundRobin)
    }

    /// Whether there is no pod at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.shared.pods.load().is_empty()
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.held.requests.load(SeqCst)
    }
}

// === impl Shared ===

impl Shared {
    /// A slot of a pod that has one free.
    fn reserve(self: &Arc<Self>) -> Option<Lease> {
        loop {
            point();
            let pods = self.pods.load();
            let pod = self.policy.choose(&pods, &self.cursor)?;
            point();
            if pod.is_open() {
                return Some(Lease { pod, shared: self.clone() });
            }
            // It was replaced meanwhile: look at the new ones.
            pod.release();
        }
    }

    /// A slot after all, or else a place in the queue.
    fn enqueue(self: &Arc<Self>, turn: &mut Turn) -> Result<Result<Lease, Wait<'_>>, Refused> {
        let mut queue = lock(&self.queue);
        if self.closed.load(SeqCst) {
            return Err(Refused::Gone);
        }
        // Who was let in once is not refused later.
        let admitted = turn.returning || self.limit.admits(&self.held, turn.bytes);
        self.held.add(turn.bytes);
        self.limit.all.add(turn.bytes);
        // Only the first in line may take a slot; others are behind someone who waits for it.
        let is_first = match (queue.waiters.first_key_value(), turn.place) {
            (None, _) => true,
            (Some((first, _)), Some(place)) => place < *first,
            (Some(_), None) => turn.returning,
        };
        if is_first && let Some(lease) = self.reserve() {
            self.leave(turn.bytes);
            return Ok(Ok(lease));
        }
        if !admitted {
            self.leave(turn.bytes);
            return Err(Refused::QueueFull);
        }
        let id = turn.place.unwrap_or_else(|| queue.place(turn.returning));
        turn.place = Some(id);
        let (sender, granted) = oneshot::channel();
        queue.waiters.insert(id, Waiter { granted: sender, bytes: turn.bytes });
        Ok(Err(Wait { _place: Place { id, shared: self }, granted }))
    }

    /// Gives free slots to those who wait longest.
    fn dispatch(self: &Arc<Self>, queue: &mut Queue) {
        while !queue.waiters.is_empty() {
            let Some(lease) = self.reserve() else { return };
            let (_, waiter) = queue.waiters.pop_first().expect("it is not empty");
            self.leave(waiter.bytes);
            if waiter.granted.send(lease).is_err() {
                unreachable!("a waiter leaves the queue, under the lock, before its receiver goes");
            }
        }
    }

    /// One less waits.
    fn leave(&self, bytes: usize) {
        self.held.remove(bytes);
        self.limit.all.remove(bytes);
    }
}

// === impl Queue ===

impl Queue {
    /// A place behind everyone, or before everyone.
    fn place(&mut self, first: bool) -> i64 {
        if first {
            self.first -= 1;
            self.first
        } else {
            self.last += 1;
            self.last
        }
    }
}

// === impl Lease ===

impl Lease {
    pub(crate) fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pod.release();
        point();
        if self.shared.held.requests.load(SeqCst) > 0 {
            self.shared.dispatch(&mut lock(&self.shared.queue));
        }
    }
}

// === impl Place ===

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(waiter) = lock(&self.shared.queue).waiters.remove(&self.id) {
            self.shared.leave(waiter.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        net::SocketAddr,
        pin::{Pin, pin},
        task::{Context, Poll},
    };

    use futures::task::noop_waker_ref;

    use super::*;

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(noop_waker_ref()))
    }

    fn pod(port: u16, concurrency: usize) -> Arc<Pod> {
        Pod::new(SocketAddr::from(([127, 0, 0, 1], port)).into(), concurrency, &Link::plain())
    }

    fn throttler() -> Throttler {
        Throttler::new(limit(100, 1000), Policy::default())
    }

    fn limit(each: usize, total: usize) -> Arc<QueueLimit> {
        QueueLimit::new(Bound { each, total }, Bound { each: 1 << 20, total: 1 << 20 })
    }

    async fn acquire(throttler: &Throttler) -> Result<Lease, Refused> {
        throttler.acquire(&mut Turn::new(100)).await
    }

    fn port(lease: &Lease) -> u16 {
        lease.pod().address().port()
    }

    #[test]
    fn waiters_are_released_by_the_first_pod() {
        let throttler = throttler();
        let mut waiters: Vec<_> = (0..3).map(|_| Box::pin(acquire(&throttler))).collect();
        assert!(waiters.iter_mut().all(|waiter| poll(waiter.as_mut()).is_pending()));
        throttler.set_pods(vec![pod(1, 0)]);
        assert!(waiters.iter_mut().all(|waiter| poll(waiter.as_mut()).is_ready()));
        assert_eq!(throttler.waiting(), 0);
    }

    #[test]
    fn concurrency_is_exact_and_slots_go_to_the_longest_waiter() {
        let throttler = throttler();
        throttler.set_pods(vec![pod(1, 1), pod(2, 1)]);
        let Poll::Ready(Ok(first)) = poll(pin!(acquire(&throttler))) else { panic!("free") };
        let Poll::Ready(Ok(second)) = poll(pin!(acquire(&throttler))) else { panic!("free") };
        assert_ne!(port(&first), port(&second));
        let mut third = Box::pin(acquire(&throttler));
        let mut fourth = Box::pin(acquire(&throttler));
        assert!(poll(third.as_mut()).is_pending() && poll(fourth.as_mut()).is_pending());
        drop(first);
        assert!(poll(pin!(acquire(&throttler))).is_pending(), "the slot is taken");
        assert!(poll(fourth.as_mut()).is_pending());
        assert!(poll(third.as_mut()).is_ready());
    }

    #[test]
    fn who_leaves_is_out_at_once_even_with_a_slot_in_hand() {
        let throttler = throttler();
        throttler.set_pods(vec![pod(1, 1)]);
        let Poll::Ready(Ok(running)) = poll(pin!(acquire(&throttler))) else { panic!("free") };
        let mut leaving = Box::pin(acquire(&throttler));
        let mut staying = Box::pin(acquire(&throttler));
        assert!(poll(leaving.as_mut()).is_pending() && poll(staying.as_mut()).is_pending());
        drop(running); // grants the slot to the one who leaves
        drop(leaving);
        assert!(poll(staying.as_mut()).is_ready());
        assert_eq!((throttler.waiting(), throttler.shared.limit.held()), (0, (0, 0)));
    }

    #[test]
    fn a_pod_that_goes_away_takes_its_slots_with_it() {
        let throttler = throttler();
        let (gone, stays) = (pod(1, 1), pod(2, 1));
        throttler.set_pods(vec![gone]);
        let Poll::Ready(Ok(hangs)) = poll(pin!(acquire(&throttler))) else { panic!("free") };
        throttler.set_pods(vec![stays]);
        let Poll::Ready(Ok(other)) = poll(pin!(acquire(&throttler))) else { panic!("the other pod is free") };
        assert_eq!((port(&hangs), port(&other)), (1, 2));
        let mut waiter = Box::pin(acquire(&throttler));
        assert!(poll(waiter.as_mut()).is_pending());
        drop(hangs);
        assert!(poll(waiter.as_mut()).is_pending(), "the slot of a pod that is gone is no slot");
        drop(other);
        assert!(poll(waiter.as_mut()).is_ready());
    }

    #[test]
    fn the_queue_is_bounded_per_revision_and_in_bytes() {
        let limit = limit(2, 100);
        let throttler = Throttler::new(limit.clone(), Policy::default());
        let mut waiters: Vec<_> = (0..2).map(|_| Box::pin(acquire(&throttler))).collect();
        assert!(waiters.iter_mut().all(|waiter| poll(waiter.as_mut()).is_pending()));
        assert!(matches!(poll(pin!(acquire(&throttler))), Poll::Ready(Err(Refused::QueueFull))));
        waiters.clear();
        assert_eq!(limit.held(), (0, 0));
        let mut large = Turn::new(1 << 21);
        assert!(matches!(poll(pin!(throttler.acquire(&mut large))), Poll::Ready(Err(Refused::QueueFull))));
        assert_eq!(limit.held(), (0, 0));
    }

    #[test]
    fn one_revision_cannot_take_all_the_room() {
        let limit = limit(1000, 1000);
        let (greedy, modest) =
            (Throttler::new(limit.clone(), Policy::default()), Throttler::new(limit, Policy::default()));
        let mut waiters = Vec::new();
        loop {
            let mut waiter = Box::pin(acquire(&greedy));
            if poll(waiter.as_mut()).is_ready() {
                break;
            }
            waiters.push(waiter);
        }
        assert_eq!(waiters.len(), 800);
        let mut other: Vec<_> = (0..100).map(|_| Box::pin(acquire(&modest))).collect();
        assert!(other.iter_mut().all(|waiter| poll(waiter.as_mut()).is_pending()));
    }

    #[test]
    fn who_comes_back_goes_to_the_head_of_the_queue() {
        let throttler = throttler();
        throttler.set_pods(vec![pod(1, 1)]);
        let mut turn = Turn::new(0);
        let Poll::Ready(Ok(lease)) = poll(pin!(throttler.acquire(&mut turn))) else { panic!("free") };
        let mut later = Box::pin(acquire(&throttler));
        assert!(poll(later.as_mut()).is_pending());
        throttler.set_pods(Vec::new());
        assert!(!lease.pod().is_open());
        drop(lease);
        let mut back = Box::pin(throttler.acquire(&mut turn));
        assert!(poll(back.as_mut()).is_pending());
        throttler.set_pods(vec![pod(2, 1)]);
        assert!(poll(later.as_mut()).is_pending());
        assert!(poll(back.as_mut()).is_ready());
    }

    #[test]
    fn nobody_waits_for_a_revision_that_is_gone() {
        let throttler = throttler();
        let mut waiter = Box::pin(acquire(&throttler));
        assert!(poll(waiter.as_mut()).is_pending());
        throttler.close();
        assert!(matches!(poll(waiter.as_mut()), Poll::Ready(Err(Refused::Gone))));
        assert!(matches!(poll(pin!(acquire(&throttler))), Poll::Ready(Err(Refused::Gone))));
        assert_eq!(throttler.waiting(), 0);
    }

    /// Threads take and return slots of few pods while pods come and go; nothing is exceeded, lost or stuck.
    #[test]
    fn slots_are_never_exceeded_or_lost_under_contention() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().expect("threads");
        runtime.block_on(async {
            let throttler = Throttler::new(limit(10_000, 100_000), Policy::default());
            let pods: Vec<_> = (1..=3).map(|port| pod(port, 2)).collect();
            throttler.set_pods(pods.clone());
            let requests: Vec<_> = (0..500)
                .map(|_| {
                    let throttler = throttler.clone();
                    tokio::spawn(async move {
                        for _ in 0..20 {
                            let lease = acquire(&throttler).await.expect("room");
                            assert!(lease.pod().in_flight() <= 2);
                            tokio::task::yield_now().await;
                        }
                    })
                })
                .collect();
            for round in 0..200 {
                let some = pods.iter().enumerate().filter(|(index, _)| round % 4 != *index).map(|(_, pod)| pod.clone());
                throttler.set_pods(some.collect());
                tokio::task::yield_now().await;
            }
            throttler.set_pods(pods.clone());
            for request in requests {
                request.await.expect("every request ran");
            }
            assert_eq!(throttler.waiting(), 0);
            assert!(pods.iter().all(|pod| pod.in_flight() == 0));
        });
    }
}
