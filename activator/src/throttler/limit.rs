//! What may wait, in requests and in bytes.
//!
//! Within the total, a revision may hold a multiple of what is still free: alone it gets most of the room, and however
//! many it holds, there is room left for the others.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use crate::preempt::point;

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
    pub(super) all: Held,
}

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Held {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

/// How many times the free room one revision may hold.
const GREED: usize = 4;

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
    pub(super) fn requests(&self) -> usize {
        self.requests.load(SeqCst)
    }

    pub(super) fn add(&self, bytes: usize) {
        point();
        self.requests.fetch_add(1, SeqCst);
        self.bytes.fetch_add(bytes, SeqCst);
    }

    pub(super) fn remove(&self, bytes: usize) {
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

    /// Whether a revision that holds `here` may add a request of so many bytes.
    pub(super) fn admits(&self, here: &Held, bytes: usize) -> bool {
        let load = |count: &AtomicUsize| count.load(SeqCst);
        self.requests.admits(load(&here.requests), load(&self.all.requests), 1)
            && self.bytes.admits(load(&here.bytes), load(&self.all.bytes), bytes)
    }
}
