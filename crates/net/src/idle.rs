//! Idle connections to one destination, and how many of them may be kept.
//!
//! The last used is taken first, so that surplus ones grow old and are closed. Each worker (see `Workers`) has its
//! own, since the one it uses again is one that its own thread drives.
//!
//! The limits are for connections that nobody needs. One that has just been used says nothing about that: a hundred
//! requests at once leave a hundred connections every few milliseconds, and those that are closed then are opened
//! again at once. So what exceeds a limit is closed when it has not been used for a second.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use crate::Workers;

/// How long ago a connection was used that may be closed because there are too many.
const SURPLUS: Duration = Duration::from_secs(1);

/// How many idle connections may be kept, for destinations that share a total.
pub struct IdleLimits {
    per_destination: usize,
    total: usize,
    /// How long any is kept.
    timeout: Duration,
    /// How many threads there are to use them.
    threads: usize,
    kept: AtomicUsize,
    destinations: Mutex<Destinations>,
    /// Something exceeds a limit.
    exceeded: Notify,
}

#[derive(Default)]
struct Destinations {
    all: Vec<Weak<dyn Sweep>>,
    /// Whether a task looks after them.
    tended: bool,
}

/// Idle connections to one destination.
pub struct Idle<T> {
    limits: Arc<IdleLimits>,
    kept: AtomicUsize,
    /// Whether the limits know of it.
    listed: AtomicBool,
    parts: std::sync::OnceLock<Box<[Part<T>]>>,
}

/// What is to become of an idle connection that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Take,
    /// It cannot be used yet.
    Leave,
    Close,
}

/// Those of one thread, the last used last.
type Part<T> = Mutex<Vec<(T, Instant)>>;

trait Sweep: Send + Sync {
    /// The times at which those that are kept were used, without order.
    fn used(&self, all: &mut Vec<Instant>);
    /// Closes those that were last used before `limit`.
    fn close_before(&self, limit: Instant);
    fn kept(&self) -> usize;
    /// None is kept: it has to be listed again when one is. False if one came meanwhile.
    fn unlist(&self) -> bool;
}

// === impl IdleLimits ===

impl IdleLimits {
    /// For `threads` workers; 0 where there are none.
    pub fn new(per_destination: usize, total: usize, timeout: Duration, threads: usize) -> Arc<Self> {
        Arc::new(Self {
            per_destination,
            total,
            timeout,
            threads,
            kept: AtomicUsize::new(0),
            destinations: Mutex::default(),
            exceeded: Notify::new(),
        })
    }

    /// How many are kept, for all destinations together.
    pub fn kept(&self) -> usize {
        self.kept.load(SeqCst)
    }

    /// How many threads there are to use them.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    fn list(self: &Arc<Self>, destination: Weak<dyn Sweep>) {
        let mut destinations = self.destinations.lock();
        destinations.all.push(destination);
        if !std::mem::replace(&mut destinations.tended, true) {
            tokio::spawn(self.clone().tend());
        }
    }

    /// Ends when nothing is kept, so that an idle process has no timer.
    async fn tend(self: Arc<Self>) {
        let mut exceeded = false;
        loop {
            if exceeded {
                sleep(SURPLUS).await;
            } else {
                tokio::select! {
                    () = sleep(self.timeout) => {}
                    () = self.exceeded.notified() => sleep(SURPLUS).await,
                }
            }
            let mut destinations = self.destinations.lock();
            destinations.all.retain(|destination| {
                let Some(destination) = destination.upgrade() else { return false };
                self.trim(&*destination);
                destination.kept() > 0 || !destination.unlist()
            });
            exceeded = self.trim_all(&destinations.all);
            if destinations.all.is_empty() {
                *destinations = Destinations::default();
                return;
            }
        }
    }

    /// Closes what is old, and what is too many for a destination and has not just been used.
    fn trim(&self, destination: &dyn Sweep) {
        let now = Instant::now();
        destination.close_before(now.checked_sub(self.timeout).unwrap_or(now));
        if destination.kept() > self.per_destination {
            let mut used = Vec::new();
            destination.used(&mut used);
            if let Some(limit) = oldest_kept(used, self.per_destination) {
                destination.close_before(limit.min(now - SURPLUS));
            }
        }
    }

    /// The same for all of them together. Whether something still exceeds its limit.
    fn trim_all(&self, all: &[Weak<dyn Sweep>]) -> bool {
        let destinations = || all.iter().filter_map(Weak::upgrade);
        if self.kept() > self.total {
            let mut used = Vec::new();
            destinations().for_each(|destination| destination.used(&mut used));
            if let Some(limit) = oldest_kept(used, self.total) {
                let limit = limit.min(Instant::now() - SURPLUS);
                destinations().for_each(|destination| destination.close_before(limit));
            }
        }
        self.kept() > self.total || destinations().any(|destination| destination.kept() > self.per_destination)
    }
}

impl fmt::Debug for IdleLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdleLimits({} each, {} in all, {} kept)", self.per_destination, self.total, self.kept())
    }
}

/// The time from which on the last `count` of these were; nothing if there are not so many.
fn oldest_kept(mut used: Vec<Instant>, count: usize) -> Option<Instant> {
    used.sort_unstable_by(|one, other| other.cmp(one));
    match count.checked_sub(1) {
        Some(last) => used.get(last).copied(),
        None => Some(Instant::now()),
    }
}

// === impl Idle ===

impl<T: Send + 'static> Idle<T> {
    pub fn new(limits: Arc<IdleLimits>) -> Self {
        let (kept, listed) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { limits, kept, listed, parts: std::sync::OnceLock::new() }
    }

    /// How many are kept.
    pub fn kept(&self) -> usize {
        self.kept.load(SeqCst)
    }

    /// The last used of this thread's that `look` takes.
    pub fn take(&self, mut look: impl FnMut(&mut T) -> Look) -> Option<T> {
        let mut part = self.parts.get()?[self.own()].lock();
        let mut index = part.len();
        while index > 0 {
            index -= 1;
            match look(&mut part[index].0) {
                Look::Leave => {}
                Look::Take => {
                    self.forget(1);
                    return Some(part.remove(index).0);
                }
                Look::Close => {
                    self.forget(1);
                    part.remove(index);
                }
            }
        }
        None
    }

    /// Keeps `connection` until it is taken or closed for one of the limits.
    pub fn keep(self: &Arc<Self>, connection: T) {
        if self.limits.per_destination == 0 || self.limits.total == 0 {
            return;
        }
        let parts = self.parts.get_or_init(|| (0..=self.limits.threads).map(|_| Part::default()).collect());
        parts[self.own()].lock().push((connection, Instant::now()));
        let here = self.kept.fetch_add(1, SeqCst) + 1;
        let all = self.limits.kept.fetch_add(1, SeqCst) + 1;
        if !self.listed.load(SeqCst) && !self.listed.swap(true, SeqCst) {
            let this: Weak<Self> = Arc::downgrade(self);
            self.limits.list(this);
        }
        if here == self.limits.per_destination + 1 || all == self.limits.total + 1 {
            self.limits.exceeded.notify_one();
        }
    }

    fn own(&self) -> usize {
        let own = Workers::current();
        if own > self.limits.threads { 0 } else { own }
    }

    fn forget(&self, count: usize) {
        self.kept.fetch_sub(count, SeqCst);
        self.limits.kept.fetch_sub(count, SeqCst);
    }
}

impl<T: Send + 'static> Sweep for Idle<T> {
    fn used(&self, all: &mut Vec<Instant>) {
        for part in self.parts.get().into_iter().flatten() {
            all.extend(part.lock().iter().map(|(_, used)| *used));
        }
    }

    fn close_before(&self, limit: Instant) {
        for part in self.parts.get().into_iter().flatten() {
            let old: Vec<_> = {
                let mut part = part.lock();
                let kept = part.partition_point(|(_, used)| *used < limit);
                let old = part.drain(..kept).collect();
                let room = part.len() * 2;
                part.shrink_to(room);
                old
            };
            self.forget(old.len());
        }
    }

    fn kept(&self) -> usize {
        Idle::kept(self)
    }

    fn unlist(&self) -> bool {
        self.listed.store(false, SeqCst);
        // One that is kept from now on lists it again; one that was kept before that may not have.
        self.kept() == 0 || self.listed.swap(true, SeqCst)
    }
}

impl<T> Drop for Idle<T> {
    fn drop(&mut self) {
        self.limits.kept.fetch_sub(self.kept.load(Relaxed), SeqCst);
    }
}

impl<T> fmt::Debug for Idle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Idle({})", self.kept.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(limits: &Arc<IdleLimits>) -> Arc<Idle<u32>> {
        Arc::new(Idle::new(limits.clone()))
    }

    const TIMEOUT: Duration = Duration::from_secs(90);

    #[tokio::test(start_paused = true)]
    async fn the_last_used_is_taken_first_and_old_ones_are_closed() {
        let limits = IdleLimits::new(10, 100, TIMEOUT, 0);
        let idle = destination(&limits);
        for number in 0..3 {
            idle.keep(number);
        }
        assert_eq!(idle.take(|number| if *number == 2 { Look::Close } else { Look::Take }), Some(1));
        assert_eq!((idle.kept(), limits.kept()), (1, 1));
        sleep(TIMEOUT * 3).await;
        assert_eq!((idle.kept(), limits.kept(), idle.take(|_| Look::Take)), (0, 0, None));
        // And looked after again.
        idle.keep(1);
        sleep(TIMEOUT * 3).await;
        assert_eq!(idle.kept(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_exceeds_a_limit_is_closed_unless_it_is_in_use() {
        let limits = IdleLimits::new(2, 3, TIMEOUT, 0);
        let (one, other) = (destination(&limits), destination(&limits));
        for number in 0..5 {
            one.keep(number);
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(one.kept(), 5, "it has only just been used");
        sleep(SURPLUS * 3).await;
        assert_eq!(one.kept(), 2);
        other.keep(0);
        other.keep(1);
        sleep(SURPLUS * 3).await;
        assert_eq!((one.kept(), other.kept(), limits.kept()), (1, 2, 3), "the oldest of all is closed");
        drop(other);
        assert_eq!(limits.kept(), 1);
        assert_eq!(one.take(|_| Look::Take), Some(4));
    }

    #[tokio::test(start_paused = true)]
    async fn many_at_once_do_not_close_each_others_connections() {
        let limits = IdleLimits::new(2, 3, TIMEOUT, 0);
        let idle = destination(&limits);
        (0..10).for_each(|number| idle.keep(number));
        for _ in 0..100 {
            sleep(SURPLUS / 10).await;
            let taken: Vec<_> = (0..10).map(|_| idle.take(|_| Look::Take).expect("still there")).collect();
            for number in taken {
                sleep(Duration::from_micros(1)).await;
                idle.keep(number);
            }
        }
        sleep(SURPLUS * 3).await;
        assert_eq!(idle.kept(), 2);
    }

    #[test]
    fn none_is_kept_where_none_may_be() {
        let idle = destination(&IdleLimits::new(0, 3, TIMEOUT, 0));
        idle.keep(1);
        assert_eq!(idle.take(|_| Look::Take), None);
    }
}
