//! The activators: the real throttler, backends and reports, around models of everything else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};

use futures::future::{Either, select};
use net::{Idle, IdleLimits, Look, Retry, SendFailure};
use parking_lot::Mutex;
use proto::WireStatMessages;

use super::{
    cluster::{Connection as ToPod, Lost, Part, Probes, Revision, Work},
    executor::Executor,
};
use crate::{
    backends::{Addresses, Backends, Peers, Reach, Treatment},
    clock,
    dispatch::{Attempt, Broken, Failure, PATIENCE, Patience, Reached, dispatch},
    revisions,
    sink::{self, Connection},
    stats::Reporter,
    throttler::{Bound, Endpoint, Lease, Pod, Policy, QueueLimit, Throttler, Turn},
};

const SECOND: Duration = Duration::from_secs(1);

/// Idle connections to pods: fewer, and for less time, than are left over.
const MAX_IDLE: Bound = Bound { each: 2, total: 4 };
const IDLE: Duration = Duration::from_secs(10);

/// One activator.
pub(super) struct Activator {
    executor: Executor,
    pub(super) handlers: Vec<Handler>,
    limit: Arc<QueueLimit>,
    reporter: Arc<Reporter>,
    probes: Arc<Mutex<usize>>,
    idle: Arc<IdleLimits>,
}

/// Its part for one revision.
pub(super) struct Handler {
    pub(super) model: Arc<Revision>,
    revision: Arc<revisions::Revision>,
    /// What it has heard of each part of the endpoints.
    view: Mutex<BTreeMap<String, Addresses>>,
    /// Every pod there was, to find what was not given back.
    pods: Mutex<Vec<Arc<Pod>>>,
    /// Kept connections, by pod.
    connections: Mutex<Vec<(Weak<Pod>, Kept)>>,
    idle: Arc<IdleLimits>,
    pub(super) events: Mutex<BTreeMap<Event, usize>>,
    order: Mutex<Order>,
    /// Requests that have come and not ended.
    here: Arc<Mutex<usize>>,
}

/// Idle connections to one pod.
type Kept = Arc<Idle<ToPod>>;

/// One of them.
struct Here(Arc<Mutex<usize>>);

/// Who waits, in the order in which they began to.
#[derive(Default)]
struct Order {
    next: u64,
    waiting: BTreeSet<u64>,
    /// The last one who was let in since nothing could run.
    admitted: Option<u64>,
}

/// What happened on the way to pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// A kept connection was used again.
    Reused,
    /// One that had been closed was not written to.
    LookedAt,
    /// A connection that was kept broke, and another one was used.
    Again,
    /// It broke, and nobody knows who has seen the request.
    Over,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Status(u16),
    Cancelled,
}

struct Request<'a> {
    executor: &'a Executor,
    handler: &'a Handler,
    delivered: bool,
    /// It may be answered by two programs.
    repeatable: bool,
    number: u64,
}

// === impl Activator ===

impl Activator {
    pub(super) fn start(executor: &Executor, number: u64, models: &[Arc<Revision>]) -> Arc<Self> {
        let limit = QueueLimit::new(Bound { each: 60, total: 150 }, Bound { each: 1 << 20, total: 1 << 20 });
        let probes = Arc::new(Mutex::new(0));
        let (sink, connection) = sink::new("ws://autoscaler:8080");
        let reporter = Reporter::new(format!("activator-{number}"), sink);
        let idle = IdleLimits::new(MAX_IDLE.each, MAX_IDLE.total, IDLE, 0);
        let handler = |model: &Arc<Revision>| Handler::new(model.clone(), limit.clone(), probes.clone(), idle.clone());
        let handlers = models.iter().map(handler).collect();
        let activator = Arc::new(Self { executor: executor.clone(), handlers, limit, reporter, probes, idle });
        executor.spawn(activator.clone().connect(connection));
        let this = activator.clone();
        executor.spawn(async move {
            loop {
                this.executor.sleep(SECOND).await;
                this.reporter.tick(clock::now());
            }
        });
        let parts: &[Part] = if executor.chance(50) { &[Part::Whole] } else { &[Part::Slice(0), Part::Slice(1)] };
        for index in 0..activator.handlers.len() {
            for part in parts {
                executor.spawn(activator.clone().watch(index, *part));
            }
        }
        activator
    }

    /// The connection to the autoscaler, which breaks now and then.
    async fn connect(self: Arc<Self>, mut connection: Connection) {
        let calm = || self.handlers[0].model.is_calm();
        loop {
            if !calm() {
                self.executor.sleep(self.executor.up_to(3 * SECOND)).await;
            }
            let first = connection.first_message(|| self.reporter.snapshot());
            self.check_first(&first);
            self.deliver(first);
            let mut cut = self.executor.sleep(self.executor.up_to(10 * SECOND));
            loop {
                match select(Box::pin(connection.next_message()), &mut cut).await {
                    Either::Left((Some(message), _)) => self.deliver(message),
                    Either::Left((None, _)) => return,
                    Either::Right(_) if calm() => cut = self.executor.sleep(1000 * SECOND),
                    Either::Right(_) => break,
                }
            }
        }
    }

    /// A new connection begins with what is there at the moment, whatever was lost with the one before.
    fn check_first(&self, first: &WireStatMessages) {
        for handler in &self.handlers {
            let said = first.messages.iter().filter(|message| message.name == handler.model.name);
            let said: Vec<_> = said
                .map(|message| message.stat.as_ref().map_or(0.0, |stat| stat.average_concurrent_requests))
                .collect();
            let here = *handler.here.lock();
            let expected = if here > 0 { vec![here as f64] } else { Vec::new() };
            assert_eq!(said, expected, "a connection began with something else than what there is");
        }
    }

    fn deliver(&self, messages: WireStatMessages) {
        for message in messages.messages {
            let stat = message.stat.unwrap_or_default();
            if stat.average_concurrent_requests > 0.0
                && let Some(handler) = self.handlers.iter().find(|handler| handler.model.name == message.name)
            {
                handler.model.wanted();
            }
        }
    }

    /// The watch of endpoints: late, twice, and sometimes stale. What it tells last is true.
    async fn watch(self: Arc<Self>, index: usize, part: Part) {
        let handler = &self.handlers[index];
        let (source, model) = (format!("{part:?}"), &handler.model);
        loop {
            let (soon, late) = if model.is_calm() { (SECOND / 10, SECOND) } else { (SECOND / 1000, SECOND / 2) };
            self.executor.sleep(soon + self.executor.up_to(late)).await;
            let stale = !model.is_calm() && self.executor.chance(20);
            let told = if stale { model.stale_endpoints(part) } else { model.endpoints(part) };
            let seen = handler.view.lock().get(&source).cloned().unwrap_or_default();
            if seen != told || self.executor.chance(10) {
                handler.view.lock().insert(source.clone(), told.clone());
                handler.revision.backends.update(&source, &told.groups());
                handler.remember();
            }
        }
    }

    /// Where it stands among the others.
    pub(super) fn place(&self, index: usize, count: usize) {
        for handler in &self.handlers {
            handler.revision.backends.set_peers(Peers { index, count });
        }
    }

    /// One request from its arrival to the end of its response.
    pub(super) async fn request(self: Arc<Self>, index: usize, patience: Duration, limit: Duration) -> Outcome {
        let handler = &self.handlers[index];
        let _here = Here::enter(&handler.here);
        let _counted = self.reporter.enter(&handler.revision, clock::now());
        let number = handler.order.lock().arrive();
        let executor = &self.executor;
        let repeatable = executor.chance(50);
        let mut request = Request { executor, handler, delivered: false, repeatable, number };
        let outcome = {
            let work = async {
                let turn = Turn::new(100);
                let revision = &handler.revision;
                match dispatch(&revision.throttler, &revision.backends, turn, &mut request).await {
                    Ok((work, lease)) => {
                        executor.sleep(executor.up_to(SECOND / 10)).await;
                        let status = work.status;
                        handler.connections(lease.pod()).keep(handler.model.end(work));
                        drop(lease);
                        Outcome::Status(status)
                    }
                    Err(Failure::Refused(_)) => Outcome::Status(503),
                    Err(Failure::End(_)) => Outcome::Status(502),
                }
            };
            let timeout = select(Box::pin(work), executor.sleep(limit));
            let limited = async {
                match timeout.await {
                    Either::Left((outcome, _)) => outcome,
                    Either::Right(_) => Outcome::Status(504),
                }
            };
            match select(Box::pin(limited), executor.sleep(patience)).await {
                Either::Left((outcome, _)) => outcome,
                Either::Right(_) => Outcome::Cancelled,
            }
        };
        handler.order.lock().waiting.remove(&number);
        outcome
    }

    /// What holds whenever nothing can run without time passing.
    pub(super) fn check(&self) {
        for handler in &self.handlers {
            handler.check();
        }
    }

    /// What holds when all requests have ended.
    pub(super) fn check_idle(&self) {
        assert_eq!(self.limit.held(), (0, 0), "places in the queue leaked");
        assert_eq!(*self.probes.lock(), 0, "probes go on though every pod is ready");
        assert_eq!(self.idle.kept(), 0, "idle connections were kept for longer than their time");
        assert!(self.reporter.active().is_empty(), "a revision without requests is still reported");
        for handler in &self.handlers {
            assert_eq!(handler.revision.throttler.waiting(), 0, "waiters leaked");
            for pod in &*handler.pods.lock() {
                assert_eq!(pod.in_flight(), 0, "slots leaked");
            }
        }
    }
}

// === impl Handler ===

impl Handler {
    fn new(
        model: Arc<Revision>,
        limit: Arc<QueueLimit>,
        outstanding: Arc<Mutex<usize>>,
        idle: Arc<IdleLimits>,
    ) -> Self {
        let policies = [Policy::LeastOfTwo, Policy::FirstAvailable, Policy::RoundRobin, Policy::Random];
        let throttler = Throttler::new(limit, policies[model.below(4)]);
        let reach = [Reach::Pods, Reach::Either][model.below(2)];
        let treatment = Treatment { concurrency: model.concurrency, reach, ..Treatment::of(&model.name) };
        let probes = Probes { revision: model.clone(), outstanding };
        let backends = Backends::new(throttler.clone(), treatment, Arc::new(probes));
        let revision = revisions::Revision::alone(&model.name, throttler, backends);
        Self {
            model,
            revision,
            view: Mutex::default(),
            pods: Mutex::default(),
            connections: Mutex::default(),
            idle,
            events: Mutex::default(),
            order: Mutex::default(),
            here: Arc::default(),
        }
    }

    /// Those to `pod` that are kept.
    fn connections(&self, pod: &Arc<Pod>) -> Kept {
        let mut connections = self.connections.lock();
        connections.retain(|(pod, _)| pod.strong_count() > 0);
        if let Some((_, idle)) = connections.iter().find(|(known, _)| known.as_ptr() == Arc::as_ptr(pod)) {
            return idle.clone();
        }
        let idle = Arc::new(Idle::new(self.idle.clone()));
        connections.push((Arc::downgrade(pod), idle.clone()));
        idle
    }

    fn count(&self, event: Event) {
        *self.events.lock().entry(event).or_default() += 1;
    }

    fn remember(&self) {
        let mut pods = self.pods.lock();
        // Nobody has one that could be given back too often, or not at all.
        pods.retain(|pod| pod.in_flight() > 0 || Arc::strong_count(pod) > 1);
        for pod in self.revision.throttler.pods().iter() {
            if !pods.iter().any(|known| Arc::ptr_eq(known, pod)) {
                pods.push(pod.clone());
            }
        }
    }

    fn check(&self) {
        let throttler = &self.revision.throttler;
        let pods = throttler.pods();
        if self.model.concurrency > 0 {
            let known = self.pods.lock();
            let mut taken = Vec::<(&Endpoint, usize)>::new();
            for pod in known.iter().filter(|pod| pod.in_flight() > 0) {
                match taken.iter_mut().find(|(endpoint, _)| *endpoint == pod.endpoint()) {
                    Some((_, count)) => *count += pod.in_flight(),
                    None => taken.push((pod.endpoint(), pod.in_flight())),
                }
            }
            let most = taken.into_iter().map(|(_, count)| count).max().unwrap_or(0);
            assert!(most <= self.model.concurrency, "more slots than a pod has are taken");
        }
        let free = pods.iter().any(|pod| self.model.concurrency == 0 || pod.in_flight() < self.model.concurrency);
        assert!(throttler.waiting() == 0 || !free, "a request waits though a pod has a free slot");
        self.order.lock().check();
    }

    fn lists(&self, endpoint: &Endpoint) -> bool {
        let view = self.view.lock();
        view.values().any(|listed| listed.ready.contains(endpoint) || listed.not_ready.contains(endpoint))
    }
}

// === impl Here ===

impl Here {
    fn enter(count: &Arc<Mutex<usize>>) -> Self {
        *count.lock() += 1;
        Self(count.clone())
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
    }
}

// === impl Order ===

impl Order {
    fn arrive(&mut self) -> u64 {
        self.next += 1;
        self.waiting.insert(self.next);
        self.next
    }

    fn admit(&mut self, number: u64) {
        // One that comes back from a pod was admitted before.
        if self.waiting.remove(&number) {
            self.admitted = self.admitted.max(Some(number));
        }
    }

    fn check(&mut self) {
        if let (Some(admitted), Some(first)) = (self.admitted.take(), self.waiting.first()) {
            assert!(admitted < *first, "request {admitted} was let in before {first}, which came earlier");
        }
    }
}

// === impl Request ===

impl Attempt for Request<'_> {
    type Answer = Work;
    type End = SendFailure;

    async fn wait<F: Future + Send>(&mut self, slot: F) -> Result<F::Output, SendFailure> {
        Ok(slot.await)
    }

    fn admitted(&mut self) {}

    fn granted(&mut self) {
        self.handler.order.lock().admit(self.number);
    }

    async fn send(&mut self, lease: &Lease) -> Result<Work, Broken<SendFailure>> {
        let endpoint = lease.pod().endpoint();
        assert!(self.handler.lists(endpoint), "a request goes to a pod that has left the endpoints");
        let (handler, model) = (self.handler, &self.handler.model);
        let broken =
            |what: &str, reached| Broken { error: SendFailure::new(what, reached != Reached::Perhaps), reached };
        let idle = handler.connections(lease.pod());
        // As `wire` does it.
        loop {
            let now = self.executor.now();
            let kept = idle.take(|connection| match connection.is_known_to_have_ended(now) {
                true => Look::Close,
                false => Look::Take,
            });
            let (connection, kept) = match kept {
                Some(connection) if !self.repeatable && connection.has_ended(now) => {
                    handler.count(Event::LookedAt);
                    continue;
                }
                Some(connection) => (connection, true),
                None => match model.connect(endpoint).await {
                    Some(connection) => (connection, false),
                    None => return Err(broken("connection refused", Reached::Nobody)),
                },
            };
            if kept {
                handler.count(Event::Reused);
            }
            match model.serve(connection, self.repeatable, &mut self.delivered).await {
                Ok(work) => return Ok(work),
                Err(Lost::Told(reached)) => return Err(broken("the program is not there", reached)),
                Err(Lost::Broken { written }) => match net::after_break(kept, written, self.repeatable) {
                    Retry::Here => handler.count(Event::Again),
                    Retry::Elsewhere => return Err(broken("closed before it was written", Reached::Nobody)),
                    Retry::Nowhere => {
                        handler.count(Event::Over);
                        return Err(broken("connection reset", Reached::Perhaps));
                    }
                },
            }
        }
    }

    fn patience(&self) -> Patience {
        Box::pin(self.executor.sleep(PATIENCE))
    }
}
