//! The API in process, as the controllers use it: kube clients over the tower service, no sockets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use apiserver::{Options, Server};
use futures::{StreamExt, TryStreamExt, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

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
async fn watches_replay_follow_and_filter() {
    let server = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(server.client(), "default");
    let from = maps.list(&ListParams::default()).await.expect("lists").metadata.resource_version.expect("a revision");
    maps.create(&PostParams::default(), &config_map("a")).await.expect("creates");
    maps.create(&PostParams::default(), &config_map("b")).await.expect("creates");
    let all = maps.watch(&WatchParams::default(), &from).await.expect("watches");
    let some = maps.watch(&WatchParams::default().labels("app=b"), &from).await.expect("watches");
    pin_mut!(all, some);
    let patch = Patch::Merge(json!({"metadata": {"labels": {"app": "c"}}}));
    let changed = maps.patch("b", &PatchParams::default(), &patch).await.expect("patches");
    maps.delete("a", &DeleteParams::default()).await.expect("deletes");
    let mut seen = Vec::new();
    while seen.len() < 4 {
        match all.try_next().await.expect("an event").expect("goes on") {
            WatchEvent::Added(map) => seen.push(format!("+{}", map.metadata.name.unwrap_or_default())),
            WatchEvent::Modified(map) => seen.push(format!("~{}", map.metadata.name.unwrap_or_default())),
            WatchEvent::Deleted(map) => seen.push(format!("-{}", map.metadata.name.unwrap_or_default())),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, ["+a", "+b", "~b", "-a"]);
    assert!(matches!(some.try_next().await, Ok(Some(WatchEvent::Added(_)))));
    match some.try_next().await {
        Ok(Some(WatchEvent::Deleted(left))) => {
            assert_eq!(left.metadata.resource_version, changed.metadata.resource_version);
            assert_eq!(left.metadata.labels.expect("labels")["app"], "b", "the last object that matched");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_runtime_watcher_sees_everything() {
    let server = server().await;
    let maps: Api<ConfigMap> = Api::all(server.client());
    let namespaced: Api<ConfigMap> = Api::namespaced(server.client(), "default");
    namespaced.create(&PostParams::default(), &config_map("a")).await.expect("creates");
    for strategy in
        [kube::runtime::watcher::Config::default(), kube::runtime::watcher::Config::default().streaming_lists()]
    {
        let events = kube::runtime::watcher(maps.clone(), strategy);
        pin_mut!(events);
        let mut initial = 0;
        loop {
            match events.next().await.expect("goes on").expect("an event") {
                kube::runtime::watcher::Event::InitApply(_) => initial += 1,
                kube::runtime::watcher::Event::InitDone => break,
                _ => {}
            }
        }
        assert_eq!(initial, 1);
        let start = Instant::now();
        let mut slowest = Duration::ZERO;
        for round in 0..50 {
            let name = format!("r{round}");
            let begun = Instant::now();
            namespaced.create(&PostParams::default(), &config_map(&name)).await.expect("creates");
            match events.next().await.expect("goes on").expect("an event") {
                kube::runtime::watcher::Event::Apply(map) => assert_eq!(map.metadata.name, Some(name)),
                other => panic!("{other:?}"),
            }
            slowest = slowest.max(begun.elapsed());
        }
        println!("50 creates with their events: {:?}, slowest {slowest:?}", start.elapsed());
        for round in 0..50 {
            namespaced.delete(&format!("r{round}"), &DeleteParams::default()).await.expect("deletes");
        }
    }
}

#[tokio::test]
async fn finalizers_keep_objects() {
    let server = server().await;
    let widgets = widgets(&server);
    let mut held = widget("w", json!({}));
    held.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
    widgets.create(&PostParams::default(), &held).await.expect("creates");
    let marked = widgets.delete("w", &DeleteParams::foreground()).await.expect("deletes").left().expect("the object");
    assert_eq!(marked.metadata.generation, Some(2));
    assert_eq!(
        marked.metadata.finalizers.as_deref(),
        Some(&["example.com/hold".to_owned(), "foregroundDeletion".to_owned()][..])
    );
    let exists = widgets.create(&PostParams::default(), &held).await.expect_err("is being deleted");
    assert!(code(&exists).1.starts_with("object is being deleted"), "{exists}");
    let add = Patch::Merge(json!({"metadata": {"finalizers": ["a.b/c"]}}));
    assert_eq!(code(&widgets.patch("w", &PatchParams::default(), &add).await.expect_err("no new ones")).0, 422);
    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    widgets.patch("w", &PatchParams::default(), &release).await.expect("patches");
    assert_eq!(code(&widgets.get("w").await.expect_err("is gone")).0, 404);
}

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

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let directory = std::env::temp_dir().join(format!("apiserver-restart-{}", std::process::id()));
    let options = || Options { data: Some(directory.clone()), ..Options::default() };
    let server = Server::open(options()).await.expect("opens");
    server.apply_manifest(WIDGETS).expect("applies");
    let made = widgets(&server).create(&PostParams::default(), &widget("w", json!({}))).await.expect("creates");
    server.shutdown().await.expect("is written");
    drop(server);
    let server = Server::open(options()).await.expect("opens again");
    let found = widgets(&server).get("w").await.expect("is there");
    assert_eq!(found.metadata, made.metadata);
    let next = widgets(&server).create(&PostParams::default(), &widget("v", json!({}))).await.expect("creates");
    let number =
        |object: &DynamicObject| object.metadata.resource_version.as_deref().and_then(|text| text.parse::<u64>().ok());
    assert!(number(&next) > number(&made));
    drop(server);
    std::fs::remove_dir_all(&directory).expect("removes its own directory");
}
