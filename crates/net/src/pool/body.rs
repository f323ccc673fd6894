//! A backend's response body, holding its connection until the body has ended.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{Sender, Shared, http2::Exchange};
use crate::{ConnectionError, Incoming};

#[derive(Debug)]
pub struct PooledBody {
    incoming: Incoming,
    lease: Option<Lease>,
}

/// What goes back when the body ends. Dropped instead (the body was not read to its end), an HTTP/1.1 connection
/// closes.
pub(crate) enum Lease {
    Http1 { sender: Sender, pool: Arc<Shared> },
    Http2 { _exchange: Exchange },
}

// === impl PooledBody ===

impl PooledBody {
    pub(crate) fn new(incoming: Incoming, lease: Option<Lease>) -> Self {
        let mut body = Self { incoming, lease };
        body.release_at_end();
        body
    }

    fn release_at_end(&mut self) {
        if self.incoming.is_end_stream()
            && let Some(Lease::Http1 { sender, pool }) = self.lease.take()
        {
            pool.checkin(sender);
        }
    }
}

impl Body for PooledBody {
    type Data = Bytes;
    type Error = ConnectionError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ConnectionError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.incoming).poll_frame(cx));
        match &frame {
            Some(Ok(_)) => this.release_at_end(),
            Some(Err(_)) => this.lease = None,
            None => {
                if let Some(Lease::Http1 { sender, pool }) = this.lease.take() {
                    pool.checkin(sender);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

// === impl Lease ===

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http1 { .. } => "Http1",
            Self::Http2 { .. } => "Http2",
        })
    }
}
