//! Asking a pod's sidecar directly whether the pod is ready.
//!
//! The sidecar holds the question until the program's port opens, so that the answer comes at that moment. What this
//! side repeats is only what cannot be held: a sidecar that does not listen yet, or one (upstream's) that says no at
//! once. The pause grows with the time that has passed, from a millisecond: a twentieth of it.

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use controller::Tasks;
use http::{
    Request, StatusCode, Uri,
    header::{self, HeaderValue},
};
use http_body_util::BodyExt;
use net::{RequestBody, headers};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    backends::{Backends, Prober},
    throttler::Pod,
};

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(200);

/// Asks over the pod's own connections, so that the first request finds one open.
pub(crate) struct Probes {
    pub(crate) tasks: Tasks,
    /// How long one question may take before it is asked again on a new connection.
    pub(crate) limit: Duration,
}

// === impl Probes ===

impl Prober for Probes {
    fn start(&self, pod: Arc<Pod>, asker: Weak<Backends>) -> DropGuard {
        let token = CancellationToken::new();
        let (cancelled, limit) = (token.clone(), self.limit);
        self.tasks.spawn("probe", async move {
            tokio::select! {
                () = cancelled.cancelled() => return,
                () = until_ready(&pod, limit) => {}
            }
            if let Some(asker) = asker.upgrade() {
                asker.succeeded(&pod);
            }
        });
        token.drop_guard()
    }
}

/// Completes when the pod says that it is ready. Dropping the future stops asking.
async fn until_ready(pod: &Pod, limit: Duration) {
    let started = Instant::now();
    loop {
        match timeout(limit, ask(pod)).await {
            Ok(Ok(())) => return,
            Ok(Err(reason)) => tracing::trace!(pod = %pod.address(), reason, "not ready yet"),
            Err(_) => tracing::trace!(pod = %pod.address(), "no answer to a probe yet"),
        }
        sleep((started.elapsed() / 20).clamp(FIRST_PAUSE, LAST_PAUSE)).await;
    }
}

async fn ask(pod: &Pod) -> Result<(), String> {
    let response = pod.pool().send(request(pod.address())).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    if status == StatusCode::OK && body == headers::QUEUE.as_bytes() {
        return Ok(());
    }
    Err(format!("answered {status}"))
}

fn request(address: SocketAddr) -> Request<RequestBody> {
    let mut request = Request::new(RequestBody::Empty);
    *request.uri_mut() = Uri::from_static("/healthz");
    let host = HeaderValue::try_from(address.to_string()).expect("an address is a header value");
    let map = request.headers_mut();
    map.insert(header::HOST, host);
    map.insert(header::USER_AGENT, HeaderValue::from_static(headers::ACTIVATOR_PROBE_AGENT));
    map.insert(headers::NETWORK_PROBE.clone(), HeaderValue::from_static(headers::QUEUE));
    request
}
