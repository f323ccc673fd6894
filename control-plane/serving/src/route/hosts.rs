//! Host names of a Route and its tags, and who may see them.

use std::collections::BTreeMap;

use api::checks;
use api::config::{Domain, Network};
use api::keys::networking::{CLUSTER_LOCAL, VISIBILITY};
use api::serving::v1::Route;
use kube::ResourceExt;
use serde_json::json;

/// What names are made from, frozen for one reconcile.
#[derive(Clone, Copy, Debug)]
pub struct Naming<'a> {
    pub domain: &'a Domain,
    pub network: &'a Network,
    pub cluster_domain: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    ClusterLocal,
    ExternalIp,
}

// === impl Naming ===

impl Naming<'_> {
    /// Name of the placeholder Service: the Route's, or what the tag template makes of it.
    pub fn hostname(&self, route: &Route, tag: &str) -> Result<String, String> {
        let name = route.name_any();
        if tag.is_empty() {
            return Ok(name);
        }
        let data = json!({"Name": name, "Tag": tag});
        self.network.tag_template.render(&data).map_err(|error| format!("error executing the TagTemplate: {error}"))
    }

    /// Full name of `hostname` as seen from outside, or inside the cluster only.
    pub fn domain_name(&self, route: &Route, hostname: &str, visibility: Visibility) -> Result<String, String> {
        let mut labels = route.labels().clone();
        match visibility {
            Visibility::ClusterLocal => labels.insert(VISIBILITY.to_owned(), CLUSTER_LOCAL.to_owned()),
            Visibility::ExternalIp => labels.remove(VISIBILITY),
        };
        self.domain_name_for(route, hostname, &labels)
    }

    /// The same with the Route's labels as they are.
    pub fn own_domain_name(&self, route: &Route, hostname: &str) -> Result<String, String> {
        self.domain_name_for(route, hostname, route.labels())
    }

    fn domain_name_for(
        &self,
        route: &Route,
        hostname: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<String, String> {
        let namespace = route.namespace().unwrap_or_default();
        let domain = self.domain.lookup(labels, self.cluster_domain);
        let name = if labels.get(VISIBILITY).is_some_and(|v| v == CLUSTER_LOCAL) {
            format!("{hostname}.{namespace}.{domain}")
        } else {
            let data = json!({
                "Name": hostname,
                "Namespace": namespace,
                "Domain": domain,
                "Annotations": route.annotations(),
                "Labels": labels,
            });
            self.network
                .domain_template
                .render(&data)
                .map_err(|error| format!("error executing the DomainTemplate: {error}"))?
        };
        let problems = checks::fqdn(&name);
        if problems.is_empty() {
            Ok(name)
        } else {
            Err(format!("invalid domain name {name:?}: {}", problems.join(", ")))
        }
    }

    /// `local_services`: names of this Route's placeholder Services that are labelled local.
    pub fn visibility(&self, route: &Route, hostname: &str, is_local_service: impl Fn(&str) -> bool) -> Visibility {
        let local = format!("svc.{}", self.cluster_domain);
        if self.domain.lookup(route.labels(), self.cluster_domain) == local || is_local_service(hostname) {
            Visibility::ClusterLocal
        } else {
            Visibility::ExternalIp
        }
    }

    /// Hosts that a rule of this visibility answers to, sorted.
    pub fn hosts(&self, route: &Route, hostname: &str, visibility: Visibility) -> Result<Vec<String>, String> {
        let host = self.domain_name(route, hostname, visibility)?;
        Ok(match visibility {
            Visibility::ExternalIp => vec![host],
            Visibility::ClusterLocal => expand(&host, self.cluster_domain),
        })
    }

    pub fn url(&self, host: &str) -> String {
        let local = host.ends_with(&format!(".svc.{}", self.cluster_domain));
        let scheme = if local { "http" } else { &self.network.default_external_scheme };
        format!("{scheme}://{host}")
    }

    /// What is always reachable inside the cluster.
    pub fn address(&self, route: &Route) -> String {
        format!("http://{}.{}.svc.{}", route.name_any(), route.namespace().unwrap_or_default(), self.cluster_domain)
    }
}

/// A cluster-local host and its shorter forms.
fn expand(host: &str, cluster_domain: &str) -> Vec<String> {
    let mut hosts = vec![host.to_owned()];
    for suffix in [format!(".{cluster_domain}"), format!(".svc.{cluster_domain}")] {
        if let Some(short) = host.strip_suffix(&suffix).filter(|short| is_plausible(short)) {
            hosts.push(short.to_owned());
        }
    }
    hosts.sort();
    hosts.dedup();
    hosts
}

/// A short form must not look like an address to a gateway.
fn is_plausible(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    last.len() <= 63 && !last.bytes().all(|b| b.is_ascii_digit())
}
