//! What there is: the aggregated discovery documents, and the plain ones for older clients and a few commands.
//!
//! All of it is a function of the table. Order matters: core comes first, so that `kubectl get services` means Kubernetes Services although
//! Serving has a plural of the same name.

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Kind, Registry};

const AGGREGATED: &str = "apidiscovery.k8s.io";
const AS_LIST: &str = "APIGroupDiscoveryList";

/// The answer to a discovery path; None when the path is none of ours or names a group or version that is not there.
pub fn respond(registry: &Registry, parts: &Parts) -> Option<Response<Bytes>> {
    if parts.method != Method::GET && parts.method != Method::HEAD {
        return None;
    }
    let path = parts.uri.path().trim_end_matches('/');
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let form = aggregated_version(parts);
    let (document, content_type) = match (segments.as_slice(), form) {
        (["api" | "apis"], Some(version)) => {
            let content_type = format!("application/json;g={AGGREGATED};v={version};as={AS_LIST}");
            (aggregated(registry, segments[0] == "api", version), content_type)
        }
        (["api"], None) => (core_versions(), "application/json".to_owned()),
        (["apis"], None) => (groups(registry), "application/json".to_owned()),
        (["api", version], _) => (resources(registry, "", version)?, "application/json".to_owned()),
        (["apis", name], _) if !name.is_empty() => {
            let mut document = group(registry, name)?;
            document["kind"] = "APIGroup".into();
            document["apiVersion"] = "v1".into();
            (document, "application/json".to_owned())
        }
        (["apis", group, version], _) if !group.is_empty() => {
            (resources(registry, group, version)?, "application/json".to_owned())
        }
        _ => return None,
    };
    Some(tagged(&document, &content_type, parts))
}

/// A document with an ETag, or 304 when the client has it.
fn tagged(document: &Value, content_type: &str, parts: &Parts) -> Response<Bytes> {
    let body = Bytes::from(document.to_string());
    let tag = format!("\"{}\"", hash(&body));
    let known = parts.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let unchanged = known.is_some_and(|known| known.split(',').any(|one| one.trim() == tag));
    let response = Response::builder()
        .header(header::CONTENT_TYPE, content_type)
        .header(header::ETAG, tag)
        .header(header::VARY, "Accept")
        .header(header::CACHE_CONTROL, "public");
    let response =
        if unchanged { response.status(StatusCode::NOT_MODIFIED).body(Bytes::new()) } else { response.body(body) };
    response.expect("constant header names and printable values")
}

/// SHA-256 in capital hexadecimal digits.
pub(crate) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02X}")).collect()
}

/// The version of the aggregated form that the client prefers over the plain one.
fn aggregated_version(parts: &Parts) -> Option<&'static str> {
    let accept = parts.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok())?;
    for clause in accept.split(',') {
        let mut pieces = clause.split(';').map(str::trim);
        if pieces.next() != Some("application/json") {
            continue;
        }
        let (mut group, mut list, mut version) = ("", "", "");
        for (name, value) in pieces.filter_map(|piece| piece.split_once('=')) {
            match name {
                "g" => group = value,
                "as" => list = value,
                "v" => version = value,
                _ => {}
            }
        }
        match (group, list, version) {
            ("", "", _) => return None,
            (AGGREGATED, AS_LIST, "v2") => return Some("v2"),
            (AGGREGATED, AS_LIST, "v2beta1") => return Some("v2beta1"),
            _ => {}
        }
    }
    None
}

fn aggregated(registry: &Registry, core: bool, version: &str) -> Value {
    let items: Vec<Value> = registry
        .groups()
        .into_iter()
        .filter(|group| group.is_empty() == core)
        .map(|group| {
            let versions = registry.versions(group).into_iter().map(|version| {
                let resources: Vec<Value> =
                    registry.in_version(group, version).map(|kind| aggregated_resource(kind)).collect();
                json!({ "version": version, "freshness": "Current", "resources": resources })
            });
            let metadata = if group.is_empty() { json!({}) } else { json!({ "name": group }) };
            json!({ "metadata": metadata, "versions": versions.collect::<Vec<_>>() })
        })
        .collect();
    json!({ "kind": AS_LIST, "apiVersion": format!("{AGGREGATED}/{version}"), "metadata": {}, "items": items })
}

fn aggregated_resource(kind: &Kind) -> Value {
    let response_kind =
        |group: &str, version: &str, kind: &str| json!({ "group": group, "version": version, "kind": kind });
    let mut resource = json!({
        "resource": kind.plural,
        "responseKind": response_kind(&kind.group, &kind.version, &kind.kind),
        "scope": if kind.namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    names(kind, &mut resource);
    let subresources: Vec<Value> = subresources(kind)
        .into_iter()
        .map(|sub| {
            json!({
                "subresource": sub.name, "responseKind": response_kind(&sub.group, &sub.version, &sub.kind), "verbs": sub.verbs,
            })
        })
        .collect();
    if !subresources.is_empty() {
        resource["subresources"] = subresources.into();
    }
    resource
}

fn names(kind: &Kind, resource: &mut Value) {
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
}

/// The listed ones, and those that follow from what the kind has.
fn subresources(kind: &Kind) -> Vec<crate::Subresource> {
    let verbs = || ["get", "patch", "update"].map(Into::into).to_vec();
    let mut all = Vec::new();
    if kind.scale.is_some() {
        let (group, version) = ("autoscaling".into(), "v1".into());
        all.push(crate::Subresource { name: "scale".into(), group, version, kind: "Scale".into(), verbs: verbs() });
    }
    if kind.has_status {
        let (group, version) = (kind.group.clone(), kind.version.clone());
        all.push(crate::Subresource { name: "status".into(), group, version, kind: kind.kind.clone(), verbs: verbs() });
    }
    for listed in &kind.subresources {
        if !all.iter().any(|sub| sub.name == listed.name) {
            all.push(listed.clone());
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn core_versions() -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": "127.0.0.1:6443" }],
    })
}

fn groups(registry: &Registry) -> Value {
    let groups: Vec<Value> = registry
        .groups()
        .into_iter()
        .filter(|name| !name.is_empty())
        .filter_map(|name| group(registry, name))
        .collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

fn group(registry: &Registry, name: &str) -> Option<Value> {
    let version = |version: &str| json!({ "groupVersion": format!("{name}/{version}"), "version": version });
    let versions: Vec<Value> = registry.versions(name).into_iter().map(version).collect();
    let preferred = versions.first()?.clone();
    Some(json!({ "name": name, "versions": versions, "preferredVersion": preferred }))
}

fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in registry.in_version(group, version) {
        let mut resource = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced(), "kind": kind.kind, "verbs": kind.verbs,
        });
        names(kind, &mut resource);
        resources.push(resource);
        for sub in subresources(kind) {
            let mut resource = json!({
                "name": format!("{}/{}", kind.plural, sub.name), "singularName": "", "namespaced": kind.namespaced(),
                "kind": sub.kind, "verbs": sub.verbs,
            });
            if sub.group != kind.group || sub.version != kind.version {
                resource["group"] = json!(sub.group);
                resource["version"] = json!(sub.version);
            }
            resources.push(resource);
        }
    }
    if resources.is_empty() {
        return None;
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Some(
        json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scope, kinds};

    const KUBECTL: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
        application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

    fn registry() -> Registry {
        let mut all = kinds::builtin(&kinds::Options::default());
        let mut custom = Kind::new("serving.knative.dev", "v1", "Service", "services", Scope::Namespaced);
        custom.custom = true;
        custom.short_names = vec!["ksvc".into()];
        all.push(custom);
        Registry::new(all)
    }

    fn get(path: &str, headers: &[(&str, &str)]) -> Option<Response<Bytes>> {
        let mut request = http::Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        respond(&registry(), &request.body(()).expect("a request").into_parts().0)
    }

    fn json(response: &Response<Bytes>) -> Value {
        serde_json::from_slice(response.body()).expect("JSON")
    }

    #[test]
    fn aggregated_documents() {
        let response = get("/api", &[("accept", KUBECTL)]).expect("served");
        let expected = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        assert_eq!(response.headers()["content-type"], expected);
        let core = json(&response);
        assert_eq!(core["items"].as_array().map(Vec::len), Some(1));
        let resources = core["items"][0]["versions"][0]["resources"].as_array().expect("resources");
        let pods = resources.iter().find(|r| r["resource"] == "pods").expect("pods");
        assert_eq!(pods["shortNames"], json!(["po"]));
        let subresources = pods["subresources"].as_array().expect("subresources").iter();
        let subresources: Vec<&Value> = subresources.map(|s| &s["subresource"]).collect();
        assert_eq!(subresources, ["binding", "eviction", "log", "status"]);
        let apis = json(&get("/apis", &[("accept", KUBECTL)]).expect("served"));
        assert_eq!(apis["items"][0]["metadata"]["name"], "apps");
        let deployments = &apis["items"][0]["versions"][0]["resources"][0];
        assert_eq!(
            deployments["subresources"][0]["responseKind"],
            json!({"group": "autoscaling", "version": "v1", "kind": "Scale"})
        );
        let last = apis["items"].as_array().and_then(|items| items.last()).expect("groups");
        assert_eq!(last["metadata"]["name"], "serving.knative.dev");
    }

    #[test]
    fn unchanged_documents_are_not_sent_again() {
        let first = get("/apis", &[("accept", KUBECTL)]).expect("served");
        let tag = first.headers()["etag"].to_str().expect("a tag");
        let again = get("/apis", &[("accept", KUBECTL), ("if-none-match", tag)]).expect("served");
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        assert!(again.body().is_empty());
    }

    #[test]
    fn plain_documents() {
        assert_eq!(json(&get("/api", &[]).expect("served"))["kind"], "APIVersions");
        assert_eq!(
            json(&get("/apis", &[("accept", "application/json")]).expect("served"))["groups"][0]["name"],
            "apps"
        );
        let apps = json(&get("/apis/apps/v1", &[]).expect("served"));
        let scale = apps["resources"]
            .as_array()
            .expect("list")
            .iter()
            .find(|r| r["name"] == "deployments/scale")
            .expect("scale");
        assert_eq!((&scale["group"], &scale["kind"]), (&json!("autoscaling"), &json!("Scale")));
        assert_eq!(json(&get("/apis/apps", &[]).expect("served"))["preferredVersion"]["groupVersion"], "apps/v1");
        assert!(get("/apis/nowhere/v1", &[]).is_none());
        assert!(get("/api/v2", &[]).is_none());
        assert!(get("/apis/apps/v1/deployments", &[]).is_none());
    }
}
