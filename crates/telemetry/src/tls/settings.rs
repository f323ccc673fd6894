//! What a TLS listener offers: versions, cipher suites and key exchange groups, by the names Go gives them.
//!
//! The variables are a prefix with `_TLS_MIN_VERSION`, `_TLS_MAX_VERSION`, `_TLS_CIPHER_SUITES` and
//! `_TLS_CURVE_PREFERENCES` behind it. A name that nobody knows is a mistake and fatal. One that Go knows and the
//! cryptography here does not have (CBC and RSA key exchange, P-521, the hybrid group) is left out; if nothing is left,
//! that is fatal too.

use std::sync::Arc;

use rustls::{
    CipherSuite, NamedGroup, ProtocolVersion, SupportedProtocolVersion,
    crypto::{CryptoProvider, ring},
    version,
};

/// Suites of Go's list that are left out here.
const LEFT_OUT: &[&str] = &[
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

/// The versions of TLS that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsRange {
    Only12,
    From12,
    #[default]
    Only13,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsSettings {
    pub range: TlsRange,
    /// Of TLS 1.2; those of 1.3 cannot be chosen. Empty: all.
    pub suites: Vec<CipherSuite>,
    /// In order of preference. Empty: all.
    pub groups: Vec<NamedGroup>,
}

/// One of the four values, and what is wrong with it.
#[derive(Debug, PartialEq, Eq)]
pub struct Mistake {
    pub which: Which,
    pub expected: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Min,
    Max,
    Suites,
    Curves,
}

// === impl TlsSettings ===

impl TlsSettings {
    /// # Errors
    /// The first of the values that cannot be meant.
    pub fn parse(min: &str, max: &str, suites: &str, curves: &str) -> Result<Self, Mistake> {
        let suites = names(suites, suite).map_err(|expected| Mistake { which: Which::Suites, expected })?;
        let groups = names(curves, group).map_err(|expected| Mistake { which: Which::Curves, expected })?;
        Ok(Self { range: range(min, max)?, suites, groups })
    }

    pub fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        static ONLY_12: [&SupportedProtocolVersion; 1] = [&version::TLS12];
        static FROM_12: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
        static ONLY_13: [&SupportedProtocolVersion; 1] = [&version::TLS13];
        match self.range {
            TlsRange::Only12 => &ONLY_12,
            TlsRange::From12 => &FROM_12,
            TlsRange::Only13 => &ONLY_13,
        }
    }

    pub fn provider(&self) -> Arc<CryptoProvider> {
        let mut provider = ring::default_provider();
        if !self.suites.is_empty() {
            provider.cipher_suites.retain(|known| {
                known.version().version == ProtocolVersion::TLSv1_3 || self.suites.contains(&known.suite())
            });
        }
        if !self.groups.is_empty() {
            let all = std::mem::take(&mut provider.kx_groups);
            let chosen = self.groups.iter().filter_map(|name| all.iter().find(|group| group.name() == *name));
            provider.kx_groups = chosen.copied().collect();
        }
        Arc::new(provider)
    }
}

fn range(min: &str, max: &str) -> Result<TlsRange, Mistake> {
    let mistake = |which| Mistake { which, expected: "1.2 or 1.3, the least not above the greatest" };
    let from12 = match min {
        "" | "1.3" => false,
        "1.2" => true,
        _ => return Err(mistake(Which::Min)),
    };
    match max {
        "" | "1.3" if from12 => Ok(TlsRange::From12),
        "" | "1.3" => Ok(TlsRange::Only13),
        "1.2" if from12 => Ok(TlsRange::Only12),
        _ => Err(mistake(Which::Max)),
    }
}

/// A comma-separated list; `known` gives `None` for an unknown name and `Some(None)` for one that is left out.
fn names<T>(text: &str, known: fn(&str) -> Option<Option<T>>) -> Result<Vec<T>, &'static str> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let mut any = false;
    let mut found = Vec::new();
    for item in items {
        any = true;
        found.extend(known(item).ok_or("a comma-separated list of Go's names")?);
    }
    if any && found.is_empty() {
        return Err("a list with at least one that is supported here");
    }
    Ok(found)
}

fn suite(name: &str) -> Option<Option<CipherSuite>> {
    use CipherSuite as S;
    Some(Some(match name {
        "TLS_AES_128_GCM_SHA256" => S::TLS13_AES_128_GCM_SHA256,
        "TLS_AES_256_GCM_SHA384" => S::TLS13_AES_256_GCM_SHA384,
        "TLS_CHACHA20_POLY1305_SHA256" => S::TLS13_CHACHA20_POLY1305_SHA256,
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256" => S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384" => S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256" => S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" => S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" | "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256" => {
            S::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
        }
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" | "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256" => {
            S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        }
        _ => return LEFT_OUT.contains(&name).then_some(None),
    }))
}

fn group(name: &str) -> Option<Option<NamedGroup>> {
    Some(match name {
        "X25519" => Some(NamedGroup::X25519),
        "CurveP256" | "P-256" => Some(NamedGroup::secp256r1),
        "CurveP384" | "P-384" => Some(NamedGroup::secp384r1),
        "CurveP521" | "P-521" | "X25519MLKEM768" => None,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_a_range() {
        let range = |min, max| TlsSettings::parse(min, max, "", "").map(|settings| settings.range);
        assert_eq!(range("", ""), Ok(TlsRange::Only13));
        assert_eq!(range("1.2", ""), Ok(TlsRange::From12));
        assert_eq!(range("1.2", "1.2"), Ok(TlsRange::Only12));
        assert_eq!(range("1.1", "").map_err(|mistake| mistake.which), Err(Which::Min));
        assert_eq!(range("", "1.2").map_err(|mistake| mistake.which), Err(Which::Max));
    }

    #[test]
    fn names_choose_what_is_offered_in_their_order() {
        let suites = "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_RSA_WITH_AES_128_CBC_SHA";
        let settings = TlsSettings::parse("1.2", "", suites, "P-384,X25519MLKEM768,X25519").expect("known names");
        let provider = settings.provider();
        let groups: Vec<_> = provider.kx_groups.iter().map(|group| group.name()).collect();
        assert_eq!(groups, [NamedGroup::secp384r1, NamedGroup::X25519]);
        let tls12 = provider.cipher_suites.iter().filter(|suite| suite.tls13().is_none());
        let tls12: Vec<_> = tls12.map(|suite| suite.suite()).collect();
        assert_eq!(tls12, [CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384]);
        assert_eq!(provider.cipher_suites.iter().filter(|suite| suite.tls13().is_some()).count(), 3);
    }

    #[test]
    fn what_nobody_knows_or_nobody_can_do_is_a_mistake() {
        let which = |suites, curves| TlsSettings::parse("", "", suites, curves).map_err(|mistake| mistake.which);
        assert_eq!(which("TLS_SECRET", ""), Err(Which::Suites));
        assert_eq!(which("TLS_RSA_WITH_AES_128_CBC_SHA", ""), Err(Which::Suites));
        assert_eq!(which("", "X448"), Err(Which::Curves));
        assert_eq!(which("", "P-521"), Err(Which::Curves));
    }
}
