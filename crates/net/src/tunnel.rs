//! Joining two connections after an upgrade (WebSocket).
//!
//! The time limits apply to a tunnel as far as they make sense there: it ends when the total limit is reached, when
//! the backend sends nothing at all within the response-start limit, and when nothing moves in either direction for
//! the idle limit. Upstream does not see the traffic of a tunnel and cuts active ones at each of the three.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::Limits;

/// When something last moved, as milliseconds since the tunnel's start.
#[derive(Debug)]
struct Activity {
    start: Instant,
    last: AtomicU64,
    backend_spoke: AtomicBool,
}

/// One side, noting what is read from it.
struct Side {
    io: TokioIo<Upgraded>,
    activity: Arc<Activity>,
    is_backend: bool,
}

/// Carries bytes both ways until both sides have ended, or a limit is reached. `guard` is dropped then.
pub(crate) async fn run<G>(client: OnUpgrade, backend: OnUpgrade, limits: Limits, deadline: Instant, guard: G) {
    let (client, backend) = match futures::future::try_join(client, backend).await {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "upgrade failed");
            return;
        }
    };
    let activity =
        Arc::new(Activity { start: Instant::now(), last: AtomicU64::new(0), backend_spoke: AtomicBool::new(false) });
    let side = |io, is_backend| Side { io: TokioIo::new(io), activity: activity.clone(), is_backend };
    let (mut client, mut backend) = (side(client, false), side(backend, true));
    tokio::select! {
        result = tokio::io::copy_bidirectional(&mut client, &mut backend) => {
            if let Err(error) = result {
                tracing::debug!(%error, "tunnel broke");
            }
        }
        () = expired(&activity, limits, deadline) => tracing::debug!("tunnel reached a time limit"),
    }
    drop(guard);
}

async fn expired(activity: &Activity, limits: Limits, deadline: Instant) {
    loop {
        let mut next = deadline;
        if let Some(limit) = limits.response_start
            && !activity.backend_spoke.load(Ordering::Relaxed)
        {
            next = next.min(activity.start + limit);
        }
        if let Some(limit) = limits.idle {
            let last = activity.start + Duration::from_millis(activity.last.load(Ordering::Relaxed));
            next = next.min(last + limit);
        }
        if next <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(next).await;
    }
}

// === impl Side ===

impl AsyncRead for Side {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let activity = &self.activity;
        activity.last.store(activity.start.elapsed().as_millis() as u64, Ordering::Relaxed);
        if self.is_backend {
            activity.backend_spoke.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Side {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Seconds until a tunnel ends in which something moves every `every` seconds, until `last`.
    async fn ends(limits: Limits, every: u64, last: u64, backend: bool) -> u64 {
        let start = Instant::now();
        let activity = Activity { start, last: AtomicU64::new(0), backend_spoke: AtomicBool::new(false) };
        let moving = async {
            for at in (every..=last).step_by(every as usize) {
                tokio::time::sleep_until(start + SECOND * at as u32).await;
                activity.last.store(at * 1000, Ordering::Relaxed);
                activity.backend_spoke.fetch_or(backend, Ordering::Relaxed);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = moving => {}
            () = expired(&activity, limits, start + limits.total) => {}
        }
        start.elapsed().as_secs()
    }

    fn limits(total: u32, response_start: Option<u32>, idle: Option<u32>) -> Limits {
        let [response_start, idle] = [response_start, idle].map(|limit| limit.map(|limit| SECOND * limit));
        Limits { total: SECOND * total, response_start, idle, message: "" }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_ends_when_nothing_moves_and_not_while_something_does() {
        let limits = limits(300, Some(20), Some(10));
        assert_eq!(ends(limits, 5, 100, true).await, 110);
        assert_eq!(ends(limits, 15, 15, true).await, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_has_to_speak_and_the_total_is_hard() {
        assert_eq!(ends(limits(300, Some(20), None), 5, 300, false).await, 20);
        assert_eq!(ends(limits(30, Some(20), Some(10)), 5, 300, true).await, 30);
    }
}
