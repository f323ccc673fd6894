//! Connections to one backend that nobody's task looks after.
//!
//! The last used is taken first, so that surplus ones grow old and are closed. That the backend has closed one is
//! seen when it is taken out, from what the kernel has reported meanwhile, which costs no system call.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Weak},
    task::{Context, Waker},
    time::Duration,
};

use net::DialError;
use parking_lot::Mutex;
use tokio::{net::TcpStream, time::Instant};

const IDLE: Duration = Duration::from_secs(90);

/// Idle connections to one address.
pub struct Backend {
    address: SocketAddr,
    max_idle: usize,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    stack: Vec<(TcpStream, Instant)>,
    reaping: bool,
}

// === impl Backend ===

impl Backend {
    pub fn new(address: SocketAddr, max_idle: usize) -> Arc<Self> {
        Arc::new(Self { address, max_idle, idle: Mutex::default() })
    }

    /// One that was used before, as far as is known still open.
    pub(crate) fn idle(&self) -> Option<TcpStream> {
        loop {
            let (stream, _) = self.idle.lock().stack.pop()?;
            // Readable means closed, or that something was sent which nobody asked for.
            if stream.poll_read_ready(&mut Context::from_waker(Waker::noop())).is_pending() {
                return Some(stream);
            }
        }
    }

    pub(crate) async fn dial(&self) -> Result<TcpStream, DialError> {
        net::connect(self.address).await
    }

    pub(crate) fn give_back(self: &Arc<Self>, stream: TcpStream) {
        let mut idle = self.idle.lock();
        if idle.stack.len() >= self.max_idle {
            return;
        }
        idle.stack.push((stream, Instant::now()));
        if !idle.reaping {
            idle.reaping = true;
            tokio::spawn(reap(Arc::downgrade(self)));
        }
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backend({}, {} idle)", self.address, self.idle.lock().stack.len())
    }
}

/// Closes what nobody used for long; ends with the last one, so that an idle process has no timer.
async fn reap(backend: Weak<Backend>) {
    loop {
        tokio::time::sleep(IDLE).await;
        let Some(backend) = backend.upgrade() else { return };
        let now = Instant::now();
        let mut idle = backend.idle.lock();
        idle.stack.retain(|(_, since)| now - *since < IDLE);
        if idle.stack.is_empty() {
            *idle = Idle::default();
            return;
        }
    }
}
