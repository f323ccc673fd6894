//! Who the API server is and how `kubectl` proves who it is: a certificate authority, a token, and the kubeconfig that
//! carries both. Made once per data folder, so that a kubeconfig stays good across restarts.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use base64::Engine;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What the API listener needs, and what clients need to trust it.
pub struct Identity {
    pub tls: Arc<rustls::ServerConfig>,
    pub ca_pem: String,
    pub token: String,
}

/// Reads the identity of the data folder, making what is missing. The serving certificate is made anew at each start,
/// for the present addresses.
pub fn load(data: &Path, names: &[String], addresses: &[IpAddr]) -> Result<Identity> {
    let folder = data.join("pki");
    std::fs::create_dir_all(&folder)?;
    let key_pem = read_or_make(&folder.join("ca.key"), || Ok(KeyPair::generate()?.serialize_pem()))?;
    let ca_key = KeyPair::from_pem(&key_pem).context("pki/ca.key is no private key; remove the pki folder")?;
    let ca_pem = read_or_make(&folder.join("ca.crt"), || Ok(ca_params().self_signed(&ca_key)?.pem()))?;
    let token = read_or_make(&folder.join("token"), || Ok(uuid::Uuid::new_v4().simple().to_string()))?;

    let issuer = Issuer::new(ca_params(), ca_key);
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name.push(DnType::CommonName, "postrider-api");
    params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;

    let chain = vec![certificate.der().clone(), CertificateDer::from_pem_slice(ca_pem.as_bytes())?];
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())?;
    let tls = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    Ok(Identity { tls: Arc::new(tls), ca_pem, token: token.trim().to_owned() })
}

/// Writes the kubeconfig, readable by its owner only.
pub fn write_kubeconfig(path: &Path, api: SocketAddr, identity: &Identity) -> Result<()> {
    let ca = base64::engine::general_purpose::STANDARD.encode(&identity.ca_pem);
    let token = &identity.token;
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: postrider\nclusters:\n- name: postrider\n  cluster:\n    \
         server: https://{api}\n    certificate-authority-data: {ca}\ncontexts:\n- name: postrider\n  context:\n    \
         cluster: postrider\n    user: admin\n    namespace: default\nusers:\n- name: admin\n  user:\n    token: {token}\n"
    );
    write_private(path, &text)
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, "postrider-ca");
    params
}

fn read_or_make(path: &Path, make: impl FnOnce() -> Result<String>) -> Result<String> {
    if let Ok(text) = std::fs::read_to_string(path) {
        return Ok(text);
    }
    let text = make()?;
    write_private(path, &text)?;
    Ok(text)
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    Ok(())
}
