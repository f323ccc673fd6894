//! The API in process, as the controllers use it: kube clients over the tower service, no sockets.

mod definitions;
mod deletion;
mod objects;
mod requests;
mod watches;

use std::collections::BTreeMap;

use apiserver::{Options, Server};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use tower::ServiceExt;

const WIDGETS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: widgets.example.com
spec:
  group: example.com
  names: {kind: Widget, plural: widgets, shortNames: [wd]}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              replicas: {type: integer, format: int32}
              size: {type: string, default: small}
          status:
            type: object
            x-kubernetes-preserve-unknown-fields: true
"#;

async fn server() -> Server {
    let server = Server::open(Options::default()).await.expect("opens");
    server.apply_manifest(WIDGETS).expect("applies");
    server
}

fn widgets(server: &Server) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "Widget"));
    Api::namespaced_with(server.client(), "default", &resource)
}

fn widget(name: &str, spec: Value) -> DynamicObject {
    serde_json::from_value(
        json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec}),
    )
    .expect("a widget")
}

fn config_map(name: &str) -> ConfigMap {
    let data = BTreeMap::from([("key".to_owned(), "value".to_owned())]);
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"app": name}}, "data": data}))
        .expect("a config map")
}

fn code(error: &kube::Error) -> (u16, &str) {
    match error {
        kube::Error::Api(status) => (status.code, &status.message),
        other => panic!("no status: {other}"),
    }
}

/// One request; the status and the body, which is text when it is no JSON.
async fn send(server: &Server, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    send_as(server, method, path, &[("content-type", "application/json")], body).await
}

async fn send_as(server: &Server, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> (u16, Value) {
    let mut request = http::Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body))).expect("a request");
    let response = server.service().oneshot(request).await.expect("answers");
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    let value = serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
    (status, value)
}
