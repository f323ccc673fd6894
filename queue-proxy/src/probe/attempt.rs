//! One attempt at one probe, as the kubelet would make it.
//!
//! Two things differ from the kubelet's, as upstream: certificates are verified, and redirects are followed wherever
//! they lead.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, Method, Request, Uri,
    header::{self, HeaderName, HeaderValue},
};
use http_body_util::BodyExt;
use net::{Pool, PoolOptions, RequestBody};

use super::Check;
use crate::{call::Target, tls};

const AGENT: HeaderValue = HeaderValue::from_static("kube-probe//");
const GRPC_PATH: &str = "/grpc.health.v1.Health/Check";
const SERVING: u64 = 1;
const REDIRECTS: usize = 10;

/// Where a redirect leads.
struct Redirect {
    /// Host and port, if they are others.
    other: Option<(String, u16)>,
    https: bool,
    path: String,
}

/// What is asked for.
struct Url {
    target: Target,
    path: String,
}

/// `Ok` if the check passes now. The caller limits the time.
pub(super) async fn attempt(check: &Check, detect_http2: bool) -> Result<(), String> {
    match check {
        Check::Tcp(address) => net::connect(*address).await.map(drop).map_err(|error| error.to_string()),
        Check::Http { address, host, path, https, headers } => {
            let name = host.rsplit_once(':').map_or(&**host, |(name, _)| name);
            let name = if name.is_empty() { address.ip().to_string() } else { name.to_owned() };
            let url = |http2| Url::new(name.clone(), address.port(), path, *https, http2);
            let (plain, custom) = (HeaderMap::new(), custom_headers(headers));
            if !detect_http2 || *https {
                return get(url(false)?, custom).await;
            }
            match get(url(true)?, plain.clone()).await {
                Ok(()) => get(url(true)?, custom).await,
                Err(_) => get(url(false)?, plain).await,
            }
        }
        Check::Grpc { address, service } => grpc(*address, service).await,
        Check::Impossible(reason) => Err((*reason).to_owned()),
    }
}

/// A connection for this attempt alone: the program is asked, not a connection it once accepted.
fn pool(address: SocketAddr) -> Pool {
    Pool::new(address, PoolOptions { max_idle: 0, ..PoolOptions::default() })
}

fn custom_headers(headers: &[(String, String)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        // Like upstream, a `Host` given here has no effect.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value))
            && name != header::HOST
        {
            map.append(name, value);
        }
    }
    map
}

async fn get(mut url: Url, headers: HeaderMap) -> Result<(), String> {
    for _ in 0..=REDIRECTS {
        let mut request = Request::new(RequestBody::Empty);
        *request.headers_mut() = headers.clone();
        request.headers_mut().entry(header::USER_AGENT).or_insert(AGENT);
        let error = |error: &dyn std::fmt::Display| format!("path {:?}: {error}", url.path);
        let authority = url.target.authority();
        if url.target.http2 {
            let uri = format!("http://{authority}{}", url.path);
            *request.uri_mut() = uri.parse().map_err(|invalid: http::uri::InvalidUri| error(&invalid))?;
            *request.version_mut() = http::Version::HTTP_2;
        } else {
            *request.uri_mut() = url.path.parse().map_err(|invalid: http::uri::InvalidUri| error(&invalid))?;
            let host = HeaderValue::try_from(authority).map_err(|invalid| error(&invalid))?;
            request.headers_mut().insert(header::HOST, host);
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let response = url.target.send(request).await?;
        let status = response.status();
        let next = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        match next {
            Some(next) if matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) => url = url.follow(next)?,
            _ if (200..400).contains(&status.as_u16()) => return Ok(()),
            _ => return Err(format!("HTTP probe did not respond Ready, got status code: {}", status.as_u16())),
        }
    }
    Err(format!("stopped after {REDIRECTS} redirects"))
}

// === impl Url ===

impl Url {
    fn new(host: String, port: u16, path: &str, https: bool, http2: bool) -> Result<Self, String> {
        let tls = https.then(|| tls::client::config(None, false)).transpose().map_err(|error| error.to_string())?;
        Ok(Self { target: Target { host, port, tls, http2 }, path: path.to_owned() })
    }

    /// Where a `Location` points from here.
    fn follow(&self, location: &str) -> Result<Self, String> {
        let Redirect { other, https, path } = self.redirect(location)?;
        match other {
            None => Ok(Self { target: self.target.clone(), path }),
            Some((host, port)) => Self::new(host, port, &path, https, self.target.http2 && !https),
        }
    }

    fn redirect(&self, location: &str) -> Result<Redirect, String> {
        let here = &self.target;
        if location.starts_with('/') && !location.starts_with("//") {
            return Ok(Redirect { other: None, https: here.tls.is_some(), path: location.to_owned() });
        }
        let scheme = if here.tls.is_some() { "https" } else { "http" };
        let absolute = if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.contains("://") {
            location.to_owned()
        } else {
            let folder = self.path.rfind('/').map_or("/", |end| &self.path[..=end]);
            return Ok(Redirect { other: None, https: here.tls.is_some(), path: format!("{folder}{location}") });
        };
        let uri: Uri = absolute.parse().map_err(|error| format!("redirect to {location:?}: {error}"))?;
        let https = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or("").trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        // `http://host?query` has none.
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Redirect { other: Some((host, port)), https, path: format!("{slash}{path}") })
    }
}

/// `grpc.health.v1.Health/Check`, without a gRPC library: one message of one string field each way.
async fn grpc(address: SocketAddr, service: &str) -> Result<(), String> {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        prost::encoding::encode_varint(service.len() as u64, &mut message);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(&message);

    let mut request = Request::new(RequestBody::Full(frame.freeze()));
    *request.method_mut() = Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() =
        Uri::try_from(format!("http://{address}{GRPC_PATH}")).map_err(|error| format!("{address}: {error}"))?;
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::USER_AGENT, AGENT);

    let response = pool(address).send_http2(request).await.map_err(|error| error.to_string())?;
    let status = |headers: &HeaderMap| {
        headers.get("grpc-status").and_then(|value| value.to_str().ok()).map_or_else(String::new, str::to_owned)
    };
    let early = status(response.headers());
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
    let code = body.trailers().map_or(early, status);
    if code != "0" {
        return Err(format!("gRPC probe failed with status code {code:?}"));
    }
    match serving_status(body.to_bytes()) {
        Some(SERVING) => Ok(()),
        other => Err(format!("gRPC probe did not respond SERVING, got {other:?}")),
    }
}

/// Field 1 of the one message in `body`; absent means 0, `UNKNOWN`.
fn serving_status(body: Bytes) -> Option<u64> {
    let mut message = body.get(5..)?;
    if message.is_empty() {
        return Some(0);
    }
    let tag = prost::encoding::decode_varint(&mut message).ok()?;
    (tag == 0x08).then(|| prost::encoding::decode_varint(&mut message).ok()).flatten()
}

/// For the fuzz target: reads `data` as the body of a health check's answer.
pub(crate) fn try_health(data: &[u8]) {
    let _ = serving_status(Bytes::copy_from_slice(data));
}

/// For the fuzz target: follows a redirect to `location`.
pub(crate) fn try_location(location: &str) {
    let target = Target { host: "127.0.0.1".to_owned(), port: 8080, tls: None, http2: false };
    if let Ok(redirect) = (Url { target, path: "/a/b".to_owned() }).redirect(location) {
        assert!(redirect.path.starts_with('/'), "{location:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let here = Url::new("127.0.0.1".to_owned(), 8080, "/a/b", false, false).expect("plain");
        for (location, expected) in [
            ("/c?d", "127.0.0.1:8080/c?d"),
            ("c", "127.0.0.1:8080/a/c"),
            ("//other:1/x", "other:1/x"),
            ("http://other/x", "other:80/x"),
            ("http://other?x", "other:80/?x"),
            ("http://[::1]:9/", "[::1]:9/"),
        ] {
            let url = here.follow(location).expect(location);
            assert_eq!(format!("{}{}", url.target.authority(), url.path), expected);
        }
    }
}
