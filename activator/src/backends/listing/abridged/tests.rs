use std::collections::BTreeMap;

use fastrand::Rng;
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use kube::api::WatchEvent;
use serde_json::{Value, json};

use super::{
    super::{Listing, Whole, changes},
    *,
};

type Watched = WatchEvent<Listing<Whole>>;

fn address(number: u16) -> Value {
    let ip = format!("10.0.{}.{}", number / 256, number % 256);
    let target = json!({"kind": "Pod", "namespace": "default", "name": format!("pod-{number}"),
        "uid": format!("6ba7b810-9dad-11d1-80b4-{number:012}")});
    json!({"ip": ip, "nodeName": "node-1", "targetRef": target})
}

/// A line of a watch; metadata changes every time, and mentions what comes later.
fn line(kind: &str, name: &str, version: usize, ready: &[u16], not_ready: &[u16]) -> Vec<u8> {
    let list = |numbers: &[u16]| Value::from(numbers.iter().map(|number| address(*number)).collect::<Vec<_>>());
    let metadata = json!({"namespace": "default", "name": name, "resourceVersion": version.to_string(),
        "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": format!("at {version}"),
            "said": "\"subsets\":[{}"},
        "managedFields": [{"manager": "m", "fieldsV1": {"f:subsets": {}}}]});
    let ready = if ready.is_empty() { String::new() } else { format!("\"addresses\":{},", list(ready)) };
    let not_ready =
        if not_ready.is_empty() { String::new() } else { format!("\"notReadyAddresses\":{},", list(not_ready)) };
    let line = format!(
        "{{\"type\":\"{kind}\",\"object\":{{\"kind\":\"Endpoints\",\"apiVersion\":\"v1\",\"metadata\":{metadata},\
         \"subsets\":[{{{ready}{not_ready}\"ports\":[{{\"name\":\"http\",\"port\":8012,\"protocol\":\"TCP\"}}]}}]}}}}\n"
    );
    line.into_bytes()
}

/// What comes out of the body of an answer when `bytes` come in, in pieces of any size.
async fn passed(texts: Option<&Texts>, bytes: &[u8], random: &mut Rng) -> Vec<u8> {
    let (mut rest, mut pieces) = (bytes, Vec::new());
    while !rest.is_empty() {
        let most = [50, 5_000, 200_000][random.usize(..3)];
        let (piece, others) = rest.split_at(random.usize(1..=most).min(rest.len()));
        pieces.push(Ok::<_, std::convert::Infallible>(Frame::data(Bytes::copy_from_slice(piece))));
        rest = others;
    }
    let body = StreamBody::new(futures::stream::iter(pieces).boxed());
    Abridged::new(body, texts.cloned()).collect().await.expect("infallible").to_bytes().into()
}

/// What a watch makes of a line.
fn read(texts: &Texts, line: &[u8]) -> Watched {
    let mut event: Watched = serde_json::from_slice(line).expect("valid");
    if let WatchEvent::Added(listing) | WatchEvent::Modified(listing) = &mut event {
        listing.complete(texts);
    }
    event
}

/// However objects change, watches end and begin again, and lines are cut into pieces: what is read is what all of the
/// lines say.
#[tokio::test]
async fn an_abridged_watch_says_what_the_whole_one_says() {
    let mut random = Rng::with_seed(23);
    let texts = Texts::default();
    let mut objects: BTreeMap<&str, (Vec<u16>, Vec<u16>)> = BTreeMap::new();
    // What a cache has.
    let mut known: BTreeMap<String, Groups> = BTreeMap::new();
    let (mut version, mut edits, mut long) = (0, 0, 0);
    for _ in 0..60 {
        if random.u8(..4) == 0 {
            // All of it is listed anew; of some it is known that they did not change.
            known.retain(|_, _| random.bool());
            for (name, (ready, not_ready)) in &objects {
                let whole = line("ADDED", name, version, ready, not_ready);
                let WatchEvent::Added(listed) = serde_json::from_slice::<Watched>(&whole).expect("valid") else {
                    unreachable!()
                };
                known.entry((*name).to_owned()).or_insert(listed.groups);
            }
        }
        let mut lines = Vec::new();
        for _ in 0..random.usize(1..12) {
            version += 1;
            let name = ["a", "b", "c"][random.usize(..3)];
            if random.u8(..12) == 0
                && let Some((ready, not_ready)) = objects.remove(name)
            {
                lines.push(line("DELETED", name, version, &ready, &not_ready));
                continue;
            }
            let is_new = !objects.contains_key(name);
            let (ready, not_ready) = objects.entry(name).or_insert_with(|| {
                let count = [3, 90, 300][random.usize(..3)];
                ((0..count).collect(), Vec::new())
            });
            let (from, to) = if random.bool() { (ready, not_ready) } else { (not_ready, ready) };
            match random.u8(..3) {
                0 => to.insert(random.usize(..=to.len()), random.u16(..)),
                _ if from.is_empty() => {}
                1 => drop(from.remove(random.usize(..from.len()))),
                _ => to.push(from.remove(random.usize(..from.len()))),
            }
            let (ready, not_ready) = &objects[name];
            lines.push(line(if is_new { "ADDED" } else { "MODIFIED" }, name, version, ready, not_ready));
        }
        let bookmark = json!({"type": "BOOKMARK", "object": {"kind": "Endpoints", "apiVersion": "v1",
            "metadata": {"resourceVersion": version.to_string()}}});
        lines.push(format!("{bookmark}\n").into_bytes());
        let sent = passed(Some(&texts), &lines.concat(), &mut random).await;
        let sent: Vec<_> = sent.split_inclusive(|byte| *byte == b'\n').collect();
        assert_eq!(sent.len(), lines.len());
        for (line, sent) in lines.iter().zip(sent) {
            let is_long = line.len() >= LONG;
            assert!(if is_long { sent.len() < 2000 } else { sent == line }, "{} of {}", sent.len(), line.len());
            match (read(&texts, line), read(&texts, sent)) {
                (WatchEvent::Added(whole), WatchEvent::Added(listing))
                | (WatchEvent::Modified(whole), WatchEvent::Modified(listing)) => {
                    assert_eq!(listing.metadata, whole.metadata);
                    assert_eq!(*listing.groups.read(), *whole.groups.read());
                    let name = listing.metadata.name.expect("named");
                    let before = known.insert(name, listing.groups.clone()).unwrap_or_default();
                    let before_whole = Groups::Read(before.read().into());
                    let expected = changes(&before_whole, &whole.groups, "http");
                    assert_eq!(changes(&before, &listing.groups, "http"), expected);
                    if let (Groups::Text(before), Groups::Text(now)) = (&before, &listing.groups) {
                        long += 1;
                        edits += usize::from(now.changes(before, "http").is_some());
                    }
                }
                (WatchEvent::Deleted(whole), WatchEvent::Deleted(listing)) => {
                    assert_eq!(listing.metadata, whole.metadata);
                    known.remove(&whole.metadata.name.expect("named"));
                }
                (WatchEvent::Bookmark(_), WatchEvent::Bookmark(_)) => {}
                (whole, sent) => panic!("{whole:?} became {sent:?}"),
            }
        }
        assert!(texts.state.lock().sent.is_empty());
    }
    assert!(long > 50 && edits == long, "{edits} of {long} changes of long objects were read as such");
    known.clear();
    let state = texts.state.lock();
    assert!(state.last.values().all(|text| text.strong_count() == 0), "nobody else keeps texts");
}

#[tokio::test]
async fn what_is_not_as_expected_goes_on_as_it_came() {
    let mut random = Rng::with_seed(29);
    let texts = Texts::default();
    let many: Vec<_> = (0..200).collect();
    let usual = line("MODIFIED", "a", 1, &many, &[]);
    let text = String::from_utf8(usual.clone()).expect("UTF-8");
    let others = [
        text.replace("\"subsets\":[{\"add", "\"subsets\": [{\"add"),
        text.replace("]}}\n", "],\"more\":1}}\n"),
        text.replace("]}}\n", "]}} \n"),
        text.replace("]}}\n", "]}}"),
        text.replace("MODIFIED", "ERROR"),
        // The first that is called so is not at its place.
        text.replace("\"annotations\":{", "\"annotations\":{\"subsets\":[],"),
        text.replace("\"name\":\"a\",", ""),
        text.replace("{\"type\":\"MODIFIED\",", "{").replace("}}\n", "},\"type\":\"MODIFIED\"}\n"),
        "x".repeat(LONG) + "\n",
        "x".repeat(LONG),
    ];
    for other in others {
        assert!(other != text && other.len() >= LONG);
        let sent = passed(Some(&texts), other.as_bytes(), &mut random).await;
        assert_eq!(String::from_utf8(sent).expect("UTF-8"), other);
    }
    assert_eq!(passed(None, &usual, &mut random).await, usual);
    let sent = passed(Some(&texts), &usual, &mut random).await;
    assert!(sent.len() < usual.len() / 10);
    // Nobody asked for the first.
    let again = passed(Some(&texts), &usual, &mut random).await;
    let WatchEvent::Modified(listing) = read(&texts, &again) else { panic!("it was modified") };
    assert_eq!(listing.groups.read()[0].ready().count(), 200);
    assert!(texts.state.lock().sent.is_empty());
}
