//! OpenAPI v3: an index, and one document per group version.
//!
//! What kubectl takes from it: whether a kind can be patched with `fieldValidation` (apply, create, edit and replace stop without), and the
//! schemas for `explain`. For kinds it does not find, which may be a typing error, it falls back to version 2: an empty document there lets it go on
//! to say that there is no such kind. Built-in kinds say nothing about strategic merge here: clients then use the rules they were compiled with, which
//! are the right ones.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::discovery::hash;
use crate::protobuf;
use crate::{Kind, Registry};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const ROOT: &str = "/openapi/v3";
const VERSION_2: &str = "/openapi/v2";
const VERSION_2_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// A document in protobuf form: swagger "2.0", and an info with a title and a version.
const VERSION_2_EMPTY: &[u8] = b"\x0a\x032.0\x12\x19\x0a\x0aKubernetes\x12\x0bunversioned";

/// The documents of the present table, made when somebody asks.
#[derive(Default)]
pub struct OpenApi {
    documents: Mutex<Option<Arc<Documents>>>,
}

struct Documents {
    generation: u64,
    index: Bytes,
    /// Path below the root, hash, text.
    versions: Vec<(String, String, Bytes)>,
}

// === impl OpenApi ===

impl OpenApi {
    /// The answer to a path below `/openapi/v3`, or to `/openapi/v2`; None when it is none of ours.
    pub fn respond(&self, registry: &Registry, parts: &Parts) -> Option<Response<Bytes>> {
        if parts.method != Method::GET && parts.method != Method::HEAD {
            return None;
        }
        let path = parts.uri.path().trim_end_matches('/');
        if path == VERSION_2 {
            return Some(version_2(parts));
        }
        let path = path.strip_prefix(ROOT)?;
        let documents = self.documents(registry);
        if path.is_empty() {
            return Some(json_response(StatusCode::OK, documents.index.clone(), &[]));
        }
        let wanted = path.strip_prefix('/')?;
        let (path, hash, text) = documents.versions.iter().find(|(path, _, _)| path == wanted)?;
        let query = parts.uri.query().unwrap_or_default();
        let tag = format!("\"{hash}\"");
        match query.split('&').find_map(|pair| pair.strip_prefix("hash=")) {
            Some(asked) if asked == hash => {
                let cache = (header::CACHE_CONTROL, "public, immutable".to_owned());
                Some(json_response(StatusCode::OK, text.clone(), &[cache, (header::ETAG, tag)]))
            }
            Some(_) => {
                let location = (header::LOCATION, address(path, hash));
                Some(json_response(StatusCode::MOVED_PERMANENTLY, Bytes::new(), &[location]))
            }
            None => {
                let known = parts.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
                if known == Some(tag.as_str()) {
                    return Some(json_response(StatusCode::NOT_MODIFIED, Bytes::new(), &[(header::ETAG, tag)]));
                }
                Some(json_response(StatusCode::OK, text.clone(), &[(header::ETAG, tag)]))
            }
        }
    }

    fn documents(&self, registry: &Registry) -> Arc<Documents> {
        let mut cached = self.documents.lock();
        match &*cached {
            Some(documents) if documents.generation == registry.generation() => Arc::clone(documents),
            _ => {
                let documents = Arc::new(Documents::of(registry));
                *cached = Some(Arc::clone(&documents));
                documents
            }
        }
    }
}

// === impl Documents ===

impl Documents {
    fn of(registry: &Registry) -> Self {
        let mut versions = Vec::new();
        let mut paths = Map::new();
        for group in registry.groups() {
            for version in registry.versions(group) {
                let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
                let text = Bytes::from(document(registry, group, version).to_string());
                let hash = hash(&text);
                paths.insert(path.clone(), json!({ "serverRelativeURL": address(&path, &hash) }));
                versions.push((path, hash, text));
            }
        }
        let index = Bytes::from(json!({ "paths": paths }).to_string());
        Self { generation: registry.generation(), index, versions }
    }
}

fn address(path: &str, hash: &str) -> String {
    format!("{ROOT}/{path}?hash={hash}")
}

fn json_response(status: StatusCode, body: Bytes, headers: &[(header::HeaderName, String)]) -> Response<Bytes> {
    let mut response = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.header(header::VARY, "Accept").body(body).expect("printable header values")
}

fn version_2(parts: &Parts) -> Response<Bytes> {
    let accept = parts.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !accept.contains("protobuf") {
        let document =
            json!({ "swagger": "2.0", "info": { "title": "Kubernetes", "version": "unversioned" }, "paths": {} });
        return json_response(StatusCode::OK, Bytes::from(document.to_string()), &[]);
    }
    let mut response = Response::new(Bytes::from_static(VERSION_2_EMPTY));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(VERSION_2_TYPE));
    response
}

fn document(registry: &Registry, group: &str, version: &str) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    schemas.insert(OBJECT_META.to_owned(), object_meta());
    for kind in registry.in_version(group, version) {
        let name = schema_name(kind);
        let reference = json!({ "$ref": format!("#/components/schemas/{name}") });
        let described = schema(kind, &mut schemas);
        schemas.insert(name, described);
        let base = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let base = if kind.namespaced() { format!("{base}/namespaces/{{namespace}}") } else { base };
        let collection = format!("{base}/{}", kind.plural);
        let one = operations(
            kind,
            &reference,
            &[("get", "get"), ("put", "update"), ("patch", "patch"), ("delete", "delete")],
        );
        let all = operations(kind, &reference, &[("get", "list"), ("post", "create")]);
        paths.insert(format!("{collection}/{{name}}"), one);
        paths.insert(collection, all);
    }
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "unversioned" },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

fn operations(kind: &Kind, schema: &Value, methods: &[(&str, &str)]) -> Value {
    let mut operations = Map::new();
    for (method, verb) in methods.iter().filter(|(_, verb)| kind.has_verb(verb)) {
        let mut parameters = Vec::new();
        if matches!(*verb, "update" | "patch" | "create") {
            for name in ["dryRun", "fieldManager", "fieldValidation"] {
                parameters
                    .push(json!({ "name": name, "in": "query", "schema": { "type": "string", "uniqueItems": true } }));
            }
        }
        let answer = json!({ "description": "OK", "content": { "application/json": { "schema": schema } } });
        let operation = json!({
            "parameters": parameters,
            "responses": { "200": answer },
            "x-kubernetes-action": verb,
            "x-kubernetes-group-version-kind": gvk(kind),
        });
        operations.insert((*method).to_owned(), operation);
    }
    Value::Object(operations)
}

fn gvk(kind: &Kind) -> Value {
    json!({ "group": kind.group, "version": kind.version, "kind": kind.kind })
}

/// `dev.knative.serving.v1.Service`, `io.k8s.api.core.v1.Pod`.
fn schema_name(kind: &Kind) -> String {
    if kind.custom {
        let reversed: Vec<&str> = kind.group.rsplit('.').collect();
        return format!("{}.{}.{}", reversed.join("."), kind.version, kind.kind);
    }
    let group = if kind.group.is_empty() { "core" } else { kind.group.split('.').next().unwrap_or_default() };
    format!("io.k8s.api.{group}.{}.{}", kind.version, kind.kind)
}

fn schema(kind: &Kind, schemas: &mut Map<String, Value>) -> Value {
    let known = match kind.custom {
        true => kind.schema.as_ref().and_then(|schema| schema.openapi()),
        false => protobuf::describe(&kind.api_version(), &kind.kind, OBJECT_META, schemas)
            .map(|properties| json!({ "type": "object", "properties": properties })),
    };
    let mut schema = known.filter(Value::is_object).unwrap_or_else(|| {
        let mut schema = json!({ "type": "object", "properties": {} });
        if !kind.custom {
            schema["x-kubernetes-preserve-unknown-fields"] = true.into();
        }
        schema
    });
    if schema.get("properties").is_none_or(|p| !p.is_object()) {
        schema["properties"] = json!({});
    }
    let describe = |what: &str| json!({ "type": "string", "description": what });
    let properties = &mut schema["properties"];
    properties["apiVersion"] = describe("APIVersion defines the versioned schema of this representation of an object.");
    properties["kind"] = describe("Kind is a string value representing the REST resource this object represents.");
    properties["metadata"] = json!({
        "description": "Standard object's metadata.",
        "default": {},
        "allOf": [{ "$ref": format!("#/components/schemas/{OBJECT_META}") }],
    });
    schema["x-kubernetes-group-version-kind"] = json!([gvk(kind)]);
    schema
}

fn object_meta() -> Value {
    let string = |what: &str| json!({ "type": "string", "description": what });
    let time = |what: &str| json!({ "type": "string", "format": "date-time", "description": what });
    let number = |what: &str| json!({ "type": "integer", "format": "int64", "description": what });
    let map =
        |what: &str| json!({ "type": "object", "additionalProperties": { "type": "string" }, "description": what });
    let list = |what: &str| json!({ "type": "array", "items": { "type": "object" }, "description": what });
    json!({
        "type": "object",
        "description": "ObjectMeta is metadata that all persisted resources must have, which includes all objects users must create.",
        "properties": {
            "annotations": map("Unstructured key value map that may be set by external tools to store and retrieve arbitrary metadata."),
            "creationTimestamp": time("When the object was created. Set by the server."),
            "deletionGracePeriodSeconds": number("Seconds the object has to end gracefully. Set by the server."),
            "deletionTimestamp": time("When the object will be deleted. Set by the server on a graceful deletion."),
            "finalizers": { "type": "array", "items": { "type": "string" }, "description": "Must be empty before the object is removed." },
            "generateName": string("Prefix of a name the server makes unique; used when name is not given."),
            "generation": number("Sequence number of the desired state. Set by the server."),
            "labels": map("Key value pairs to organise and select objects."),
            "managedFields": list("Which workflow manages which fields."),
            "name": string("Unique within a namespace. Cannot be updated."),
            "namespace": string("The space within which each name must be unique."),
            "ownerReferences": list("Objects this object depends on; it is deleted with the last of them."),
            "resourceVersion": string("The internal version of the object, for optimistic concurrency and watches."),
            "selfLink": string("No longer set."),
            "uid": string("Unique in time and space. Set by the server."),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    fn get(api: &OpenApi, path: &str) -> Option<Response<Bytes>> {
        let registry = Registry::new(kinds::builtin(&kinds::Options::default()));
        api.respond(&registry, &http::Request::get(path).body(()).expect("a request").into_parts().0)
    }

    fn json(response: &Response<Bytes>) -> Value {
        serde_json::from_slice(response.body()).expect("JSON")
    }

    #[test]
    fn the_index_leads_to_documents() {
        let api = OpenApi::default();
        let index = json(&get(&api, "/openapi/v3").expect("an index"));
        let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("an address").to_owned();
        let response = get(&api, &url).expect("a document");
        assert_eq!(response.headers()["cache-control"], "public, immutable");
        let document = json(&response);
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            json!({"group": "apps", "version": "v1", "kind": "Deployment"})
        );
        assert!(patch["parameters"].as_array().expect("list").iter().any(|p| p["name"] == "fieldValidation"));
        let moved = get(&api, "/openapi/v3/apis/apps/v1?hash=0").expect("a redirection");
        assert_eq!(moved.status(), StatusCode::MOVED_PERMANENTLY);
        assert_eq!(moved.headers()["location"], url.as_str());
        assert!(get(&api, "/openapi/v3/apis/nowhere/v1").is_none());
        assert_eq!(json(&get(&api, "/openapi/v2").expect("an empty document"))["paths"], json!({}));
    }
}
