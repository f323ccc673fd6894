//! The sockets of the DNS server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use controller::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::names::Names;
use super::wire::Query;

/// A TCP connection without a question for this long is closed.
const IDLE: Duration = Duration::from_secs(10);
const MAX_CONNECTIONS: usize = 128;
const TCP_LIMIT: usize = 65535;

pub(super) async fn start(ctx: &Context, address: SocketAddr, names: Arc<Names>) -> std::io::Result<SocketAddr> {
    let (udp, tcp) = bind(address).await?;
    let (address, udp) = (udp.local_addr()?, Arc::new(udp));
    ctx.tasks.spawn("dns-udp", serve_udp(ctx.clone(), udp, names.clone()));
    ctx.tasks.spawn("dns-tcp", serve_tcp(ctx.clone(), tcp, names));
    Ok(address)
}

/// Both on one port. A free one that the system chose for UDP may be taken for TCP: then another is chosen.
async fn bind(address: SocketAddr) -> std::io::Result<(UdpSocket, TcpListener)> {
    let mut attempts = if address.port() == 0 { 16 } else { 1 };
    loop {
        let udp = UdpSocket::bind(address).await?;
        attempts -= 1;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if attempts == 0 => return Err(error),
            Err(_) => {}
        }
    }
}

async fn serve_udp(ctx: Context, socket: Arc<UdpSocket>, names: Arc<Names>) {
    let mut buffer = vec![0; 4096];
    loop {
        // Errors here are those of earlier sends to askers that went away.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let message = &buffer[..length];
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(malformed) => {
                if let Some(bytes) = malformed.encode() {
                    let _ = socket.send_to(&bytes, peer).await;
                }
                continue;
            }
        };
        if let Some(answer) = names.local(&query) {
            let _ = socket.send_to(&query.answer(&answer, query.limit), peer).await;
            continue;
        }
        let (socket, names, message) = (socket.clone(), names.clone(), message.to_vec());
        ctx.tasks.spawn("dns-forward", async move {
            let bytes = names.remote(&query, &message, query.limit, false).await;
            let _ = socket.send_to(&bytes, peer).await;
        });
    }
}

async fn serve_tcp(ctx: Context, listener: TcpListener, names: Arc<Names>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: some must close first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let names = names.clone();
        ctx.tasks.spawn("dns-connection", async move {
            let _ = serve_connection(stream, &names).await;
            drop(permit);
        });
    }
}

async fn serve_connection(mut stream: TcpStream, names: &Names) -> std::io::Result<()> {
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        let mut message = vec![0; usize::from(length)];
        timeout(IDLE, stream.read_exact(&mut message)).await??;
        let bytes = match Query::parse(&message) {
            Ok(query) => match names.local(&query) {
                Some(answer) => query.answer(&answer, TCP_LIMIT),
                None => names.remote(&query, &message, TCP_LIMIT, true).await,
            },
            Err(malformed) => match malformed.encode() {
                Some(bytes) => bytes,
                None => return Ok(()),
            },
        };
        let length = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
        let framed: Vec<u8> = length.to_be_bytes().into_iter().chain(bytes).collect();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
