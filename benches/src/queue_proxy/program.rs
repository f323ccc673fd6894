//! The user's program behind the proxies: `/12` answers with 12 bytes.

use std::{convert::Infallible, net::SocketAddr};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::load::Protocol;

pub(crate) const SMALL: usize = 12;
pub(crate) const LARGE: usize = 64 << 10;

pub(crate) struct Program {
    http1: SocketAddr,
    http2: SocketAddr,
}

// === impl Program ===

impl Program {
    pub(crate) async fn start() -> Result<Self> {
        let http1 = TcpListener::bind("127.0.0.1:0").await?;
        let http2 = TcpListener::bind("127.0.0.1:0").await?;
        let program = Self { http1: http1.local_addr()?, http2: http2.local_addr()? };
        tokio::spawn(async move {
            while let Ok((stream, _)) = http1.accept().await {
                tokio::spawn(serve_http1(stream));
            }
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = http2.accept().await {
                tokio::spawn(serve_http2(stream));
            }
        });
        Ok(program)
    }

    /// One that runs elsewhere, and speaks both.
    pub(crate) fn at(address: SocketAddr) -> Self {
        Self { http1: address, http2: address }
    }

    pub(crate) fn address(&self, protocol: Protocol) -> SocketAddr {
        match protocol {
            Protocol::Http1 => self.http1,
            Protocol::Http2 => self.http2,
        }
    }
}

/// As little as can be: requests have no body and come one at a time.
async fn serve_http1(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = |body: usize| {
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {body}\r\n\r\n");
        answer.push_str(&"x".repeat(body));
        answer
    };
    let (small, large) = (answer(SMALL), answer(LARGE));
    let mut buffer = vec![0; 16 << 10];
    let mut have = 0;
    loop {
        let read = stream.read(&mut buffer[have..]).await?;
        if read == 0 {
            return Ok(());
        }
        have += read;
        if buffer[..have].ends_with(b"\r\n\r\n") {
            let answer = if buffer.starts_with(b"GET /12 ") { &small } else { &large };
            stream.write_all(answer.as_bytes()).await?;
            have = 0;
        }
    }
}

async fn serve_http2(stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let (small, large) = (Bytes::from(vec![b'x'; SMALL]), Bytes::from(vec![b'x'; LARGE]));
    let service = service_fn(move |request: Request<Incoming>| {
        let body = if request.uri().path() == "/12" { small.clone() } else { large.clone() };
        async move { Ok::<_, Infallible>(Response::new(Full::new(body))) }
    });
    http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await?;
    Ok(())
}
