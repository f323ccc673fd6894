use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::{code, send, server, widget, widgets};

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

fn pod(name: &str) -> Pod {
    let spec = json!({"containers": [{"name": "c", "image": "a"}], "terminationGracePeriodSeconds": 7});
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).expect("a pod")
}

#[tokio::test]
async fn pods_end_when_their_node_says_so() {
    let server = server().await;
    let pods: Api<Pod> = Api::namespaced(server.client(), "default");
    pods.create(&PostParams::default(), &pod("free")).await.expect("creates");
    pods.delete("free", &DeleteParams::default()).await.expect("deletes");
    assert_eq!(code(&pods.get("free").await.expect_err("nobody ran it")).0, 404);

    pods.create(&PostParams::default(), &pod("bound")).await.expect("creates");
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "bound"}, "target": {"kind": "Node", "name": "n"}});
    let path = "/api/v1/namespaces/default/pods/bound/binding";
    assert_eq!(send(&server, "POST", path, Some(&binding)).await.0, 201);
    let again = send(&server, "POST", path, Some(&binding)).await;
    assert_eq!(again.0, 409, "{}", again.1);
    let bound = pods.get("bound").await.expect("gets");
    assert_eq!(bound.spec.expect("a spec").node_name.as_deref(), Some("n"));
    let conditions = bound.status.expect("a status").conditions.expect("conditions");
    assert!(conditions.iter().any(|one| one.type_ == "PodScheduled" && one.status == "True"));

    let ending = pods.delete("bound", &DeleteParams::default()).await.expect("deletes").left().expect("still there");
    assert_eq!(ending.metadata.deletion_grace_period_seconds, Some(7));
    assert!(ending.metadata.deletion_timestamp.is_some());
    let again = pods.delete("bound", &DeleteParams::default()).await.expect("deletes").left().expect("still there");
    assert_eq!(again.metadata.resource_version, ending.metadata.resource_version);
    let wrong = DeleteParams {
        preconditions: Some(kube::api::Preconditions { uid: Some("x".into()), resource_version: None }),
        ..DeleteParams::default()
    };
    let refused = pods.delete("bound", &wrong).await.expect_err("another uid");
    let uid = ending.metadata.uid.expect("a uid");
    let message = format!(
        "Operation cannot be fulfilled on pods \"bound\": Precondition failed: UID in precondition: x, UID in object meta: {uid}"
    );
    assert_eq!(code(&refused), (409, &*message));
    pods.delete("bound", &DeleteParams::default().grace_period(0)).await.expect("deletes");
    assert_eq!(code(&pods.get("bound").await.expect_err("is gone")).0, 404);
}

#[tokio::test]
async fn namespaces_wait_for_their_content() {
    let server = server().await;
    let namespaces: Api<Namespace> = Api::all(server.client());
    let team: Namespace = serde_json::from_value(json!({"metadata": {"name": "team"}})).expect("a namespace");
    namespaces.create(&PostParams::default(), &team).await.expect("creates");
    let ending =
        namespaces.delete("team", &DeleteParams::default()).await.expect("deletes").left().expect("still there");
    assert_eq!(ending.status.and_then(|status| status.phase).as_deref(), Some("Terminating"));
    let refused = send(
        &server,
        "POST",
        "/api/v1/namespaces/team/pods",
        Some(&json!({"metadata": {"name": "p"}, "spec": {"containers": []}})),
    )
    .await;
    assert_eq!((refused.0, &refused.1["details"]["causes"][0]["reason"]), (403, &json!("NamespaceTerminating")));
    let (_, mut body) = send(&server, "GET", "/api/v1/namespaces/team", None).await;
    body["spec"]["finalizers"] = json!([]);
    assert_eq!(send(&server, "PUT", "/api/v1/namespaces/team/finalize", Some(&body)).await.0, 200);
    assert_eq!(code(&namespaces.get("team").await.expect_err("is gone")).0, 404);
    let (status, body) = send(&server, "DELETE", "/api/v1/namespaces/default", None).await;
    assert_eq!(status, 403, "{body}");
}

#[tokio::test]
async fn deletions_answer_and_select() {
    let server = server().await;
    for name in ["a", "b", "c"] {
        let mut one = widget(name, json!({}));
        one.metadata.labels = Some([("odd".to_owned(), (name != "b").to_string())].into());
        widgets(&server).create(&PostParams::default(), &one).await.expect("creates");
    }
    let path = "/apis/example.com/v1/namespaces/default/widgets";
    let (status, body) = send(&server, "DELETE", &format!("{path}?labelSelector=odd%3Dtrue"), None).await;
    let names: Vec<&Value> =
        body["items"].as_array().expect("items").iter().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!((status, names), (200, vec![&json!("a"), &json!("c")]));
    let (status, dry) = send(&server, "DELETE", &format!("{path}/b?dryRun=All"), None).await;
    assert_eq!((status, &dry["status"]), (200, &json!("Success")));
    let (_, body) = send(&server, "DELETE", &format!("{path}/b"), None).await;
    assert_eq!(body["details"]["name"], "b");
    assert_eq!((&body["details"]["group"], &body["details"]["kind"]), (&json!("example.com"), &json!("widgets")));
    assert_eq!(send(&server, "DELETE", &format!("{path}/b"), None).await.0, 404);
}
