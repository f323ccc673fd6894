//! Asks a registry for the digest of a tag: one HEAD of the manifest, with an anonymous token where the registry wants one.
//!
//! Credentials from pull secrets belong into [`Https::authorize`], which so far asks without any.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Answer, Reference, Registry};

/// Where systems keep the certificates they trust, and where a cluster puts its own.
const ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
];

/// Manifests of single images and of lists of them, in Docker's and the OCI's form.
const ACCEPT: &str = "application/vnd.docker.distribution.manifest.v1+json,application/vnd.docker.distribution.manifest.v1+prettyjws,application/vnd.docker.distribution.manifest.v2+json,application/vnd.oci.image.manifest.v1+json,application/vnd.docker.distribution.manifest.list.v2+json,application/vnd.oci.image.index.v1+json";
const USER_AGENT: &str = concat!("knative/", env!("CARGO_PKG_VERSION"), " (serving)");
const ANSWER_LIMIT: usize = 1 << 20;

/// Registries over HTTPS, and over HTTP where the name says that they are near.
#[derive(Clone)]
pub struct Https {
    tls: TlsConnector,
}

// === impl Https ===

impl Registry for Https {
    fn digest(&self, image: &Reference) -> Answer {
        let (this, image) = (self.clone(), image.clone());
        Box::pin(async move { this.manifest_digest(&image).await })
    }
}

impl Https {
    /// Trusts what the system trusts.
    pub fn new() -> Self {
        let mut roots = RootCertStore::empty();
        let named = std::env::var("SSL_CERT_FILE").ok();
        for path in named.as_deref().into_iter().chain(ROOTS).filter(|path| Path::new(path).exists()) {
            match CertificateDer::pem_file_iter(path) {
                Ok(certificates) => {
                    roots.add_parsable_certificates(certificates.filter_map(Result::ok));
                }
                Err(error) => {
                    tracing::warn!(path, %error, "cannot read certificates; registries that need them will be refused")
                }
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has the default protocol versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Https { tls: TlsConnector::from(Arc::new(config)) }
    }

    async fn manifest_digest(&self, image: &Reference) -> Result<String, String> {
        let scheme = if is_near(&image.registry) { "http" } else { "https" };
        let url = format!("{scheme}://{}/v2/{}/manifests/{}", image.registry, image.repository, image.tag);
        let mut response = self.send(Method::HEAD, &url, None).await?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(authorization) = self.authorize(image, response.headers()).await?
        {
            response = self.send(Method::HEAD, &url, Some(&authorization)).await?;
        }
        let status = response.status();
        if status != StatusCode::OK {
            return Err(format!(
                "HEAD {url}: unexpected status code {status} (HEAD responses have no body, use GET for details)"
            ));
        }
        let digest = response.headers().get("docker-content-digest").and_then(|digest| digest.to_str().ok());
        match digest {
            Some(digest) if digest.starts_with("sha256:") => Ok(digest.to_owned()),
            _ => Err(format!("HEAD {url}: response did not include Docker-Content-Digest header")),
        }
    }

    /// The `Authorization` that answers a challenge; `None` for challenges that only credentials could answer.
    async fn authorize(&self, image: &Reference, headers: &HeaderMap) -> Result<Option<String>, String> {
        let challenges = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let Some(parameters) = challenges.filter_map(bearer).next() else { return Ok(None) };
        let parameter = |name: &str| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let Some(realm) = parameter("realm") else { return Ok(None) };
        let separator = if realm.contains('?') { '&' } else { '?' };
        let scope = format!("repository:{}:pull", image.repository);
        let service = parameter("service").unwrap_or(&image.registry).replace(' ', "%20");
        let url = format!("{realm}{separator}scope={scope}&service={service}");
        let response = self.send(Method::GET, &url, None).await?;
        if !response.status().is_success() {
            return Err(format!("GET {url}: unexpected status code {}", response.status()));
        }
        let token: serde_json::Value =
            serde_json::from_slice(response.body()).map_err(|e| format!("GET {url}: {e}"))?;
        let token = token["token"].as_str().or_else(|| token["access_token"].as_str());
        token.map(|token| Some(format!("Bearer {token}"))).ok_or_else(|| format!("GET {url}: no token in the answer"))
    }

    async fn send(&self, method: Method, url: &str, authorization: Option<&str>) -> Result<Response<Bytes>, String> {
        let failed = |error: String| format!("{method} {url}: {error}");
        let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| failed(error.to_string()))?;
        let host = uri.host().ok_or_else(|| failed("no host".to_owned()))?;
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let mut request = Request::builder()
            .method(method.clone())
            .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::HOST, authority)
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, if method == Method::HEAD { ACCEPT } else { "application/json" });
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(error.to_string()))?;
        let stream = TcpStream::connect((name.as_str(), port)).await.map_err(|error| failed(error.to_string()))?;
        let response = if secure {
            let server = ServerName::try_from(name).map_err(|error| failed(error.to_string()))?;
            let stream = self.tls.connect(server, stream).await.map_err(|error| failed(error.to_string()))?;
            exchange(stream, request).await
        } else {
            exchange(stream, request).await
        };
        response.map_err(failed)
    }
}

impl Default for Https {
    fn default() -> Self {
        Self::new()
    }
}

/// One request on a connection of its own, with the whole answer. Dropping it closes the connection.
async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Response<Bytes>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let answer = async {
        let (parts, body) = sender.send_request(request).await.map_err(|error| error.to_string())?.into_parts();
        let body = Limited::new(body, ANSWER_LIMIT).collect().await.map_err(|error| error.to_string())?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    };
    let drive = async {
        // How it ended is for the answer to tell.
        drop(connection.await);
        std::future::pending().await
    };
    tokio::select! {
        answer = answer => answer,
        () = drive => Err("the connection ended".to_owned()),
    }
}

/// The parameters of a `Bearer` challenge.
fn bearer(challenge: &str) -> Option<Vec<(&str, &str)>> {
    let (scheme, rest) = challenge.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parameters = Vec::new();
    let mut rest = rest.trim();
    while let Some((key, value)) = rest.split_once('=') {
        let value = value.trim_start();
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => value.split_at(value.find(',').unwrap_or(value.len())),
        };
        parameters.push((key.trim_matches([' ', ',']), value));
        rest = after;
    }
    Some(parameters)
}

/// Registries that may speak plain HTTP: on this machine or in a private network.
fn is_near(registry: &str) -> bool {
    let uri: Option<Uri> = format!("http://{registry}/").parse().ok();
    let host = uri.as_ref().and_then(Uri::host).unwrap_or(registry).trim_matches(['[', ']']);
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_private(),
        Ok(IpAddr::V6(address)) => address.is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".local") || host.ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::net::{Ipv4Addr, SocketAddr};

    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use tokio::net::TcpListener;

    use super::*;

    /// A registry that wants a token for `me/app:v1` and knows nothing else.
    async fn registry() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service_fn(move |request: Request<Incoming>| async move {
                    let answer = |status: u16| Response::builder().status(status);
                    let granted = request.headers().get("authorization").is_some_and(|value| value == "Bearer sesame");
                    let body = |text: &'static str| http_body_util::Full::new(Bytes::from_static(text.as_bytes()));
                    let response = match (request.method().as_str(), request.uri().to_string().as_str()) {
                        ("GET", "/token?x=1&scope=repository:me/app:pull&service=ours") => {
                            answer(200).body(body(r#"{"token": "sesame"}"#))
                        }
                        ("HEAD", "/v2/me/app/manifests/v1") if granted => {
                            assert!(request.headers()["accept"].to_str().unwrap().contains("oci.image.index"));
                            answer(200).header("docker-content-digest", "sha256:abc").body(body(""))
                        }
                        ("HEAD", path) if path.starts_with("/v2/me/app/") && !granted => {
                            let challenge =
                                format!("Bearer realm=\"http://{address}/token?x=1\", service=\"ours\",scope=\"s\"");
                            answer(401).header("www-authenticate", challenge).body(body(""))
                        }
                        _ => answer(404).body(body("")),
                    };
                    Ok::<_, Infallible>(response.unwrap())
                });
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move { drop(connection.await) });
            }
        });
        address
    }

    #[tokio::test]
    async fn a_tag_becomes_a_digest() {
        let address = registry().await;
        let ask = |image: String| async move { Https::new().digest(&Reference::parse(&image).unwrap()).await };
        assert_eq!(ask(format!("{address}/me/app:v1")).await.as_deref(), Ok("sha256:abc"));
        let missing = ask(format!("{address}/me/other:v1")).await.unwrap_err();
        assert_eq!(
            missing,
            format!(
                "HEAD http://{address}/v2/me/other/manifests/v1: unexpected status code 404 Not Found (HEAD responses have no body, use GET for details)"
            )
        );
        let unreachable = ask("127.0.0.1:1/me/app:v1".to_owned()).await.unwrap_err();
        assert!(unreachable.starts_with("HEAD http://127.0.0.1:1/v2/me/app/manifests/v1: "), "{unreachable}");
    }

    #[test]
    fn near_registries_speak_http() {
        for near in ["localhost:5000", "127.0.0.1", "[::1]:5000", "10.0.0.7:5000", "registry.local"] {
            assert!(is_near(near), "{near}");
        }
        for far in ["index.docker.io", "8.8.8.8", "localhost.example.com", "172.32.0.1"] {
            assert!(!is_near(far), "{far}");
        }
    }

    #[test]
    fn challenges() {
        assert_eq!(
            bearer("Bearer realm=\"r,1\", service=s,scope=\"a\""),
            Some(vec![("realm", "r,1"), ("service", "s"), ("scope", "a")])
        );
        assert_eq!(bearer("Basic realm=\"x\""), None);
    }
}
