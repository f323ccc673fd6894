//! Why the controllers could not start.

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
