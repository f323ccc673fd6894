//! Asking a pod's sidecar directly whether the pod is ready.
//!
//! The sidecar holds the question until the program's port opens, so that the answer comes at that moment. What this
//! side repeats is only what cannot be held: a sidecar that does not listen yet, or one (upstream's) that says no at
//! once. The pause grows with the time that has passed, from a millisecond: a twentieth of it.
//!
//! A question has a limit, as upstream's has. A sidecar that has not said yes within it is asked to tell when it is time
//! (`/wait-for-ready` of its administration port, which has no limit), and asked once more then: only an answer on the
//! port that serves says that requests get there. Upstream's sidecar does not know of this and is asked again and again.
//!
//! The same question is asked at a Service's address where a mesh hides the pods.

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
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use net::{Pool, PoolOptions, RequestBody, headers};
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    backends::{Backends, Prober, ServiceRef},
    clock,
    throttler::Pod,
};

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(200);
/// How long a sidecar may say nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks over the pod's own connections, so that the first request finds one open.
pub(crate) struct Probes {
    pub(crate) tasks: Tasks,
    /// Where it is asked, whichever thread wants to know.
    pub(crate) runtime: Handle,
    pub(crate) client: kube::Client,
    /// How long one question may take before it is asked again on a new connection.
    pub(crate) limit: Duration,
    /// The port of a sidecar's administration.
    pub(crate) admin_port: u16,
}

/// Somebody who is asked whether a pod is ready.
pub(crate) trait Asked: Send + Sync {
    /// Asks once, for as long as one question may take.
    fn ask(&self) -> impl Future<Output = Result<(), No>> + Send;
    /// Waits until a sidecar tells that its pod is ready; false if it goes away instead, nothing if it cannot tell.
    fn told(&self) -> impl Future<Output = Option<bool>> + Send;
    /// The answer is one that a mesh may have given.
    fn suspected(&self);
    fn pause(&self, time: Duration) -> impl Future<Output = ()> + Send;
}

/// Why there is no yes.
#[derive(Debug)]
pub(crate) enum No {
    /// Nobody listens.
    Absent(String),
    /// What a mesh's proxy would say for a pod that may not be reached like this; or a sidecar that is not ready.
    PerhapsMesh(String),
    Certainly(String),
    /// It did not answer in time.
    Silent,
}

/// A pod's sidecar.
struct Sidecar {
    pod: Arc<Pod>,
    limit: Duration,
    admin: SocketAddr,
    asker: Weak<Backends>,
}

/// A Service's address.
struct Behind {
    pool: Pool,
    address: SocketAddr,
    limit: Duration,
}

// === impl Probes ===

impl Prober for Probes {
    fn start(&self, pod: Arc<Pod>, asker: Weak<Backends>) -> DropGuard {
        let (limit, admin) = (self.limit, SocketAddr::new(pod.address().ip(), self.admin_port));
        self.spawn(async move {
            let sidecar = Sidecar { pod, limit, admin, asker };
            until_ready(&sidecar, sidecar.pod.address()).await;
            if let Some(asker) = sidecar.asker.upgrade() {
                asker.succeeded(&sidecar.pod);
            }
        })
    }

    fn start_service(&self, service: &ServiceRef, asker: Weak<Backends>) -> DropGuard {
        let (limit, client, service) = (self.limit, self.client.clone(), service.clone());
        self.spawn(async move {
            let address = cluster_address(client, &service).await;
            let pool = Pool::new(address, PoolOptions { max_idle: 0, ..PoolOptions::default() });
            until_ready(&Behind { pool, address, limit }, address).await;
            if let Some(asker) = asker.upgrade() {
                asker.service_answered(address);
            }
        })
    }
}

impl Probes {
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> DropGuard {
        let token = CancellationToken::new();
        let cancelled = token.clone();
        let _there = self.runtime.enter();
        self.tasks.spawn("probe", async move {
            tokio::select! {
                () = cancelled.cancelled() => {}
                () = work => {}
            }
        });
        token.drop_guard()
    }
}

/// Completes when the answer is yes. Dropping the future stops asking.
pub(crate) async fn until_ready(asked: &impl Asked, address: SocketAddr) {
    let started = clock::now();
    let mut tells = true;
    loop {
        let (listens, mesh, reason) = match asked.ask().await {
            Ok(()) => return,
            Err(No::Absent(reason)) => (false, true, reason),
            Err(No::PerhapsMesh(reason)) => (true, true, reason),
            Err(No::Certainly(reason)) => (true, false, reason),
            Err(No::Silent) => (true, false, "no answer yet".to_owned()),
        };
        tracing::trace!(%address, reason, "not ready yet");
        if mesh {
            asked.suspected();
        }
        if tells && listens {
            match asked.told().await {
                Some(true) => {
                    if asked.ask().await.is_ok() {
                        return;
                    }
                }
                Some(false) => {}
                None => tells = false,
            }
        }
        asked.pause(((clock::now() - started) / 20).clamp(FIRST_PAUSE, LAST_PAUSE)).await;
    }
}

// === impl Sidecar ===

impl Asked for Sidecar {
    async fn ask(&self) -> Result<(), No> {
        let question = ask(self.pod.plain(), request(self.pod.address(), self.pod.passthrough()));
        timeout(self.limit, question).await.unwrap_or(Err(No::Silent))
    }

    async fn told(&self) -> Option<bool> {
        told(self.admin, self.limit).await
    }

    fn suspected(&self) {
        if let Some(asker) = self.asker.upgrade() {
            asker.suspected(&self.pod);
        }
    }

    async fn pause(&self, time: Duration) {
        sleep(time).await;
    }
}

// === impl Behind ===

impl Asked for Behind {
    async fn ask(&self) -> Result<(), No> {
        timeout(self.limit, ask(&self.pool, request(self.address, None))).await.unwrap_or(Err(No::Silent))
    }

    /// Nobody in particular is behind a Service.
    async fn told(&self) -> Option<bool> {
        None
    }

    fn suspected(&self) {}

    async fn pause(&self, time: Duration) {
        sleep(time).await;
    }
}

/// Waits until a sidecar tells that its pod is ready; false if it goes away instead, nothing if it does not tell.
async fn told(sidecar: SocketAddr, limit: Duration) -> Option<bool> {
    let stream = timeout(limit, net::connect(sidecar)).await.ok()?.ok()?;
    let mut request = Request::new(RequestBody::Empty);
    *request.uri_mut() = Uri::from_static("/wait-for-ready");
    let host = HeaderValue::try_from(sidecar.to_string()).expect("an address is a header value");
    request.headers_mut().insert(header::HOST, host);
    request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(headers::ACTIVATOR_PROBE_AGENT));
    match timeout(PATIENCE, net::send_on(Box::new(stream), false, request)).await {
        Ok(Ok(response)) => match response.status() {
            StatusCode::OK => Some(true),
            StatusCode::SERVICE_UNAVAILABLE => Some(false),
            _ => None,
        },
        // A machine that went away says nothing.
        Ok(Err(_)) | Err(_) => Some(false),
    }
}

async fn ask(pool: &Pool, request: Request<RequestBody>) -> Result<(), No> {
    let response = pool.send(request).await.map_err(|error| match error {
        net::SendError::Dial { .. } => No::Absent(error.to_string()),
        _ => No::PerhapsMesh(error.to_string()),
    })?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| No::PerhapsMesh(error.to_string()))?.to_bytes();
    if status == StatusCode::OK && body == headers::QUEUE.as_bytes() {
        return Ok(());
    }
    let reason = format!("answered {status}");
    Err(match status {
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => No::PerhapsMesh(reason),
        _ => No::Certainly(reason),
    })
}

fn request(address: SocketAddr, passthrough: Option<&str>) -> Request<RequestBody> {
    let mut request = Request::new(RequestBody::Empty);
    *request.uri_mut() = Uri::from_static("/healthz");
    let host = passthrough.map_or_else(|| address.to_string(), str::to_owned);
    let host = HeaderValue::try_from(host).expect("an address or a Service's name is a header value");
    let map = request.headers_mut();
    map.insert(header::HOST, host);
    map.insert(header::USER_AGENT, HeaderValue::from_static(headers::ACTIVATOR_PROBE_AGENT));
    map.insert(headers::NETWORK_PROBE.clone(), HeaderValue::from_static(headers::QUEUE));
    if passthrough.is_some() {
        map.insert(headers::PASSTHROUGH_LB.clone(), HeaderValue::from_static("true"));
    }
    request
}

/// The address of a Service, looked up until it has one.
async fn cluster_address(client: kube::Client, service: &ServiceRef) -> SocketAddr {
    let key = &service.key;
    let services = Api::<Service>::namespaced(client, &key.namespace);
    loop {
        let pause = match services.get(&key.name).await {
            Ok(found) => match address_of(&found, service.port) {
                Some(address) => return address,
                None => {
                    tracing::warn!(service = %key, port = service.port, "it has no cluster address with this port");
                    LAST_PAUSE * 5
                }
            },
            Err(error) => {
                tracing::warn!(service = %key, %error, "cannot look up the Service of pods that cannot be reached");
                LAST_PAUSE * 5
            }
        };
        sleep(pause).await;
    }
}

fn address_of(service: &Service, port: &str) -> Option<SocketAddr> {
    let spec = service.spec.as_ref()?;
    let port = spec.ports.iter().flatten().find(|candidate| candidate.name.as_deref() == Some(port))?.port;
    Some(SocketAddr::new(spec.cluster_ip.as_deref()?.parse().ok()?, u16::try_from(port).ok()?))
}
