//! A small HTTP program for the examples: answers with a greeting, honours PORT.
//!
//! It is what a user's container usually is, made as small as possible: it starts in about a millisecond, so a cold
//! start measured with it shows what the platform costs. HTTP/1.1 is read by hand to need nothing but tokio.
//!
//! `GET /` greets `TARGET` (default `World`). `?sleep=MS` waits, `?bloat=MB` holds that much memory for the request,
//! `/exit?code=N` ends the process. SIGTERM stops accepting, lets requests end, and exits with 0. Every answer says when
//! the process started and when its port was open (`x-started-at`, `x-listening-at`, microseconds since 1970), which
//! shows a cold start from the program's side.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Longest head (request line and headers) read before the connection is refused.
const MAX_HEAD: usize = 64 * 1024;

#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    query: String,
    keep_alive: bool,
    body: Body,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Length(u64),
    Chunked,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let started = micros();
    let port: u16 = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(8080);
    let target: Arc<str> = std::env::var("TARGET").unwrap_or_else(|_| "World".to_owned()).into();
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    println!("hello: listening on port {port}");
    let times: Arc<str> = format!("x-started-at: {started}\r\nx-listening-at: {}\r\n", micros()).into();

    let (draining, drained) = watch::channel(false);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let (target, times, drained) = (target.clone(), times.clone(), drained.clone());
                tokio::spawn(async move { let _ = serve(stream, &target, &times, drained).await; });
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    println!("hello: draining");
    drop(listener);
    drop(drained);
    let _ = draining.send(true);
    draining.closed().await;
    Ok(())
}

/// Microseconds since 1970.
fn micros() -> u128 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_micros())
}

/// Serves one connection until the client leaves it or the program drains between two requests.
async fn serve(stream: TcpStream, target: &str, times: &str, mut draining: watch::Receiver<bool>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let head = tokio::select! {
            head = read_head(&mut stream) => head?,
            _ = draining.wait_for(|draining| *draining) => return Ok(()),
        };
        let Some(request) = head.as_deref().and_then(parse) else {
            if head.is_some() {
                stream.get_mut().write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await?;
            }
            return Ok(());
        };
        discard(&mut stream, request.body).await?;
        let (status, body) = answer(&request, target).await;
        println!("{} {} {status}", request.method, request.path);
        let connection = if request.keep_alive && !*draining.borrow() { "keep-alive" } else { "close" };
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: {connection}\r\n{times}\r\n",
            body.len()
        );
        let mut reply = head.into_bytes();
        if request.method != "HEAD" {
            reply.extend_from_slice(body.as_bytes());
        }
        stream.get_mut().write_all(&reply).await?;
        if connection == "close" {
            return stream.get_mut().shutdown().await;
        }
    }
}

async fn answer(request: &Request, target: &str) -> (&'static str, String) {
    if let Some(milliseconds) = number(&request.query, "sleep") {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }
    if let Some(megabytes) = number(&request.query, "bloat") {
        // Written, not only reserved: the point is that the pages are really used.
        let held = vec![1u8; usize::try_from(megabytes).unwrap_or(0).saturating_mul(1 << 20)];
        let sum = held.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>();
        return ("200 OK", format!("Held {megabytes} MB ({sum} pages)\n"));
    }
    match request.path.as_str() {
        "/exit" => {
            let code = number(&request.query, "code").and_then(|code| i32::try_from(code).ok()).unwrap_or(1);
            println!("hello: asked to exit with {code}");
            std::process::exit(code);
        }
        "/healthz" => ("200 OK", "ok\n".to_owned()),
        _ => ("200 OK", format!("Hello {target}!\n")),
    }
}

fn number(query: &str, key: &str) -> Option<u64> {
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key)?.1.parse().ok()
}

/// The bytes up to and with the empty line; `None` when the client closed between requests.
async fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    loop {
        let before = head.len();
        let read = (&mut *stream).take((MAX_HEAD - before) as u64).read_until(b'\n', &mut head).await?;
        if read == 0 {
            return if before == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        if matches!(&head[before..], b"\r\n" | b"\n") {
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
    }
}

fn parse(head: &str) -> Option<Request> {
    let mut lines = head.lines();
    let mut first = lines.next()?.split_ascii_whitespace();
    let (method, target, version) = (first.next()?, first.next()?, first.next()?);
    let mut request = Request {
        method: method.to_owned(),
        path: String::new(),
        query: String::new(),
        keep_alive: version != "HTTP/1.0",
        body: Body::Length(0),
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    request.path = path.to_owned();
    request.query = query.to_owned();
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") && request.body != Body::Chunked {
            request.body = Body::Length(value.parse().ok()?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            request.body = Body::Chunked;
        } else if name.eq_ignore_ascii_case("connection") {
            request.keep_alive &= !value.eq_ignore_ascii_case("close");
        }
    }
    Some(request)
}

/// Reads the body away, so that the next request starts where it should.
async fn discard(stream: &mut BufReader<TcpStream>, body: Body) -> io::Result<()> {
    let mut sink = tokio::io::sink();
    match body {
        Body::Length(length) => {
            tokio::io::copy(&mut stream.take(length), &mut sink).await?;
        }
        Body::Chunked => loop {
            let mut size = String::new();
            stream.read_line(&mut size).await?;
            let size = size.trim().split(';').next().unwrap_or_default();
            let size = u64::from_str_radix(size, 16).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            if size == 0 {
                return read_head(stream).await.map(drop);
            }
            tokio::io::copy(&mut (&mut *stream).take(size + 2), &mut sink).await?;
        },
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_gives_path_query_and_body_kind() {
        let request = parse("POST /a?sleep=5&x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n").unwrap();
        assert_eq!((request.path.as_str(), request.body, request.keep_alive), ("/a", Body::Length(3), true));
        assert_eq!(number(&request.query, "sleep"), Some(5));
        let request = parse("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n").unwrap();
        assert_eq!((request.body, request.keep_alive), (Body::Chunked, false));
        assert_eq!(parse("nonsense\r\n\r\n"), None);
    }
}
