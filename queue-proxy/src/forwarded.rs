//! The standard `Forwarded` header, made from the `X-Forwarded-*` ones that gateways write.

use http::header::{self, HeaderMap, HeaderValue};
use net::headers;

/// Adds `Forwarded` unless the request has one or there is nothing to say.
pub(crate) fn add(map: &mut HeaderMap) {
    if map.get(header::FORWARDED).is_some_and(|value| !value.is_empty()) {
        return;
    }
    let made = render(
        headers::text(map, &headers::FORWARDED_FOR),
        headers::text(map, &headers::FORWARDED_PROTO),
        headers::text(map, &headers::FORWARDED_HOST),
    );
    if let Some(value) = made.and_then(|made| HeaderValue::try_from(made).ok()) {
        map.insert(header::FORWARDED, value);
    }
}

pub(crate) fn render(addresses: &str, proto: &str, host: &str) -> Option<String> {
    if addresses.is_empty() && proto.is_empty() && host.is_empty() {
        return None;
    }
    let mut out = String::with_capacity(addresses.len() + proto.len() + host.len() + 24);
    let mut nodes = addresses.split(',').map(str::trim);
    // An empty first node is left out, later ones are not: as upstream.
    if let Some(first) = nodes.next().filter(|first| !first.is_empty()) {
        node(&mut out, first);
    }
    for (key, value) in [("host=", host), ("proto=", proto)] {
        if !value.is_empty() {
            if !out.is_empty() {
                out.push(';');
            }
            out.push_str(key);
            out.push_str(value);
        }
    }
    for next in nodes {
        if !out.is_empty() {
            out.push_str(", ");
        }
        node(&mut out, next);
    }
    Some(out)
}

fn node(out: &mut String, address: &str) {
    out.push_str("for=");
    if address.contains(':') {
        out.push_str("\"[");
        out.push_str(address);
        out.push_str("]\"");
    } else {
        out.push_str(address);
    }
}

#[cfg(test)]
mod tests {
    use super::render;

    #[test]
    fn renders_as_upstream_does() {
        let cases = [
            ("127.0.0.1, ::1", "p", "h", "for=127.0.0.1;host=h;proto=p, for=\"[::1]\""),
            ("", "p", "h", "host=h;proto=p"),
            ("10.244.0.21", "http", "", "for=10.244.0.21;proto=http"),
            (",,,", "", "", "for=, for=, for="),
        ];
        for (addresses, proto, host, want) in cases {
            assert_eq!(render(addresses, proto, host).as_deref(), Some(want));
        }
        assert_eq!(render("", "", ""), None);
    }
}
