//! The Ingress of a Route.

use std::collections::BTreeMap;

use api::config::{HttpProtocol, Network};
use api::keys::networking::{self as keys, CLUSTER_LOCAL_VISIBILITY, EXTERNAL_IP};
use api::keys::{self as all, headers, ports, serving};
use api::networking::v1alpha1::{
    HeaderMatch, HttpIngressPath, HttpIngressRule, Ingress, IngressBackendSplit, IngressRule, IngressSpec, IngressTls,
};
use api::serving::v1::Route;
use controller::owner_reference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::hosts::{Naming, Visibility};
use super::rollout::{ConfigurationRollout, Rollout};
use super::traffic::{Target, Traffic};

/// Everything an Ingress is made from.
#[derive(Debug)]
pub struct Input<'a> {
    pub route: &'a Route,
    pub naming: Naming<'a>,
    pub traffic: &'a Traffic,
    pub rollout: &'a Rollout,
    /// By tag.
    pub visibility: &'a BTreeMap<String, Visibility>,
    pub tls: Vec<IngressTls>,
    /// Feature `tag-header-based-routing`.
    pub route_by_tag_header: bool,
}

pub fn name(route: &Route) -> String {
    api::child_name(&route.name_any(), "")
}

// === impl Input ===

impl Input<'_> {
    pub fn ingress(&self) -> Result<Ingress, String> {
        let route = self.route;
        let namespace = route.namespace().unwrap_or_default();
        let mut labels = route.labels().clone();
        labels.insert(serving::ROUTE.to_owned(), route.name_any());
        labels.insert(serving::ROUTE_NAMESPACE.to_owned(), namespace.clone());
        Ok(Ingress {
            metadata: ObjectMeta {
                name: Some(name(route)),
                namespace: Some(namespace),
                labels: Some(labels),
                annotations: Some(self.annotations()?),
                owner_references: Some(vec![owner_reference(route)]),
                ..ObjectMeta::default()
            },
            spec: IngressSpec {
                tls: self.tls.clone(),
                rules: self.rules()?,
                http_option: http_option(route.annotations(), self.naming.network)?.to_owned(),
                ..IngressSpec::default()
            },
            status: None,
        })
    }

    fn annotations(&self) -> Result<BTreeMap<String, String>, String> {
        let own = self.route.annotations();
        let mut annotations = BTreeMap::from([
            (keys::INGRESS_CLASS.to_owned(), class(own, self.naming.network).to_owned()),
            (keys::ROLLOUT.to_owned(), self.rollout.to_annotation()),
        ]);
        annotations.extend(without_excluded(own));
        let mut tag_to_host: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for tag in self.traffic.groups.keys().filter(|tag| !tag.is_empty()) {
            let hostname = self.naming.hostname(self.route, tag)?;
            let visibilities = self.visibilities(tag);
            let hosts = visibilities.iter().map(|v| self.naming.domain_name(self.route, &hostname, *v));
            tag_to_host.insert(tag, hosts.collect::<Result<_, _>>()?);
        }
        if !tag_to_host.is_empty() {
            let json = serde_json::to_string(&tag_to_host).expect("strings serialise");
            annotations.insert(keys::TAG_TO_HOST.to_owned(), json);
        }
        Ok(annotations)
    }

    fn visibilities(&self, tag: &str) -> &'static [Visibility] {
        match self.visibility.get(tag) {
            Some(Visibility::ClusterLocal) => &[Visibility::ClusterLocal],
            _ => &[Visibility::ClusterLocal, Visibility::ExternalIp],
        }
    }

    fn rules(&self) -> Result<Vec<IngressRule>, String> {
        let mut rules = Vec::new();
        for (tag, targets) in &self.traffic.groups {
            let hostname = self.naming.hostname(self.route, tag)?;
            let paths = self.paths(tag, targets);
            for visibility in self.visibilities(tag) {
                let hosts = self.naming.hosts(self.route, &hostname, *visibility)?;
                rules.push(IngressRule {
                    hosts,
                    visibility: match visibility {
                        Visibility::ClusterLocal => CLUSTER_LOCAL_VISIBILITY.to_owned(),
                        Visibility::ExternalIp => EXTERNAL_IP.to_owned(),
                    },
                    // ACME challenge paths would come first here, with external TLS.
                    http: Some(HttpIngressRule { paths: paths.clone() }),
                });
            }
        }
        Ok(rules)
    }

    fn paths(&self, tag: &str, targets: &[Target]) -> Vec<HttpIngressPath> {
        let mut base = self.path(tag, targets);
        if !self.route_by_tag_header {
            return vec![base];
        }
        let (header, value) = if tag.is_empty() { (headers::DEFAULT_ROUTE, "true") } else { (headers::TAG, tag) };
        base.append_headers.insert(header.to_owned(), value.to_owned());
        let mut paths = Vec::new();
        if tag.is_empty() {
            for (tag, targets) in self.traffic.groups.iter().filter(|(tag, _)| !tag.is_empty()) {
                let mut path = self.path(tag, targets);
                path.headers.insert(headers::TAG.to_owned(), HeaderMatch { exact: tag.clone() });
                paths.push(path);
            }
        }
        paths.push(base);
        paths
    }

    fn path(&self, tag: &str, targets: &[Target]) -> HttpIngressPath {
        let mut splits = Vec::new();
        for target in targets.iter().filter(|t| t.percent != 0) {
            let rolling = in_rollout(self.rollout, tag, target);
            match rolling {
                Some(rollout) => {
                    splits.extend(rollout.revisions.iter().map(|r| self.split(target, &r.revision_name, r.percent)))
                }
                None => splits.push(self.split(target, &target.revision, target.percent)),
            }
        }
        HttpIngressPath { splits, ..HttpIngressPath::default() }
    }

    fn split(&self, target: &Target, revision: &str, percent: i64) -> IngressBackendSplit {
        let namespace = self.route.namespace().unwrap_or_default();
        let port = if self.naming.network.system_internal_tls {
            ports::SERVICE_HTTPS
        } else if target.protocol == all::PROTOCOL_H2C {
            ports::SERVICE_HTTP2
        } else {
            ports::SERVICE_HTTP
        };
        IngressBackendSplit {
            append_headers: BTreeMap::from([
                (headers::REVISION.to_owned(), revision.to_owned()),
                (headers::NAMESPACE.to_owned(), namespace.clone()),
            ]),
            service_namespace: namespace,
            service_name: revision.to_owned(),
            service_port: IntOrString::Int(port.into()),
            percent,
        }
    }
}

/// The owner's annotations but for those that are not the Ingress's.
pub fn without_excluded(own: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    const EXCLUDED: [&str; 3] = [all::LAST_APPLIED, keys::CERTIFICATE_CLASS_ALT, keys::INGRESS_CLASS_ALT];
    let kept = own.iter().filter(|(key, _)| !EXCLUDED.contains(&key.as_str()));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The implementation that the owner asks for, or that of the installation.
pub fn class<'a>(own: &'a BTreeMap<String, String>, network: &'a Network) -> &'a str {
    all::first(own, keys::INGRESS_CLASS_ALIASES).map_or(network.ingress_class.as_str(), |(_, class)| class)
}

pub fn http_option(own: &BTreeMap<String, String>, network: &Network) -> Result<&'static str, String> {
    if let Some((_, value)) = all::first(own, keys::HTTP_PROTOCOL) {
        return match value.to_lowercase().as_str() {
            "enabled" => Ok("Enabled"),
            "redirected" => Ok("Redirected"),
            other => Err(format!("incorrect http-protocol annotation: {other}")),
        };
    }
    Ok(match network.http_protocol {
        HttpProtocol::Enabled => "Enabled",
        HttpProtocol::Redirected => "Redirected",
        HttpProtocol::Disabled => "",
    })
}

/// The rollout of a latest-revision target while it has more than one revision.
pub fn in_rollout<'a>(rollout: &'a Rollout, tag: &str, target: &Target) -> Option<&'a ConfigurationRollout> {
    rollout.find(tag, &target.configuration).filter(|c| target.latest && c.revisions.len() > 1)
}
