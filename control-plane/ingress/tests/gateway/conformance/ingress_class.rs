//! `ingressclass`: what is not ours is left as it is. Runs on the embedded API.

use api::networking::v1alpha1::Ingress;
use controller::{Context, Tasks};
use kube::{
    ResourceExt,
    api::{Api, PostParams},
};

use super::*;
use crate::support::free_ports;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_classes_are_left_alone() {
    let server = apiserver::Server::open(apiserver::Options::default()).await.unwrap();
    server
        .apply_manifest(include_str!("../../../../../charts/crds/ingresses.networking.internal.knative.dev.yaml"))
        .unwrap();
    let tasks = Tasks::new();
    let [xds] = free_ports().await;
    let options = ingress::Options { xds_listen: xds, ..ingress::Options::default() };
    ingress::run(Context::new(server.client(), tasks.clone()), options).await.unwrap();
    let api: Api<Ingress> = Api::default_namespaced(server.client());
    let class = "networking.knative.dev/ingress.class";
    let create = async |name: &str, annotations: Value| {
        let spec = external(&[&format!("{name}.example.com")], json!([{"splits": [to("app", 100)]}]));
        let ingress = json!({"apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
            "metadata": {"name": name, "namespace": "default", "annotations": annotations}, "spec": spec});
        api.create(&PostParams::default(), &serde_json::from_value(ingress).unwrap()).await.unwrap()
    };
    let mut created = Vec::new();
    for (name, annotations) in [
        ("none", json!(null)),
        ("omitted", json!({"a": "b"})),
        ("incorrect", json!({class: "incorrect"})),
        ("empty", json!({class: ""})),
    ] {
        created.push(create(name, annotations).await);
    }
    // What comes later and is ours is acted upon: then the others would have been, too.
    create("ours", json!({class: "kourier.ingress.networking.knative.dev"})).await;
    let acted = async {
        while api.get("ours").await.unwrap().status.is_none_or(|status| status.conditions.is_empty()) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), acted).await.unwrap();
    for before in created {
        let after = api.get(&before.name_any()).await.unwrap();
        assert_eq!(serde_json::to_value(after).unwrap(), serde_json::to_value(before).unwrap());
    }
    tasks.shutdown().await;
    server.shutdown().await.unwrap();
}
