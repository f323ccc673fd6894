use std::collections::BTreeMap;

use api::config::Network;
use api::serving::v1beta1::{DomainMapping, KReference};
use serde_json::{Value, json};

use super::target::{Target, tracked};
use super::*;

fn network(data: &[(&str, &str)]) -> Network {
    let data = data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Network::parse(&data.collect()).unwrap()
}

fn mapping(extra: Value) -> DomainMapping {
    let mut mapping = json!({
        "apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping",
        "metadata": {"name": "www.example.org", "namespace": "ns", "uid": "u-1", "labels": {"mine": "yes"},
            "annotations": {"mine": "too", "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
        "spec": {"ref": {"kind": "Service", "name": "hello", "namespace": "ns", "apiVersion": "serving.knative.dev/v1"}},
    });
    for (key, value) in extra.as_object().unwrap() {
        mapping["spec"][key] = value.clone();
    }
    serde_json::from_value(mapping).unwrap()
}

#[test]
fn only_services_of_the_own_namespace_can_be_targets() {
    let parse = |url| Target::parse(url, "ns", "cluster.local");
    let target = Target { host: "hello.ns.svc.cluster.local".into(), service: "hello".into() };
    assert_eq!(parse("http://hello.ns.svc.cluster.local"), Ok(target));
    for (url, why) in [
        ("http://hello.ns.svc.cluster.local/path", "contains a path"),
        ("http://hello.other.svc.cluster.local", "must be in same namespace as DomainMapping"),
        ("http://hello.example.com", "must be of the form {name}.{namespace}.svc.cluster.local"),
        ("http://a.hello.ns.svc.cluster.local", "must be of the form {name}.{namespace}.svc.cluster.local"),
    ] {
        assert_eq!(parse(url).unwrap_err(), format!("resolved URI {url:?} {why}"));
    }
}

#[test]
fn references_are_tracked_by_group_however_it_is_written() {
    let reference = |group: &str, api_version: &str| KReference {
        kind: "Service".into(),
        name: "hello".into(),
        namespace: "ns".into(),
        api_version: api_version.into(),
        group: group.into(),
        address: None,
    };
    let kind = |reference: KReference| tracked(&reference).map(|(kind, _)| kind);
    assert_eq!(kind(reference("", "serving.knative.dev/v1")), Some(target::SERVICE));
    assert_eq!(kind(reference("serving.knative.dev", "")), Some(target::SERVICE));
    assert_eq!(kind(reference("", "v1")), Some(target::CORE_SERVICE));
    assert_eq!(kind(reference("", "example.org/v1")), None);
}

#[test]
fn the_ingress_leads_to_the_target_under_its_own_name() {
    let network = network(&[("ingress-class", keys::networking::KOURIER_INGRESS_CLASS)]);
    let target = Target { host: "hello.ns.svc.cluster.local".into(), service: "hello".into() };
    let ingress = ingress::desired(&mapping(json!({})), &network, &target, Vec::new()).unwrap();
    assert_eq!(
        serde_json::to_value(&ingress.spec).unwrap(),
        json!({"httpOption": "Enabled", "rules": [{"hosts": ["www.example.org"], "visibility": "ExternalIP",
            "http": {"paths": [{"rewriteHost": "hello.ns.svc.cluster.local", "splits": [{
                "serviceNamespace": "ns", "serviceName": "hello", "servicePort": 80, "percent": 100,
                "appendHeaders": {"K-Original-Host": "www.example.org"}}]}]}}]})
    );
    let expected = BTreeMap::from([
        ("mine".to_owned(), "too".to_owned()),
        (keys::networking::INGRESS_CLASS.to_owned(), keys::networking::KOURIER_INGRESS_CLASS.to_owned()),
    ]);
    assert_eq!(*ingress.annotations(), expected);
    assert_eq!(ingress.labels()["serving.knative.dev/domainMappingUID"], "u-1");
    assert_eq!(ingress.labels()["mine"], "yes");
}

#[test]
fn a_certificate_is_the_users_or_none() {
    let mut own = mapping(json!({"tls": {"secretName": "cert"}}));
    let tls = provision(&mut own, &network(&[]));
    assert_eq!((tls[0].secret_name.as_str(), tls[0].secret_namespace.as_str()), ("cert", "ns"));
    let reason = |mapping: &DomainMapping| mapping.condition(CERTIFICATE_PROVISIONED).unwrap().reason.clone();
    assert_eq!(reason(&own), "CertificateExternallyProvided");
    let mut none = mapping(json!({}));
    assert!(provision(&mut none, &network(&[])).is_empty());
    assert_eq!(reason(&none), "TLSNotEnabled");
    let mut wanted = mapping(json!({}));
    assert!(provision(&mut wanted, &network(&[("external-domain-tls", "Enabled")])).is_empty());
    assert_eq!(reason(&wanted), "NotSupported");
}
