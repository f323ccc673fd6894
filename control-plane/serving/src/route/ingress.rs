//! The Ingress of a Route (controllers.md 7.5; upstream `pkg/reconciler/route/resources/ingress.go`).

use std::collections::BTreeMap;

use api::config::{Features, HttpProtocol, Network};
use api::networking::v1alpha1::{
    HeaderMatch, HttpIngressPath, HttpIngressRule, Ingress, IngressBackendSplit, IngressRule, IngressSpec, IngressTls,
};
use api::serving::v1::Route;
use api::{child_name, keys};
use controller::owner_reference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::rollout::Rollout;
use super::traffic::{Target, Traffic};

/// The hosts of one traffic group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupHosts {
    /// All cluster-local names, sorted.
    pub local: Vec<String>,
    /// The full cluster-local name.
    pub local_primary: String,
    /// `None` if the group is reached from inside only.
    pub external: Option<String>,
}

/// What an Ingress is made from.
#[derive(Debug)]
pub struct Inputs<'a> {
    pub route: &'a Route,
    pub traffic: &'a Traffic,
    /// By tag, as in [`Traffic::groups`].
    pub hosts: &'a BTreeMap<String, GroupHosts>,
    pub rollout: &'a Rollout,
    pub tls: Vec<IngressTls>,
    pub network: &'a Network,
    pub features: &'a Features,
}

/// The desired Ingress.
///
/// # Errors
/// If the Route's HTTP option annotation is none.
pub fn ingress(inputs: &Inputs<'_>) -> Result<Ingress, String> {
    let route = inputs.route;
    let namespace = route.namespace().unwrap_or_default();
    let mut labels = route.labels().clone();
    labels.insert(keys::serving::ROUTE.to_owned(), route.name_any());
    labels.insert(keys::serving::ROUTE_NAMESPACE.to_owned(), namespace.clone());

    let mut rules = Vec::new();
    for (tag, targets) in &inputs.traffic.groups {
        let Some(hosts) = inputs.hosts.get(tag) else { continue };
        let http = HttpIngressRule { paths: paths(inputs, &namespace, tag, targets) };
        let rule = |hosts: Vec<String>, visibility: &str| IngressRule {
            hosts,
            visibility: visibility.to_owned(),
            http: Some(http.clone()),
        };
        rules.push(rule(hosts.local.clone(), keys::networking::CLUSTER_LOCAL_VISIBILITY));
        if let Some(external) = &hosts.external {
            rules.push(rule(vec![external.clone()], keys::networking::EXTERNAL_IP));
        }
    }
    Ok(Ingress {
        metadata: ObjectMeta {
            name: Some(child_name(&route.name_any(), "")),
            namespace: Some(namespace),
            labels: Some(labels),
            annotations: Some(annotations(inputs)),
            owner_references: Some(vec![owner_reference(route)]),
            ..ObjectMeta::default()
        },
        spec: IngressSpec {
            tls: inputs.tls.clone(),
            rules,
            http_option: http_option(route, inputs.network)?,
            ..IngressSpec::default()
        },
        status: None,
    })
}

fn annotations(inputs: &Inputs<'_>) -> BTreeMap<String, String> {
    const DROPPED: &[&str] =
        &[keys::LAST_APPLIED, keys::networking::CERTIFICATE_CLASS_ALT, keys::networking::INGRESS_CLASS_ALT];
    let own = inputs.route.annotations();
    let class = keys::networking::INGRESS_CLASS_ALIASES.iter().find_map(|key| own.get(*key));
    let class = class.unwrap_or(&inputs.network.ingress_class).clone();
    let mut annotations = BTreeMap::from([
        (keys::networking::INGRESS_CLASS.to_owned(), class),
        (keys::networking::ROLLOUT.to_owned(), inputs.rollout.to_json()),
    ]);
    annotations.extend(own.iter().map(|(key, value)| (key.clone(), value.clone())));
    annotations.retain(|key, _| !DROPPED.contains(&key.as_str()));
    let tags: BTreeMap<&str, Vec<&str>> = inputs
        .hosts
        .iter()
        .filter(|(tag, _)| !tag.is_empty())
        .map(|(tag, hosts)| {
            let external = hosts.external.as_deref();
            (tag.as_str(), std::iter::once(hosts.local_primary.as_str()).chain(external).collect())
        })
        .collect();
    if !tags.is_empty()
        && let Ok(json) = serde_json::to_string(&tags)
    {
        annotations.insert(keys::networking::TAG_TO_HOST.to_owned(), json);
    }
    annotations
}

fn http_option(route: &Route, network: &Network) -> Result<String, String> {
    let own = keys::networking::HTTP_PROTOCOL.iter().find_map(|key| route.annotations().get(*key));
    if let Some(value) = own {
        return match value.to_ascii_lowercase().as_str() {
            "enabled" => Ok("Enabled".to_owned()),
            "redirected" => Ok("Redirected".to_owned()),
            _ => Err(format!("incorrect http-protocol annotation: {value}")),
        };
    }
    Ok(match network.http_protocol {
        HttpProtocol::Enabled => "Enabled",
        HttpProtocol::Redirected => "Redirected",
        HttpProtocol::Disabled => "",
    }
    .to_owned())
}

/// The paths of a group: with tag header routing, the default group starts with one path per tag.
fn paths(inputs: &Inputs<'_>, namespace: &str, tag: &str, targets: &[Target]) -> Vec<HttpIngressPath> {
    let base = |tag: &str, targets: &[Target]| HttpIngressPath {
        splits: splits(inputs, namespace, tag, targets),
        ..HttpIngressPath::default()
    };
    let mut path = base(tag, targets);
    if !inputs.features.tag_header_based_routing.is_enabled() {
        return vec![path];
    }
    if !tag.is_empty() {
        path.append_headers.insert(keys::headers::TAG.to_owned(), tag.to_owned());
        return vec![path];
    }
    let mut paths: Vec<_> = inputs
        .traffic
        .groups
        .iter()
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, targets)| HttpIngressPath {
            headers: BTreeMap::from([(keys::headers::TAG.to_owned(), HeaderMatch { exact: name.clone() })]),
            ..base(name, targets)
        })
        .collect();
    path.append_headers.insert(keys::headers::DEFAULT_ROUTE.to_owned(), "true".to_owned());
    paths.push(path);
    paths
}

fn splits(inputs: &Inputs<'_>, namespace: &str, tag: &str, targets: &[Target]) -> Vec<IngressBackendSplit> {
    let mut splits = Vec::new();
    for target in targets.iter().filter(|target| target.percent != 0) {
        let port = port(target, inputs.network);
        let rolling = target.latest.then(|| inputs.rollout.of(tag, &target.configuration)).flatten();
        match rolling.filter(|revisions| revisions.len() > 1) {
            Some(revisions) => {
                splits.extend(revisions.iter().map(|part| split(namespace, &part.revision_name, port, part.percent)))
            }
            None => splits.push(split(namespace, &target.revision, port, target.percent)),
        }
    }
    splits
}

fn port(target: &Target, network: &Network) -> u16 {
    if network.system_internal_tls {
        keys::ports::SERVICE_HTTPS
    } else if target.protocol == keys::PROTOCOL_H2C {
        keys::ports::SERVICE_HTTP2
    } else {
        keys::ports::SERVICE_HTTP
    }
}

fn split(namespace: &str, revision: &str, port: u16, percent: i64) -> IngressBackendSplit {
    IngressBackendSplit {
        service_namespace: namespace.to_owned(),
        service_name: revision.to_owned(),
        service_port: IntOrString::Int(i32::from(port)),
        percent,
        append_headers: BTreeMap::from([
            (keys::headers::REVISION.to_owned(), revision.to_owned()),
            (keys::headers::NAMESPACE.to_owned(), namespace.to_owned()),
        ]),
    }
}
