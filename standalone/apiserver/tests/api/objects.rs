use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::WIDGETS;
use crate::{code, config_map, server, widget, widgets};
use apiserver::{Options, Server};
use kube::api::DynamicObject;

#[tokio::test]
async fn a_config_map_lives() {
    let server = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(server.client(), "default");
    let mut made = maps.create(&PostParams::default(), &config_map("a")).await.expect("creates");
    assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some());
    let again = maps.create(&PostParams::default(), &config_map("a")).await.expect_err("exists");
    assert_eq!(code(&again), (409, "configmaps \"a\" already exists"));

    made.data.get_or_insert_default().insert("more".into(), "x".into());
    let replaced = maps.replace("a", &PostParams::default(), &made).await.expect("replaces");
    let stale = maps.replace("a", &PostParams::default(), &made).await.expect_err("is stale");
    assert_eq!(code(&stale).0, 409);
    let same = maps.replace("a", &PostParams::default(), &replaced).await.expect("replaces");
    assert_eq!(same.metadata.resource_version, replaced.metadata.resource_version, "a write without a change is none");

    let patch = Patch::Merge(json!({"data": {"key": null}, "metadata": {"labels": {"b": "c"}}}));
    let patched = maps.patch("a", &PatchParams::default(), &patch).await.expect("patches");
    assert_eq!(patched.data.expect("data").into_keys().collect::<Vec<_>>(), ["more"]);
    let patch: json_patch::Patch =
        serde_json::from_value(json!([{"op": "add", "path": "/data/z", "value": "1"}])).expect("a patch");
    let patched = maps.patch("a", &PatchParams::default(), &Patch::Json::<()>(patch)).await.expect("patches");
    assert_eq!(patched.data.expect("data")["z"], "1");

    let found = maps.list(&ListParams::default().labels("b=c")).await.expect("lists");
    assert_eq!(found.items.len(), 1);
    let found = maps.list(&ListParams::default().labels("b!=c").fields("metadata.name=a")).await.expect("lists");
    assert!(found.items.is_empty());
    maps.delete("a", &DeleteParams::default()).await.expect("deletes");
    let gone = maps.get("a").await.expect_err("is gone");
    assert_eq!(code(&gone), (404, "configmaps \"a\" not found"));
    let elsewhere: Api<ConfigMap> = Api::namespaced(server.client(), "nowhere");
    let homeless = elsewhere.create(&PostParams::default(), &config_map("a")).await.expect_err("has no namespace");
    assert_eq!(code(&homeless), (404, "namespaces \"nowhere\" not found"));
}

#[tokio::test]
async fn custom_resources_have_schema_generation_status_and_scale() {
    let server = server().await;
    let widgets = widgets(&server);
    let made = widgets
        .create(&PostParams::default(), &widget("w", json!({"replicas": 1, "unknown": 1})))
        .await
        .expect("creates");
    assert_eq!(made.data["spec"], json!({"replicas": 1, "size": "small"}));
    assert_eq!(made.metadata.generation, Some(1));
    let bad =
        widgets.create(&PostParams::default(), &widget("x", json!({"replicas": "one"}))).await.expect_err("is invalid");
    assert_eq!(
        code(&bad),
        (
            422,
            "Widget.example.com \"x\" is invalid: spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\""
        )
    );

    let mut wanted = made.clone();
    wanted.data["status"] = json!({"replicas": 1});
    wanted.data["spec"]["replicas"] = 7.into();
    let status = widgets.replace_status("w", &PostParams::default(), &wanted).await.expect("replaces");
    assert_eq!(
        (status.metadata.generation, &status.data["spec"]["replicas"]),
        (Some(1), &json!(1)),
        "only the status changes"
    );
    let patch = Patch::Merge(json!({"spec": {"replicas": 2}, "status": {"replicas": 9}}));
    let patched = widgets.patch("w", &PatchParams::default(), &patch).await.expect("patches");
    assert_eq!(
        (patched.metadata.generation, &patched.data["status"]["replicas"]),
        (Some(2), &json!(1)),
        "the status does not"
    );

    let scaled = widgets
        .patch_scale("w", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 0}})))
        .await
        .expect("scales");
    assert_eq!(scaled.spec.and_then(|spec| spec.replicas), None);
    assert_eq!(widgets.get("w").await.expect("gets").data["spec"]["replicas"], 0);
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let directory = std::env::temp_dir().join(format!("apiserver-restart-{}", std::process::id()));
    let options = |certificate: &str| Options {
        data: Some(directory.clone()),
        root_certificate: Some(certificate.to_owned()),
        ..Options::default()
    };
    let server = Server::open(options("first")).await.expect("opens");
    server.apply_manifest(WIDGETS).expect("applies");
    let made = widgets(&server).create(&PostParams::default(), &widget("w", json!({}))).await.expect("creates");
    server.shutdown().await.expect("is written");
    drop(server);
    let server = Server::open(options("second")).await.expect("opens again");
    let found = widgets(&server).get("w").await.expect("is there");
    assert_eq!(found.metadata, made.metadata);
    let maps: Api<ConfigMap> = Api::namespaced(server.client(), "kube-public");
    let certificate = maps.get("kube-root-ca.crt").await.expect("is there").data.expect("data");
    assert_eq!(certificate["ca.crt"], "second", "what boots with the server follows its options");
    let next = widgets(&server).create(&PostParams::default(), &widget("v", json!({}))).await.expect("creates");
    let number =
        |object: &DynamicObject| object.metadata.resource_version.as_deref().and_then(|text| text.parse::<u64>().ok());
    assert!(number(&next) > number(&made));
    drop(server);
    std::fs::remove_dir_all(&directory).expect("removes its own directory");
}
