//! The role needs no more than the chart's ClusterRole grants, which is upstream's.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use api::{Conditioned, networking::v1alpha1::Ingress};
use controller::{Context, Tasks};
use hyper::{Method, Request as HttpRequest, Response};
use ingress::{Admin, Bootstrap, Options};
use kube::{
    Client,
    api::{Api, DeleteParams, PostParams},
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{
    cluster::{CLASS, config_map, eventually, ingress, open, says, service, until},
    support::{Backend, envoy, free_ports, spawn},
};

/// The API for a service account that may do what the chart says.
#[derive(Clone)]
struct Guarded {
    inner: apiserver::Service,
    granted: Arc<BTreeSet<(String, String)>>,
    used: Used,
    denied: Used,
}

type Used = Arc<Mutex<BTreeSet<(String, String)>>>;

/// Resource (`group/resource`, with its subresource) and verb.
fn granted() -> BTreeSet<(String, String)> {
    let text = include_str!("../../../../charts/kourier/templates/rbac.yaml");
    let role = text.split("\n---\n").find(|part| part.contains("kind: ClusterRole\n")).unwrap();
    let role: Value = serde_saphyr::from_str(&role[role.find("rules:").unwrap()..]).unwrap();
    let list = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
    let mut all = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        for group in list(&rule["apiGroups"]) {
            for resource in list(&rule["resources"]) {
                all.extend(list(&rule["verbs"]).into_iter().map(|verb| (format!("{group}/{resource}"), verb)));
            }
        }
    }
    all
}

/// What a request does, as the API server's authorizer sees it.
fn attributes(method: &Method, uri: &hyper::Uri) -> (String, String) {
    let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    let (group, rest) = match parts.as_slice() {
        ["api", "v1", rest @ ..] => ("", rest),
        ["apis", group, _, rest @ ..] => (*group, rest),
        _ => return (uri.path().to_owned(), method.to_string()),
    };
    let rest = if let ["namespaces", _, rest @ ..] = rest { rest } else { rest };
    let (resource, named) = match rest {
        [resource, _, subresource] => (format!("{group}/{resource}/{subresource}"), true),
        [resource, _] => (format!("{group}/{resource}"), true),
        [resource] => (format!("{group}/{resource}"), false),
        _ => (format!("{group}/{}", rest.join("/")), true),
    };
    let watching = uri.query().is_some_and(|query| query.contains("watch=true") || query.contains("watch=1"));
    let verb = match *method {
        Method::GET if watching => "watch",
        Method::GET if named => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "unknown",
    };
    (resource, verb.to_owned())
}

impl tower::Service<HttpRequest<kube::client::Body>> for Guarded {
    type Response = Response<apiserver::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: HttpRequest<kube::client::Body>) -> Self::Future {
        let asked = attributes(request.method(), request.uri());
        if self.granted.contains(&asked) {
            self.used.lock().insert(asked);
        } else {
            self.denied.lock().insert(asked);
            // Nobody may see or write this; the answer is an error of the API.
            *request.uri_mut() = "/apis/forbidden".parse().unwrap();
        }
        tower::Service::call(&mut self.inner, request)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_role_does_only_what_the_cluster_role_grants() {
    let Some(program) = envoy() else { return };
    let server = open().await;
    config_map(&server, "config-leader-election", json!({"retry-period": "1s"}));
    config_map(&server, "config-kourier", json!({}));
    config_map(&server, "config-network", json!({}));
    let guarded = Guarded {
        inner: server.service(),
        granted: Arc::new(granted()),
        used: Used::default(),
        denied: Used::default(),
    };
    let (used, denied) = (guarded.used.clone(), guarded.denied.clone());
    let tasks = Tasks::new();
    let ctx = Context::new(Client::new(guarded, "default"), tasks.clone());
    let [xds, external, internal, probe, admin] = free_ports().await;
    let options = Options {
        xds_listen: xds,
        external_listen: vec![external],
        internal_listen: vec![internal],
        probe_listen: vec![probe],
        config_wait: Some(Duration::from_secs(5)),
        probe: Some(Duration::from_secs(1)),
        replica: Some("one".to_owned()),
        ..Options::default()
    };
    ingress::run(ctx, options).await.unwrap();
    let app = Backend::start("app").await;
    service(&server, "default", "app", &[app.address]);
    let (_envoy, _files) = spawn(&program, &Bootstrap::new(xds, Admin::Tcp(admin)));
    let api: Api<Ingress> = Api::default_namespaced(server.client());
    let create = PostParams::default();
    api.create(&create, &ingress("one", "one.example.com", CLASS)).await.unwrap();
    until(&api, "one", "ready", |i| i.is_some_and(Conditioned::is_ready)).await;
    let mut bad = ingress("bad", "bad.example.com", CLASS);
    bad.spec.rules[0].http = None;
    api.create(&create, &bad).await.unwrap();
    until(&api, "bad", "refused", |i| says(i, "Ready", "Unknown", "ReconcileIngressFailed")).await;
    api.delete("one", &DeleteParams::default()).await.unwrap();
    until(&api, "one", "gone", |i| i.is_none()).await;
    let wrote = |what: &str, verb: &str| used.lock().contains(&(what.to_owned(), verb.to_owned()));
    eventually("events", async || wrote("/events", "create")).await;
    for (what, verb) in [
        ("networking.internal.knative.dev/ingresses", "patch"),
        ("networking.internal.knative.dev/ingresses/status", "update"),
        ("coordination.k8s.io/leases", "create"),
        ("/secrets", "watch"),
    ] {
        eventually(&format!("{verb} {what}"), async || wrote(what, verb)).await;
    }
    // Given back, which is a write as well.
    tasks.shutdown().await;
    assert!(wrote("coordination.k8s.io/leases", "update"));
    assert_eq!(*denied.lock(), BTreeSet::new());
    server.shutdown().await.unwrap();
}
