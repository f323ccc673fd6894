//! A request, described while it was whole, for what is told about it when it has ended.

use std::{net::SocketAddr, time::Instant};

use http::{HeaderMap, Method, Request, Uri, Version, header};
use hyper::body::Body as _;
use net::{Incoming, headers};

/// What is kept of a request.
#[derive(Debug)]
pub struct Described {
    pub method: Method,
    pub uri: Uri,
    pub version: Version,
    pub headers: HeaderMap,
    pub peer: SocketAddr,
    pub tls: bool,
    /// Bytes of its body; −1 if it is not known.
    pub length: i64,
    pub started: Instant,
}

// === impl Described ===

impl Described {
    pub fn new(request: &Request<Incoming>, peer: SocketAddr, tls: bool) -> Self {
        let length = if request.body().is_end_stream() {
            0
        } else {
            request.body().size_hint().exact().map_or(-1, |length| i64::try_from(length).unwrap_or(-1))
        };
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
            peer,
            tls,
            length,
            started: Instant::now(),
        }
    }

    pub fn host(&self) -> &str {
        self.uri.authority().map_or_else(|| headers::text(&self.headers, &header::HOST), |host| host.as_str())
    }
}
