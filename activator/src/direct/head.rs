//! The head of a plain request, as the pod gets it.
//!
//! What depends on the pod, its address as the host, comes last and is added when the pod is known.

use std::{net::SocketAddr, sync::Arc};

use wire::{Incoming, write_field};

use crate::{
    handler::{Handler, Seen},
    observed::Described,
    revisions::Revision,
};

/// Who is asked.
pub(super) struct Asked {
    pub(super) revision: Arc<Revision>,
    /// What metrics want to know, if there are any.
    pub(super) seen: Option<Seen>,
    /// Its description, if somebody wants to read about it.
    pub(super) described: Option<Arc<Described>>,
}

/// Looks at the request that `input` starts with; if it is plain and `handler` knows its revision, `out` becomes its
/// head for the pod, without the end. `address` is that of the peer, to add to `X-Forwarded-For`.
pub(super) fn request(
    input: &[u8],
    peer: SocketAddr,
    address: &str,
    handler: Option<&Handler>,
    out: &mut Vec<u8>,
) -> Incoming<Asked> {
    wire::request(input, |head| {
        let handler = handler?;
        let [namespace, name, host] =
            [head.namespace.unwrap_or_default(), head.revision.unwrap_or_default(), head.host].map(text);
        let revision = handler.find(namespace, name, host)?;
        let seen = handler.metrics.exported().then(|| Seen::plain(head.method, host, head.body));
        let described = handler.observers.any().then(|| handler.observers.describe_plain(head, peer));
        let parent = described.as_ref().and_then(|described| described.trace.as_ref()).map(|trace| trace.parent_of());
        out.clear();
        head.write_line(out);
        head.write_copied(out, |name| {
            name.eq_ignore_ascii_case("k-proxy-request")
                || name.eq_ignore_ascii_case("k-network-hash")
                || parent.is_some() && name.eq_ignore_ascii_case("traceparent")
        });
        write_field(out, "K-Original-Host", head.original_host.unwrap_or(head.host));
        out.extend_from_slice(b"K-Proxy-Request: activator\r\n");
        head.write_forwarded_for(out, address);
        if let Some(parent) = parent {
            write_field(out, "Traceparent", parent.as_bytes());
        }
        Some(Asked { revision, seen, described })
    })
}

fn text(value: &[u8]) -> &str {
    std::str::from_utf8(value).unwrap_or("")
}
