//! Heads of requests and responses: from the bytes of one connection to the bytes of the other, with no map of
//! headers between.
//!
//! A request is *plain* if it has no feature that needs more than this: complete, HTTP/1.1, no body or one of a
//! known length that is here already, no upgrade, no expectation, no probe. Everything else, invalid requests
//! included, is somebody else's to read, from its first byte; so being strict here costs nothing.

use std::mem::MaybeUninit;

use net::headers;

const MAX_REQUEST_HEADERS: usize = 64;
const MAX_RESPONSE_HEADERS: usize = 256;

/// A request that was rewritten for the next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plain {
    /// Bytes of the head as received; the body follows.
    pub(crate) head: usize,
    pub(crate) body: usize,
    /// `HEAD`: the answer has no body, whatever it says.
    pub(crate) bodiless: bool,
    /// May be sent twice.
    pub(crate) repeatable: bool,
    /// An activator counts it too.
    pub(crate) proxied: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    Partial,
    Plain(Plain),
    /// Not for us.
    Other,
}

/// How a response ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    /// With its connection.
    Close,
}

/// A response's head that was rewritten for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) head: usize,
    pub(crate) status: u16,
    pub(crate) framing: Framing,
    /// The backend's connection may carry another request afterwards.
    pub(crate) reusable: bool,
}

/// The backend's answer is not HTTP/1 as it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed HTTP response: {0}")]
pub(crate) struct Malformed(&'static str);

/// Looks at the request that `input` starts with; if it is plain, `out` becomes its head for the next hop. `peer` is
/// the address to add to `X-Forwarded-For`.
pub(crate) fn request(input: &[u8], peer: &str, out: &mut Vec<u8>) -> Incoming {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_REQUEST_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    let head = match parsed.parse_with_uninit_headers(input, &mut fields) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Incoming::Partial,
        Err(_) => return Incoming::Other,
    };
    let (Some(method), Some(path), Some(1)) = (parsed.method, parsed.path, parsed.version) else {
        return Incoming::Other;
    };
    if method == "CONNECT" || !path.starts_with('/') {
        return Incoming::Other;
    }
    let Some(seen) = Seen::look(parsed.headers) else { return Incoming::Other };
    let body = seen.length.unwrap_or(0);
    if input.len() - head < body {
        return Incoming::Other;
    }

    out.clear();
    for part in [method, " ", path, " HTTP/1.1\r\nHost: "] {
        out.extend_from_slice(part.as_bytes());
    }
    let original = seen.original_host.filter(|host| !host.is_empty());
    out.extend_from_slice(original.unwrap_or(seen.host));
    out.extend_from_slice(b"\r\n");
    for field in &*parsed.headers {
        if kind(field.name) == Kind::Copied {
            write_field(out, field.name, field.value);
        }
    }
    out.extend_from_slice(b"X-Forwarded-For: ");
    for field in parsed.headers.iter().filter(|field| kind(field.name) == Kind::ForwardedFor) {
        out.extend_from_slice(field.value);
        out.extend_from_slice(b", ");
    }
    out.extend_from_slice(peer.as_bytes());
    out.extend_from_slice(b"\r\n");
    if !seen.forwarded
        && let Some(made) =
            crate::forwarded::render(text(seen.forwarded_for), text(seen.proto), text(seen.forwarded_host))
    {
        write_field(out, "Forwarded", made.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    let repeatable = body == 0 && matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE");
    Incoming::Plain(Plain { head, body, bodiless: method == "HEAD", repeatable, proxied: seen.proxied })
}

/// Rewrites the response's head that `input` starts with into `out`; `None` if it is not complete. `date` is for
/// responses without one.
///
/// # Errors
/// What makes it unusable.
pub(crate) fn response(
    input: &[u8],
    bodiless: bool,
    date: &[u8],
    out: &mut Vec<u8>,
) -> Result<Option<Answer>, Malformed> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_RESPONSE_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let head = match config.parse_response_with_uninit_headers(&mut parsed, input, &mut fields) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Malformed("its head is invalid")),
    };
    let status = parsed.code.ok_or(Malformed("no status"))?;
    let (mut length, mut chunked, mut dated) = (None, false, false);
    let mut reusable = parsed.version == Some(1);
    let mut connection: Option<&[u8]> = None;
    for field in &*parsed.headers {
        match field.name.len() {
            4 => dated |= field.name.eq_ignore_ascii_case("date"),
            10 if field.name.eq_ignore_ascii_case("connection") => {
                reusable = !has_token(field.value, "close") && (reusable || has_token(field.value, "keep-alive"));
                connection = Some(field.value);
            }
            14 if field.name.eq_ignore_ascii_case("content-length") => {
                let value = digits(field.value).ok_or(Malformed("invalid Content-Length"))?;
                if length.is_some_and(|known| known != value) {
                    return Err(Malformed("several Content-Lengths"));
                }
                length = Some(value);
            }
            17 if field.name.eq_ignore_ascii_case("transfer-encoding") => {
                if chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Malformed("unsupported Transfer-Encoding"));
                }
                chunked = true;
            }
            _ => {}
        }
    }
    let empty = bodiless || status == 204 || status == 304 || (100..200).contains(&status);
    let framing = match (empty, chunked, length) {
        (true, ..) => Framing::Length(0),
        (_, true, _) => Framing::Chunked,
        (_, _, Some(length)) => Framing::Length(length),
        _ => Framing::Close,
    };
    reusable &= framing != Framing::Close;

    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(&[b'0' + (status / 100) as u8, b'0' + (status / 10 % 10) as u8, b'0' + (status % 10) as u8]);
    out.push(b' ');
    out.extend_from_slice(parsed.reason.unwrap_or("").as_bytes());
    out.extend_from_slice(b"\r\n");
    for field in &*parsed.headers {
        let named = || connection.is_some_and(|list| has_token(list, field.name)) && !is(field.name, "trailer");
        let dropped = match field.name.len() {
            2 => is(field.name, "te"),
            7 => is(field.name, "upgrade"),
            10 => is(field.name, "connection") || is(field.name, "keep-alive"),
            // Both would be an ambiguity, and a length is none where the body is chunked.
            14 => chunked && is(field.name, "content-length"),
            16 => is(field.name, "proxy-connection"),
            17 => is(field.name, "transfer-encoding"),
            18 => is(field.name, "proxy-authenticate"),
            19 => is(field.name, "proxy-authorization"),
            _ => false,
        };
        if !dropped && !named() {
            write_field(out, field.name, field.value);
        }
    }
    if status >= 200 {
        if !dated {
            write_field(out, "Date", date);
        }
        if framing == Framing::Chunked || framing == Framing::Close {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
    Ok(Some(Answer { head, status, framing, reusable }))
}

/// What of a request decides its way.
struct Seen<'a> {
    host: &'a [u8],
    length: Option<usize>,
    proxied: bool,
    forwarded: bool,
    original_host: Option<&'a [u8]>,
    forwarded_for: Option<&'a [u8]>,
    proto: Option<&'a [u8]>,
    forwarded_host: Option<&'a [u8]>,
}

/// What becomes of a request's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Copied,
    /// Written or left out by us.
    Ours,
    ForwardedFor,
}

// === impl Seen ===

impl<'a> Seen<'a> {
    /// `None` if the request is not plain.
    fn look(fields: &[httparse::Header<'a>]) -> Option<Self> {
        let mut host = None;
        let mut seen = Self {
            host: &[],
            length: None,
            proxied: false,
            forwarded: false,
            original_host: None,
            forwarded_for: None,
            proto: None,
            forwarded_host: None,
        };
        for field in fields {
            let (name, value) = (field.name, field.value);
            match name.len() {
                2 if is(name, "te") => return None,
                4 if is(name, "host") && host.replace(value).is_some() => return None,
                6 if is(name, "expect") => return None,
                7 if is(name, "upgrade") || is(name, "trailer") => return None,
                9 if is(name, "forwarded") => seen.forwarded |= !value.is_empty(),
                10 if is(name, "connection") && !value.eq_ignore_ascii_case(b"keep-alive") => return None,
                10 if is(name, "user-agent") => {
                    let agents =
                        [headers::KUBE_PROBE_PREFIX, headers::ACTIVATOR_PROBE_AGENT, headers::AUTOSCALING_PROBE_AGENT];
                    if agents.iter().any(|agent| value.starts_with(agent.as_bytes())) {
                        return None;
                    }
                }
                14 if is(name, "content-length") => {
                    if seen.length.is_some() {
                        return None;
                    }
                    seen.length = Some(usize::try_from(digits(value)?).ok()?);
                }
                14 if is(name, "http2-settings") => return None,
                15 if is(name, "k-network-probe") => return None,
                15 if is(name, "k-kubelet-probe") => return None,
                15 if is(name, "k-proxy-request") => seen.proxied |= value == headers::ACTIVATOR.as_bytes(),
                15 if is(name, "k-original-host") => seen.original_host = seen.original_host.or(Some(value)),
                15 if is(name, "x-forwarded-for") => seen.forwarded_for = seen.forwarded_for.or(Some(value)),
                16 if is(name, "x-forwarded-host") => seen.forwarded_host = seen.forwarded_host.or(Some(value)),
                17 if is(name, "x-forwarded-proto") => seen.proto = seen.proto.or(Some(value)),
                17 if is(name, "transfer-encoding") => return None,
                19 if is(name, "proxy-authorization") => return None,
                _ => {}
            }
        }
        seen.host = host?;
        Some(seen)
    }
}

fn kind(name: &str) -> Kind {
    let ours = match name.len() {
        4 => is(name, "host"),
        10 => is(name, "connection") || is(name, "keep-alive"),
        15 if is(name, "x-forwarded-for") => return Kind::ForwardedFor,
        15 => is(name, "k-original-host"),
        16 => is(name, "proxy-connection"),
        18 => is(name, "proxy-authenticate"),
        24 => is(name, "knative-serving-revision"),
        25 => is(name, "knative-serving-namespace"),
        _ => false,
    };
    if ours { Kind::Ours } else { Kind::Copied }
}

fn is(name: &str, expected: &str) -> bool {
    name.eq_ignore_ascii_case(expected)
}

/// The way Go writes names, as some programs expect: `X-Request-Id`.
fn write_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    let mut first = true;
    out.extend(name.bytes().map(|byte| {
        let cased = if first { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() };
        first = byte == b'-';
        cased
    }));
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn has_token(list: &[u8], token: &str) -> bool {
    list.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

fn text(value: Option<&[u8]>) -> &str {
    value.and_then(|value| std::str::from_utf8(value).ok()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(input: &str) -> (Plain, String) {
        let mut out = Vec::new();
        match request(input.as_bytes(), "10.0.0.1", &mut out) {
            Incoming::Plain(plain) => (plain, String::from_utf8(out).expect("text")),
            other => panic!("{other:?}: {input}"),
        }
    }

    #[test]
    fn a_plain_request_is_rewritten_for_the_next_hop() {
        let (plain, out) = plain(
            "POST /a?b HTTP/1.1\r\nhost: pod\r\nk-original-host: h.example.com\r\nConnection: keep-alive\r\n\
             x-forwarded-for: 1.1.1.1\r\nX-FORWARDED-FOR: 2.2.2.2\r\nK-Proxy-Request: activator\r\n\
             Knative-Serving-Revision: r\r\nKnative-Serving-Namespace: n\r\ncontent-length: 2\r\n\r\nhi",
        );
        assert_eq!((plain.body, plain.proxied, plain.repeatable), (2, true, false));
        assert_eq!(
            out,
            "POST /a?b HTTP/1.1\r\nHost: h.example.com\r\nK-Proxy-Request: activator\r\nContent-Length: 2\r\n\
             X-Forwarded-For: 1.1.1.1, 2.2.2.2, 10.0.0.1\r\nForwarded: for=1.1.1.1\r\n\r\n"
        );
    }

    #[test]
    fn what_is_not_plain_is_left_alone() {
        for fields in [
            "",
            "Host: a\r\nHost: b\r\n",
            "Host: a\r\nUpgrade: x\r\n",
            "Host: a\r\nConnection: close\r\n",
            "Host: a\r\nTransfer-Encoding: chunked\r\n",
            "Host: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n",
            "Host: a\r\nContent-Length: +0\r\n",
            "Host: a\r\nContent-Length: 1\r\n",
            "Host: a\r\nExpect: 100-continue\r\n",
            "Host: a\r\nUser-Agent: kube-probe/1\r\n",
            "Host: a\r\nK-Network-Probe: queue\r\n",
            "Host: a\r\nTE: trailers\r\n",
            "Host: a\r\nK-Kubelet-Probe: 1\r\n",
            "Host: a\r\nA b: c\r\n",
            "Host: a\r\nContent-Length: 0x1\r\n",
        ] {
            let input = format!("GET / HTTP/1.1\r\n{fields}\r\n");
            assert_eq!(request(input.as_bytes(), "", &mut Vec::new()), Incoming::Other, "{fields:?}");
        }
        for line in ["CONNECT / HTTP/1.1", "GET http://a/ HTTP/1.1", "GET / HTTP/1.0", "OPTIONS * HTTP/1.1"] {
            let input = format!("{line}\r\nHost: a\r\n\r\n");
            assert_eq!(request(input.as_bytes(), "", &mut Vec::new()), Incoming::Other, "{line}");
        }
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        assert_eq!(request(preface, "", &mut Vec::new()), Incoming::Other);
        assert_eq!(request(b"GET / HTTP/1.1\r\nHo", "", &mut Vec::new()), Incoming::Partial);
    }

    fn answer(input: &str) -> Result<(Answer, String), Malformed> {
        let mut out = Vec::new();
        let answer = response(input.as_bytes(), false, b"now", &mut out)?.expect("complete");
        Ok((answer, String::from_utf8(out).expect("text")))
    }

    #[test]
    fn a_response_loses_what_belongs_to_its_hop() {
        let (seen, out) = answer(
            "HTTP/1.1 200 Fine\r\ncontent-length: 5\r\nconnection: X-Own\r\nx-own: 1\r\nkeep-alive: 5\r\nx-kept: 1\r\n\r\n",
        )
        .expect("valid");
        assert_eq!((seen.framing, seen.reusable), (Framing::Length(5), true));
        assert_eq!(out, "HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nX-Kept: 1\r\nDate: now\r\n\r\n");
    }

    #[test]
    fn the_end_of_a_response_is_what_the_standard_says() {
        let framing = |head: &str| answer(&format!("{head}\r\n\r\n")).map(|(seen, _)| (seen.framing, seen.reusable));
        assert_eq!(
            framing("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3"),
            Ok((Framing::Chunked, true))
        );
        assert_eq!(framing("HTTP/1.1 200 OK"), Ok((Framing::Close, false)));
        assert_eq!(framing("HTTP/1.1 204 No Content\r\nContent-Length: 3"), Ok((Framing::Length(0), true)));
        assert_eq!(framing("HTTP/1.0 200 OK\r\nContent-Length: 3"), Ok((Framing::Length(3), false)));
        assert_eq!(
            framing("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close"),
            Ok((Framing::Length(3), false))
        );
        for bad in ["Content-Length: 3\r\nContent-Length: 4", "Content-Length: -1", "Transfer-Encoding: gzip, chunked"]
        {
            assert!(framing(&format!("HTTP/1.1 200 OK\r\n{bad}")).is_err(), "{bad}");
        }
    }
}
