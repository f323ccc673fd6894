//! The head of a plain request, as the program gets it.

use std::sync::Arc;

use wire::{Head, Incoming, write_field};

use crate::observed::Seen;

/// What else is known of a plain request.
pub(crate) struct Asked {
    /// It came through an activator.
    pub(crate) proxied: bool,
    /// Its description, if somebody wants one.
    pub(crate) seen: Option<Arc<Seen>>,
}

/// Looks at the request that `input` starts with; if it is plain, `out` becomes its head for the program. `peer` is the
/// address to add to `X-Forwarded-For`; `see` describes the request.
pub(crate) fn request(
    input: &[u8],
    peer: &str,
    see: impl FnOnce(&Head<'_>) -> Option<Arc<Seen>>,
    out: &mut Vec<u8>,
) -> Incoming<Asked> {
    wire::request(input, |head| {
        let seen = see(head);
        let parent = seen.as_ref().and_then(|seen| seen.trace.as_ref()).map(|context| context.parent_of());
        out.clear();
        head.write_line(out);
        let original = head.original_host.filter(|host| !host.is_empty());
        write_field(out, "Host", original.unwrap_or(head.host));
        if head.original_host.is_some_and(<[u8]>::is_empty) {
            write_field(out, "K-Original-Host", b"");
        }
        let made = if head.forwarded {
            None
        } else {
            crate::forwarded::render(text(head.forwarded_for), text(head.proto), text(head.forwarded_host))
        };
        // One that says nothing is replaced.
        head.write_copied(out, |name| {
            made.is_some() && name.eq_ignore_ascii_case("forwarded")
                || parent.is_some() && name.eq_ignore_ascii_case("traceparent")
        });
        head.write_forwarded_for(out, peer);
        if let Some(made) = made {
            write_field(out, "Forwarded", made.as_bytes());
        }
        if let Some(parent) = parent {
            write_field(out, "Traceparent", parent.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        Some(Asked { proxied: head.proxied, seen })
    })
}

fn text(value: Option<&[u8]>) -> &str {
    value.and_then(|value| std::str::from_utf8(value).ok()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_request_is_rewritten_for_the_next_hop() {
        let input = "POST /a?b HTTP/1.1\r\nhost: pod\r\nk-original-host: h.example.com\r\nConnection: keep-alive\r\n\
             x-forwarded-for: 1.1.1.1\r\nX-FORWARDED-FOR: 2.2.2.2\r\nK-Proxy-Request: activator\r\n\
             Knative-Serving-Revision: r\r\nKnative-Serving-Namespace: n\r\ncontent-length: 2\r\n\r\nhi";
        let mut out = Vec::new();
        let Incoming::Plain(plain, asked) = request(input.as_bytes(), "10.0.0.1", |_| None, &mut out) else {
            panic!("it is plain")
        };
        assert_eq!((plain.body, asked.proxied, plain.repeatable), (2, true, false));
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "POST /a?b HTTP/1.1\r\nHost: h.example.com\r\nK-Proxy-Request: activator\r\nContent-Length: 2\r\n\
             X-Forwarded-For: 1.1.1.1, 2.2.2.2, 10.0.0.1\r\nForwarded: for=1.1.1.1\r\n\r\n"
        );
    }
}
