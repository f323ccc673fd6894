use serde_json::{Value, json};

use crate::{config_map, send, send_as, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn pages_hold_the_first_revision() {
    let server = server().await;
    for name in ["a", "b", "c", "d", "e"] {
        let map = serde_json::to_value(config_map(name)).expect("JSON");
        assert_eq!(send(&server, "POST", MAPS, Some(&map)).await.0, 201);
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().expect("items");
        items.iter().map(|item| item["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let (_, first) = send(&server, "GET", &format!("{MAPS}?limit=2"), None).await;
    assert_eq!(
        (names(&first), &first["metadata"]["remainingItemCount"]),
        (vec!["a".to_owned(), "b".into()], &json!(3))
    );
    assert_eq!(send(&server, "DELETE", &format!("{MAPS}/d"), None).await.0, 200);
    let token = first["metadata"]["continue"].as_str().expect("a token");
    let (_, second) = send(&server, "GET", &format!("{MAPS}?limit=2&continue={token}"), None).await;
    assert_eq!(
        (names(&second), &second["metadata"]["resourceVersion"]),
        (vec!["c".to_owned(), "e".into()], &first["metadata"]["resourceVersion"])
    );
    assert!(second["metadata"]["continue"].is_null());
    let (status, bad) = send(&server, "GET", &format!("{MAPS}?continue=nonsense"), None).await;
    assert_eq!((status, &bad["reason"]), (400, &json!("BadRequest")));
    let (_, selected) = send(&server, "GET", &format!("{MAPS}?limit=1&labelSelector=app"), None).await;
    assert!(selected["metadata"]["remainingItemCount"].is_null() && selected["metadata"]["continue"].is_string());
}

#[tokio::test]
async fn what_is_not_there_answers_as_expected() {
    let server = server().await;
    let get = async |path: &str| send(&server, "GET", path, None).await;
    let (status, text) = get("/apis/serving.knative.dev/v1/services").await;
    assert_eq!((status, text), (404, json!("404 page not found\n")), "clients tell a missing API by this text");
    let (status, body) = get("/api/v1/nonsense").await;
    assert_eq!((status, &body["message"]), (404, &json!("the server could not find the requested resource")));
    let (status, body) = get("/apis/apps/v1/nonsense").await;
    assert_eq!((status, &body["kind"]), (404, &json!("Status")));
    let (status, body) = get(&format!("{MAPS}?resourceVersionMatch=Exact")).await;
    assert_eq!((status, &body["reason"]), (422, &json!("Invalid")));
    let (status, body) = get(&format!("{MAPS}?labelSelector=a%20b%20c")).await;
    assert!(
        status == 400 && body["message"].as_str().is_some_and(|text| text.starts_with("unable to parse requirement: ")),
        "{body}"
    );
    let (status, body) = get(&format!("{MAPS}?fieldSelector=data.x%3D1")).await;
    assert_eq!(status, 400, "{body}");
    let (status, _) = send(&server, "PUT", MAPS, Some(&json!({}))).await;
    assert_eq!(status, 405);
    let (status, body) = send_as(&server, "GET", MAPS, &[("accept", "image/png")], Vec::new()).await;
    assert_eq!((status, &body["reason"]), (406, &json!("NotAcceptable")));
    let (status, body) = send_as(&server, "POST", MAPS, &[("content-type", "application/cbor")], b"{}".to_vec()).await;
    assert_eq!((status, &body["reason"]), (415, &json!("UnsupportedMediaType")));
    let (status, body) =
        send_as(&server, "POST", MAPS, &[("content-type", "application/json")], vec![b' '; 4 << 20]).await;
    assert_eq!(status, 413, "{body}");
}

#[tokio::test]
async fn bodies_are_checked() {
    let server = server().await;
    let post = async |path: &str, body: Value| send(&server, "POST", path, Some(&body)).await;
    let yaml = b"metadata: {name: from-yaml}\ndata: {a: b}\n".to_vec();
    let (status, body) = send_as(&server, "POST", MAPS, &[("content-type", "application/yaml")], yaml).await;
    assert_eq!((status, &body["data"]["a"]), (201, &json!("b")));
    let (status, body) = post(MAPS, json!({"metadata": {"generateName": "gen-"}})).await;
    let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    assert!(status == 201 && name.len() == 9 && name.starts_with("gen-"), "{body}");
    let (status, body) = post(MAPS, json!({"metadata": {}})).await;
    assert_eq!((status, &body["details"]["causes"][0]["field"]), (422, &json!("metadata.name")), "{body}");
    let (status, _) = post(MAPS, json!({"metadata": {"name": "x", "namespace": "other"}})).await;
    assert_eq!(status, 400);
    let widgets = "/apis/example.com/v1/namespaces/default/widgets";
    let (status, _) = post(widgets, json!({"metadata": {"name": "x"}})).await;
    assert_eq!(status, 400, "custom resources need a kind");
    let strict = format!("{widgets}?fieldValidation=Strict");
    let raw = br#"{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"x"},"spec":{"size":"a","size":"b","typo":1}}"#;
    let (status, body) = send_as(&server, "POST", &strict, &[("content-type", "application/json")], raw.to_vec()).await;
    let message = "Widget in version \"v1\" cannot be handled as a Widget: strict decoding error: unknown field \"spec.typo\", duplicate field \"spec.size\"";
    assert_eq!((status, &body["message"]), (400, &json!(message)));
    let object = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "x"}, "spec": {}});
    assert_eq!(post(&format!("{widgets}?dryRun=All"), object.clone()).await.0, 201);
    assert_eq!(post(widgets, object.clone()).await.0, 201, "the dry run left nothing behind");
    let (status, body) = send(&server, "PUT", &format!("{widgets}/x"), Some(&object)).await;
    assert_eq!((status, &body["details"]["causes"][0]["field"]), (422, &json!("metadata.resourceVersion")));
    let patch = [("content-type", "application/merge-patch+json")];
    let (status, body) = send_as(
        &server,
        "PATCH",
        &format!("{widgets}/x?fieldValidation=Strict"),
        &patch,
        br#"{"spec":{"typo":1}}"#.to_vec(),
    )
    .await;
    assert_eq!(status, 422, "{body}");
    let (status, body) =
        send_as(&server, "PATCH", &format!("{widgets}/x"), &patch, br#"{"metadata":{"resourceVersion":"1"}}"#.to_vec())
            .await;
    assert_eq!((status, &body["reason"]), (409, &json!("Conflict")));
    let strategic = [("content-type", "application/strategic-merge-patch+json")];
    let (status, body) = send_as(&server, "PATCH", &format!("{widgets}/x"), &strategic, b"{}".to_vec()).await;
    assert!(
        status == 415 && body["message"].as_str().is_some_and(|text| text.contains("application/merge-patch+json")),
        "{body}"
    );
}
