//! What the requests that wait for a slot hold in memory, and a bound on it.
//!
//! The number of waiting requests is bounded by the breaker; here it is their bytes, so that requests with large heads
//! or bodies that are here already cannot fill the pod's memory. Counted is what the sidecar keeps of a request while
//! it waits; bodies that are still to come stay with the client until it is their turn.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http::Request;

/// What a waiting request holds besides its own bytes: its task and its place in the queue.
const PLACE: usize = 2 << 10;

/// The bound, and how much of it is taken. Clones share it.
#[derive(Clone)]
pub(crate) struct Pending {
    shared: Arc<Shared>,
}

struct Shared {
    limit: usize,
    held: AtomicUsize,
}

/// What one request holds, until it is dropped.
pub(crate) struct Held {
    shared: Arc<Shared>,
    bytes: usize,
}

/// There is no room; the text goes into the 503.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("pending request bytes full")]
pub(crate) struct NoRoom;

// === impl Pending ===

impl Pending {
    pub(crate) fn new(limit: usize) -> Self {
        Self { shared: Arc::new(Shared { limit, held: AtomicUsize::new(0) }) }
    }

    /// Takes room for a request of `bytes`.
    ///
    /// # Errors
    /// Others hold too much already.
    pub(crate) fn hold(&self, bytes: usize) -> Result<Held, NoRoom> {
        let bytes = bytes + PLACE;
        let take = |held: usize| held.checked_add(bytes).filter(|held| *held <= self.shared.limit);
        let taken = self.shared.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
        taken.map(|_| Held { shared: self.shared.clone(), bytes }).map_err(|_| NoRoom)
    }

    pub(crate) fn held(&self) -> usize {
        self.shared.held.load(Ordering::Acquire)
    }
}

// === impl Held ===

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.held.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// The bytes of a request's head.
pub(crate) fn head<B>(request: &Request<B>) -> usize {
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    request.uri().path_and_query().map_or(1, |path| path.as_str().len()) + fields.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_bounded_and_comes_back() {
        let pending = Pending::new(2 * PLACE + 100);
        let first = pending.hold(60).expect("room");
        assert_eq!(pending.hold(41).err(), Some(NoRoom));
        let second = pending.hold(40).expect("exactly as much as there is");
        assert_eq!(pending.hold(0).err(), Some(NoRoom));
        drop(first);
        assert!(pending.hold(60).is_ok());
        drop(second);
        assert_eq!(pending.held(), 0);
        assert_eq!(pending.hold(usize::MAX - PLACE).err(), Some(NoRoom));
    }
}
