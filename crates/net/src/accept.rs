//! Accepting connections, and letting go of them.
//!
//! Shutdown is graceful per connection: idle ones close at once, busy ones after their response (HTTP/1.1) or after
//! GOAWAY and their last stream (HTTP/2). Connections learn of it through a flag and their task's waker, which is
//! registered once; polling a connection touches nothing shared.

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    time::Duration,
};

use http::{Request, Response};
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Notify,
};

use crate::{Http, Incoming, ResponseBody};

/// The open connections of a server, and the way to end them.
#[derive(Clone, Default)]
pub struct Connections {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    closing: AtomicBool,
    open: AtomicUsize,
    next: AtomicUsize,
    /// By connection, so that one which ended leaves nothing behind.
    wakers: Mutex<std::collections::HashMap<usize, Waker>>,
    changed: Notify,
}

/// One connection's membership, until it is dropped.
pub struct Member {
    id: usize,
    shared: Arc<Shared>,
    state: State,
}

#[derive(PartialEq)]
enum State {
    New,
    Registered,
    Closing,
}

/// Binds a listening socket whose queue is as long as the kernel lets it be (`net.core.somaxconn`), like Go's: the
/// runtime's own limit makes the connections of a burst wait a second for their second try.
///
/// # Errors
/// Names the address and says what to do if it is taken.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    bind(address).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => ": stop what uses this port, or choose another",
            io::ErrorKind::PermissionDenied => ": ports below 1024 need privileges",
            io::ErrorKind::AddrNotAvailable => ": no interface has this address",
            _ => "",
        };
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{hint}"))
    })
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(u32::from(u16::MAX))
}

/// Accepts until `connections` are told to close. `handler` gets every request with its peer's address.
pub async fn serve<H, F, G>(listener: TcpListener, connections: Connections, handler: H)
where
    H: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<ResponseBody<G>>> + Send + 'static,
    G: Send + Unpin + 'static,
{
    let http = Http::new();
    accept(listener, connections.clone(), move |stream, peer| {
        let (http, connections, handler) = (http.clone(), connections.clone(), handler.clone());
        async move { http.serve(stream, peer, &connections, handler).await }
    })
    .await;
}

/// Accepts until `connections` are told to close; `each` is a task of its own for every connection.
pub async fn accept<C, F>(listener: TcpListener, connections: Connections, each: C)
where
    C: Fn(TcpStream, SocketAddr) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    accept_with(listener, connections, |stream, peer| drop(tokio::spawn(each(stream, peer)))).await;
}

/// Accepts until `connections` are told to close, and gives every connection to `take`.
pub(crate) async fn accept_with(
    listener: TcpListener,
    connections: Connections,
    mut take: impl FnMut(TcpStream, SocketAddr),
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.closing() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true);
                take(stream, peer);
            }
            // Out of file descriptors, most likely: those in use will be closed, so accept again soon.
            Err(error) if !is_peer_error(&error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(_) => {}
        }
    }
}

fn is_peer_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

// === impl Connections ===

impl Connections {
    pub fn new() -> Self {
        Self::default()
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Acquire)
    }

    /// Stops accepting and lets every connection end after what it is doing.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.changed.notify_waiters();
        let wakers = std::mem::take(&mut *self.shared.wakers.lock());
        for waker in wakers.into_values() {
            waker.wake();
        }
    }

    /// Completes when no connection is open.
    pub async fn closed(&self) {
        self.until(|| self.open() == 0).await;
    }

    async fn closing(&self) {
        self.until(|| self.shared.closing.load(Ordering::SeqCst)).await;
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            if condition() {
                return;
            }
            changed.await;
        }
    }

    /// Adds a connection.
    pub fn join(&self) -> Member {
        self.shared.open.fetch_add(1, Ordering::AcqRel);
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        Member { id, shared: self.shared.clone(), state: State::New }
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connections({} open)", self.open())
    }
}

// === impl Member ===

impl Member {
    /// True from when the connection is to close.
    pub fn is_closing(&self) -> bool {
        self.shared.closing.load(Ordering::SeqCst)
    }

    /// Another task polls it from now on.
    pub fn moved(&mut self) {
        if self.state == State::Registered {
            self.state = State::New;
        }
    }

    /// True once: when the connection is to close. Always polled by the same task.
    pub fn poll_closing(&mut self, cx: &mut Context<'_>) -> bool {
        if self.state == State::Closing {
            return false;
        }
        if self.state == State::New {
            self.shared.wakers.lock().insert(self.id, cx.waker().clone());
            self.state = State::Registered;
        }
        let closing = self.shared.closing.load(Ordering::SeqCst);
        if closing {
            self.state = State::Closing;
        }
        closing
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Member({})", self.id)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.shared.wakers.lock().remove(&self.id);
        if self.shared.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.changed.notify_waiters();
        }
    }
}
