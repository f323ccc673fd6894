//! A subscription to the events of one resource: a backlog to replay, then what is committed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::mpsc;

use crate::event::Event;

/// How far a watcher may fall behind before it is dropped. It then resumes from the last revision it saw, so nothing is lost, and a client that
/// stopped reading cannot make the server keep its events for ever.
pub(crate) const CAPACITY: usize = 4096;

/// Events after that revision are no longer known; list again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {asked} ({oldest})")]
pub struct TooOld {
    pub asked: u64,
    pub oldest: u64,
}

pub struct Watch {
    pub(crate) backlog: VecDeque<Arc<Event>>,
    pub(crate) live: mpsc::Receiver<Arc<Event>>,
}

// === impl Watch ===

impl Watch {
    /// The next event in order of revisions; None when the watcher was too slow, or the resource or the store is gone.
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        match self.backlog.pop_front() {
            Some(event) => Some(event),
            None => self.live.recv().await,
        }
    }

    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Arc<Event>>> {
        match self.backlog.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None => self.live.poll_recv(context),
        }
    }

    /// An event that is already there. Everything committed before a revision was read is there after the read.
    pub fn try_next(&mut self) -> Option<Arc<Event>> {
        self.backlog.pop_front().or_else(|| self.live.try_recv().ok())
    }
}
