//! What a Secret must hold before a gateway is told about it: one bad certificate would make Envoy refuse it, and its
//! hosts would be without TLS.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use rustls::{RootCertStore, crypto::aws_lc_rs, sign::CertifiedKey};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{PemObject, SectionKind},
};

/// A certificate chain and its private key, as PEM, checked to belong together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pair {
    pub chain: Vec<u8>,
    pub key: Vec<u8>,
}

/// Reads `tls.crt` and `tls.key`.
///
/// # Errors
/// With what is wrong with them.
pub fn pair(secret: &Secret) -> Result<Pair, String> {
    let data = secret.data.as_ref();
    let read = |name: &str| {
        let value = data.and_then(|data| data.get(name)).filter(|value| !value.0.is_empty());
        value.map(|value| value.0.clone()).ok_or_else(|| format!("it has no {name}"))
    };
    let (chain, key) = (read("tls.crt")?, read("tls.key")?);
    let certificates = CertificateDer::pem_slice_iter(&chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("tls.crt is not PEM: {error}"))?;
    if certificates.is_empty() {
        return Err("tls.crt has no certificate".to_owned());
    }
    let private = PrivateKeyDer::from_pem_slice(&key).map_err(|error| format!("tls.key is no private key: {error}"))?;
    CertifiedKey::from_der(certificates, private, &aws_lc_rs::default_provider())
        .map_err(|error| format!("tls.crt and tls.key do not belong together: {error}"))?;
    Ok(Pair { chain, key })
}

/// Certificates of those who may sign for backends: `ca.crt` of the routing Secret, then the bundles. What holds
/// anything but certificates is left out.
///
/// # Errors
/// If nothing is left.
pub fn trust_chain(routing: &Secret, bundles: &BTreeMap<String, String>) -> Result<Vec<u8>, String> {
    let ca = routing.data.as_ref().and_then(|data| data.get("ca.crt")).map(|ByteString(bytes)| bytes.as_slice());
    let all = ca.map(|ca| ("routing-serving-certs", ca)).into_iter();
    let chain = join(all.chain(bundles.iter().map(|(name, pem)| (name.as_str(), pem.as_bytes()))));
    match chain.is_empty() {
        false => Ok(chain),
        true => Err("failed to build trust-chain, as no valid CA certificate was provided. Please make sure to \
                     provide a valid trust-bundle before enabling `system-internal-tls`"
            .to_owned()),
    }
}

/// The certificates of all bundles; empty if there are none.
pub fn bundled(bundles: &BTreeMap<String, String>) -> Vec<u8> {
    join(bundles.iter().map(|(name, pem)| (name.as_str(), pem.as_bytes())))
}

fn join<'a>(parts: impl Iterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let mut chain = Vec::new();
    for (name, pem) in parts.filter(|(_, pem)| !pem.is_empty()) {
        if let Err(error) = only_certificates(pem) {
            tracing::warn!(source = name, error, "ignored as a trust bundle");
            continue;
        }
        chain.extend_from_slice(pem);
        chain.push(b'\n');
    }
    chain
}

fn only_certificates(pem: &[u8]) -> Result<(), String> {
    let mut store = RootCertStore::empty();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
        let (kind, der) = section.map_err(|error| error.to_string())?;
        if kind != SectionKind::Certificate {
            return Err(format!("it holds a {kind:?}"));
        }
        store.add(der.into()).map_err(|error| error.to_string())?;
    }
    if store.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn secret(data: &[(&str, &str)]) -> Secret {
        let data = data.iter().map(|(name, value)| ((*name).to_owned(), ByteString(value.as_bytes().to_vec())));
        Secret { data: Some(data.collect()), ..Default::default() }
    }

    fn issue() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["a.example.com".to_owned()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn a_pair_is_checked() {
        let ((chain, key), (_, other)) = (issue(), issue());
        assert_eq!(pair(&secret(&[("tls.crt", &chain), ("tls.key", &key)])).unwrap().chain, chain.as_bytes());
        for (data, expected) in [
            (vec![("tls.key", key.as_str())], "it has no tls.crt"),
            (vec![("tls.crt", chain.as_str()), ("tls.key", "")], "it has no tls.key"),
            (vec![("tls.crt", "junk"), ("tls.key", &key)], "tls.crt has no certificate"),
            (vec![("tls.crt", &chain), ("tls.key", "junk")], "tls.key is no private key"),
            (vec![("tls.crt", &chain), ("tls.key", &other)], "do not belong together"),
        ] {
            let error = pair(&secret(&data)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn only_certificates_are_trusted() {
        let ((one, key), (two, _)) = (issue(), issue());
        let bundles = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let chain = trust_chain(&secret(&[("ca.crt", &one)]), &bundles(&[("b/ca", &two), ("b/key", &key)])).unwrap();
        assert_eq!(String::from_utf8(chain).unwrap(), format!("{one}\n{two}\n"));
        let error = trust_chain(&secret(&[]), &bundles(&[("b/junk", "junk")])).unwrap_err();
        assert!(error.starts_with("failed to build trust-chain, as no valid CA certificate was provided."), "{error}");
    }
}
