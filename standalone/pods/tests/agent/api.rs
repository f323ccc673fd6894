//! As much of the Kubernetes API as the agent uses, in memory.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

type Answer = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Clone, Default)]
pub(crate) struct Api {
    state: Arc<Mutex<State>>,
    version: Arc<watch::Sender<usize>>,
}

#[derive(Default)]
struct State {
    /// By `resource/name`.
    objects: BTreeMap<String, Value>,
    /// Everything that happened to pods.
    events: Vec<Value>,
    status_writes: HashMap<String, usize>,
}

impl Api {
    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    pub(crate) fn create(&self, resource: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        self.store(&format!("{resource}/{name}"), object, "ADDED");
    }

    pub(crate) fn delete(&self, pod: &str, grace: i64) {
        let key = format!("pods/{pod}");
        let mut object = self.state.lock().objects[&key].clone();
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
        object["metadata"]["deletionTimestamp"] = json!(format!("{at:.0}"));
        object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.store(&key, object, "MODIFIED");
    }

    pub(crate) fn writes(&self, pod: &str) -> usize {
        self.state.lock().status_writes.get(pod).copied().unwrap_or_default()
    }

    /// The pod once `wanted` holds.
    pub(crate) async fn wait(&self, pod: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let key = format!("pods/{pod}");
        self.until(|state| state.objects.get(&key).filter(|pod| wanted(pod)).cloned()).await
    }

    /// The last state of the pod once it is deleted.
    pub(crate) async fn gone(&self, pod: &str) -> Value {
        let deleted = |event: &&Value| event["type"] == "DELETED" && event["object"]["metadata"]["name"] == pod;
        self.until(|state| state.events.iter().find(deleted).map(|event| event["object"].clone())).await
    }

    pub(crate) async fn event(&self, reason: &str) {
        self.until(|state| state.objects.values().any(|object| object["reason"] == reason).then_some(())).await;
    }

    async fn until<T>(&self, found: impl Fn(&State) -> Option<T>) -> T {
        let mut version = self.version.subscribe();
        let search = async {
            loop {
                version.mark_unchanged();
                if let Some(found) = found(&self.state.lock()) {
                    return found;
                }
                version.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(Duration::from_secs(60), search).await {
            Ok(found) => found,
            Err(_) => panic!("not in time: {:#?}", self.state.lock().objects.values().collect::<Vec<_>>()),
        }
    }

    fn store(&self, key: &str, mut object: Value, kind: &str) -> Value {
        let mut state = self.state.lock();
        let version = state.events.len() + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if kind == "DELETED" {
            state.objects.remove(key);
        } else {
            state.objects.insert(key.to_owned(), object.clone());
        }
        let resource = key.split('/').next().unwrap_or_default().to_owned();
        state.events.push(json!({"type": kind, "object": object, "resource": resource}));
        self.version.send_replace(state.events.len());
        object
    }

    async fn answer(&self, request: Request<Body>) -> Response<Answer> {
        let (parts, body) = request.into_parts();
        let query = parts.uri.query().unwrap_or_default();
        let path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
        let at = path.iter().position(|part| *part == "v1").unwrap_or_default() + 1;
        let at = if path.get(at) == Some(&"namespaces") { at + 2 } else { at };
        let resource = path[at];
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        if query.contains("watch=true") {
            return self.watch(resource.to_owned(), query);
        }
        let Some(name) = path.get(at + 1) else {
            if parts.method == Method::POST {
                self.create(resource, body.clone());
                return reply(StatusCode::CREATED, &body);
            }
            let state = self.state.lock();
            let prefix = format!("{resource}/");
            let items: Vec<&Value> =
                state.objects.iter().filter(|(key, _)| key.starts_with(&prefix)).map(|(_, object)| object).collect();
            let version = state.events.len().to_string();
            return reply(StatusCode::OK, &json!({"metadata": {"resourceVersion": version}, "items": items}));
        };
        let key = format!("{resource}/{name}");
        let found = self.state.lock().objects.get(&key).cloned();
        let Some(mut object) = found else {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": format!("{resource} {name:?} not found"), "reason": "NotFound", "code": 404});
            return reply(StatusCode::NOT_FOUND, &status);
        };
        match parts.method {
            Method::PATCH => {
                merge(&mut object, &body);
                *self.state.lock().status_writes.entry((*name).to_owned()).or_default() += 1;
                reply(StatusCode::OK, &self.store(&key, object, "MODIFIED"))
            }
            Method::DELETE => reply(StatusCode::OK, &self.store(&key, object, "DELETED")),
            _ => reply(StatusCode::OK, &object),
        }
    }

    fn watch(&self, resource: String, query: &str) -> Response<Answer> {
        let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        let from: usize = from.and_then(|version| version.parse().ok()).unwrap_or_default();
        let (state, version) = (self.state.clone(), self.version.subscribe());
        let lines = stream::unfold((from, version), move |(next, mut version)| {
            let state = state.clone();
            async move {
                loop {
                    version.mark_unchanged();
                    let event = state.lock().events.get(next).cloned();
                    if let Some(event) = event {
                        return Some((event, (next + 1, version)));
                    }
                    version.changed().await.ok()?;
                }
            }
        });
        let lines = lines.filter(move |event| futures::future::ready(event["resource"] == resource.as_str()));
        let frames = lines.map(|event| {
            let line = format!("{}\n", json!({"type": event["type"], "object": event["object"]}));
            Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(line)))
        });
        Response::new(StreamBody::new(frames.boxed()).boxed_unsync())
    }
}

fn reply(status: StatusCode, value: &Value) -> Response<Answer> {
    let mut response = Response::new(Full::from(value.to_string()).boxed_unsync());
    *response.status_mut() = status;
    response
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}
