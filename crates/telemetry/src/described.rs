//! A request, described while it was whole, for what is told about it when it has ended.

use std::{net::SocketAddr, time::Instant};

use http::{
    HeaderMap, Method, Request, Version,
    header::{self, HeaderName, HeaderValue},
};
use hyper::body::Body as _;
use net::{Incoming, headers};

/// What is kept of a request.
#[derive(Debug)]
pub struct Described {
    pub method: Method,
    /// What is asked for, as it was received.
    pub target: String,
    pub host: String,
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
        let uri = request.uri();
        let origin = || uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
        let host = headers::text(request.headers(), &header::HOST);
        Self {
            method: request.method().clone(),
            target: if request.version() == Version::HTTP_2 { origin() } else { uri.to_string() },
            host: uri.authority().map_or(host, |host| host.as_str()).to_owned(),
            version: request.version(),
            headers: request.headers().clone(),
            peer,
            tls,
            length,
            started: Instant::now(),
        }
    }

    /// A request that is here as a whole, of HTTP/1.1; it has a body of `length` bytes.
    pub fn plain<'a>(
        method: &str,
        target: &str,
        host: &[u8],
        fields: impl Iterator<Item = (&'a str, &'a [u8])>,
        length: usize,
        peer: SocketAddr,
    ) -> Self {
        let field = |(name, value): (&str, &[u8])| {
            Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(value).ok()?))
        };
        let mut headers = HeaderMap::new();
        for (name, value) in fields.filter_map(field) {
            headers.append(name, value);
        }
        Self {
            method: method.parse().unwrap_or_default(),
            target: target.to_owned(),
            host: String::from_utf8_lossy(host).into_owned(),
            version: Version::HTTP_11,
            headers,
            peer,
            tls: false,
            length: i64::try_from(length).unwrap_or(-1),
            started: Instant::now(),
        }
    }

    /// Without scheme and authority.
    fn origin(&self) -> &str {
        let rest = self.target.find("://").filter(|_| !self.target.starts_with('/')).map(|at| &self.target[at + 3..]);
        let Some(rest) = rest else { return &self.target };
        rest.find(['/', '?']).map_or("", |at| &rest[at..])
    }

    /// As it was received.
    pub fn path(&self) -> &str {
        self.origin().split('?').next().unwrap_or_default()
    }

    pub fn query(&self) -> &str {
        self.origin().split_once('?').map_or("", |(_, query)| query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_query_are_found_in_every_form_of_a_target() {
        for (target, path, query) in [
            ("/a/b?c=\"d\"&e", "/a/b", "c=\"d\"&e"),
            ("/a", "/a", ""),
            ("http://host:1/a?b?c", "/a", "b?c"),
            ("http://host?b", "", "b"),
            ("http://host", "", ""),
            ("*", "*", ""),
            ("/?to=http://other/", "/", "to=http://other/"),
        ] {
            let request = Described {
                method: Method::GET,
                target: target.to_owned(),
                host: String::new(),
                version: Version::HTTP_11,
                headers: HeaderMap::new(),
                peer: ([127, 0, 0, 1], 1).into(),
                tls: false,
                length: 0,
                started: Instant::now(),
            };
            assert_eq!((request.path(), request.query()), (path, query), "{target}");
        }
    }
}
