//! Why the controllers could not start, and how they tell what they could not do.

use std::fmt::Display;
use std::net::SocketAddr;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The DNS server's address is taken or not ours.
    #[error(
        "cannot serve DNS on {address}: {source}; free the address, make it local (ip route add local CIDR dev lo) or \
         start without cluster DNS"
    )]
    Dns { address: SocketAddr, source: std::io::Error },
}

/// Logs what ended the handling of a key early and is not part of the normal course.
pub(crate) fn told(
    controller: &'static str,
    key: &impl Display,
    result: Result<(), controller::Error>,
) -> Result<(), controller::Error> {
    match &result {
        Ok(()) | Err(controller::Error::Skip | controller::Error::RequeueAfter(_)) => {}
        Err(error @ controller::Error::Conflict(_)) => tracing::debug!(controller, %key, %error, "tried again"),
        Err(error) => tracing::warn!(controller, %key, %error, "not done; tried again"),
    }
    result
}
