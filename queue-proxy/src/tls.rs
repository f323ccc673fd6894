//! The TLS port: the same chain behind the certificate that the control plane puts into the pod.
//!
//! The files are read again every minute while the port is open; new content serves the next handshake. No protocol
//! has to be negotiated: the activator speaks HTTP/2 with prior knowledge inside TLS.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{ServerConfig, SupportedProtocolVersion, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_rustls::TlsAcceptor;

use crate::config::TlsRange;

const RELOAD: Duration = Duration::from_secs(60);
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);

/// The certificate as of now.
pub(crate) struct Tls {
    folder: PathBuf,
    range: TlsRange,
    config: ArcSwap<ServerConfig>,
}

/// What the two files contain.
type Files = (Vec<u8>, Vec<u8>);

// === impl Tls ===

impl Tls {
    /// Nothing if the folder does not have both files.
    ///
    /// # Errors
    /// Files that cannot be read or do not make a certificate.
    pub(crate) fn open(folder: &Path, range: TlsRange) -> io::Result<Option<Arc<Self>>> {
        if !folder.join("tls.crt").exists() || !folder.join("tls.key").exists() {
            return Ok(None);
        }
        let files = read(folder)?;
        let config = parse(&files, range)?;
        let tls = Arc::new(Self { folder: folder.to_owned(), range, config: ArcSwap::from(config) });
        tokio::spawn(reload(Arc::downgrade(&tls), files));
        Ok(Some(tls))
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }
}

async fn reload(tls: std::sync::Weak<Tls>, mut known: Files) {
    loop {
        tokio::time::sleep(RELOAD).await;
        let Some(tls) = tls.upgrade() else { return };
        known = tls.refresh(known);
    }
}

impl Tls {
    /// Takes what the files have now, if it differs from `known`.
    fn refresh(&self, known: Files) -> Files {
        let fresh = match read(&self.folder) {
            Ok(fresh) if fresh != known => fresh,
            Ok(_) => return known,
            Err(error) => {
                tracing::error!(%error, "cannot read the certificate; the old one stays in use");
                return known;
            }
        };
        match parse(&fresh, self.range) {
            Ok(config) => {
                self.config.store(config);
                tracing::info!("Certificate and/or key have changed on disk and were reloaded.");
                fresh
            }
            Err(error) => {
                tracing::error!(%error, "cannot use the new certificate; the old one stays in use");
                known
            }
        }
    }
}

fn read(folder: &Path) -> io::Result<Files> {
    let file = |name: &str| {
        let path = folder.join(name);
        fs::read(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display())))
    };
    Ok((file("tls.crt")?, file("tls.key")?))
}

fn parse((certificate, key): &Files, range: TlsRange) -> io::Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| io::Error::other(format!("tls.crt is not a certificate in PEM form: {error}")))?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| io::Error::other(format!("tls.key is not a private key in PEM form: {error}")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions(range))
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| io::Error::other(format!("the certificate cannot be served: {error}")))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn versions(range: TlsRange) -> &'static [&'static SupportedProtocolVersion] {
    static ONLY_12: [&SupportedProtocolVersion; 1] = [&version::TLS12];
    static FROM_12: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
    static ONLY_13: [&SupportedProtocolVersion; 1] = [&version::TLS13];
    match range {
        TlsRange::Only12 => &ONLY_12,
        TlsRange::From12 => &FROM_12,
        TlsRange::Only13 => &ONLY_13,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_files_mean_no_tls_and_bad_ones_are_an_error() {
        let folder = std::env::temp_dir().join(format!("queue-proxy-tls-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("writable");
        assert!(Tls::open(&folder, TlsRange::Only13).expect("no files").is_none());
        fs::write(folder.join("tls.crt"), "x").expect("writable");
        fs::write(folder.join("tls.key"), "y").expect("writable");
        let error = Tls::open(&folder, TlsRange::Only13).err().expect("nonsense").to_string();
        assert!(error.contains("tls.key"), "{error}");
        fs::remove_dir_all(&folder).expect("removable");
    }
}
