//! Admission to the pods of one revision: which request runs where, and who waits.
//!
//! A request takes a slot of a pod that has one free: any number for a revision without containerConcurrency, exactly
//! that many otherwise. If there is none it waits, in order of arrival. Taking and giving back a slot touch only the
//! pod's counter; the lock is for waiting, for waking who waits, and for changes of the pods.
//!
//! A slot belongs to its pod. When a pod goes away its slots go with it, so that a request that hangs there takes
//! nothing from the others.
//!
//! No waiter is missed: a request announces itself (`waiting`) before it looks for a slot the last time, and a slot
//! is given back before `waiting` is looked at.

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

pub(crate) use self::pod::Pod;

/// Why a request may not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("pending request queue full")]
    QueueFull,
    #[error("the revision was deleted")]
    Gone,
}

/// How many requests may wait, in all revisions together.
#[derive(Debug)]
pub(crate) struct QueueLimit {
    pub(crate) per_revision: usize,
    pub(crate) total: usize,
    pub(crate) waiting: AtomicUsize,
}

/// Clones are the same throttler.
#[derive(Clone)]
pub(crate) struct Throttler {
    shared: Arc<Shared>,
}

struct Shared {
    pods: ArcSwap<Vec<Arc<Pod>>>,
    waiting: AtomicUsize,
    closed: AtomicBool,
    limit: Arc<QueueLimit>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    next: u64,
    waiters: BTreeMap<u64, oneshot::Sender<Lease>>,
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
    id: u64,
    shared: &'a Shared,
}

// === impl QueueLimit ===

impl QueueLimit {
    pub(crate) fn new(per_revision: usize, total: usize) -> Arc<Self> {
        Arc::new(Self { per_revision, total, waiting: AtomicUsize::new(0) })
    }
}

// === impl Throttler ===

impl Throttler {
    pub(crate) fn new(limit: Arc<QueueLimit>) -> Self {
        let shared = Shared {
            pods: ArcSwap::default(),
            waiting: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            limit,
            queue: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Waits for a slot, in order of arrival. Dropping the future leaves the queue at once.
    pub(crate) async fn acquire(&self) -> Result<Lease, Refused> {
        let shared = &self.shared;
        if shared.waiting.load(SeqCst) == 0
            && let Some(lease) = shared.reserve()
        {
            return Ok(lease);
        }
        match shared.enqueue()? {
            Ok(lease) => Ok(lease),
            Err(mut wait) => (&mut wait.granted).await.map_err(|_| Refused::Gone),
        }
    }

    /// Replaces the pods. Requests that wait go to them at once; those under way on a pod that is not among them
    /// finish there.
    pub(crate) fn set_pods(&self, pods: Vec<Arc<Pod>>) {
        let mut queue = self.shared.queue.lock();
        self.shared.pods.store(Arc::new(pods));
        self.shared.dispatch(&mut queue);
    }

    /// The revision is gone: nobody waits any more.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, SeqCst);
        let mut queue = self.shared.queue.lock();
        let waiters = std::mem::take(&mut queue.waiters);
        self.shared.waiting.fetch_sub(waiters.len(), SeqCst);
        self.shared.limit.waiting.fetch_sub(waiters.len(), SeqCst);
    }

    #[cfg(test)]
    pub(crate) fn pods(&self) -> Arc<Vec<Arc<Pod>>> {
        self.shared.pods.load_full()
    }

    /// Whether there is no pod at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.shared.pods.load().is_empty()
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.waiting.load(SeqCst)
    }
}

// === impl Shared ===

impl Shared {
    /// A slot of a pod that has one free.
    fn reserve(self: &Arc<Self>) -> Option<Lease> {
        let pods = self.pods.load();
        let pod = pod::choose(&pods)?;
        Some(Lease { pod, shared: self.clone() })
    }

    /// A slot after all, or else a place in the queue.
    fn enqueue(self: &Arc<Self>) -> Result<Result<Lease, Wait<'_>>, Refused> {
        let mut queue = self.queue.lock();
        if self.closed.load(SeqCst) {
            return Err(Refused::Gone);
        }
        let here = self.waiting.fetch_add(1, SeqCst);
        let total = self.limit.waiting.fetch_add(1, SeqCst);
        let leave = || {
            self.waiting.fetch_sub(1, SeqCst);
            self.limit.waiting.fetch_sub(1, SeqCst);
        };
        // Only the first in line may take a slot; others are behind someone who waits for it.
        if queue.waiters.is_empty()
            && let Some(lease) = self.reserve()
        {
            leave();
            return Ok(Ok(lease));
        }
        if here >= self.limit.per_revision || total >= self.limit.total {
            leave();
            return Err(Refused::QueueFull);
        }
        let id = queue.next;
        queue.next += 1;
        let (sender, granted) = oneshot::channel();
        queue.waiters.insert(id, sender);
        Ok(Err(Wait { _place: Place { id, shared: self }, granted }))
    }

    /// Gives free slots to those who wait longest.
    fn dispatch(self: &Arc<Self>, queue: &mut Queue) {
        while !queue.waiters.is_empty() {
            let Some(lease) = self.reserve() else { return };
            let (_, waiter) = queue.waiters.pop_first().expect("it is not empty");
            self.waiting.fetch_sub(1, SeqCst);
            self.limit.waiting.fetch_sub(1, SeqCst);
            if waiter.send(lease).is_err() {
                unreachable!("a waiter leaves the queue, under the lock, before its receiver goes");
            }
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
        if self.shared.waiting.load(SeqCst) > 0 {
            self.shared.dispatch(&mut self.shared.queue.lock());
        }
    }
}

// === impl Place ===

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.shared.queue.lock().waiters.remove(&self.id).is_some() {
            self.shared.waiting.fetch_sub(1, SeqCst);
            self.shared.limit.waiting.fetch_sub(1, SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::{Pin, pin},
        task::{Context, Poll},
    };

    use futures::task::noop_waker_ref;

    use super::*;

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(noop_waker_ref()))
    }

    fn pod(port: u16, concurrency: usize) -> Arc<Pod> {
        Pod::new(([127, 0, 0, 1], port).into(), concurrency)
    }

    fn throttler() -> Throttler {
        Throttler::new(QueueLimit::new(100, 1000))
    }

    fn port(lease: &Lease) -> u16 {
        lease.pod().address().port()
    }

    #[test]
    fn waiters_are_released_by_the_first_pod() {
        let throttler = throttler();
        let mut waiters: Vec<_> = (0..3).map(|_| Box::pin(throttler.acquire())).collect();
        assert!(waiters.iter_mut().all(|waiter| poll(waiter.as_mut()).is_pending()));
        throttler.set_pods(vec![pod(1, 0)]);
        assert!(waiters.iter_mut().all(|waiter| poll(waiter.as_mut()).is_ready()));
        assert_eq!(throttler.waiting(), 0);
    }

    #[test]
    fn concurrency_is_exact_and_slots_go_to_the_longest_waiter() {
        let throttler = throttler();
        throttler.set_pods(vec![pod(1, 1), pod(2, 1)]);
        let Poll::Ready(Ok(first)) = poll(pin!(throttler.acquire())) else { panic!("free") };
        let Poll::Ready(Ok(second)) = poll(pin!(throttler.acquire())) else { panic!("free") };
        assert_ne!(port(&first), port(&second));
        let mut third = Box::pin(throttler.acquire());
        let mut fourth = Box::pin(throttler.acquire());
        assert!(poll(third.as_mut()).is_pending() && poll(fourth.as_mut()).is_pending());
        drop(first);
        assert!(poll(pin!(throttler.acquire())).is_pending(), "the slot is taken");
        assert!(poll(fourth.as_mut()).is_pending());
        assert!(poll(third.as_mut()).is_ready());
    }

    #[test]
    fn who_leaves_is_out_at_once_even_with_a_slot_in_hand() {
        let throttler = throttler();
        throttler.set_pods(vec![pod(1, 1)]);
        let Poll::Ready(Ok(running)) = poll(pin!(throttler.acquire())) else { panic!("free") };
        let mut leaving = Box::pin(throttler.acquire());
        let mut staying = Box::pin(throttler.acquire());
        assert!(poll(leaving.as_mut()).is_pending() && poll(staying.as_mut()).is_pending());
        drop(running); // grants the slot to the one who leaves
        drop(leaving);
        assert!(poll(staying.as_mut()).is_ready());
        assert_eq!((throttler.waiting(), throttler.shared.limit.waiting.load(SeqCst)), (0, 0));
    }

    #[test]
    fn a_pod_that_goes_away_takes_its_slots_with_it() {
        let throttler = throttler();
        let (gone, stays) = (pod(1, 1), pod(2, 1));
        throttler.set_pods(vec![gone]);
        let Poll::Ready(Ok(hangs)) = poll(pin!(throttler.acquire())) else { panic!("free") };
        throttler.set_pods(vec![stays]);
        let Poll::Ready(Ok(other)) = poll(pin!(throttler.acquire())) else { panic!("the other pod is free") };
        assert_eq!((port(&hangs), port(&other)), (1, 2));
        let mut waiter = Box::pin(throttler.acquire());
        assert!(poll(waiter.as_mut()).is_pending());
        drop(hangs);
        assert!(poll(waiter.as_mut()).is_pending(), "the slot of a pod that is gone is no slot");
        drop(other);
        assert!(poll(waiter.as_mut()).is_ready());
    }

    #[test]
    fn the_queue_is_bounded_per_revision_and_in_total() {
        let limit = QueueLimit::new(2, 3);
        let (one, two) = (Throttler::new(limit.clone()), Throttler::new(limit.clone()));
        let mut waiters: Vec<_> = [&one, &one, &two].map(|throttler| Box::pin(throttler.acquire())).into();
        assert!(waiters.iter_mut().all(|waiter| poll(waiter.as_mut()).is_pending()));
        assert!(matches!(poll(pin!(one.acquire())), Poll::Ready(Err(Refused::QueueFull))));
        assert!(matches!(poll(pin!(two.acquire())), Poll::Ready(Err(Refused::QueueFull))));
        waiters.clear();
        assert_eq!(limit.waiting.load(SeqCst), 0);
    }

    #[test]
    fn nobody_waits_for_a_revision_that_is_gone() {
        let throttler = throttler();
        let mut waiter = Box::pin(throttler.acquire());
        assert!(poll(waiter.as_mut()).is_pending());
        throttler.close();
        assert!(matches!(poll(waiter.as_mut()), Poll::Ready(Err(Refused::Gone))));
        assert!(matches!(poll(pin!(throttler.acquire())), Poll::Ready(Err(Refused::Gone))));
        assert_eq!(throttler.waiting(), 0);
    }

    /// Threads take and return slots of few pods while pods come and go; nothing is exceeded, lost or stuck.
    #[test]
    fn slots_are_never_exceeded_or_lost_under_contention() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().expect("threads");
        runtime.block_on(async {
            let throttler = Throttler::new(QueueLimit::new(10_000, 10_000));
            let pods: Vec<_> = (1..=3).map(|port| pod(port, 2)).collect();
            throttler.set_pods(pods.clone());
            let requests: Vec<_> = (0..500)
                .map(|_| {
                    let throttler = throttler.clone();
                    tokio::spawn(async move {
                        for _ in 0..20 {
                            let lease = throttler.acquire().await.expect("room");
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
