//! Questions for somebody else: the host's resolvers, in turn.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::wire::{Query, Record, answers, parse_answer};

const PATIENCE: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;
/// Questions under way at a time; more are refused at once.
const MAX_UNDER_WAY: usize = 256;
const RESOLV_CONF: &str = "/etc/resolv.conf";

pub(super) struct Forwarder {
    resolvers: Vec<SocketAddr>,
    under_way: Semaphore,
}

/// The resolvers of the host, as its configuration names them.
pub(crate) fn host_resolvers() -> Vec<SocketAddr> {
    parse_resolv_conf(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default())
}

fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    lines
        .filter_map(|rest| Some(SocketAddr::new(rest.split_whitespace().next()?.parse::<IpAddr>().ok()?, 53)))
        .collect()
}

// === impl Forwarder ===

impl Forwarder {
    pub(super) fn new(resolvers: Vec<SocketAddr>) -> Self {
        Self { resolvers, under_way: Semaphore::new(MAX_UNDER_WAY) }
    }

    /// Passes a message on as it is; none if nobody answers in time.
    pub(super) async fn forward(&self, message: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let _permit = self.under_way.try_acquire().ok()?;
        for _ in 0..ATTEMPTS {
            for resolver in &self.resolvers {
                let exchange =
                    async { if tcp { over_tcp(*resolver, message).await } else { over_udp(*resolver, message).await } };
                match timeout(PATIENCE, exchange).await {
                    Ok(Ok(answer)) => return Some(answer),
                    Ok(Err(error)) => tracing::debug!(%resolver, %error, "resolver failed"),
                    Err(_) => tracing::debug!(%resolver, "resolver did not answer"),
                }
            }
        }
        None
    }

    /// Asks for the addresses of a name.
    pub(super) async fn lookup(&self, name: &str, kind: u16) -> Option<Vec<Record>> {
        let query = Query::new(fastrand::u16(..), name, kind)?.encode();
        let answer = self.forward(&query, false).await?;
        parse_answer(&answer).map(|(_, records)| records)
    }
}

async fn over_udp(resolver: SocketAddr, message: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: IpAddr =
        if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(message).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(&buffer[..length], message) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(resolver: SocketAddr, message: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(message.len()).map_err(std::io::Error::other)?;
    let framed: Vec<u8> = length.to_be_bytes().into_iter().chain(message.iter().copied()).collect();
    stream.write_all(&framed).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    if answers(&answer, message) { Ok(answer) } else { Err(std::io::Error::other("an answer to another question")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_of_the_host() {
        let text = "# by hand\nsearch x\nnameserver 10.0.0.1\n nameserver ::1 # local\nnameserver nonsense\n";
        let expected: Vec<SocketAddr> = vec!["10.0.0.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(parse_resolv_conf(text), expected);
    }
}
