//! The headers of the data path: their names, what makes a request a probe, and what a proxy strips and adds.

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

pub static REVISION: HeaderName = HeaderName::from_static("knative-serving-revision");
pub static NAMESPACE: HeaderName = HeaderName::from_static("knative-serving-namespace");
pub static TAG: HeaderName = HeaderName::from_static("knative-serving-tag");
pub static DEFAULT_ROUTE: HeaderName = HeaderName::from_static("knative-serving-default-route");
pub static PROXY_REQUEST: HeaderName = HeaderName::from_static("k-proxy-request");
pub static ORIGINAL_HOST: HeaderName = HeaderName::from_static("k-original-host");
pub static NETWORK_PROBE: HeaderName = HeaderName::from_static("k-network-probe");
pub static NETWORK_HASH: HeaderName = HeaderName::from_static("k-network-hash");
pub static KUBELET_PROBE: HeaderName = HeaderName::from_static("k-kubelet-probe");
pub static PASSTHROUGH_LB: HeaderName = HeaderName::from_static("k-passthrough-lb");
pub static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub static FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub static FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Ours: on a 502 of a sidecar, says that the program has certainly not seen the request.
pub static UNSENT: HeaderName = HeaderName::from_static("k-unsent");
static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
static HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Value of `K-Proxy-Request` on requests that come from an activator.
pub const ACTIVATOR: &str = "activator";
/// Value of `K-Network-Probe` that asks queue-proxy whether the pod is ready, and the body that says so.
pub const QUEUE: &str = "queue";
/// Value of `K-Network-Probe` that asks for the hash to be echoed.
pub const PROBE: &str = "probe";

pub const KUBE_PROBE_PREFIX: &str = "kube-probe/";
pub const ACTIVATOR_PROBE_AGENT: &str = "Knative-Activator-Probe";
pub const AUTOSCALING_PROBE_AGENT: &str = "Knative-Autoscaling-Probe";

/// The text of a header, `""` where it is absent or not text.
pub fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
}

/// True for a probe of the kubelet: by user agent, or by the header that a mesh's rewriting leaves.
pub fn is_kubelet_probe(headers: &HeaderMap) -> bool {
    text(headers, &header::USER_AGENT).starts_with(KUBE_PROBE_PREFIX)
        || headers.get(&KUBELET_PROBE).is_some_and(|value| !value.is_empty())
}

/// True for any probe: those count in no statistic and no log.
pub fn is_probe(headers: &HeaderMap) -> bool {
    headers.get(&NETWORK_PROBE).is_some_and(|value| !value.is_empty()) || is_kubelet_probe(headers)
}

/// Who a request says that it is from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Agent {
    #[default]
    Other,
    Kubelet,
    ActivatorProbe,
    AutoscalingProbe,
}

/// What the data path looks for in a request's headers, found in one pass: a lookup by name costs as much as looking at
/// all that there are. Where a header comes several times, its first value counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks {
    pub agent: Agent,
    /// `K-Network-Probe: probe`
    pub hash_probe: bool,
    /// A kubelet's probe, by its agent or by what a mesh's rewriting leaves.
    pub kubelet_probe: bool,
    /// Sent by an activator.
    pub proxied: bool,
    /// There is an original host.
    pub original_host: bool,
    /// It names the revision or its namespace.
    pub revision: bool,
    /// There is a `Forwarded` that says something.
    pub forwarded: bool,
    /// There is an `X-Forwarded-For`, `-Proto` or `-Host` that says something.
    pub forwarding: bool,
}

// === impl Agent ===

impl Agent {
    fn of(text: &[u8]) -> Self {
        match text {
            _ if text.starts_with(KUBE_PROBE_PREFIX.as_bytes()) => Self::Kubelet,
            _ if text.starts_with(ACTIVATOR_PROBE_AGENT.as_bytes()) => Self::ActivatorProbe,
            _ if text.starts_with(AUTOSCALING_PROBE_AGENT.as_bytes()) => Self::AutoscalingProbe,
            _ => Self::Other,
        }
    }
}

// === impl Marks ===

impl Marks {
    pub fn of(headers: &HeaderMap) -> Self {
        let mut marks = Self::default();
        let mut last = "";
        for (name, value) in headers {
            let (name, value) = (name.as_str(), value.as_bytes());
            // Further values follow the first.
            if name == std::mem::replace(&mut last, name) {
                continue;
            }
            match (name.len(), name) {
                (9, "forwarded") => marks.forwarded = !value.is_empty(),
                (10, "user-agent") => {
                    marks.agent = Agent::of(value);
                    marks.kubelet_probe |= marks.agent == Agent::Kubelet;
                }
                (15, "k-network-probe") => marks.hash_probe = value == PROBE.as_bytes(),
                (15, "k-kubelet-probe") => marks.kubelet_probe |= !value.is_empty(),
                (15, "k-proxy-request") => marks.proxied = value == ACTIVATOR.as_bytes(),
                (15, "k-original-host") => marks.original_host = !value.is_empty(),
                (15, "x-forwarded-for") | (16, "x-forwarded-host") | (17, "x-forwarded-proto") => {
                    marks.forwarding |= !value.is_empty();
                }
                (24, "knative-serving-revision") | (25, "knative-serving-namespace") => marks.revision = true,
                _ => {}
            }
        }
        marks
    }
}

/// True if `host` has no character that a host cannot have, as upstream looks at it.
pub fn is_host(host: &[u8]) -> bool {
    host.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!$%&()*+,-.:;=@[]'_~".contains(byte))
}

/// The token of an upgrade request or response (`websocket`), if both headers agree that it is one.
pub fn upgrade_token(headers: &HeaderMap) -> Option<&HeaderValue> {
    let token = headers.get(header::UPGRADE)?;
    lists(headers, &header::CONNECTION, "upgrade").then_some(token)
}

/// True if the comma-separated lists under `name` contain `token`, in any case.
pub fn lists(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(token))
}

/// Removes what belongs to one hop only. `TE: trailers` survives, because trailers do; so does `Trailer`, which
/// announces the trailers that are passed on.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have none, and looking for each of them by name costs more than looking at all that there are.
    if !headers.keys().any(is_hop_by_hop) {
        return;
    }
    if headers.contains_key(header::CONNECTION) {
        let mut named = smallvec::SmallVec::<[HeaderName; 4]>::new();
        for value in headers.get_all(header::CONNECTION) {
            let items = value.to_str().unwrap_or("").split(',');
            named.extend(items.filter_map(|item| HeaderName::from_bytes(item.trim().as_bytes()).ok()));
        }
        for name in named {
            if name != header::TE && name != header::TRAILER {
                headers.remove(name);
            }
        }
        headers.remove(header::CONNECTION);
    }
    if headers.contains_key(header::TE) {
        let trailers = lists(headers, &header::TE, "trailers");
        headers.remove(header::TE);
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
    for name in [
        &PROXY_CONNECTION,
        &KEEP_ALIVE,
        &header::PROXY_AUTHENTICATE,
        &header::PROXY_AUTHORIZATION,
        &header::TRANSFER_ENCODING,
        &header::UPGRADE,
        &HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    let name = name.as_str();
    match name.len() {
        2 => name == "te",
        7 => name == "upgrade",
        10 => name == "connection" || name == "keep-alive",
        14 => name == "http2-settings",
        16 => name == "proxy-connection",
        17 => name == "transfer-encoding",
        18 => name == "proxy-authenticate",
        19 => name == "proxy-authorization",
        _ => false,
    }
}

/// Appends the peer to `X-Forwarded-For`, folding several lines into one as upstream does.
pub fn append_forwarded_for(headers: &mut HeaderMap, peer: IpAddr) {
    use std::io::Write;
    let mut joined = Vec::with_capacity(48);
    for value in headers.get_all(&FORWARDED_FOR) {
        joined.extend_from_slice(value.as_bytes());
        joined.extend_from_slice(b", ");
    }
    write!(joined, "{}", peer.to_canonical()).expect("writing to memory cannot fail");
    let value =
        HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)).expect("made of header values and an address");
    headers.insert(FORWARDED_FOR.clone(), value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_what_lookups_would_find() {
        let mut map = HeaderMap::new();
        assert_eq!(Marks::of(&map), Marks::default());
        for (name, value) in [
            ("user-agent", "kube-probe/1.34"),
            ("user-agent", "other"),
            ("k-network-probe", "queue"),
            ("k-network-probe", "probe"),
            ("k-proxy-request", "activator"),
            ("k-original-host", ""),
            ("knative-serving-namespace", "n"),
            ("forwarded", ""),
            ("x-forwarded-proto", "http"),
        ] {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let marks = Marks::of(&map);
        let expected = Marks {
            agent: Agent::Kubelet,
            kubelet_probe: true,
            proxied: true,
            revision: true,
            forwarding: true,
            ..Marks::default()
        };
        assert_eq!(marks, expected);
        assert_eq!(marks.kubelet_probe, is_kubelet_probe(&map));
        map.insert("k-network-probe", HeaderValue::from_static("probe"));
        map.insert("k-original-host", HeaderValue::from_static("a"));
        map.insert("user-agent", HeaderValue::from_static("Knative-Activator-Probe"));
        let marks = Marks::of(&map);
        assert!(marks.hash_probe && marks.original_host && !marks.kubelet_probe);
        assert_eq!(marks.agent, Agent::ActivatorProbe);
    }

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn probes_are_told_apart() {
        assert!(is_kubelet_probe(&map(&[("user-agent", "kube-probe/1.35")])));
        assert!(is_kubelet_probe(&map(&[("k-kubelet-probe", "x")])));
        assert!(!is_kubelet_probe(&map(&[("k-network-probe", "queue")])));
        assert!(is_probe(&map(&[("k-network-probe", "queue")])));
        assert!(!is_probe(&map(&[("k-network-probe", ""), ("user-agent", "curl")])));
    }

    #[test]
    fn hop_by_hop_headers_go_and_trailers_stay() {
        let mut headers = map(&[
            ("connection", "close, X-Own"),
            ("x-own", "1"),
            ("te", "gzip, trailers"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("trailer", "grpc-status"),
            ("x-kept", "1"),
        ]);
        strip_hop_by_hop(&mut headers);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["te", "trailer", "x-kept"]);
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn forwarded_for_is_one_line() {
        let mut headers = map(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")]);
        append_forwarded_for(&mut headers, "::ffff:10.0.0.1".parse().unwrap());
        assert_eq!(headers.get_all("x-forwarded-for").iter().collect::<Vec<_>>(), ["1.1.1.1, 2.2.2.2, 10.0.0.1"]);
    }

    #[test]
    fn an_upgrade_needs_both_headers() {
        assert!(upgrade_token(&map(&[("upgrade", "websocket")])).is_none());
        let both = map(&[("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")]);
        assert_eq!(upgrade_token(&both).unwrap(), "websocket");
    }
}
