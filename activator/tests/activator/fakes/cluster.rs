//! A Kubernetes API that gets, lists and watches, and nothing else.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use k8s_openapi::ByteString;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

const REVISIONS: &str = "/apis/serving.knative.dev/v1/revisions";
const ENDPOINTS: &str = "/api/v1/endpoints";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// Every change there was, in order; an object's version is its place in it.
#[derive(Clone)]
pub(crate) struct Cluster {
    log: Arc<watch::Sender<Vec<(String, Value)>>>,
    /// What may be done with EndpointSlices; upstream's installation grants only Endpoints.
    slices: Arc<Mutex<Slices>>,
}

/// Whether they may be listed, and watched.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Slices {
    pub(crate) list: bool,
    pub(crate) watch: bool,
}

impl Default for Cluster {
    fn default() -> Self {
        Self { log: Arc::new(watch::Sender::new(Vec::new())), slices: Arc::default() }
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl Cluster {
    pub(crate) fn with_slices() -> Self {
        let cluster = Self::default();
        cluster.grant(Slices { list: true, watch: true });
        cluster
    }

    /// From now on; a watch that is not allowed any more ends, as all do after a while.
    pub(crate) fn grant(&self, slices: Slices) {
        *self.slices.lock() = slices;
        self.log.send_modify(|_| {});
    }

    pub(crate) fn client(&self) -> kube::Client {
        let cluster = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let response = cluster.answer(request.uri());
            async move { Ok::<_, Infallible>(response) }
        });
        kube::Client::new(service, "default")
    }

    pub(crate) fn revision(&self, name: &str, concurrency: i64, timeout: i64) {
        self.apply(
            REVISIONS,
            json!({
                "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
                "metadata": {"namespace": "default", "name": name, "uid": name},
                "spec": {"containerConcurrency": concurrency, "timeoutSeconds": timeout,
                    "containers": [{"image": "dev.local/hello"}]},
            }),
        );
    }

    pub(crate) fn endpoints(&self, revision: &str, ready: &[SocketAddr], not_ready: &[SocketAddr]) {
        let subset = |address: &SocketAddr, key: &str| json!({key: [{"ip": address.ip().to_string()}], "ports": [{"name": "http", "port": address.port()}]});
        let subsets: Vec<_> = ready
            .iter()
            .map(|address| subset(address, "addresses"))
            .chain(not_ready.iter().map(|address| subset(address, "notReadyAddresses")))
            .collect();
        self.subsets(revision, Value::from(subsets));
    }

    pub(crate) fn subsets(&self, revision: &str, subsets: Value) {
        self.apply(
            ENDPOINTS,
            json!({
                "apiVersion": "v1", "kind": "Endpoints",
                "metadata": {"namespace": "default", "name": format!("{revision}-private"), "labels": {
                    "networking.internal.knative.dev/serviceType": "Private",
                    "serving.knative.dev/revision": revision,
                    "serving.knative.dev/revisionUID": revision,
                }},
                "subsets": subsets,
            }),
        );
    }

    /// One slice of a revision's pods, with each one's conditions; they have the same port.
    pub(crate) fn slice(&self, revision: &str, name: &str, port: u16, endpoints: &[Value]) {
        self.apply(
            SLICES,
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"namespace": "default", "name": name, "labels": {
                    "kubernetes.io/service-name": format!("{revision}-private"),
                    "networking.internal.knative.dev/serviceType": "Private",
                    "serving.knative.dev/revision": revision,
                }},
                "addressType": "IPv4", "ports": [{"name": "http", "port": port}], "endpoints": endpoints,
            }),
        );
    }

    /// The private Service of a revision, in front of its pods.
    pub(crate) fn service(&self, revision: &str, address: SocketAddr) {
        let name = format!("{revision}-private");
        self.apply(
            "/api/v1/namespaces/default/services",
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name},
                "spec": {"clusterIP": address.ip().to_string(), "ports": [{"name": "http", "port": address.port()}]},
            }),
        );
    }

    /// The certificate of the installation's own servers, and the authority behind it.
    pub(crate) fn certificates(&self, certificate: &str, key: &str, authority: &str) {
        let data = json!({"tls.crt": certificate, "tls.key": key, "ca.crt": authority});
        let encoded: serde_json::Map<_, _> = data
            .as_object()
            .expect("an object")
            .iter()
            .map(|(name, pem)| (name.clone(), json!(ByteString(pem.as_str().expect("text").as_bytes().to_vec()))))
            .collect();
        self.apply(
            "/api/v1/namespaces/knative-serving/secrets",
            json!({
                "apiVersion": "v1", "kind": "Secret",
                "metadata": {"namespace": "knative-serving", "name": "routing-serving-certs"}, "data": encoded,
            }),
        );
    }

    fn apply(&self, path: &str, mut object: Value) {
        self.log.send_modify(|log| {
            object["metadata"]["resourceVersion"] = json!((log.len() + 1).to_string());
            log.push((path.to_owned(), object));
        });
    }

    fn answer(&self, uri: &http::Uri) -> Response<Body> {
        let path = uri.path().to_owned();
        let query = uri.query().unwrap_or_default();
        let log = self.log.borrow().clone();
        let is_watch = query.contains("watch=");
        if path == SLICES && !self.slices.lock().may(is_watch) {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "endpointslices.discovery.k8s.io is forbidden", "reason": "Forbidden", "code": 403});
            let body = Full::new(Bytes::from(status.to_string())).boxed_unsync();
            return Response::builder().status(403).body(body).expect("a response");
        }
        if let Some((collection, name)) = path.rsplit_once('/')
            && let Some(object) = latest(&log, collection).iter().find(|object| object["metadata"]["name"] == name)
        {
            return Response::new(Full::new(Bytes::from(object.to_string())).boxed_unsync());
        }
        if !is_watch {
            let list = json!({
                "apiVersion": "v1", "kind": "List",
                "metadata": {"resourceVersion": log.len().to_string()},
                "items": latest(&log, &path),
            });
            return Response::new(Full::new(Bytes::from(list.to_string())).boxed_unsync());
        }
        let version = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        let seen: usize = version.and_then(|version| version.parse().ok()).unwrap_or(0);
        let slices = self.slices.clone();
        let events = futures::stream::unfold((self.log.subscribe(), seen, path), move |(mut changes, seen, path)| {
            let slices = slices.clone();
            async move {
                loop {
                    if path == SLICES && !slices.lock().watch {
                        return None;
                    }
                    let next = changes.borrow_and_update().get(seen..).and_then(|new| new.first().cloned());
                    match next {
                        Some((of, object)) if of == path => {
                            let line = format!("{{\"type\":\"MODIFIED\",\"object\":{object}}}\n");
                            return Some((Ok(Frame::data(Bytes::from(line))), (changes, seen + 1, path)));
                        }
                        Some(_) => return Some((Ok(Frame::data(Bytes::new())), (changes, seen + 1, path))),
                        None => changes.changed().await.ok()?,
                    }
                }
            }
        });
        Response::new(StreamBody::new(events).boxed_unsync())
    }
}

impl Slices {
    fn may(self, watch: bool) -> bool {
        if watch { self.watch } else { self.list }
    }
}

fn latest(log: &[(String, Value)], path: &str) -> Vec<Value> {
    let mut by_name = std::collections::BTreeMap::new();
    for (_, object) in log.iter().filter(|(of, _)| *of == path) {
        by_name.insert(object["metadata"]["name"].to_string(), object.clone());
    }
    by_name.into_values().collect()
}
