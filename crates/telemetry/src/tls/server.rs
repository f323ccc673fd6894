//! TLS listeners whose certificates come from files.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    RootCertStore, ServerConfig,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{TlsSettings, client};

const HANDSHAKE: Duration = Duration::from_secs(10);

/// Where certificate and key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Who has to show a certificate, and whose have to have signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientAuth {
    pub authorities: PathBuf,
    pub required: bool,
}

/// A listener whose certificate does not change: what is offered, and whose certificates clients have to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    pub files: Paths,
    pub settings: TlsSettings,
    pub auth: Option<ClientAuth>,
}

/// What the two files contain.
pub type Contents = (Vec<u8>, Vec<u8>);

/// What is negotiated where both versions are served.
pub const HTTP: &[&[u8]] = &[b"h2", b"http/1.1"];

// === impl Fixed ===

impl Fixed {
    /// # Errors
    /// Files that cannot be read or do not make a certificate.
    pub fn acceptor(&self) -> io::Result<TlsAcceptor> {
        let Self { files, settings, auth } = self;
        let verifier = auth
            .as_ref()
            .map(|auth| {
                let roots: Arc<RootCertStore> = Arc::new(client::read(&auth.authorities)?);
                let mut builder = WebPkiClientVerifier::builder_with_provider(roots, settings.provider());
                if !auth.required {
                    builder = builder.allow_unauthenticated();
                }
                builder.build().map_err(io::Error::other)
            })
            .transpose()?;
        Ok(TlsAcceptor::from(parse(&read(files)?, settings, verifier, &HTTP[1..])?))
    }
}

/// The stream inside, unless the client does not manage the handshake in time.
pub async fn handshake(acceptor: TlsAcceptor, stream: TcpStream, peer: SocketAddr) -> Option<TlsStream<TcpStream>> {
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
    }
    None
}

/// # Errors
/// Names the file that cannot be read.
pub fn read(files: &Paths) -> io::Result<Contents> {
    let file = |path: &Path| {
        fs::read(path).map_err(|error| io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display())))
    };
    Ok((file(&files.certificate)?, file(&files.key)?))
}

/// What is served with that certificate and key.
///
/// # Errors
/// What is wrong with them.
pub fn parse(
    (certificate, key): &Contents,
    settings: &TlsSettings,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    protocols: &[&[u8]],
) -> io::Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| io::Error::other(format!("tls.crt is not a certificate in PEM form: {error}")))?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| io::Error::other(format!("tls.key is not a private key in PEM form: {error}")))?;
    let unusable = |error| io::Error::other(format!("the certificate cannot be served: {error}"));
    let builder = ServerConfig::builder_with_provider(settings.provider())
        .with_protocol_versions(settings.versions())
        .map_err(unusable)?;
    let builder = match clients {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}
