//! What happens to a request, from the outside in: health, probes, lookup, statistics, time limits, waiting, proxying.

use std::{
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http::{
    Method, Request, Response, StatusCode, Version,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use http_body::Body as _;
use http_body_util::{BodyExt, Limited};
use net::{InFlight, InFlightGuard, Incoming, Outbound, PooledBody, ResponseBody, SendFailure, Timer, headers};

use crate::{
    clock,
    dispatch::{Attempt, Broken, Failure, Reached, dispatch},
    metrics::{Exchange, Metrics, Outcome},
    observed::{Described, Observers},
    revisions::{Revision, Revisions, Watches},
    sink::Status,
    stats::{Counted, Reporter},
    throttler::{Lease, Pod, Refused, Turn},
};

pub(crate) type Body = ResponseBody<Ticket>;

/// How far this process's watch may lag behind the gateway's.
const GRACE: Duration = Duration::from_millis(250);

/// How long a new activator is not ready without an autoscaler. Upstream's Deployment restarts it after 135 s.
const ALONE: Duration = Duration::from_secs(60);

static SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Memory that a request takes besides its headers and body, and a header besides its text.
pub(crate) const REQUEST: usize = 2048;
const HEADER: usize = 64;
/// What is received of a body that nobody reads: over HTTP/1.1, and at most over HTTP/2.
const BUFFER: usize = 8 << 10;
const WINDOW: usize = 1 << 20;
/// Of a sidecar's answer.
const LONGEST_REASON: usize = 4 << 10;

/// What every request meets.
pub(crate) struct Handler {
    pub(crate) revisions: Arc<Revisions>,
    pub(crate) watches: Watches,
    pub(crate) reporter: Arc<Reporter>,
    pub(crate) autoscaler: Arc<Status>,
    pub(crate) metrics: Metrics,
    pub(crate) observers: Arc<Observers>,
    pub(crate) in_flight: InFlight,
    pub(crate) draining: AtomicBool,
    pub(crate) started: Instant,
    pub(crate) cluster_domain: String,
    /// Whether pods are spoken to over TLS.
    pub(crate) encrypts: bool,
    /// Ours: answer with a `Server-Timing` header.
    pub(crate) server_timing: bool,
}

/// What a request holds until the end of its response. The slot goes first, then the count.
pub(crate) struct Ticket {
    _lease: Lease,
    _counted: Counted,
    _in_flight: InFlightGuard,
}

// === impl Handler ===

impl Handler {
    /// Answers one request. Dropped (the client is gone), it leaves the queue, cancels what it started, and is told of
    /// in metrics and logs as any other.
    pub(crate) async fn handle(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        tls: bool,
    ) -> Response<Body> {
        if let Some(response) = self.probe(request.headers_mut()) {
            return response;
        }
        let in_flight = self.in_flight.enter();
        let seen = self.metrics.exported().then(|| Seen::new(&request, tls));
        let described = self.observers.any().then(|| self.observers.describe(&request, peer, tls));
        let mut told = Told::of(&self, seen, described);
        let revision = match self.lookup(&request).await {
            Ok(revision) => revision,
            Err(name) => {
                let message = format!(
                    "Error getting active endpoint: revision.serving.knative.dev {} not found",
                    serde_json::Value::from(name)
                );
                if let Some(told) = told {
                    // The text ends a line.
                    told.end(StatusCode::NOT_FOUND, message.len() as u64 + 1);
                }
                return net::http_error(StatusCode::NOT_FOUND, &message);
            }
        };
        if let Some(told) = &mut told {
            told.revision = Some(revision.clone());
        }
        let counted = self.reporter.enter(&revision, clock::now());
        let mut timer = Timer::start(revision.limits);
        // In place: moved into the limit, it would take its room twice for as long as it waits.
        let outcome = {
            let proxied = pin!(self.proxy(&revision, request, peer.ip(), told.as_mut()));
            timer.limit(proxied).await
        };
        let mut response = match outcome {
            Some(Ok((outbound, response, lease))) => {
                let ticket = Ticket { _lease: lease, _counted: counted, _in_flight: in_flight };
                net::respond(outbound, response, timer, ticket)
            }
            Some(Err(response)) => *response,
            None => {
                let mut response = net::text(StatusCode::GATEWAY_TIMEOUT, timer.message());
                let plain = HeaderValue::from_static("text/plain; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, plain);
                response
            }
        };
        if let Some(told) = told {
            let status = response.status();
            response.body_mut().on_end(Box::new(move |bytes, broken| {
                told.end(if broken { StatusCode::INTERNAL_SERVER_ERROR } else { status }, bytes);
            }));
        }
        response
    }

    /// Health checks and probes are answered without looking at a revision.
    fn probe(&self, map: &mut HeaderMap) -> Option<Response<Body>> {
        if headers::is_kubelet_probe(map) {
            return Some(match self.unhealthy() {
                None => net::empty(StatusCode::OK),
                Some(reason) => net::http_error(StatusCode::INTERNAL_SERVER_ERROR, reason),
            });
        }
        let Some(kind) = map.get(&headers::NETWORK_PROBE).filter(|kind| !kind.is_empty()) else {
            map.remove(&headers::NETWORK_HASH);
            return None;
        };
        if kind == headers::PROBE {
            return Some(match map.get(&headers::NETWORK_HASH).filter(|hash| !hash.is_empty()) {
                Some(hash) => {
                    let mut response = net::empty(StatusCode::OK);
                    response.headers_mut().insert(headers::NETWORK_HASH.clone(), hash.clone());
                    response
                }
                None => net::http_error(
                    StatusCode::BAD_REQUEST,
                    "a probe request must contain a non-empty \"K-Network-Hash\" header",
                ),
            });
        }
        if kind == headers::ACTIVATOR {
            return Some(net::text(StatusCode::OK, headers::ACTIVATOR));
        }
        let kind = escape(kind.to_str().unwrap_or_default());
        Some(net::http_error(StatusCode::BAD_REQUEST, &format!("unexpected probe header value: \"{kind}\"")))
    }

    fn unhealthy(&self) -> Option<&'static str> {
        unhealthy(self.draining.load(Ordering::Acquire), self.autoscaler.ever_connected(), self.started.elapsed())
    }

    /// The revision a request is for, by the gateway's headers or else by host; its name if there is none.
    async fn lookup(&self, request: &Request<Incoming>) -> Result<Arc<Revision>, String> {
        let map = request.headers();
        let authority = request.uri().authority().map(http::uri::Authority::as_str);
        let host = authority.unwrap_or_else(|| headers::text(map, &header::HOST));
        let (namespace, name) = (headers::text(map, &headers::NAMESPACE), headers::text(map, &headers::REVISION));
        let (namespace, name) = self.key(namespace, name, host);
        if let Some(revision) = self.revisions.get(namespace, name) {
            return Ok(revision);
        }
        // At the start it may only be that nothing was heard of yet, and later that the gateway heard of it first.
        self.watches.synced().await;
        self.revisions.wait_for(namespace, name, GRACE).await.ok_or_else(|| name.to_owned())
    }

    /// The revision of a request with these headers and this host, if it is known.
    pub(crate) fn find(&self, namespace: &str, name: &str, host: &str) -> Option<Arc<Revision>> {
        let (namespace, name) = self.key(namespace, name, host);
        self.revisions.get(namespace, name)
    }

    fn key<'a>(&self, namespace: &'a str, name: &'a str, host: &'a str) -> (&'a str, &'a str) {
        if !namespace.is_empty() && !name.is_empty() {
            return (namespace, name);
        }
        // Where neither says it, what there is goes into the answer.
        by_host(host, &self.cluster_domain).map_or((namespace, name), |(name, namespace)| (namespace, name))
    }

    /// Whether plain requests may go the short way, which cannot encrypt them.
    pub(crate) fn takes_plain(&self) -> bool {
        !self.encrypts
    }
}

type Sent = (Outbound, Response<PooledBody>, Lease);

/// What is told of a request whose client has left: while it waited, and when a pod had it. As upstream, where the
/// first is an error of the throttler and the second an answer that nobody began.
pub(crate) const LEFT_WAITING: StatusCode = StatusCode::INTERNAL_SERVER_ERROR;
pub(crate) const LEFT_SENT: StatusCode = StatusCode::OK;

/// What metrics, log and trace get to know of a request, once, however it ends.
struct Told {
    handler: Arc<Handler>,
    seen: Option<Seen>,
    described: Option<Arc<Described>>,
    /// Once it is known.
    revision: Option<Arc<Revision>>,
    /// Its status if the client leaves now.
    left: StatusCode,
}

/// What metrics need of a request, while it is whole.
pub(crate) struct Seen {
    pub(crate) method: Method,
    version: Version,
    host: String,
    tls: bool,
    pub(crate) bytes: u64,
    started: Instant,
}

impl Seen {
    fn new(request: &Request<Incoming>, tls: bool) -> Self {
        let authority = request.uri().authority().map(http::uri::Authority::as_str);
        Self {
            method: request.method().clone(),
            version: request.version(),
            host: authority.unwrap_or_else(|| headers::text(request.headers(), &header::HOST)).to_owned(),
            tls,
            bytes: request.body().size_hint().exact().unwrap_or(0),
            started: Instant::now(),
        }
    }

    /// Of a plain request.
    pub(crate) fn plain(method: &str, host: &str, body: usize) -> Self {
        Self {
            method: method.parse().unwrap_or_default(),
            version: Version::HTTP_11,
            host: host.to_owned(),
            tls: false,
            bytes: body as u64,
            started: Instant::now(),
        }
    }

    pub(crate) fn outcome(self, status: StatusCode, response_bytes: u64) -> Outcome {
        let Self { method, version, host, tls, bytes, started } = self;
        Outcome { method, version, host, tls, status, request_bytes: bytes, response_bytes, total: started.elapsed() }
    }
}

// === impl Told ===

impl Told {
    /// None if nobody wants to know.
    fn of(handler: &Arc<Handler>, seen: Option<Seen>, described: Option<Arc<Described>>) -> Option<Self> {
        (seen.is_some() || described.is_some()).then(|| {
            let handler = handler.clone();
            Self { handler, seen, described, revision: None, left: StatusCode::NOT_FOUND }
        })
    }

    /// The request has ended.
    fn end(mut self, status: StatusCode, bytes: u64) {
        self.tell(status, bytes);
    }

    fn tell(&mut self, status: StatusCode, bytes: u64) {
        if let Some(seen) = self.seen.take() {
            self.handler.metrics.served(self.revision.as_deref(), &seen.outcome(status, bytes));
        }
        if let Some(described) = self.described.take() {
            match &self.revision {
                Some(revision) => self.handler.observers.record(&described, revision, status, bytes),
                None => self.handler.observers.missed(&described, status),
            }
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.tell(self.left, 0);
    }
}

impl Handler {
    /// Waits for a pod and sends the request there. A request that a pod has certainly not seen goes on waiting.
    async fn proxy(
        &self,
        revision: &Revision,
        request: Request<Incoming>,
        peer: IpAddr,
        told: Option<&mut Told>,
    ) -> Result<Sent, Box<Response<Body>>> {
        let mut outbound = Outbound::new(request, peer)?;
        let map = outbound.headers_mut();
        map.remove(&headers::REVISION);
        map.remove(&headers::NAMESPACE);
        if let Some(host) = map.remove(header::HOST)
            && !map.contains_key(&headers::ORIGINAL_HOST)
        {
            map.insert(headers::ORIGINAL_HOST.clone(), host);
        }
        map.insert(headers::PROXY_REQUEST.clone(), HeaderValue::from_static(headers::ACTIVATOR));
        if let Some(described) = told.as_ref().and_then(|told| told.described.as_ref()) {
            let _ = described.waiting.set(Instant::now());
            if let Some(context) = &described.trace {
                context.inject(outbound.headers_mut());
            }
        }
        let turn = Turn::new(weight(&outbound));
        let progress = Progress::start(revision, &self.metrics, Instant::now());
        let mut sending = Sending { outbound, progress, told };
        match dispatch(&revision.throttler, &revision.backends, turn, &mut sending).await {
            Ok((mut response, lease)) => {
                if self.server_timing {
                    let timing = HeaderValue::try_from(sending.progress.timing()).expect("digits are a header value");
                    response.headers_mut().append(SERVER_TIMING.clone(), timing);
                }
                Ok((sending.outbound, response, lease))
            }
            Err(Failure::Refused(refused)) => Err(refuse(refused)),
            Err(Failure::End(failure)) => Err(Box::new(net::bad_gateway(&failure))),
        }
    }
}

/// What a request that waits holds: its headers, and what may be received of its body before anyone reads it.
fn weight(outbound: &Outbound) -> usize {
    let request = &outbound.request;
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER);
    let body = request.body().size_hint();
    let window = if request.version() == Version::HTTP_2 { WINDOW } else { BUFFER };
    let body = body.upper().map_or(window, |length| usize::try_from(length).unwrap_or(window).min(window));
    REQUEST + headers.sum::<usize>() + body
}

/// When a request came and when it was sent.
pub(crate) struct Progress<'a> {
    revision: &'a Revision,
    pub(crate) metrics: &'a Metrics,
    arrived: Instant,
    /// Whether the revision had no pod when the request came.
    cold: bool,
    sent: Instant,
}

/// One request on its way to pods.
struct Sending<'a> {
    outbound: Outbound,
    progress: Progress<'a>,
    told: Option<&'a mut Told>,
}

/// A request that a pod has; told of in metrics at the end, with the status if there is one.
struct Exchanged<'a> {
    progress: &'a Progress<'a>,
    pod: &'a Pod,
    method: Method,
    version: Version,
    bytes: u64,
    status: Option<StatusCode>,
}

// === impl Progress ===

impl<'a> Progress<'a> {
    pub(crate) fn start(revision: &'a Revision, metrics: &'a Metrics, arrived: Instant) -> Self {
        Self { revision, metrics, arrived, cold: revision.throttler.is_empty(), sent: arrived }
    }

    /// It has a slot. Only the first one ends the cold start.
    pub(crate) fn admitted(&mut self) {
        let first = self.sent == self.arrived;
        self.sent = Instant::now();
        if self.cold && first {
            self.metrics.cold_start(self.revision, self.sent.duration_since(self.arrived));
        }
    }

    /// A pod answered, or did not.
    pub(crate) fn sent(&self, pod: &Pod, method: &str, version: Version, bytes: u64, status: Option<StatusCode>) {
        let (pod, tls, duration) = (pod.pool().address(), pod.is_encrypted(), self.sent.elapsed());
        let revision = self.revision;
        self.metrics.sent(&Exchange { revision, method, version, pod, tls, status, bytes, duration });
    }

    /// `queue;dur=0.1, proxy;dur=2.5`, in milliseconds, at the moment the response starts. A wait for a revision that
    /// slept is a cold start.
    pub(crate) fn timing(&self) -> String {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let wait = if self.cold { "coldstart" } else { "queue" };
        format!(
            "{wait};dur={:.3}, proxy;dur={:.3}",
            ms(self.sent.duration_since(self.arrived)),
            ms(self.sent.elapsed())
        )
    }
}

// === impl Sending ===

impl Attempt for Sending<'_> {
    type Answer = Response<PooledBody>;
    type End = SendFailure;

    async fn wait<F: Future + Send>(&mut self, slot: F) -> Result<F::Output, SendFailure> {
        if let Some(told) = &mut self.told {
            told.left = LEFT_WAITING;
        }
        Ok(slot.await)
    }

    fn admitted(&mut self) {
        self.progress.admitted();
        if let Some(told) = &mut self.told {
            told.left = LEFT_SENT;
            if let Some(described) = &told.described {
                let _ = described.sent.set(Instant::now());
            }
        }
    }

    async fn send(&mut self, lease: &Lease) -> Result<Self::Answer, Broken<SendFailure>> {
        if let Some(host) = lease.pod().passthrough() {
            let host = HeaderValue::try_from(host).expect("a Service's name is a header value");
            let map = self.outbound.headers_mut();
            map.insert(header::HOST, host);
            map.insert(headers::PASSTHROUGH_LB.clone(), HeaderValue::from_static("true"));
        }
        let mut exchanged = self.progress.metrics.exported().then(|| {
            let (request, progress) = (&self.outbound.request, &self.progress);
            let (method, bytes) = (request.method().clone(), request.body().size_hint().exact().unwrap_or(0));
            Exchanged { progress, pod: lease.pod(), method, version: request.version(), bytes, status: None }
        });
        let (mut result, spare) = match self.outbound.send_spared(lease.pod().pool()).await {
            Ok((response, spare)) => (Ok(response), spare),
            Err(failure) => (Err(failure), None),
        };
        if let Some(exchanged) = &mut exchanged {
            exchanged.status = result.as_ref().ok().map(Response::status);
        }
        drop(exchanged);
        let mut told = false;
        if let Ok(response) = &mut result
            && response.headers_mut().remove(&headers::UNSENT).is_some()
            && response.status() == StatusCode::BAD_GATEWAY
            && spare.is_some_and(|spare| self.outbound.restore(spare))
        {
            // The sidecar could not pass it on; another pod may.
            told = true;
            result = Err(SendFailure::new(reason(response).await, true));
        }
        result.map_err(|error| {
            // Each pod is addressed by its own name.
            self.outbound.headers_mut().remove(header::HOST);
            let reached = match (told, error.unsent && !error.spent) {
                (true, _) => Reached::Sidecar,
                (false, true) => Reached::Nobody,
                (false, false) => Reached::Perhaps,
            };
            Broken { error, reached }
        })
    }
}

// === impl Exchanged ===

impl Drop for Exchanged<'_> {
    fn drop(&mut self) {
        self.progress.sent(self.pod, self.method.as_str(), self.version, self.bytes, self.status);
    }
}

/// What a sidecar says in its answer, which is a line.
async fn reason(response: &mut Response<PooledBody>) -> String {
    let body = Limited::new(response.body_mut(), LONGEST_REASON).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    String::from_utf8_lossy(&body).trim_end().to_owned()
}

/// Healthy once the autoscaler was reached; that it is away for a while is no reason to be restarted. Nor is it if it
/// was away from the start, which the kubelet, asking for readiness and liveness alike, must not be told for too long.
fn unhealthy(draining: bool, ever_connected: bool, age: Duration) -> Option<&'static str> {
    if draining {
        return Some("received SIGTERM from kubelet");
    }
    (!ever_connected && age < ALONE).then_some("connection has not yet been established")
}

fn refuse(refused: Refused) -> Box<Response<Body>> {
    Box::new(match refused.retry_after() {
        Some(seconds) => {
            let mut response = net::http_error(StatusCode::SERVICE_UNAVAILABLE, &refused.to_string());
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            response
        }
        None => net::empty(StatusCode::INTERNAL_SERVER_ERROR),
    })
}

/// `<revision>.<namespace>.svc.<domain>`, perhaps with a port.
fn by_host<'a>(host: &'a str, cluster_domain: &str) -> Option<(&'a str, &'a str)> {
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let mut parts = host.splitn(4, '.');
    let (name, namespace, svc, domain) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    (svc == "svc" && domain == cluster_domain).then_some((name, namespace))
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_autoscaler_that_is_away_is_no_reason_for_a_restart() {
        let seconds = Duration::from_secs;
        assert_eq!(unhealthy(false, false, seconds(1)), Some("connection has not yet been established"));
        assert_eq!((unhealthy(false, true, seconds(1)), unhealthy(false, false, seconds(61))), (None, None));
        assert_eq!(unhealthy(true, true, seconds(1)), Some("received SIGTERM from kubelet"));
    }

    #[test]
    fn a_host_names_a_revision() {
        assert_eq!(by_host("rev.ns.svc.cluster.local:80", "cluster.local"), Some(("rev", "ns")));
        assert_eq!(by_host("rev.ns.svc.cluster.local", "cluster.local"), Some(("rev", "ns")));
        for other in ["rev.ns.pod.cluster.local", "hello.example.com", "rev.ns.svc", ""] {
            assert_eq!(by_host(other, "cluster.local"), None, "{other}");
        }
    }
}
