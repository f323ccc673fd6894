//! Order, resumption and durability of the store.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use store::{Change, EventKind, Expected, Key, Options, Store};

const RESOURCE: &str = "things";

fn put(store: &Store, name: &str, expected: Expected, value: u64) -> u64 {
    let object = json!({"metadata": {"name": name, "uid": name}, "value": value});
    let key = Key::new("ns", name);
    store.commit(RESOURCE, &key, expected, Change::Put(object), &|_, _| {}).expect("as expected").revision
}

fn open(path: &Path) -> Store {
    Store::open(Options { path: Some(path.to_owned()) }).expect("opens")
}

#[tokio::test]
async fn commits_events_and_revisions_have_one_order() {
    let store = Store::memory();
    let start = store.revision();
    let mut watch = store.watch(RESOURCE, start).expect("watches");
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = store.clone();
            std::thread::spawn(move || {
                for round in 0..200 {
                    put(&store, &format!("{writer}-{round}"), Expected::Absent, round);
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().expect("writes"));
    let mut last = start;
    for _ in 0..800 {
        let event = watch.try_next().expect("is there");
        assert_eq!(event.revision(), last + 1);
        assert_eq!(event.object.value["metadata"]["resourceVersion"], event.revision().to_string());
        last = event.revision();
    }
    assert!(watch.try_next().is_none());
    assert_eq!(store.list(RESOURCE, Some("ns")).objects.len(), 800);
    assert!(store.list(RESOURCE, Some("n")).objects.is_empty());
}

#[tokio::test]
async fn a_change_needs_the_expected_object() {
    let store = Store::memory();
    let first = put(&store, "a", Expected::Absent, 1);
    let key = Key::new("ns", "a");
    let refused = |expected| {
        let refused = store
            .commit(RESOURCE, &key, expected, Change::Put(json!({"metadata": {}})), &|_, _| panic!("nothing happens"));
        refused.expect_err("is refused").found.expect("what is there").revision
    };
    assert_eq!(refused(Expected::Absent), first);
    assert_eq!(refused(Expected::Revision(first + 7)), first);
    let second = put(&store, "a", Expected::Revision(first), 2);
    let last = store.commit(RESOURCE, &key, Expected::Revision(second), Change::Delete, &|old, new| {
        assert!(old.is_some_and(|old| old["value"] == 2) && new.is_none());
    });
    let last = last.expect("deletes");
    assert_eq!((last.revision, &last.value["value"]), (second + 1, &json!(2)));
    let mut watch = store.watch(RESOURCE, first).expect("resumes");
    let kinds: Vec<EventKind> = std::iter::from_fn(|| watch.try_next()).map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Modified, EventKind::Deleted]);
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_dropped_and_resumes() {
    let store = Store::memory();
    let mut slow = store.watch(RESOURCE, store.revision()).expect("watches");
    let mut revision = put(&store, "a", Expected::Absent, 0);
    for round in 0..5000 {
        revision = put(&store, "a", Expected::Revision(revision), round);
    }
    let mut seen = 0;
    while let Some(event) = slow.next().await {
        seen = event.revision();
    }
    assert!(seen < revision, "it was dropped before the end");
    let mut again = store.watch(RESOURCE, revision - 10).expect("resumes");
    assert_eq!(std::iter::from_fn(|| again.try_next()).count(), 10);
    let old = store.watch(RESOURCE, 1).err().expect("is too old");
    assert!(old.to_string().starts_with("too old resource version: 1 ("), "{old}");
}

#[tokio::test]
async fn objects_and_the_counter_survive() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("objects.redb");
    let store = open(&path);
    let first = put(&store, "a", Expected::Absent, 1);
    put(&store, "b", Expected::Absent, 1);
    let key = Key::new("ns", "b");
    let revision = store.get(RESOURCE, &key).expect("is there").revision;
    store.commit(RESOURCE, &key, Expected::Revision(revision), Change::Delete, &|_, _| {}).expect("deletes");
    store.durable(store.revision()).await.expect("is written");
    let before = store.revision();
    drop(store);
    let store = open(&path);
    assert_eq!(store.revision(), before, "a clean end leaves no gap");
    let found = store.list(RESOURCE, None).objects;
    assert_eq!(
        found.iter().map(|object| (object.key.to_string(), object.revision)).collect::<Vec<_>>(),
        [("ns/a".to_owned(), first)]
    );
    assert!(store.watch(RESOURCE, first).is_err(), "events from before are gone");
    assert!(store.watch(RESOURCE, before).is_ok());
    assert!(store.reached(before, Duration::from_millis(1)).await);
    assert!(!store.reached(before + 1, Duration::from_millis(1)).await);
}

/// The child of the next test: says which revision is durable, then how far memory has come, and is killed.
#[test]
#[ignore = "runs as a child of the_counter_never_goes_back_after_a_kill"]
fn child() {
    let path = std::env::var_os("STORE_PATH").expect("started by the other test");
    let store = open(Path::new(&path));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let durable = put(&store, "durable", Expected::Absent, 1);
    runtime.block_on(store.durable(durable)).expect("is written");
    let mut last = durable;
    for round in 0..300 {
        last = put(&store, &format!("memory-{round}"), Expected::Absent, round);
    }
    println!("\nREVISION {last}");
    // No destructor runs: as good as kill -9 for the file.
    std::process::abort();
}

#[test]
fn the_counter_never_goes_back_after_a_kill() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("objects.redb");
    let program = std::env::current_exe().expect("this test");
    let output = Command::new(program)
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("STORE_PATH", &path)
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let seen: u64 =
        text.lines().find_map(|line| line.strip_prefix("REVISION ")).expect("a revision").parse().expect("a number");
    let store = open(&path);
    assert!(store.get(RESOURCE, &Key::new("ns", "durable")).is_some(), "what was acknowledged as durable is there");
    assert!(store.revision() >= seen, "{} after {seen} was seen", store.revision());
    let next = put(&store, "next", Expected::Absent, 0);
    assert!(next > seen);
    let _: Value =
        serde_json::from_slice(store.get(RESOURCE, &Key::new("ns", "next")).expect("is there").bytes()).expect("JSON");
}
