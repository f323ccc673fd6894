use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};

use crate::{code, config_map, send, server};

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

/// The events of a watch that ends by itself.
async fn events(server: &apiserver::Server, query: &str) -> Vec<(String, Value)> {
    let (status, body) =
        send(server, "GET", &format!("/api/v1/namespaces/default/configmaps?watch=true&{query}"), None).await;
    assert_eq!(status, 200, "{body}");
    let lines = match body {
        Value::String(lines) => lines,
        one => one.to_string(),
    };
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    lines.map(|event| (event["type"].as_str().unwrap_or_default().to_owned(), event["object"].clone())).collect()
}

#[tokio::test]
async fn watches_end_in_time_with_a_bookmark() {
    let server = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(server.client(), "default");
    let before = maps.list(&ListParams::default()).await.expect("lists").items.len();
    maps.create(&PostParams::default(), &config_map("a")).await.expect("creates");
    let seen = events(&server, "timeoutSeconds=1").await;
    assert_eq!(
        seen.iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>(),
        vec!["ADDED"; before + 1],
        "no bookmarks unless asked for"
    );
    let seen = events(&server, "timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion=0").await;
    let (kind, bookmark) = seen.last().expect("a bookmark");
    assert_eq!(
        (kind.as_str(), &bookmark["kind"], &bookmark["metadata"]["name"]),
        ("BOOKMARK", &json!("ConfigMap"), &Value::Null)
    );
    let revision = bookmark["metadata"]["resourceVersion"].as_str().expect("a revision").to_owned();
    assert!(events(&server, &format!("timeoutSeconds=1&resourceVersion={revision}")).await.is_empty());
    let initial = "timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let seen = events(&server, initial).await;
    assert_eq!(seen[before + 1].1["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
}

#[tokio::test]
async fn what_cannot_be_watched_is_said() {
    let server = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(server.client(), "default");
    let first = maps.create(&PostParams::default(), &config_map("a")).await.expect("creates");
    for round in 0..5000 {
        let patch = Patch::Merge(json!({"data": {"round": round.to_string()}}));
        maps.patch("a", &PatchParams::default(), &patch).await.expect("patches");
    }
    let revision = first.metadata.resource_version.expect("a revision");
    let seen = events(&server, &format!("resourceVersion={revision}")).await;
    let [(kind, status)] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!((kind.as_str(), &status["code"], &status["reason"]), ("ERROR", &json!(410), &json!("Expired")));
    assert!(
        status["message"]
            .as_str()
            .is_some_and(|text| text.starts_with(&format!("too old resource version: {revision} (")))
    );
    let path = "/api/v1/configmaps?watch=1";
    let (status, body) = send(&server, "GET", &format!("{path}&resourceVersion=abc"), None).await;
    assert_eq!(status, 422, "{body}");
    let (status, body) = send(&server, "GET", &format!("{path}&sendInitialEvents=true"), None).await;
    assert_eq!((status, &body["details"]["causes"][0]["field"]), (422, &json!("resourceVersionMatch")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_watcher_knows_what_a_list_says_however_busy_it_is() {
    let server = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(server.client(), "default");
    let from = maps.list(&ListParams::default()).await.expect("lists").metadata.resource_version.expect("a revision");
    let watcher = maps.watch(&WatchParams::default(), &from).await.expect("watches");
    maps.create(&PostParams::default(), &config_map("shared")).await.expect("creates");
    let writers = (0..4).map(|writer: u64| {
        let maps = maps.clone();
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(writer);
            for round in 0..100 {
                let name = format!("w{writer}-{}", random.u8(..8));
                let patch = Patch::Merge(json!({"data": {format!("w{writer}"): round.to_string()}}));
                maps.patch("shared", &PatchParams::default(), &patch)
                    .await
                    .expect("a patch without a version never conflicts");
                let done = match random.u8(..3) {
                    0 => maps.create(&PostParams::default(), &config_map(&name)).await.map(drop),
                    1 => maps.patch(&name, &PatchParams::default(), &patch).await.map(drop),
                    _ => maps.delete(&name, &DeleteParams::default()).await.map(drop),
                };
                if let Err(error) = done {
                    assert!(matches!(code(&error).0, 404 | 409), "{error}");
                }
            }
        })
    });
    futures::future::try_join_all(writers).await.expect("write");
    maps.create(&PostParams::default(), &config_map("zzz-last")).await.expect("creates");

    let listed = maps.list(&ListParams::default()).await.expect("lists").items;
    let mut known = std::collections::BTreeMap::new();
    let mut last = 0;
    pin_mut!(watcher);
    while !known.contains_key("zzz-last") {
        let event = watcher.try_next().await.expect("an event").expect("goes on");
        let (WatchEvent::Added(map) | WatchEvent::Modified(map) | WatchEvent::Deleted(map)) = &event else {
            panic!("{event:?}")
        };
        let revision: u64 = map.metadata.resource_version.as_deref().unwrap_or_default().parse().expect("a number");
        assert!(revision > last, "events come in order");
        last = revision;
        let name = map.metadata.name.clone().unwrap_or_default();
        let before = match event {
            WatchEvent::Deleted(_) => known.remove(&name),
            WatchEvent::Added(ref map) | WatchEvent::Modified(ref map) => known.insert(name, map.clone()),
            _ => None,
        };
        assert_eq!(before.is_none(), matches!(event, WatchEvent::Added(_)), "ADDED is what was not there");
    }
    let known: Vec<ConfigMap> = known.into_values().collect();
    let listed: Vec<ConfigMap> =
        listed.into_iter().filter(|map| map.metadata.name.as_deref() != Some("kube-root-ca.crt")).collect();
    assert_eq!(known, listed);
    let shared = listed.iter().find(|map| map.metadata.name.as_deref() == Some("shared")).expect("is there");
    let data = shared.data.as_ref().expect("data");
    assert!((0..4).all(|writer| data[&format!("w{writer}")] == "99"), "no patch was lost: {data:?}");
}
