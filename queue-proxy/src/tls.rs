//! The TLS port: the same chain behind the certificate that the control plane puts into the pod.
//!
//! The files are read again every minute while the port is open; new content serves the next handshake. No protocol
//! has to be negotiated: the activator speaks HTTP/2 with prior knowledge inside TLS.

use std::{io, path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio_rustls::TlsAcceptor;

pub use telemetry::tls::{ClientAuth, Fixed, Paths, TlsRange, TlsSettings};
use telemetry::tls::{Contents, HTTP, parse, read};
pub(crate) use telemetry::tls::{client, handshake};

const RELOAD: Duration = Duration::from_secs(60);

/// The certificate as of now.
pub(crate) struct Tls {
    files: Paths,
    settings: TlsSettings,
    config: ArcSwap<ServerConfig>,
}

// === impl Tls ===

impl Tls {
    /// The serving port's; nothing if the folder does not have both files.
    ///
    /// # Errors
    /// Files that cannot be read or do not make a certificate.
    pub(crate) fn open(folder: &Path, settings: &TlsSettings) -> io::Result<Option<Arc<Self>>> {
        let files = Paths { certificate: folder.join("tls.crt"), key: folder.join("tls.key") };
        if !files.certificate.exists() || !files.key.exists() {
            return Ok(None);
        }
        let contents = read(&files)?;
        let config = parse(&contents, settings, None, HTTP)?;
        let tls = Arc::new(Self { files, settings: settings.clone(), config: ArcSwap::from(config) });
        tokio::spawn(reload(Arc::downgrade(&tls), contents));
        Ok(Some(tls))
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }
}

async fn reload(tls: std::sync::Weak<Tls>, mut known: Contents) {
    loop {
        tokio::time::sleep(RELOAD).await;
        let Some(tls) = tls.upgrade() else { return };
        known = tls.refresh(known);
    }
}

impl Tls {
    /// Takes what the files have now, if it differs from `known`.
    fn refresh(&self, known: Contents) -> Contents {
        let fresh = match read(&self.files) {
            Ok(fresh) if fresh != known => fresh,
            Ok(_) => return known,
            Err(error) => {
                tracing::error!(%error, "cannot read the certificate; the old one stays in use");
                return known;
            }
        };
        match parse(&fresh, &self.settings, None, HTTP) {
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

#[cfg(test)]
mod tests {
    use std::fs;

    use rustls_pki_types::CertificateDer;

    use super::*;

    #[tokio::test]
    async fn no_files_mean_no_tls_and_bad_ones_are_an_error() {
        let made = tempfile::tempdir().expect("writable");
        let folder = made.path();
        assert!(Tls::open(folder, &TlsSettings::default()).expect("no files").is_none());
        fs::write(folder.join("tls.crt"), "x").expect("writable");
        fs::write(folder.join("tls.key"), "y").expect("writable");
        let error = Tls::open(folder, &TlsSettings::default()).err().expect("nonsense").to_string();
        assert!(error.contains("tls.key"), "{error}");
    }

    /// Whether a client that trusts only `certificate` is shown it.
    async fn shows(acceptor: TlsAcceptor, certificate: &CertificateDer<'static>) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.clone()).expect("valid");
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let (client, server) = tokio::io::duplex(64 << 10);
        let name = rustls_pki_types::ServerName::try_from("a").expect("a name");
        let connected = tokio::try_join!(connector.connect(name, client), acceptor.accept(server));
        connected
            .is_ok_and(|(client, _)| client.get_ref().1.peer_certificates() == Some(std::slice::from_ref(certificate)))
    }

    #[tokio::test(start_paused = true)]
    async fn new_files_are_served_within_a_minute_and_broken_ones_never() {
        let folder = tempfile::tempdir().expect("writable");
        let write = || {
            let made = rcgen::generate_simple_self_signed(["a".to_owned()]).expect("a certificate");
            fs::write(folder.path().join("tls.crt"), made.cert.pem()).expect("writable");
            fs::write(folder.path().join("tls.key"), made.signing_key.serialize_pem()).expect("writable");
            made.cert.der().clone()
        };
        let first = write();
        let tls = Tls::open(folder.path(), &TlsSettings::default()).expect("valid").expect("there");
        assert!(shows(tls.acceptor(), &first).await);
        let open = tls.acceptor();
        let second = write();
        tokio::time::sleep(RELOAD + Duration::from_secs(1)).await;
        assert!(shows(tls.acceptor(), &second).await);
        assert!(shows(open, &first).await, "what had begun with the old one goes on with it");
        fs::write(folder.path().join("tls.crt"), "nonsense").expect("writable");
        tokio::time::sleep(RELOAD).await;
        assert!(shows(tls.acceptor(), &second).await);
        fs::remove_file(folder.path().join("tls.key")).expect("removable");
        tokio::time::sleep(RELOAD).await;
        assert!(shows(tls.acceptor(), &second).await);
        let third = write();
        tokio::time::sleep(RELOAD).await;
        assert!(shows(tls.acceptor(), &third).await);
    }
}
