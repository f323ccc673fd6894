//! Certificates of a Route. Only the disabled state exists so far: external and cluster-local TLS (controllers.md 7.6)
//! belong here, where [`provision`] is called before the Ingress is made.

use api::config::Network;
use api::keys;
use api::keys::networking::DISABLE_EXTERNAL_TLS;
use api::networking::v1alpha1::IngressTls;
use api::serving::v1::Route;
use api::{Conditioned, go};
use kube::ResourceExt;

pub const CERTIFICATE_PROVISIONED: &str = "CertificateProvisioned";

/// The TLS entries of the Ingress, and the Route's condition.
pub fn provision(route: &mut Route, network: &Network) -> Vec<IngressTls> {
    let disabled = keys::first(route.annotations(), DISABLE_EXTERNAL_TLS)
        .is_some_and(|(_, value)| go::parse_bool(value).unwrap_or(false));
    let wanted = if network.external_domain_tls && !disabled {
        "external-domain-tls"
    } else if network.cluster_local_domain_tls {
        "cluster-local-domain-tls"
    } else {
        route.mark().mark_true_with(CERTIFICATE_PROVISIONED, "TLSNotEnabled", "external-domain-tls is not enabled");
        return Vec::new();
    };
    // Served over HTTP meanwhile, but never reported as if a certificate were there.
    let message = format!(
        "{wanted} is enabled in config-network, but certificates cannot be provisioned by this version; disable it to make the Route ready"
    );
    route.mark().mark_false(CERTIFICATE_PROVISIONED, "NotSupported", &message);
    Vec::new()
}
