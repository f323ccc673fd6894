//! The Ingress of a DomainMapping.

use std::collections::BTreeMap;

use api::config::Network;
use api::keys::networking::{self as keys, EXTERNAL_IP};
use api::keys::serving;
use api::networking::v1alpha1::{
    HttpIngressPath, HttpIngressRule, Ingress, IngressBackendSplit, IngressRule, IngressSpec, IngressTls,
};
use api::serving::v1beta1::DomainMapping;
use controller::owner_reference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::target::Target;
use crate::route::ingress::{class, http_option, without_excluded};

/// What the program behind the mapping is told of the name that was asked for.
const ORIGINAL_HOST: &str = "K-Original-Host";
/// Of the Service that stands for the gateway.
const GATEWAY_PORT: i32 = 80;

pub fn desired(
    mapping: &DomainMapping,
    network: &Network,
    target: &Target,
    tls: Vec<IngressTls>,
) -> Result<Ingress, String> {
    let (name, namespace) = (mapping.name_any(), mapping.namespace().unwrap_or_default());
    let own = mapping.annotations();
    let mut annotations = without_excluded(own);
    annotations.entry(keys::INGRESS_CLASS.to_owned()).or_insert_with(|| class(own, network).to_owned());
    let mut labels = mapping.labels().clone();
    labels.insert(serving::DOMAIN_MAPPING_UID.to_owned(), mapping.uid().unwrap_or_default());
    labels.insert(serving::DOMAIN_MAPPING_NAMESPACE.to_owned(), namespace.clone());
    let path = HttpIngressPath {
        rewrite_host: target.host.clone(),
        splits: vec![IngressBackendSplit {
            service_namespace: namespace.clone(),
            service_name: target.service.clone(),
            service_port: IntOrString::Int(GATEWAY_PORT),
            percent: 100,
            append_headers: BTreeMap::from([(ORIGINAL_HOST.to_owned(), name.clone())]),
        }],
        ..HttpIngressPath::default()
    };
    let rule = IngressRule {
        hosts: vec![name.clone()],
        visibility: EXTERNAL_IP.to_owned(),
        http: Some(HttpIngressRule { paths: vec![path] }),
    };
    Ok(Ingress {
        metadata: ObjectMeta {
            name: Some(api::child_name(&name, "")),
            namespace: Some(namespace),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![owner_reference(mapping)]),
            ..ObjectMeta::default()
        },
        spec: IngressSpec {
            tls,
            rules: vec![rule],
            http_option: http_option(own, network)?.to_owned(),
            ..IngressSpec::default()
        },
        status: None,
    })
}
