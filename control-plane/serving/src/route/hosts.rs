//! Names under which a Route and its tags are reached (controllers.md 7.3; upstream `pkg/reconciler/route/domains`).

use std::collections::BTreeMap;

use api::config::{Domain, Network};
use api::keys;
use api::serving::v1::Route;
use kube::ResourceExt;
use serde_json::json;

/// Who can reach a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    ClusterLocal,
    ExternalIp,
}

/// What names are made from.
#[derive(Debug, Clone, Copy)]
pub struct Naming<'a> {
    pub domain: &'a Domain,
    pub network: &'a Network,
    pub cluster_domain: &'a str,
}

// === impl Naming ===

impl Naming<'_> {
    /// The placeholder Service's name, which is also the first label of the host.
    pub fn hostname(&self, route: &Route, tag: &str) -> Result<String, String> {
        if tag.is_empty() {
            return Ok(route.name_any());
        }
        let hostname = self.network.tag_template.render(&json!({"Name": route.name_any(), "Tag": tag}));
        hostname.map_err(|error| format!("error executing the TagTemplate: {error}"))
    }

    /// The host of a hostname, seen from outside or inside the cluster.
    pub fn domain_name(&self, route: &Route, hostname: &str, visibility: Visibility) -> Result<String, String> {
        let namespace = route.namespace().unwrap_or_default();
        if visibility == Visibility::ClusterLocal {
            return checked(format!("{hostname}.{namespace}.svc.{}", self.cluster_domain));
        }
        let domain = self.domain.lookup(route.labels(), self.cluster_domain);
        // A domain of the cluster's own keeps to the cluster's form whatever the template says.
        if domain == self.local_domain() {
            return checked(format!("{hostname}.{namespace}.{domain}"));
        }
        let values = json!({
            "Name": hostname,
            "Namespace": namespace,
            "Domain": domain,
            "Annotations": route.annotations(),
            "Labels": route.labels(),
        });
        let name = self.network.domain_template.render(&values);
        checked(name.map_err(|error| format!("error executing the DomainTemplate: {error}"))?)
    }

    /// Local if the Route's domain is the cluster's, or its placeholder Service has a visibility label.
    pub fn visibility(&self, route: &Route, placeholder_labels: Option<&BTreeMap<String, String>>) -> Visibility {
        let labelled = placeholder_labels.and_then(|labels| labels.get(keys::networking::VISIBILITY));
        let local = self.domain.lookup(route.labels(), self.cluster_domain) == self.local_domain();
        if local || labelled.is_some_and(|value| !value.is_empty()) {
            Visibility::ClusterLocal
        } else {
            Visibility::ExternalIp
        }
    }

    /// All names of a cluster-local host, sorted: `r.ns`, `r.ns.svc`, `r.ns.svc.cluster.local`.
    pub fn expand(&self, host: &str) -> Vec<String> {
        let local = self.local_domain();
        let mut hosts = vec![host.to_owned()];
        for suffix in [local.as_str(), self.cluster_domain] {
            if let Some(short) = host.strip_suffix(suffix).and_then(|short| short.strip_suffix('.')) {
                let last = short.rsplit('.').next().unwrap_or_default();
                if last.len() <= 63 && !last.bytes().all(|byte| byte.is_ascii_digit()) {
                    hosts.push(short.to_owned());
                }
            }
        }
        hosts.sort();
        hosts.dedup();
        hosts
    }

    fn local_domain(&self) -> String {
        format!("svc.{}", self.cluster_domain)
    }
}

/// A fully qualified domain name of at least two labels.
fn checked(name: String) -> Result<String, String> {
    let is_label = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        (1..=63).contains(&label.len()) && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    if name.len() <= 253 && name.contains('.') && name.split('.').all(is_label) {
        Ok(name)
    } else {
        Err(format!(
            "domain name error: invalid domain name {name:?}: every part must be a DNS label of at most 63 characters"
        ))
    }
}
