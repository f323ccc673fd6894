//! The translation of objects captured from an installation with upstream's Kourier, compared with what its gateway was
//! configured with.

use std::{collections::BTreeMap, sync::Arc};

use api::networking::v1alpha1::Ingress;
use ingress::{
    backend::{self, Backend},
    model::{Action, Location, Route},
    translate::{Context, status_host, translate},
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::ResourceExt;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Objects {
    ingresses: Vec<Ingress>,
    services: Vec<Service>,
    slices: Vec<Arc<EndpointSlice>>,
}

fn resolve(objects: &Objects, reference: &backend::Reference) -> Backend {
    let service = objects.services.iter().find(|service| {
        service.name_any() == reference.name && service.namespace().as_deref() == Some(&*reference.namespace)
    });
    let slices: Vec<_> = objects
        .slices
        .iter()
        .filter(|slice| slice.labels()["kubernetes.io/service-name"] == reference.name)
        .cloned()
        .collect();
    backend::resolve(reference, service, &slices, false)
}

fn route(route: &Route) -> Value {
    let action = match &route.action {
        Action::Split { backends, rewrite_host } => {
            let split: Vec<Value> =
                backends.iter().map(|one| json!([one.cluster, one.weight, one.set_headers])).collect();
            json!({"split": split, "rewrite": rewrite_host})
        }
        Action::RedirectToHttps => json!("redirect"),
        Action::Status => json!("status"),
    };
    json!({"name": route.name, "prefix": route.prefix, "headers": route.headers, "set": route.set_headers,
        "action": action})
}

#[test]
fn the_gateway_is_told_what_upstream_tells_it() {
    let objects: Objects = serde_json::from_str(include_str!("upstream/objects.json")).unwrap();
    let expected: Value = serde_json::from_str(include_str!("upstream/gateway.json")).unwrap();
    let mut tables: BTreeMap<&str, BTreeMap<String, Value>> = BTreeMap::new();
    let mut clusters: BTreeMap<String, Value> = BTreeMap::new();
    let mut add = |table: &'static str, host: &ingress::model::VirtualHost| {
        let routes: Vec<Value> = host.routes.iter().map(route).collect();
        let value = json!({"domains": host.domains, "routes": routes});
        tables.entry(table).or_default().insert(host.name.clone(), value);
    };
    add("internal_services", &status_host(false));
    for ingress in &objects.ingresses {
        let context = Context { redirects: true, ..Context::default() };
        let name = |reference: &backend::Reference| resolve(&objects, reference).cluster.name;
        let translation = translate(ingress, context, name).unwrap();
        for (table, hosts) in &translation.hosts {
            hosts.iter().for_each(|host| add(table.name(), host));
        }
        for reference in translation.backends.keys() {
            let backend = resolve(&objects, reference);
            let (dns, addresses) = match &backend.cluster.location {
                Location::Endpoints => (false, json!(backend.endpoints.addresses)),
                Location::Dns { host, port } => (true, json!([[host, port]])),
            };
            let value = json!({"dns": dns, "http2": backend.cluster.http2, "addresses": addresses});
            clusters.insert(backend.cluster.name, value);
        }
    }
    assert_eq!(json!(clusters), expected["clusters"]);
    for (table, hosts) in expected["tables"].as_object().unwrap() {
        for (name, host) in hosts.as_object().unwrap() {
            assert_eq!(tables[table.as_str()].get(name), Some(host), "{table}: {name}");
        }
        assert_eq!(tables[table.as_str()].len(), hosts.as_object().unwrap().len(), "{table}");
    }
}
