//! What happens to a request on the serving port, from the outside in: probes and drain, time limits, statistics,
//! breaker, the user's program.
//!
//! The order is upstream's, and so is who bypasses what: the kubelet's probes and those of the activator are answered
//! here; other requests marked as kubelet probes (a mesh rewrites them) reach the program without being counted.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use http::{
    Request, Response, StatusCode,
    header::{self, HeaderMap, HeaderValue},
};
use net::{
    Breaker, InFlight, InFlightGuard, Incoming, Limits, Outbound, Pool, ResponseBody, Slot, Timer,
    headers::{self, Agent, Marks},
};

use crate::{
    drain::Drainer,
    forwarded,
    observed::{Ending, Observers, Seen},
    pending::{self, Pending},
    probe::{Patience, Prober},
    stats::{Stats, StatsGuard},
};

pub(crate) type Body = ResponseBody<Ticket>;

/// What every request meets. One per process.
pub(crate) struct Chain {
    pub(crate) drainer: Drainer,
    pub(crate) in_flight: InFlight,
    pub(crate) prober: Prober,
    pub(crate) stats: Arc<Stats>,
    pub(crate) breaker: Option<Breaker>,
    pub(crate) pending: Pending,
    pub(crate) limits: Limits,
    pub(crate) pool: Pool,
    pub(crate) observers: Arc<Observers>,
}

/// What a request holds until the end of its response.
#[derive(Default)]
pub(crate) struct Ticket {
    _slot: Option<Slot>,
    _stats: Option<StatsGuard>,
    _in_flight: Option<InFlightGuard>,
    _ending: Option<Ending>,
}

// === impl Ticket ===

impl Ticket {
    pub(crate) fn new(in_flight: InFlightGuard) -> Self {
        Self { _in_flight: Some(in_flight), ..Self::default() }
    }

    pub(crate) fn count(&mut self, stats: &Arc<Stats>, now: Instant, proxied: bool) {
        self._stats = Some(stats.enter(now, proxied));
    }

    pub(crate) fn admit(&mut self, slot: Slot) {
        self._slot = Some(slot);
    }
}

// === impl Chain ===

impl Chain {
    /// Answers one request. Dropped (the client is gone), it gives back its place and cancels the program's work.
    pub(crate) async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: SocketAddr,
        tls: bool,
    ) -> Response<Body> {
        if !self.observers.any() {
            return self.answer(request, peer, None).await;
        }
        let seen = self.observers.see(&request, peer, tls);
        let ending = Ending::new(&self.observers, &seen);
        let response = self.answer(request, peer, Some(&seen)).await;
        ending.disarm();
        self.observers.watch(seen, response)
    }

    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr, seen: Option<&Arc<Seen>>) -> Response<Body> {
        let map = request.headers();
        let marks = Marks::of(map);
        match marks.agent {
            Agent::Other => {}
            Agent::ActivatorProbe => return Box::pin(self.probe(map, Patience::UntilReady)).await,
            Agent::Kubelet | Agent::AutoscalingProbe => {
                return Box::pin(self.probe(map, Patience::AsConfigured)).await;
            }
        }
        if marks.hash_probe {
            return self.echo_hash(map);
        }
        self.drainer.request();
        let in_flight = self.in_flight.enter();

        let mut timer = Timer::start(self.limits);
        timer.watch(&request);
        let Some(outcome) = timer.limit(self.proxy(request, marks, peer.ip(), in_flight, seen)).await else {
            return timed_out(timer.message());
        };
        match outcome {
            Ok((outbound, response, mut ticket)) => {
                if let Some(seen) = seen {
                    seen.answered.store(true, Ordering::Release);
                    let tunnel = response.status() == StatusCode::SWITCHING_PROTOCOLS;
                    ticket._ending = tunnel.then(|| Ending::of_tunnel(&self.observers, seen));
                }
                net::respond(outbound, response, timer, ticket)
            }
            Err(response) => *response,
        }
    }

    async fn proxy(
        &self,
        mut request: Request<Incoming>,
        marks: Marks,
        peer: IpAddr,
        in_flight: InFlightGuard,
        seen: Option<&Arc<Seen>>,
    ) -> Result<(Outbound, Response<net::PooledBody>, Ticket), Box<Response<Body>>> {
        let bytes = if self.breaker.is_some() { pending::head(&request) } else { 0 };
        // Before this hop is added: upstream names the hops before the sidecar.
        if marks.forwarding && !marks.forwarded {
            forwarded::add(request.headers_mut());
        }
        let mut outbound = Outbound::new(request, peer)?;
        let mut ticket = Ticket::new(in_flight);
        let map = outbound.headers_mut();
        if marks.revision {
            map.remove(&headers::REVISION);
            map.remove(&headers::NAMESPACE);
        }
        if !marks.kubelet_probe {
            if marks.original_host {
                restore_host(map);
            }
            ticket.count(&self.stats, Instant::now(), marks.proxied);
            if let Some(breaker) = &self.breaker {
                if let Some(seen) = seen {
                    let _ = seen.waited.set(Instant::now());
                }
                let slot = match breaker.try_acquire() {
                    Some(slot) => slot,
                    None => {
                        let _held = self.pending.hold(bytes).map_err(|full| Box::new(refused(&full)))?;
                        breaker.acquire().await.map_err(|full| Box::new(refused(&full)))?
                    }
                };
                ticket.admit(slot);
            }
        }
        if let Some(seen) = seen {
            let _ = seen.program.set(Instant::now());
            if let Some(context) = &seen.trace {
                context.inject(outbound.headers_mut());
            }
            if let (Some(metrics), Some(breaker)) = (&self.observers.metrics, &self.breaker) {
                metrics.dispatched(breaker.in_flight());
            }
        }
        match outbound.send(&self.pool).await {
            Ok(response) => Ok((outbound, response, ticket)),
            Err(failure) => {
                let mut response = net::bad_gateway(&failure);
                // Only an activator knows what to do with it: it may have another pod.
                if failure.unsent && marks.proxied {
                    response.headers_mut().insert(headers::UNSENT.clone(), HeaderValue::from_static("true"));
                }
                Err(Box::new(response))
            }
        }
    }

    async fn probe(&self, map: &HeaderMap, patience: Patience) -> Response<Body> {
        if self.drainer.is_draining() {
            return shutting_down();
        }
        let kind = headers::text(map, &headers::NETWORK_PROBE);
        if kind != headers::QUEUE {
            return net::http_error(StatusCode::BAD_REQUEST, &format!("unexpected probe header value: {kind}"));
        }
        if self.prober.ready(patience).await {
            net::text(StatusCode::OK, headers::QUEUE)
        } else {
            net::empty(StatusCode::SERVICE_UNAVAILABLE)
        }
    }

    fn echo_hash(&self, map: &HeaderMap) -> Response<Body> {
        if self.drainer.is_draining() {
            return shutting_down();
        }
        match map.get(&headers::NETWORK_HASH).filter(|hash| !hash.is_empty()) {
            Some(hash) => {
                let mut response = net::empty(StatusCode::OK);
                response.headers_mut().insert(headers::NETWORK_HASH.clone(), hash.clone());
                response
            }
            None => {
                let message = "a probe request must contain a non-empty \"K-Network-Hash\" header";
                net::http_error(StatusCode::BAD_REQUEST, message)
            }
        }
    }
}

/// The activator sends to an address, so it carries the host in a header of its own.
fn restore_host(map: &mut HeaderMap) {
    if map.get(&headers::ORIGINAL_HOST).is_some_and(|host| !host.is_empty())
        && let Some(original) = map.remove(&headers::ORIGINAL_HOST)
    {
        map.insert(header::HOST, original);
    }
}

fn shutting_down() -> Response<Body> {
    net::http_error(StatusCode::SERVICE_UNAVAILABLE, "shutting down")
}

/// `why` there is no place for one more to wait.
fn refused(why: &dyn Display) -> Response<Body> {
    let mut response = net::http_error(StatusCode::SERVICE_UNAVAILABLE, &why.to_string());
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn timed_out(message: &'static str) -> Response<Body> {
    let mut response = net::text(StatusCode::GATEWAY_TIMEOUT, message);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
