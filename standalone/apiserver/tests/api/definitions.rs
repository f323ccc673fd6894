use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use crate::{code, server, widget, widgets};

#[tokio::test]
async fn definitions_come_and_go() {
    let server = server().await;
    let resource =
        ApiResource::from_gvk(&GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition"));
    let definitions: Api<DynamicObject> = Api::all_with(server.client(), &resource);
    let definition = definitions.get("widgets.example.com").await.expect("gets");
    let conditions: Vec<&Value> =
        definition.data["status"]["conditions"].as_array().expect("conditions").iter().collect();
    assert!(conditions.iter().any(|one| one["type"] == "Established" && one["status"] == "True"));
    let widgets = widgets(&server);
    let mut held = widget("w", json!({}));
    held.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
    widgets.create(&PostParams::default(), &held).await.expect("creates");
    definitions.delete("widgets.example.com", &DeleteParams::default()).await.expect("deletes");
    assert!(widgets.get("w").await.expect("is held").metadata.deletion_timestamp.is_some());
    assert!(definitions.get("widgets.example.com").await.is_ok());
    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    widgets.patch("w", &PatchParams::default(), &release).await.expect("patches");
    assert_eq!(code(&definitions.get("widgets.example.com").await.expect_err("is gone")).0, 404);
    assert!(widgets.get("w").await.is_err());
}
