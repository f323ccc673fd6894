//! What does not come from an Ingress: settings, certificates of whole tables, trust.

use std::collections::{BTreeMap, BTreeSet};

use controller::ObjectKey;
use xds::{Change, Kind, Resource, Version};

use super::{Objects, World, scopes};
use crate::{
    certificate, envoy,
    options::{AuthorizationProtocol, Settings},
    translate::{self, Context},
};

/// The Secret whose `ca.crt` signs for backends.
pub(crate) const ROUTING_CERTIFICATES: &str = "routing-serving-certs";

/// Whether backends speak TLS, and who signs for them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Trust {
    #[default]
    Off,
    On,
    /// TLS is asked for, but nobody is trusted.
    Nobody(String),
}

// === impl World ===

impl<O: Objects> World<O> {
    /// New settings. Returns the Ingresses that they change.
    pub fn configure(&mut self, settings: Settings) -> BTreeSet<ObjectKey> {
        self.settings = settings;
        self.reconfigure()
    }

    /// A Secret appeared, changed or is gone. Returns the Ingresses that must be translated again.
    pub fn secret(&mut self, secret: &ObjectKey) -> BTreeSet<ObjectKey> {
        let mut again = self.certificates.named_by(secret);
        let whole = [&self.settings.certificate, &self.settings.cluster_certificate];
        let trusted = self.settings.internal_tls
            && secret.name == ROUTING_CERTIFICATES
            && secret.namespace == self.options.system_namespace;
        if trusted || whole.into_iter().flatten().any(|key| key == secret) {
            again.extend(self.reconfigure());
        }
        again
    }

    /// A trust bundle changed. Returns the Ingresses that must be translated again.
    pub fn trust_bundles(&mut self) -> BTreeSet<ObjectKey> {
        if self.settings.internal_tls || self.asks_over_tls() { self.reconfigure() } else { BTreeSet::new() }
    }

    pub(super) fn reconfigure(&mut self) -> BTreeSet<ObjectKey> {
        let mut change = Change::default();
        let before = (self.context, self.trust.clone());
        self.refresh_trust(&mut change);
        self.refresh_authorizer_trust(&mut change);
        let mut usable = self.settings.clone();
        let mut pairs = BTreeMap::new();
        for whole in [&mut usable.certificate, &mut usable.cluster_certificate] {
            let Some(key) = whole.clone() else { continue };
            let secret = self.objects.secret(&key).ok_or_else(|| "it does not exist".to_owned());
            match secret.and_then(|secret| certificate::pair(&secret)) {
                Ok(pair) => drop(pairs.insert(key, pair)),
                // The one that is published stays, if there is one.
                Err(error) if self.one_certificates.contains_key(&key) => {
                    tracing::error!(secret = %key, error, "unusable for TLS: its last good content stays in force");
                    let pair = self.one_certificates[&key].clone();
                    pairs.insert(key, pair);
                }
                Err(error) => {
                    tracing::error!(secret = %key, error, "unusable: its hosts are without TLS until it is corrected");
                    *whole = None;
                }
            }
        }
        self.certificates.assign_whole(&pairs, usable.cryptomb, &mut change);
        self.one_certificates = pairs;
        self.context = Context {
            redirects: self.options.redirects,
            certificate: usable.certificate.is_some(),
            cluster_certificate: usable.cluster_certificate.is_some(),
            authorization: usable.authorization.is_some(),
            ..Context::default()
        };
        let status = translate::status_host(self.context.authorization);
        scopes::status(&status, &mut change);
        self.listeners.update(&self.options, &usable, &self.certificates, self.wild.is_empty(), &mut change);
        self.usable = usable;
        self.xds.publish(change);
        if before == (self.context, self.trust.clone()) {
            return BTreeSet::new();
        }
        self.ingresses.keys().map(|key| ObjectKey::clone(key)).collect()
    }

    fn asks_over_tls(&self) -> bool {
        let authorization = self.settings.authorization.as_ref();
        authorization.is_some_and(|authorization| authorization.protocol == AuthorizationProtocol::Https)
    }

    fn refresh_authorizer_trust(&mut self, change: &mut Change) {
        let chain = match self.asks_over_tls() {
            true => certificate::bundled(&self.objects.trust_bundles()),
            false => Vec::new(),
        };
        let was_bundled = std::mem::replace(&mut self.listeners.bundled, !chain.is_empty());
        if !chain.is_empty() {
            let message = envoy::trust(envoy::AUTHORIZER_TRUST, &chain);
            change.set.push(Resource::new(Kind::Secret, envoy::AUTHORIZER_TRUST, Version::of(&chain), &message));
        } else if was_bundled {
            change.remove.push((Kind::Secret, envoy::AUTHORIZER_TRUST.into()));
        }
    }

    fn refresh_trust(&mut self, change: &mut Change) {
        let was_on = self.trust == Trust::On;
        self.trust = if self.settings.internal_tls {
            let key = ObjectKey::new(self.options.system_namespace.clone(), ROUTING_CERTIFICATES);
            let secret = self.objects.secret(&key).ok_or_else(|| {
                format!("failed to fetch Secret {key}: it does not exist; system-internal-tls needs it")
            });
            match secret.and_then(|secret| certificate::trust_chain(&secret, &self.objects.trust_bundles())) {
                Ok(chain) => {
                    let version = Version::of(&chain);
                    change.set.push(Resource::new(
                        Kind::Secret,
                        envoy::TRUST,
                        version,
                        &envoy::trust(envoy::TRUST, &chain),
                    ));
                    Trust::On
                }
                // Clusters that trust somebody keep doing so: the last good chain stays published.
                Err(error) if was_on => {
                    tracing::error!(error, "the last good trust chain stays in force");
                    Trust::On
                }
                Err(error) => Trust::Nobody(error),
            }
        } else {
            if was_on {
                change.remove.push((Kind::Secret, envoy::TRUST.into()));
            }
            Trust::Off
        };
    }
}
