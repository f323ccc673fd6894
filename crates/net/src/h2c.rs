//! `Upgrade: h2c`: from HTTP/1.1 to HTTP/2 in the middle of a connection, as `curl --http2` asks for it.
//!
//! The request that asks becomes stream 1, which no HTTP/2 implementation at hand can be told. So the connection is
//! shown to it as if the client had spoken HTTP/2 from the start: the client's preface and settings, then the request
//! as frames made here, then what the client goes on to send.

use std::{io, pin::Pin};

use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{Prefixed, headers};

/// The largest body of a request that asks for the upgrade: it has to be here before the answer.
const MAX_BODY: usize = 1 << 20;
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What every implementation takes in one frame.
const FRAME: usize = 16 << 10;
const MAX_SETTINGS: usize = 4 << 10;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// True if the request asks for HTTP/2 in the form the standard had for it.
pub(crate) fn is_asked<B>(request: &Request<B>) -> bool {
    let map = request.headers();
    request.version() == http::Version::HTTP_11
        && headers::upgrade_token(map).is_some_and(|token| token.as_bytes().eq_ignore_ascii_case(b"h2c"))
        && headers::lists(map, &header::CONNECTION, "http2-settings")
        && map.get_all("http2-settings").iter().count() == 1
}

/// All of `body`, or nothing if it is too long or breaks off.
pub(crate) async fn whole<B: Body<Data = Bytes> + Unpin>(mut body: B) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        match frame {
            None => return Some(all),
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                if all.len() + data.len() > MAX_BODY {
                    return None;
                }
                all.extend_from_slice(&data);
            }
            Some(Err(_)) => return None,
        }
    }
}

/// The frames of stream 1.
pub(crate) fn frames<B>(request: &Request<B>, body: &[u8]) -> Vec<u8> {
    let uri = request.uri();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.authority().map(|authority| authority.as_str().as_bytes());
    let host = host.or_else(|| request.headers().get(header::HOST).map(header::HeaderValue::as_bytes));
    let mut block = Vec::new();
    field(&mut block, ":method", request.method().as_str().as_bytes());
    field(&mut block, ":scheme", b"http");
    field(&mut block, ":path", path.as_bytes());
    if let Some(host) = host {
        field(&mut block, ":authority", host);
    }
    let mut map: HeaderMap = request.headers().clone();
    headers::strip_hop_by_hop(&mut map);
    map.remove(header::HOST);
    for (name, value) in &map {
        field(&mut block, name.as_str(), value.as_bytes());
    }
    let mut out = Vec::new();
    let ends = if body.is_empty() { END_STREAM } else { 0 };
    frame(&mut out, HEADERS, END_HEADERS | ends, &block);
    let mut pieces = body.chunks(FRAME).peekable();
    while let Some(piece) = pieces.next() {
        frame(&mut out, DATA, if pieces.peek().is_none() { END_STREAM } else { 0 }, piece);
    }
    out
}

/// Reads how the client begins, and puts `first` behind it.
///
/// # Errors
/// The client does not speak HTTP/2, or left.
pub(crate) async fn begin<I: AsyncRead + Unpin>(mut io: I, first: Vec<u8>) -> io::Result<Prefixed<I>> {
    let mut seen = vec![0; PREFACE.len() + 9];
    io.read_exact(&mut seen).await?;
    let head = &seen[PREFACE.len()..];
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    if !seen.starts_with(PREFACE) || head[3] != SETTINGS || length > MAX_SETTINGS {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no HTTP/2 preface after the upgrade to it"));
    }
    let start = seen.len();
    seen.resize(start + length, 0);
    io.read_exact(&mut seen[start..]).await?;
    seen.extend_from_slice(&first);
    Ok(Prefixed::new(seen, io))
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
    out.extend_from_slice(payload);
}

/// A header in its plainest encoding: literal, not indexed, not compressed.
fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.push(0);
    for text in [name.as_bytes(), value] {
        length(out, text.len());
        out.extend_from_slice(text);
    }
}

/// An integer with a prefix of seven bits.
fn length(out: &mut Vec<u8>, value: usize) {
    let Some(mut rest) = value.checked_sub(127) else {
        out.push(value as u8);
        return;
    };
    out.push(127);
    while rest >= 128 {
        out.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_encoded_as_the_standard_shows() {
        let encoded = |value| {
            let mut out = Vec::new();
            length(&mut out, value);
            out
        };
        assert_eq!((encoded(10), encoded(126)), (vec![10], vec![126]));
        assert_eq!((encoded(127), encoded(1337)), (vec![127, 0], vec![127, 0b1011_1010, 9]));
    }

    #[test]
    fn only_a_complete_request_for_the_upgrade_is_one() {
        let asked = |lines: &[(&str, &str)]| {
            let mut request = Request::new(());
            for (name, value) in lines {
                request.headers_mut().append(
                    header::HeaderName::try_from(*name).expect("a name"),
                    header::HeaderValue::try_from(*value).expect("a value"),
                );
            }
            is_asked(&request)
        };
        let whole = [("upgrade", "h2c"), ("connection", "Upgrade, HTTP2-Settings"), ("http2-settings", "AAMAAABk")];
        assert!(asked(&whole));
        assert!(!asked(&whole[..2]));
        assert!(!asked(&[whole[0], ("connection", "Upgrade"), whole[2]]));
        assert!(!asked(&[("upgrade", "websocket"), whole[1], whole[2]]));
        assert!(!asked(&[whole[0], whole[1], whole[2], whole[2]]));
    }
}
