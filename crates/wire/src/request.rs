//! Reading the head of a request, without a map of its headers.
//!
//! A request is *plain* if it has no feature that needs more than this: complete, HTTP/1.1, no body or one of a
//! known length that is here already, no upgrade, no expectation, no probe. Everything else, invalid requests
//! included, is somebody else's to read, from its first byte; so being strict here costs nothing.

use std::mem::MaybeUninit;

use net::headers;

use crate::fields::{digits, is, write_field};

const MAX_HEADERS: usize = 64;

/// A request that can go the short way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plain {
    /// Bytes of the head as received; the body follows.
    pub head: usize,
    pub body: usize,
    /// `HEAD`: the answer has no body, whatever it says.
    pub bodiless: bool,
    /// May be sent twice.
    pub repeatable: bool,
    /// The client wants its connection closed afterwards.
    pub last: bool,
}

/// What the bytes are that a client has sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<R> {
    Partial,
    /// With what its reader made of it.
    Plain(Plain, R),
    /// Not for us.
    Other,
}

/// The head of a plain request, as it was received.
#[derive(Debug)]
pub struct Head<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub host: &'a [u8],
    pub body: usize,
    last: bool,
    /// An activator counts it too.
    pub proxied: bool,
    /// It has a `Forwarded`.
    pub forwarded: bool,
    pub revision: Option<&'a [u8]>,
    pub namespace: Option<&'a [u8]>,
    pub original_host: Option<&'a [u8]>,
    pub forwarded_for: Option<&'a [u8]>,
    pub proto: Option<&'a [u8]>,
    pub forwarded_host: Option<&'a [u8]>,
    fields: &'a [httparse::Header<'a>],
}

/// What becomes of a header on its way to the next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Copied,
    /// Written or left out by the proxy.
    Ours,
    ForwardedFor,
}

/// Looks at the request that `input` starts with. If it is plain, `rewrite` may make of it what it likes, or decline.
pub fn request<R>(input: &[u8], rewrite: impl FnOnce(&Head<'_>) -> Option<R>) -> Incoming<R> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    let length = match parsed.parse_with_uninit_headers(input, &mut fields) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Incoming::Partial,
        Err(_) => return Incoming::Other,
    };
    let (Some(method), Some(path), Some(1)) = (parsed.method, parsed.path, parsed.version) else {
        return Incoming::Other;
    };
    if method == "CONNECT" || !path.starts_with('/') {
        return Incoming::Other;
    }
    let Some(head) = Head::look(method, path, parsed.headers) else { return Incoming::Other };
    if input.len() - length < head.body {
        return Incoming::Other;
    }
    let repeatable = head.body == 0 && matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE");
    let plain = Plain { head: length, body: head.body, bodiless: method == "HEAD", repeatable, last: head.last };
    rewrite(&head).map_or(Incoming::Other, |made| Incoming::Plain(plain, made))
}

// === impl Head ===

impl<'a> Head<'a> {
    /// `None` if the request is not plain.
    fn look(method: &'a str, path: &'a str, fields: &'a [httparse::Header<'a>]) -> Option<Self> {
        let (mut host, mut length) = (None, None);
        let mut seen = Self {
            method,
            path,
            host: &[],
            body: 0,
            last: false,
            proxied: false,
            forwarded: false,
            revision: None,
            namespace: None,
            original_host: None,
            forwarded_for: None,
            proto: None,
            forwarded_host: None,
            fields,
        };
        for field in fields {
            let (name, value) = (field.name, field.value);
            match name.len() {
                2 if is(name, "te") => return None,
                4 if is(name, "host") && host.replace(value).is_some() => return None,
                6 if is(name, "expect") => return None,
                7 if is(name, "upgrade") || is(name, "trailer") => return None,
                9 if is(name, "forwarded") => seen.forwarded |= !value.is_empty(),
                10 if is(name, "connection") => match value {
                    close if close.eq_ignore_ascii_case(b"close") => seen.last = true,
                    keep if keep.eq_ignore_ascii_case(b"keep-alive") => {}
                    _ => return None,
                },
                10 if is(name, "user-agent") => {
                    let agents =
                        [headers::KUBE_PROBE_PREFIX, headers::ACTIVATOR_PROBE_AGENT, headers::AUTOSCALING_PROBE_AGENT];
                    if agents.iter().any(|agent| value.starts_with(agent.as_bytes())) {
                        return None;
                    }
                }
                14 if is(name, "content-length") && length.replace(usize::try_from(digits(value)?).ok()?).is_some() => {
                    return None;
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
                24 if is(name, "knative-serving-revision") => seen.revision = seen.revision.or(Some(value)),
                25 if is(name, "knative-serving-namespace") => seen.namespace = seen.namespace.or(Some(value)),
                _ => {}
            }
        }
        // What is no host is for whoever says so.
        seen.host = host.filter(|host| !host.is_empty() && headers::is_host(host))?;
        if seen.original_host.is_some_and(|host| !headers::is_host(host)) {
            return None;
        }
        seen.body = length.unwrap_or(0);
        Some(seen)
    }

    /// All headers as they were received.
    pub fn fields(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        self.fields.iter().map(|field| (field.name, field.value))
    }

    /// Writes the request line.
    pub fn write_line(&self, out: &mut Vec<u8>) {
        for part in [self.method, " ", self.path, " HTTP/1.1\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }

    /// Writes the headers that go on as they are, which are all but those of this hop, `Host`, `K-Original-Host` and
    /// `X-Forwarded-For`, and those that `but` names.
    pub fn write_copied(&self, out: &mut Vec<u8>, but: impl Fn(&str) -> bool) {
        for field in self.fields {
            if kind(field.name) == Kind::Copied && !but(field.name) {
                write_field(out, field.name, field.value);
            }
        }
    }

    /// Writes one `X-Forwarded-For` with all that there were and `peer`.
    pub fn write_forwarded_for(&self, out: &mut Vec<u8>, peer: &str) {
        out.extend_from_slice(b"X-Forwarded-For: ");
        for field in self.fields.iter().filter(|field| kind(field.name) == Kind::ForwardedFor) {
            out.extend_from_slice(field.value);
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(peer.as_bytes());
        out.extend_from_slice(b"\r\n");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_plain_is_left_alone() {
        let read = |input: &str| request(input.as_bytes(), |_| Some(()));
        for fields in [
            "",
            "Host: a\r\nHost: b\r\n",
            "Host:\r\n",
            "Host: a b\r\n",
            "Host: a\r\nUpgrade: x\r\n",
            "Host: a\r\nConnection: close, x-own\r\n",
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
            assert_eq!(read(&format!("GET / HTTP/1.1\r\n{fields}\r\n")), Incoming::Other, "{fields:?}");
        }
        for line in ["CONNECT / HTTP/1.1", "GET http://a/ HTTP/1.1", "GET / HTTP/1.0", "OPTIONS * HTTP/1.1"] {
            assert_eq!(read(&format!("{line}\r\nHost: a\r\n\r\n")), Incoming::Other, "{line}");
        }
        assert_eq!(read("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Incoming::Other);
        assert_eq!(read("GET / HTTP/1.1\r\nHo"), Incoming::Partial);
        let last = |field: &str| match read(&format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n")) {
            Incoming::Plain(plain, ()) => plain.last,
            other => panic!("{field}: {other:?}"),
        };
        assert_eq!(["", "Connection: keep-alive\r\n", "connection: Close\r\n"].map(last), [false, false, true]);
    }
}
