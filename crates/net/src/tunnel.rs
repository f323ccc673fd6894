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
