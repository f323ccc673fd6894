//! TLS as a client: for HTTPS probes and collectors, which are verified like any other server.

use std::{fs, io, path::Path, sync::Arc, sync::OnceLock};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};

/// Where systems keep the authorities they trust, in one file.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Trusts what the system does (`SSL_CERT_FILE` where it is set), or only what is in `authorities`.
///
/// # Errors
/// A file that cannot be read or has no certificate in it.
pub fn config(authorities: Option<&Path>, http2: bool) -> io::Result<Arc<ClientConfig>> {
    let roots = match authorities {
        Some(path) => Arc::new(read(path)?),
        None => system(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    if http2 {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    Ok(Arc::new(config))
}

/// Read once: probes come in bursts.
fn system() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let load = || {
        let chosen = std::env::var_os("SSL_CERT_FILE");
        let chosen = chosen.as_deref().map(Path::new);
        let found = chosen.into_iter().chain(BUNDLES.iter().map(Path::new)).find(|path| path.exists());
        let roots = found.map(read).unwrap_or_else(|| Ok(RootCertStore::empty()));
        Arc::new(roots.unwrap_or_else(|error| {
            tracing::error!(%error, "no certificate authority is trusted");
            RootCertStore::empty()
        }))
    };
    ROOTS.get_or_init(load).clone()
}

pub fn read(path: &Path) -> io::Result<RootCertStore> {
    let named = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
    let pem = fs::read(path).map_err(|error| named(&error))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
    if roots.is_empty() {
        return Err(named(&"there is no certificate in PEM form in it"));
    }
    Ok(roots)
}
