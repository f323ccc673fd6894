//! Opening a connection.
//!
//! A refused connection is an answer and is reported at once: who called knows whether another backend, or a little
//! patience, is right. An attempt that gets no answer at all (the address is not routed yet, a SYN was lost) is
//! repeated with a growing time limit, because the kernel's own retry comes only after a second.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

const FIRST_TIMEOUT: Duration = Duration::from_millis(50);
const GROWTH: f64 = 1.4;
const ATTEMPTS: u32 = 15;

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("dial tcp {address}: connect: {}", reason(.source))]
    Failed { address: SocketAddr, source: io::Error },
    #[error("timed out dialing {address} after {seconds:.2}s")]
    TimedOut { address: SocketAddr, seconds: f64 },
}

/// What the system says, in the form upstream's runtime gives it: `connection refused`.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    if error.raw_os_error().is_none() {
        return text;
    }
    let mut text = text.split(" (os error").next().unwrap_or_default().to_owned();
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    text
}

/// Connects, without delaying small writes.
///
/// # Errors
/// The first answer that is not a connection; or that there was no answer in about 20 seconds.
pub async fn connect(address: SocketAddr) -> Result<TcpStream, DialError> {
    let started = Instant::now();
    let mut limit = FIRST_TIMEOUT;
    for _ in 0..ATTEMPTS {
        match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true).map_err(|source| DialError::Failed { address, source })?;
                return Ok(stream);
            }
            Ok(Err(source)) if source.kind() != io::ErrorKind::TimedOut => {
                return Err(DialError::Failed { address, source });
            }
            _ => limit = limit.mul_f64(GROWTH),
        }
    }
    Err(DialError::TimedOut { address, seconds: started.elapsed().as_secs_f64() })
}
