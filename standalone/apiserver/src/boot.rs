//! The objects that are there before anybody creates one.
//!
//! All of them are ordinary objects, complete but for what the write pipeline adds; whoever opens the server creates those that are missing.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::kinds::Options;

pub const NAMESPACES: [&str; 6] =
    ["default", "kube-system", "kube-public", "kube-node-lease", "knative-serving", "kourier-system"];

/// Where the API itself is reached, for Service `default/kubernetes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiAddress {
    pub ip: Ipv4Addr,
    pub port: u16,
}

/// Namespaces first, then what lives in them; what every namespace has is not among them.
pub fn objects(options: &Options) -> Vec<Value> {
    let mut objects: Vec<Value> = NAMESPACES.into_iter().map(namespace).collect();
    objects.extend(api_service(options));
    objects
}

pub fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": name, "labels": { "kubernetes.io/metadata.name": name } },
    })
}

/// What every namespace has: the account pods run as when they name none.
pub fn default_service_account(namespace: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default", "namespace": namespace } })
}

/// What every namespace has: the certificate pods verify the API with.
pub fn root_certificate(namespace: &str, pem: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": "kube-root-ca.crt", "namespace": namespace,
            "annotations": { "kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when \
                using internal endpoints such as the internal service IP or kubernetes.default.svc." },
        },
        "data": { "ca.crt": pem },
    })
}

/// Service `kubernetes` with its first address of the range, and where it leads when the API listens.
fn api_service(options: &Options) -> Vec<Value> {
    let target = options.api.map_or(6443, |api| api.port);
    let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "kubernetes", "namespace": "default", "labels": labels },
        "spec": {
            "clusterIP": options.service_range.nth(1).to_string(),
            "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": target }],
        },
    })];
    if let Some(ApiAddress { ip, port }) = options.api {
        objects.push(json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {
                "name": "kubernetes", "namespace": "default", "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" },
            },
            "subsets": [{ "addresses": [{ "ip": ip.to_string() }], "ports": [{ "name": "https", "port": port, "protocol": "TCP" }] }],
        }));
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "name": "kubernetes", "namespace": "default", "labels": { "kubernetes.io/service-name": "kubernetes" } },
            "endpoints": [{ "addresses": [ip.to_string()], "conditions": { "ready": true } }],
            "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
        }));
    }
    objects
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_come_first_and_the_api_has_the_first_address() {
        let api = Some(ApiAddress { ip: Ipv4Addr::new(10, 244, 0, 1), port: 6443 });
        let options = Options { api, ..Options::default() };
        let objects = objects(&options);
        assert!(objects[..NAMESPACES.len()].iter().all(|object| object["kind"] == "Namespace"));
        let service = objects.iter().find(|object| object["kind"] == "Service").expect("the service");
        assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
        assert!(objects.iter().any(|object| object["kind"] == "EndpointSlice"));
    }
}
