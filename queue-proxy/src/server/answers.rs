//! What the ports beside the serving one answer. Bodies are of the serving port's type, so that one server is compiled.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{
    Request, Response, StatusCode,
    header::{self, HeaderValue},
};
use net::Incoming;
use parking_lot::Mutex;
use proto::Message;

use crate::{
    chain::{Body, Chain},
    metrics::Metrics,
    probe::Patience,
};

/// A drain asked for by the user's container alone is taken back after this long.
const HOOK_ALONE: Duration = Duration::from_secs(1);

/// The admin port: the hook of the user's container, and those who wait for the pod to become ready.
pub(super) async fn admin(
    request: &Request<Incoming>,
    chain: &Arc<Chain>,
    terminating: &Arc<Mutex<bool>>,
) -> Response<Body> {
    match request.uri().path() {
        "/wait-for-drain" => {
            wait_for_drain(chain, terminating).await;
            net::empty(StatusCode::OK)
        }
        "/wait-for-ready" => wait_for_ready(chain).await,
        _ => not_found(),
    }
}

/// Drains until done. If nobody tells the sidecar itself to stop, only the container that asks is being restarted,
/// and the drain is taken back, whether or not the one who asked still waits.
async fn wait_for_drain(chain: &Arc<Chain>, terminating: &Arc<Mutex<bool>>) {
    let (alone, signalled) = (chain.clone(), terminating.clone());
    tokio::spawn(async move {
        tokio::time::sleep(HOOK_ALONE).await;
        if !*signalled.lock() {
            alone.drainer.reset();
        }
    });
    chain.drainer.drain().await;
}

/// Answers the moment the program is ready (`docs/readiness.md`): 200 and `queue`, as a probe that asked just then.
async fn wait_for_ready(chain: &Chain) -> Response<Body> {
    while !chain.drainer.is_draining() {
        if chain.prober.ready(Patience::UntilReady).await && !chain.drainer.is_draining() {
            return net::text(StatusCode::OK, net::headers::QUEUE);
        }
    }
    net::http_error(StatusCode::SERVICE_UNAVAILABLE, "shutting down")
}

/// The port the autoscaler scrapes.
pub(super) fn autoscaling(request: &Request<Incoming>, chain: &Chain) -> Response<Body> {
    if request.uri().path() != "/metrics" {
        return not_found();
    }
    let mut response = net::text(StatusCode::OK, chain.stats.stat(Instant::now()).encode_to_vec());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(proto::CONTENT_TYPE));
    response
}

/// The port Prometheus scrapes.
pub(super) fn exposition(request: &Request<Incoming>, metrics: &Metrics) -> Response<Body> {
    net::exposition(request, || metrics.render())
}

fn not_found() -> Response<Body> {
    net::http_error(StatusCode::NOT_FOUND, "404 page not found")
}
