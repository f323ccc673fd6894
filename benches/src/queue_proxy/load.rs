//! The client: closed loop (the next request follows the answer) or open loop (requests are due at fixed times, and
//! latency counts from when they were due, not from when the client got round to sending).

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    /// With prior knowledge.
    Http2,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) protocol: Protocol,
    pub(crate) connections: usize,
    /// Bytes of the answer.
    pub(crate) body: usize,
    /// Requests per second over all connections; none: closed loop.
    pub(crate) rate: Option<f64>,
    pub(crate) duration: Duration,
    /// Further header lines over HTTP/1, each with its end.
    pub(crate) fields: &'static str,
}

pub(crate) struct Figures {
    pub(crate) requests: usize,
    pub(crate) rate: f64,
    sorted: Vec<Duration>,
}

enum Connection {
    Http1 { stream: TcpStream, request: Vec<u8>, buffer: Vec<u8> },
    Http2 { sender: http2::SendRequest<Empty<Bytes>>, uri: String },
}

/// Runs one load to its end.
pub(crate) async fn run(load: Load, address: SocketAddr) -> Result<Figures> {
    let mut connections = Vec::new();
    for _ in 0..load.connections {
        let mut connection = Connection::open(load, address).await?;
        connection.ask(load.body).await?;
        connections.push(connection);
    }
    let started = Instant::now();
    let end = started + load.duration;
    let mut workers = tokio::task::JoinSet::new();
    for (index, mut connection) in connections.into_iter().enumerate() {
        workers.spawn(async move {
            let mut taken = Vec::new();
            for turn in 0.. {
                let due = match load.rate {
                    None => Instant::now(),
                    Some(rate) => {
                        let place = turn * load.connections + index;
                        let due = started + Duration::from_secs_f64(place as f64 / rate);
                        tokio::time::sleep_until(due.into()).await;
                        due
                    }
                };
                if due >= end {
                    break;
                }
                connection.ask(load.body).await?;
                taken.push(due.elapsed());
            }
            anyhow::Ok(taken)
        });
    }
    let mut sorted = Vec::new();
    while let Some(taken) = workers.join_next().await {
        sorted.extend(taken??);
    }
    ensure!(!sorted.is_empty(), "no request was answered");
    Ok(Figures::new(sorted, started.elapsed()))
}

/// The request over HTTP/1.1.
pub(crate) fn request(load: Load, address: SocketAddr) -> Vec<u8> {
    format!(
        "GET /{} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: bench\r\nX-Forwarded-For: 10.244.0.21\r\n\
         X-Forwarded-Proto: http\r\nX-Request-Id: ed3d289c-fa5a-4b44-8e57-0141eaf50cfd\r\n{}\r\n",
        load.body, load.fields
    )
    .into_bytes()
}

// === impl Connection ===

impl Connection {
    async fn open(load: Load, address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(match load.protocol {
            Protocol::Http1 => Self::Http1 { stream, request: request(load, address), buffer: vec![0; 128 << 10] },
            Protocol::Http2 => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .initial_stream_window_size(1 << 20)
                    .initial_connection_window_size(1 << 20)
                    .handshake(TokioIo::new(stream))
                    .await?;
                tokio::spawn(connection);
                Self::Http2 { sender, uri: format!("http://{address}/{}", load.body) }
            }
        })
    }

    /// One request and its whole answer.
    async fn ask(&mut self, body: usize) -> Result<()> {
        match self {
            Self::Http1 { stream, request, buffer } => {
                stream.write_all(request).await?;
                let mut have = 0;
                let mut need = None;
                while need.is_none_or(|need| have < need) {
                    let read = stream.read(&mut buffer[have..]).await?;
                    ensure!(read > 0, "the connection was closed instead of an answer");
                    have += read;
                    if need.is_none()
                        && let Some(head) = buffer[..have].windows(4).position(|window| window == b"\r\n\r\n")
                    {
                        ensure!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..head]));
                        need = Some(head + 4 + body);
                    }
                }
            }
            Self::Http2 { sender, uri } => {
                let request = Request::get(&**uri).body(Empty::<Bytes>::new())?;
                let response = sender.send_request(request).await.context("HTTP/2")?;
                if !response.status().is_success() {
                    bail!("status {}", response.status());
                }
                let received = response.into_body().collect().await?.to_bytes().len();
                ensure!(received == body, "{received} bytes of {body}");
            }
        }
        Ok(())
    }
}

// === impl Figures ===

impl Figures {
    /// Of the latencies of all requests, of which there is one at least, within `time`.
    pub(crate) fn new(mut latencies: Vec<Duration>, time: Duration) -> Self {
        latencies.sort_unstable();
        let requests = latencies.len();
        Self { requests, rate: requests as f64 / time.as_secs_f64(), sorted: latencies }
    }

    /// In seconds.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let rank = (share * self.sorted.len() as f64).ceil() as usize;
        self.sorted[rank.clamp(1, self.sorted.len()) - 1].as_secs_f64()
    }
}

// === impl Protocol ===

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Http1 => "h1",
            Self::Http2 => "h2c",
        })
    }
}
