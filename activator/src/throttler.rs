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
//! No waiter is missed: a request announces itself (`waiting`) before it looks for a slot the last time, and a slot
//! is given back before `waiting` is looked at.

#[cfg(test)]
mod interleaved;
mod limit;
mod pod;
mod pods;
#[cfg(test)]
mod tests;

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

use self::limit::Held;
pub use self::{limit::Bound, pod::Policy};
pub(crate) use self::{
    limit::QueueLimit,
    pod::{Endpoint, Link, Pod, Uid},
    pods::Pods,
};
use crate::preempt::{lock, point};

/// Why a request may not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("pending request queue full")]
    QueueFull,
    #[error("the revision was deleted")]
    Gone,
}

/// Clones are the same throttler.
#[derive(Clone)]
pub(crate) struct Throttler {
    shared: Arc<Shared>,
}

struct Shared {
    pods: ArcSwap<Pods>,
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
        loop {
            point();
            if shared.held.requests() > 0 {
                break;
            }
            let Some(lease) = shared.reserve() else { break };
            point();
            if lease.pod.is_open() {
                turn.returning = true;
                return Ok(lease);
            }
            // It was replaced meanwhile. Should it be back already, its slot is for who waits by now.
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
        self.shared.pods.store(Arc::new(pods.into()));
        self.shared.dispatch(&mut queue);
    }

    /// The same for what changes, in any order: pods that go, and pods that come.
    pub(crate) fn change_pods(&self, gone: &[Arc<Pod>], come: Vec<Arc<Pod>>) {
        let mut queue = lock(&self.shared.queue);
        let mut pods = Pods::clone(&self.shared.pods.load());
        queue.generation += 1;
        come.iter().for_each(|pod| pod.open(queue.generation));
        gone.iter().for_each(|pod| pod.close_before(queue.generation));
        for pod in gone {
            pods.remove(pod);
        }
        come.into_iter().for_each(|pod| pods.push(pod));
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
    pub(crate) fn pods(&self) -> Arc<Pods> {
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
        self.shared.held.requests()
    }
}

// === impl Shared ===

impl Shared {
    /// A slot of a pod that has one free. Who does not hold the lock looks afterwards whether the pod is still in use.
    fn reserve(self: &Arc<Self>) -> Option<Lease> {
        point();
        let pod = self.policy.choose(&self.pods.load(), &self.cursor)?;
        Some(Lease { pod, shared: self.clone() })
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
            self.grant(queue, lease);
        }
    }

    /// Gives the slot that became free at `pod` to who waits longest, wherever others are searched for.
    fn pass_on(self: &Arc<Self>, queue: &mut Queue, pod: &Arc<Pod>) {
        if queue.waiters.is_empty() || !pod.reserve() {
            return;
        }
        point();
        // Dropped, it would come back here.
        match pod.is_open() {
            true => self.grant(queue, Lease { pod: pod.clone(), shared: self.clone() }),
            false => pod.release(),
        }
    }

    fn grant(&self, queue: &mut Queue, lease: Lease) {
        let (_, waiter) = queue.waiters.pop_first().expect("it is not empty");
        self.leave(waiter.bytes);
        if waiter.granted.send(lease).is_err() {
            unreachable!("a waiter leaves the queue, under the lock, before its receiver goes");
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
        if self.shared.held.requests() > 0 {
            self.shared.pass_on(&mut lock(&self.shared.queue), &self.pod);
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
