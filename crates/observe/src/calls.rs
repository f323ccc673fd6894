//! Requests to the Kubernetes API, counted and timed as client-go does it for upstream's processes.
//!
//! Paths are told without the names in them, so that there are as many series as kinds of requests. Watches are counted
//! and not timed: how long they last says nothing.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{Method, Request, Response, StatusCode, Uri};
use tower_service::Service;

use crate::{LATENCY_SECONDS, Registry};

/// The name of what counts them.
pub const API_CALLS: &str = "kn_k8s_client_http_response_status_code_total";

const SCOPE: [(&str, &str); 3] = [
    ("otel_scope_name", "knative.dev/pkg/observability/metrics/k8s"),
    ("otel_scope_schema_url", ""),
    ("otel_scope_version", ""),
];

/// Notes the requests that pass through it.
#[derive(Clone)]
pub struct ApiCalls {
    registry: Registry,
    scheme: String,
    host: String,
    port: u16,
}

/// A service whose requests are noted.
#[derive(Clone)]
pub struct Noted<S> {
    inner: S,
    calls: ApiCalls,
}

// === impl ApiCalls ===

impl ApiCalls {
    /// Of the API at this address.
    pub fn new(registry: &Registry, api: &Uri) -> Self {
        let scheme = api.scheme_str().unwrap_or("http").to_owned();
        let port = if scheme == "https" { 443 } else { 80 };
        Self {
            registry: registry.clone(),
            host: api.host().unwrap_or_default().to_owned(),
            port: api.port_u16().unwrap_or(port),
            scheme,
        }
    }

    /// What sends the requests, noting them.
    pub fn of<S>(&self, inner: S) -> Noted<S> {
        Noted { inner, calls: self.clone() }
    }

    fn note(&self, call: &Call, status: Option<StatusCode>, took: Duration) {
        let method = call.method.as_str();
        let authority = format!("{}:{}", self.host, self.port);
        let mut labels = vec![("http_request_method", method)];
        labels.extend(status.as_ref().map(|status| ("http_response_status_code", status.as_str())));
        labels.extend(SCOPE);
        labels.push(("server_address", &authority));
        let help = "Count of response codes partitioned by method and host";
        self.registry.counter(API_CALLS, help, &labels).increment();
        let Some(template) = &call.template else { return };
        let port = self.port.to_string();
        let mut labels = vec![("http_request_method", method)];
        labels.extend(SCOPE);
        labels.extend([
            ("server_address", &*self.host),
            ("server_port", &port),
            ("url_scheme", &self.scheme),
            ("url_template", template),
        ]);
        let help = "Duration of HTTP client requests.";
        let duration = self.registry.histogram("http_client_request_duration_seconds", help, LATENCY_SECONDS, &labels);
        duration.observe(took.as_secs_f64());
    }
}

// === impl Noted ===

impl<S, B, R> Service<Request<B>> for Noted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = Call::of(&request);
        let (calls, started, answer) = (self.calls.clone(), Instant::now(), self.inner.call(request));
        Box::pin(async move {
            let answer = answer.await;
            calls.note(&call, answer.as_ref().ok().map(Response::status), started.elapsed());
            answer
        })
    }
}

/// What is told of a request.
struct Call {
    method: Method,
    /// Its path without names; none of a watch.
    template: Option<String>,
}

// === impl Call ===

impl Call {
    fn of<B>(request: &Request<B>) -> Self {
        let mut query = request.uri().query().unwrap_or_default().split('&');
        let is_watch = query.any(|pair| matches!(pair, "watch" | "watch=true" | "watch=1"));
        let template = (!is_watch).then(|| template(request.uri().path()));
        Self { method: request.method().clone(), template }
    }
}

/// A path of the API with `{namespace}` and `{name}` for what they are.
fn template(path: &str) -> String {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let at = match parts.first() {
        Some(&"api") => 2,
        Some(&"apis") => 3,
        _ => return "/{prefix}".to_owned(),
    };
    let resource = match (parts.get(at), parts.len()) {
        (Some(&"namespaces"), count) if count > at + 2 => {
            parts[at + 1] = "{namespace}";
            at + 2
        }
        _ => at,
    };
    if let Some(name) = parts.get_mut(resource + 1) {
        *name = "{name}";
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers what is read, and is gone for everything else.
    struct Api;

    impl Service<Request<()>> for Api {
        type Response = Response<()>;
        type Error = &'static str;
        type Future = std::future::Ready<Result<Response<()>, &'static str>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<()>) -> Self::Future {
            let read = *request.method() == Method::GET;
            std::future::ready(read.then(|| Response::new(())).ok_or("unreachable"))
        }
    }

    #[test]
    fn paths_are_told_without_names() {
        for (path, expected) in [
            (
                "/api/v1/namespaces/knative-serving/configmaps/config-network",
                "/api/v1/namespaces/{namespace}/configmaps/{name}",
            ),
            ("/api/v1/namespaces/default/pods", "/api/v1/namespaces/{namespace}/pods"),
            ("/api/v1/namespaces/default", "/api/v1/namespaces/{name}"),
            ("/apis/apps/v1/deployments", "/apis/apps/v1/deployments"),
            (
                "/apis/serving.knative.dev/v1/namespaces/a/services/b/status",
                "/apis/serving.knative.dev/v1/namespaces/{namespace}/services/{name}/status",
            ),
            ("/apis/apps/v1", "/apis/apps/v1"),
            ("/version", "/{prefix}"),
        ] {
            assert_eq!(template(path), expected);
        }
    }

    #[tokio::test]
    async fn requests_are_counted_and_watches_are_not_timed() {
        let registry = Registry::new();
        let calls = ApiCalls::new(&registry, &Uri::from_static("https://10.96.0.1"));
        let mut service = calls.of(Api);
        let mut send = async |method: &str, path: &str| {
            let request = Request::builder().method(method).uri(path).body(()).expect("a request");
            let _ = service.call(request).await;
        };
        send("GET", "/api/v1/endpoints?watch=true&timeoutSeconds=290").await;
        send("GET", "/api/v1/namespaces/a/configmaps/b").await;
        send("PATCH", "/api/v1/namespaces/a/configmaps/b").await;
        let text = registry.render();
        let lines = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
        let scope = "otel_scope_name=\"knative.dev/pkg/observability/metrics/k8s\",otel_scope_schema_url=\"\",\
                     otel_scope_version=\"\",server_address=\"10.96.0.1";
        for line in [
            format!(
                "kn_k8s_client_http_response_status_code_total{{http_request_method=\"GET\",\
                     http_response_status_code=\"200\",{scope}:443\"}} 2"
            ),
            format!("kn_k8s_client_http_response_status_code_total{{http_request_method=\"PATCH\",{scope}:443\"}} 1"),
            format!(
                "http_client_request_duration_seconds_count{{http_request_method=\"GET\",{scope}\",server_port=\"443\",\
                     url_scheme=\"https\",url_template=\"/api/v1/namespaces/{{namespace}}/configmaps/{{name}}\"}} 1"
            ),
        ] {
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
        assert_eq!(lines("http_client_request_duration_seconds_count"), 2);
    }
}
