//! What one ingress consists of: shaped as Serving makes it for a Service with one revision.

use std::net::SocketAddr;

use anyhow::Result;
use api::networking::v1alpha1::Ingress;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

const NAMESPACE: &str = "default";

#[derive(Clone)]
pub(crate) struct Objects {
    pub(crate) ingresses: Api<Ingress>,
    services: Api<Service>,
    slices: Api<EndpointSlice>,
}

pub(crate) fn host(name: &str) -> String {
    format!("{name}.{NAMESPACE}.example.com")
}

// === impl Objects ===

impl Objects {
    pub(crate) fn new(client: &kube::Client) -> Self {
        let api = || client.clone();
        Self {
            ingresses: Api::namespaced(api(), NAMESPACE),
            services: Api::namespaced(api(), NAMESPACE),
            slices: Api::namespaced(api(), NAMESPACE),
        }
    }

    pub(crate) async fn create_all(&self, count: usize, backend: SocketAddr) -> Result<()> {
        let creations = (0..count).map(|n| async move { self.create(&format!("i{n}"), backend).await });
        futures::stream::iter(creations).buffer_unordered(32).try_collect::<Vec<()>>().await?;
        Ok(())
    }

    pub(crate) async fn create(&self, name: &str, backend: SocketAddr) -> Result<()> {
        let revision = format!("{name}-00001");
        let new = PostParams::default();
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": revision, "namespace": NAMESPACE},
            "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": 80, "targetPort": backend.port()}]},
        }))?;
        self.services.create(&new, &service).await?;
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": revision, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": revision}},
            "addressType": "IPv4", "ports": ports(backend), "endpoints": endpoints(backend),
        }))?;
        self.slices.create(&new, &slice).await?;
        let ingress: Ingress = serde_json::from_value(json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
            "metadata": {"name": name, "namespace": NAMESPACE, "annotations": {
                "networking.knative.dev/ingress.class": "kourier.ingress.networking.knative.dev"}},
            "spec": spec(name, 0),
        }))?;
        self.ingresses.create(&new, &ingress).await?;
        Ok(())
    }

    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        let revision = format!("{name}-00001");
        let now = DeleteParams::default();
        self.ingresses.delete(name, &now).await?;
        self.slices.delete(&revision, &now).await?;
        self.services.delete(&revision, &now).await?;
        Ok(())
    }

    pub(crate) async fn move_endpoints(&self, name: &str, backend: SocketAddr) -> Result<()> {
        let patch = Patch::Merge(json!({"ports": ports(backend), "endpoints": endpoints(backend)}));
        self.slices.patch(&format!("{name}-00001"), &PatchParams::default(), &patch).await?;
        Ok(())
    }

    pub(crate) async fn change_route(&self, name: &str, step: usize) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": spec(name, step)}));
        self.ingresses.patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }
}

fn endpoints(backend: SocketAddr) -> Value {
    json!([{"addresses": [backend.ip().to_string()], "conditions": {"ready": true}}])
}

fn ports(backend: SocketAddr) -> Value {
    json!([{"name": "http", "port": backend.port(), "protocol": "TCP"}])
}

fn spec(name: &str, step: usize) -> Value {
    let revision = format!("{name}-00001");
    let split = json!({"serviceNamespace": NAMESPACE, "serviceName": revision, "servicePort": 80, "percent": 100,
        "appendHeaders": {"Knative-Serving-Namespace": NAMESPACE, "Knative-Serving-Revision": revision}});
    let http = json!({"paths": [{"splits": [split], "appendHeaders": {"X-Step": step.to_string()}}]});
    let local = format!("{name}.{NAMESPACE}");
    json!({"httpOption": "Enabled", "rules": [
        {"hosts": [local, format!("{local}.svc"), format!("{local}.svc.cluster.local")], "visibility": "ClusterLocal",
            "http": http},
        {"hosts": [host(name)], "visibility": "ExternalIP", "http": http},
    ]})
}
