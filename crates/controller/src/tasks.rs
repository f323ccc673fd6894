//! Owned background work: every spawn has a name, and shutting down waits for all of it.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// A group of background tasks that end together. Cheap to clone; clones are the same group.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
}

// === impl Tasks ===

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// A group that is cancelled with this one but can be shut down, and waited for, on its own.
    pub fn child(&self) -> Tasks {
        Tasks { tracker: TaskTracker::new(), token: self.token.child_token() }
    }

    /// Runs `future` until it ends or the group is cancelled, whichever is first: the future is dropped at its
    /// current await point on cancellation. Use [`Tasks::spawn_graceful`] for work that must finish by itself.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        let work = async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = future => {}
            }
        };
        self.tracker.spawn(work.instrument(tracing::debug_span!("task", name)));
    }

    /// Runs `future` to its end; it watches [`Tasks::token`] itself.
    pub fn spawn_graceful<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(future.instrument(tracing::debug_span!("task", name)));
    }

    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Cancels the group and waits until every task of it has ended.
    pub async fn shutdown(&self) {
        self.token.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}
