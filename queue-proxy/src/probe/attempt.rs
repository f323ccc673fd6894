//! One attempt at one probe, as the kubelet would make it.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, Method, Request, Uri,
    header::{self, HeaderName, HeaderValue},
};
use http_body_util::BodyExt;
use net::{Pool, PoolOptions, RequestBody};

use super::Check;

const AGENT: HeaderValue = HeaderValue::from_static("kube-probe//");
const GRPC_PATH: &str = "/grpc.health.v1.Health/Check";
const SERVING: u64 = 1;

/// `Ok` if the check passes now. The caller limits the time.
pub(super) async fn attempt(check: &Check, detect_http2: bool) -> Result<(), String> {
    match check {
        Check::Tcp(address) => net::connect(*address).await.map(drop).map_err(|error| error.to_string()),
        Check::Http { https: true, .. } => Err("HTTPS readiness probes need a sidecar built with TLS".to_owned()),
        Check::Http { address, host, path, headers, .. } => {
            let plain = HeaderMap::new();
            let custom = custom_headers(headers);
            if !detect_http2 {
                return http1(*address, host, path, custom).await;
            }
            match http2(*address, host, path, plain.clone()).await {
                Ok(()) => http2(*address, host, path, custom).await,
                Err(_) => http1(*address, host, path, plain).await,
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

async fn http1(address: SocketAddr, host: &str, path: &str, headers: HeaderMap) -> Result<(), String> {
    let mut request = Request::new(RequestBody::Empty);
    *request.uri_mut() = path.parse().map_err(|error| format!("path {path:?}: {error}"))?;
    *request.headers_mut() = headers;
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::try_from(host).map_err(|error| error.to_string())?);
    headers.entry(header::USER_AGENT).or_insert(AGENT);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let response = pool(address).send_fresh(request).await.map_err(|error| error.to_string())?;
    passed(response.status())
}

async fn http2(address: SocketAddr, host: &str, path: &str, headers: HeaderMap) -> Result<(), String> {
    let mut request = Request::new(RequestBody::Empty);
    *request.uri_mut() = format!("http://{host}{path}").parse().map_err(|error| format!("path {path:?}: {error}"))?;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = headers;
    request.headers_mut().entry(header::USER_AGENT).or_insert(AGENT);
    let response = pool(address).send_http2(request).await.map_err(|error| error.to_string())?;
    passed(response.status())
}

fn passed(status: http::StatusCode) -> Result<(), String> {
    if (200..400).contains(&status.as_u16()) {
        return Ok(());
    }
    Err(format!("HTTP probe did not respond Ready, got status code: {}", status.as_u16()))
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
