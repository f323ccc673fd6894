//! Whether a certificate is that of a pod of one namespace.

use std::{io, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Asks for the usual (authority, time, the server's name) and for the namespace's name as well.
#[derive(Debug)]
pub(super) struct Pods {
    usual: Arc<WebPkiServerVerifier>,
    namespace: ServerName<'static>,
}

// === impl Pods ===

impl Pods {
    /// # Errors
    /// If nobody is trusted, or the namespace's name cannot be one of a certificate.
    pub(super) fn new(roots: Arc<RootCertStore>, provider: Arc<CryptoProvider>, namespace: &str) -> io::Result<Self> {
        let usual = WebPkiServerVerifier::builder_with_provider(roots, provider).build().map_err(|error| {
            io::Error::other(format!("no pod can be trusted: {error}; routing-serving-certs needs a ca.crt"))
        })?;
        let namespace = ServerName::try_from(format!("kn-user-{namespace}")).map_err(io::Error::other)?;
        Ok(Self { usual, namespace })
    }
}

impl ServerCertVerifier for Pods {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_name(&certificate, &self.namespace).map_err(|error| match error {
            Error::InvalidCertificate(_) => Error::InvalidCertificate(CertificateError::NotValidForName),
            other => other,
        })?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}
