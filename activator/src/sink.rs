//! The WebSocket to the autoscaler.
//!
//! It is kept open for good: any error, or a close from the other side, means to connect again, at once the first
//! time and then with growing pauses. What could not be sent meanwhile is stale; instead the first message on a new
//! connection says what is in flight now, so that a revision which waits to be woken is never forgotten.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use proto::{Message as _, WireStatMessages};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Bytes, Message},
};

const HANDSHAKE: Duration = Duration::from_secs(3);
const PING: Duration = Duration::from_nanos(3_333_333_333);
const SILENCE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(5);
const GROWTH: f64 = 1.3;
/// Messages that may wait for the connection's task.
const BACKLOG: usize = 1000;

/// Where reports go. Clones are the same connection.
#[derive(Clone)]
pub(crate) struct Sink {
    messages: mpsc::Sender<WireStatMessages>,
    status: Arc<Status>,
}

/// Whether the autoscaler is reachable.
#[derive(Debug, Default)]
pub(crate) struct Status {
    connected: AtomicBool,
    ever: AtomicBool,
    errors: AtomicU64,
}

/// The other end of a [`Sink`].
pub(crate) struct Connection {
    address: String,
    messages: mpsc::Receiver<WireStatMessages>,
    status: Arc<Status>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    WebSocket(#[from] tokio_tungstenite::tungstenite::Error),
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("closed by the autoscaler")]
    Closed,
}

/// A sink that sends to `url` (`ws://host:port`), and the connection to run for it.
pub(crate) fn new(url: &str) -> (Sink, Connection) {
    let (sender, messages) = mpsc::channel(BACKLOG);
    let status = Arc::new(Status::default());
    let address = url.trim_start_matches("ws://").split('/').next().unwrap_or_default().to_owned();
    (Sink { messages: sender, status: status.clone() }, Connection { address, messages, status })
}

// === impl Sink ===

impl Sink {
    /// Hands a report over without waiting.
    pub(crate) fn send(&self, message: WireStatMessages) {
        if self.messages.try_send(message).is_err() {
            tracing::debug!("the autoscaler takes no reports at the moment; one was dropped");
        }
    }

    pub(crate) fn status(&self) -> &Arc<Status> {
        &self.status
    }
}

// === impl Status ===

impl Status {
    pub(crate) fn connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// Whether there ever was a connection.
    pub(crate) fn ever_connected(&self) -> bool {
        self.ever.load(Ordering::Acquire)
    }

    /// Connections that failed or broke.
    pub(crate) fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }
}

// === impl Connection ===

impl Connection {
    /// Stays connected. `snapshot` gives the first message of every connection.
    pub(crate) async fn run(mut self, snapshot: impl Fn() -> WireStatMessages) {
        let mut pause = FIRST_PAUSE;
        loop {
            let started = Instant::now();
            let ended = match self.connect().await {
                Ok(socket) => {
                    self.status.connected.store(true, Ordering::Release);
                    self.status.ever.store(true, Ordering::Release);
                    tracing::info!(autoscaler = self.address, "connected");
                    let first = self.first_message(&snapshot);
                    let ended = self.serve(socket, first).await;
                    self.status.connected.store(false, Ordering::Release);
                    pause = FIRST_PAUSE;
                    ended
                }
                Err(error) => error,
            };
            self.status.errors.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(autoscaler = self.address, error = %ended, "no connection");
            if started.elapsed() < pause {
                sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
                pause = pause.mul_f64(GROWTH).min(LAST_PAUSE);
            }
        }
    }

    /// What is queued is stale, and the snapshot, taken afterwards, replaces it.
    pub(crate) fn first_message(&mut self, snapshot: impl Fn() -> WireStatMessages) -> WireStatMessages {
        while self.messages.try_recv().is_ok() {}
        snapshot()
    }

    /// The next message for a connection that is open.
    #[cfg(test)]
    pub(crate) async fn next_message(&mut self) -> Option<WireStatMessages> {
        self.messages.recv().await
    }

    async fn connect(&self) -> Result<WebSocketStream<TcpStream>, Ended> {
        let work = async {
            let stream = TcpStream::connect(&self.address).await?;
            stream.set_nodelay(true)?;
            let url = format!("ws://{}/", self.address);
            let (socket, _) = tokio_tungstenite::client_async(url, stream).await?;
            Ok(socket)
        };
        timeout(HANDSHAKE, work).await.unwrap_or(Err(Ended::Silent(HANDSHAKE)))
    }

    async fn serve(&mut self, mut socket: WebSocketStream<TcpStream>, snapshot: WireStatMessages) -> Ended {
        let mut pings = interval(PING);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut next = (!snapshot.messages.is_empty()).then_some(snapshot);
        loop {
            if let Some(message) = next.take()
                && let Err(error) = socket.send(Message::Binary(Bytes::from(message.encode_to_vec()))).await
            {
                return error.into();
            }
            tokio::select! {
                message = self.messages.recv() => match message {
                    Some(message) => next = Some(message),
                    None => std::future::pending().await,
                },
                received = socket.next() => match received {
                    Some(Ok(Message::Pong(_))) => heard = Instant::now(),
                    Some(Ok(Message::Close(_))) | None => return Ended::Closed,
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return error.into(),
                },
                _ = pings.tick() => {
                    if heard.elapsed() > SILENCE {
                        return Ended::Silent(SILENCE);
                    }
                    if let Err(error) = socket.send(Message::Ping(Bytes::new())).await {
                        return error.into();
                    }
                }
            }
        }
    }
}
