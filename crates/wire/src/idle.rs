//! One backend, and the connections to it that nobody's task looks after.
//!
//! That the backend has closed one is seen when it is taken out, from what the kernel has reported meanwhile, which
//! costs no system call.

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use net::{DialError, Idle, IdleLimits, Look};
use tokio::net::TcpStream;

const IDLE: Duration = Duration::from_secs(90);

/// Connections to one address.
pub struct Backend {
    address: SocketAddr,
    idle: Arc<Idle<TcpStream>>,
    /// Whether it is a sidecar, whose word it is that a request got no further (`K-Unsent`).
    pub(crate) sidecar: bool,
}

// === impl Backend ===

impl Backend {
    pub fn new(address: SocketAddr, max_idle: usize) -> Arc<Self> {
        let limits = IdleLimits::new(max_idle, max_idle, IDLE, 0);
        Arc::new(Self { address, idle: Arc::new(Idle::new(limits)), sidecar: false })
    }

    /// One of several sidecars, whose idle connections share `limits`.
    pub fn sidecar(address: SocketAddr, limits: &Arc<IdleLimits>) -> Arc<Self> {
        Arc::new(Self { address, idle: Arc::new(Idle::new(limits.clone())), sidecar: true })
    }

    /// One that was used before, as far as is known still open.
    pub(crate) fn idle(&self) -> Option<TcpStream> {
        // Readable means closed, or that something was sent which nobody asked for.
        self.idle.take(|stream| match stream.poll_read_ready(&mut Context::from_waker(Waker::noop())).is_pending() {
            true => Look::Take,
            false => Look::Close,
        })
    }

    pub(crate) async fn dial(&self) -> Result<TcpStream, DialError> {
        net::connect(self.address).await
    }

    pub(crate) fn give_back(&self, stream: TcpStream) {
        self.idle.keep(stream);
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backend({}, {} idle)", self.address, self.idle.kept())
    }
}
