//! `config-certmanager`.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct CertManager {
    pub issuer_ref: IssuerRef,
    pub cluster_local_issuer_ref: IssuerRef,
    pub system_internal_issuer_ref: IssuerRef,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct IssuerRef {
    pub name: String,
    pub kind: String,
    pub group: String,
}

// === impl CertManager ===

impl CertManager {
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut config = Self::default();
        for (key, issuer) in [
            ("issuerRef", &mut config.issuer_ref),
            ("clusterLocalIssuerRef", &mut config.cluster_local_issuer_ref),
            ("systemInternalIssuerRef", &mut config.system_internal_issuer_ref),
        ] {
            if let Some(text) = data.get(key).filter(|text| !text.trim().is_empty()) {
                *issuer = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
            }
        }
        Ok(config)
    }
}

// === impl IssuerRef ===

impl Default for IssuerRef {
    fn default() -> Self {
        Self { name: "knative-selfsigned-issuer".to_owned(), kind: "ClusterIssuer".to_owned(), group: String::new() }
    }
}
