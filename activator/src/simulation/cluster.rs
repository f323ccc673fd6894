//! Pods, their endpoints and an autoscaler, as far as an activator sees them: everything late, some of it broken.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use futures::future::{Either, select};
use net::{Breaker, Slot};
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::executor::Executor;
use crate::{
    backends::{Addresses, Backends, Prober, ServiceRef},
    dispatch::Reached,
    probe::{Asked, No, until_ready},
    throttler::{Endpoint, Pod, Uid},
};

const SECOND: Duration = Duration::from_secs(1);

/// What lists pods, in two parts between which they move.
type Slices = [Addresses; 2];

/// What an activator hears of: one of the parts, or all as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Slice(usize),
    Whole,
}

/// The pods of one revision.
pub(super) struct Revision {
    pub(super) name: String,
    pub(super) concurrency: usize,
    executor: Executor,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pods: BTreeMap<Endpoint, Arc<Model>>,
    endpoints: Slices,
    /// What may still be heard of.
    history: Vec<Slices>,
    next: u16,
    starting: usize,
    calm: bool,
}

/// One pod: sidecar and program.
struct Model {
    condition: Mutex<Condition>,
    breaker: Option<Breaker>,
    running: Mutex<usize>,
    concurrency: usize,
    sidecar: Sidecar,
    crashed: CancellationToken,
    crashed_at: Mutex<Option<Duration>>,
}

/// A connection to a pod. The pod closes it at some time when it is idle, or when it crashes; that takes a moment to
/// arrive, and another one to be heard of.
pub(super) struct Connection {
    model: Arc<Model>,
    closes: Option<Duration>,
    arrives_after: Duration,
    heard_after: Duration,
}

/// Why a pod gave no answer of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// Its sidecar says so.
    Told(Reached),
    /// The connection broke, before or after something was written to it.
    Broken { written: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    /// Nothing listens.
    Absent,
    /// The sidecar listens, the program does not.
    Starting,
    Serving,
    Failing,
    Hanging,
    /// The program is gone, and its sidecar says so to everyone whom it would have got.
    Dead,
}

/// What a sidecar says about readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sidecar {
    /// No, at once, as upstream's does.
    AtOnce,
    /// Nothing until it is ready, and it can be asked to tell.
    Holds,
}

/// What a request holds in a pod until its response has ended.
pub(super) struct Work {
    pub(super) status: u16,
    connection: Connection,
    _slot: Option<Slot>,
    _running: Running,
}

struct Running(Arc<Model>);

/// Asks the models.
pub(super) struct Probes {
    pub(super) revision: Arc<Revision>,
    pub(super) outstanding: Arc<Mutex<usize>>,
}

/// A pod that is asked.
struct Asking {
    revision: Arc<Revision>,
    pod: Arc<Pod>,
    asker: Weak<Backends>,
}

/// How long one question may take.
const QUESTION: Duration = Duration::from_millis(300);

// === impl Revision ===

impl Revision {
    pub(super) fn new(executor: Executor, number: u64) -> Arc<Self> {
        let concurrency = [0, 1, 2, 5][executor.below(4) as usize];
        Arc::new(Self { name: format!("rev-{number}"), concurrency, executor, state: Mutex::default() })
    }

    /// A choice that is made for it.
    pub(super) fn below(&self, bound: u64) -> usize {
        self.executor.below(bound) as usize
    }

    /// No more faults: what is broken goes away and is replaced.
    pub(super) fn calm_down(self: &Arc<Self>) {
        self.state.lock().calm = true;
        let pods = self.state.lock().pods.clone();
        for (endpoint, model) in &pods {
            let condition = *model.condition.lock();
            match condition {
                Condition::Hanging | Condition::Failing => {
                    self.crash(model);
                    self.list(endpoint, None);
                }
                // The kubelet has started it again.
                Condition::Dead => *model.condition.lock() = Condition::Serving,
                _ => {}
            }
        }
    }

    pub(super) fn is_calm(&self) -> bool {
        self.state.lock().calm
    }

    /// What the autoscaler does when it hears of requests.
    pub(super) fn wanted(self: &Arc<Self>) {
        let count = {
            let mut state = self.state.lock();
            if state.endpoints != Slices::default() || state.starting > 0 {
                return;
            }
            let count = 1 + self.executor.below(3) as usize;
            state.starting += count;
            count
        };
        for _ in 0..count {
            let revision = self.clone();
            self.executor.spawn(async move {
                revision.executor.sleep(revision.executor.up_to(SECOND)).await;
                revision.state.lock().starting -= 1;
                revision.live().await;
            });
        }
    }

    /// The endpoints as they are.
    pub(super) fn endpoints(&self, part: Part) -> Addresses {
        part.of(&self.state.lock().endpoints)
    }

    /// The endpoints as a watch that lags might tell of them.
    pub(super) fn stale_endpoints(&self, part: Part) -> Addresses {
        let state = self.state.lock();
        let back = self.executor.below(4) as usize;
        let index = state.history.len().saturating_sub(back + 1);
        state.history.get(index).map(|slices| part.of(slices)).unwrap_or_default()
    }

    /// A pod's life.
    async fn live(self: Arc<Self>) {
        let executor = self.executor.clone();
        let endpoint = {
            let mut state = self.state.lock();
            state.next += 1;
            // Few addresses, so that they are used again.
            let address = SocketAddr::from(([10, 0, 0, 1], 1 + state.next % 5));
            Endpoint { address, uid: Uid::from(&*state.next.to_string()) }
        };
        let model = Arc::new(Model {
            condition: Mutex::new(Condition::Absent),
            breaker: (self.concurrency > 0).then(|| Breaker::new(self.concurrency * 10, self.concurrency)),
            running: Mutex::new(0),
            concurrency: self.concurrency,
            sidecar: [Sidecar::AtOnce, Sidecar::Holds][self.below(2)],
            crashed: CancellationToken::new(),
            crashed_at: Mutex::default(),
        });
        self.state.lock().pods.insert(endpoint, model.clone());
        executor.sleep(executor.up_to(SECOND)).await;
        self.list(&endpoint, Some(false));
        executor.sleep(executor.up_to(SECOND)).await;
        *model.condition.lock() = Condition::Starting;
        executor.sleep(executor.up_to(SECOND)).await;
        *model.condition.lock() = Condition::Serving;
        executor.sleep(executor.up_to(SECOND)).await;
        self.list(&endpoint, Some(true));
        loop {
            executor.sleep(executor.up_to(4 * SECOND)).await;
            if model.crashed.is_cancelled() || self.is_calm() {
                return;
            }
            match executor.below(10) {
                0 => *model.condition.lock() = Condition::Failing,
                1 => *model.condition.lock() = Condition::Hanging,
                2 => *model.condition.lock() = Condition::Serving,
                3 => {
                    self.list(&endpoint, Some(false));
                    executor.sleep(executor.up_to(SECOND)).await;
                    self.list(&endpoint, Some(true));
                }
                4 => {
                    self.crash(&model);
                    executor.sleep(executor.up_to(SECOND)).await;
                    self.list(&endpoint, None);
                    return;
                }
                5 => {
                    // Scaled down: first out of the endpoints, then no new connections, then gone.
                    self.list(&endpoint, None);
                    executor.sleep(executor.up_to(2 * SECOND)).await;
                    *model.condition.lock() = Condition::Absent;
                    executor.sleep(executor.up_to(2 * SECOND)).await;
                    self.crash(&model);
                    return;
                }
                6 => {
                    *model.condition.lock() = Condition::Dead;
                    // Sometimes the kubelet notices before it is there again.
                    executor.sleep(executor.up_to(2 * SECOND)).await;
                    let noticed = executor.chance(50);
                    if noticed {
                        self.list(&endpoint, Some(false));
                    }
                    executor.sleep(executor.up_to(8 * SECOND)).await;
                    model.restart();
                    if noticed {
                        self.list(&endpoint, Some(true));
                    }
                }
                _ => {}
            }
        }
    }

    fn crash(&self, model: &Model) {
        *model.condition.lock() = Condition::Absent;
        *model.crashed_at.lock() = Some(self.executor.now());
        model.crashed.cancel();
    }

    fn list(&self, endpoint: &Endpoint, ready: Option<bool>) {
        let mut state = self.state.lock();
        let crashed = state.pods.get(endpoint).is_some_and(|model| model.crashed.is_cancelled());
        let ready = if crashed { None } else { ready };
        for slice in &mut state.endpoints {
            slice.ready.remove(endpoint);
            slice.not_ready.remove(endpoint);
        }
        let slice = &mut state.endpoints[self.below(2)];
        match ready {
            Some(true) => drop(slice.ready.insert(*endpoint)),
            Some(false) => drop(slice.not_ready.insert(*endpoint)),
            None => {}
        }
        let now = state.endpoints.clone();
        state.history.push(now);
    }

    fn model(&self, endpoint: &Endpoint) -> Option<Arc<Model>> {
        let state = self.state.lock();
        state.pods.get(endpoint).filter(|model| *model.condition.lock() != Condition::Absent).cloned()
    }

    /// A new connection to a pod, if anything listens there.
    pub(super) async fn connect(&self, endpoint: &Endpoint) -> Option<Connection> {
        self.executor.sleep(self.executor.up_to(Duration::from_millis(5))).await;
        let model = self.model(endpoint)?;
        Some(Connection { model, closes: None, arrives_after: Duration::ZERO, heard_after: Duration::ZERO })
    }

    /// What a request meets on a connection; `delivered` once a program may have seen it, which may be one of several
    /// only if it is `repeatable`.
    pub(super) async fn serve(
        &self,
        connection: Connection,
        repeatable: bool,
        delivered: &mut bool,
    ) -> Result<Work, Lost> {
        let executor = &self.executor;
        // What has been reset cannot be written to; of a mere end the writer has not heard.
        let written = !connection.has_ended(executor.now()) || executor.chance(50);
        if !written || !self.is_calm() && executor.chance(3) {
            return Err(Lost::Broken { written: false });
        }
        executor.sleep(executor.up_to(Duration::from_millis(5))).await;
        if connection.is_closed(executor.now()) {
            executor.sleep(executor.up_to(Duration::from_millis(5))).await;
            return Err(Lost::Broken { written: true });
        }
        let model = connection.model.clone();
        let program_is_gone = || *model.condition.lock() == Condition::Dead;
        let work = async {
            let slot = match &model.breaker {
                Some(breaker) => Some(breaker.acquire().await.expect("activators send no more than the sidecar takes")),
                None => None,
            };
            executor.sleep(executor.up_to(Duration::from_millis(1))).await;
            if program_is_gone() {
                return Err(Lost::Told(Reached::Sidecar));
            }
            assert!(!std::mem::replace(delivered, true) || repeatable, "a request was sent to two programs");
            let running = Running::enter(model.clone());
            let status = loop {
                let condition = *model.condition.lock();
                executor.sleep(Duration::from_millis(1) + executor.up_to(SECOND / 4)).await;
                match condition {
                    Condition::Hanging | Condition::Starting => {}
                    Condition::Dead => return Err(Lost::Told(Reached::Perhaps)),
                    Condition::Failing => break 500,
                    _ => break 200,
                }
            };
            Ok((status, slot, running))
        };
        match select(Box::pin(work), Box::pin(model.crashed.cancelled())).await {
            Either::Left((Ok((status, slot, running)), _)) => {
                Ok(Work { status, connection, _slot: slot, _running: running })
            }
            Either::Left((Err(lost), _)) => Err(lost),
            Either::Right(_) => Err(Lost::Broken { written: true }),
        }
    }

    /// The response has ended; its connection may be used again as long as the pod keeps it.
    pub(super) fn end(&self, work: Work) -> Connection {
        let executor = &self.executor;
        let mut connection = work.connection;
        let moment = Duration::from_millis(5);
        let closes = !self.is_calm() && executor.chance(70);
        connection.closes = closes.then(|| executor.now() + executor.up_to(4 * SECOND));
        connection.arrives_after = executor.up_to(moment);
        connection.heard_after = connection.arrives_after + executor.up_to(10 * moment);
        connection
    }
}

// === impl Connection ===

impl Connection {
    /// Nobody reads what is written to it.
    fn is_closed(&self, now: Duration) -> bool {
        self.since(Duration::ZERO, now)
    }

    /// Its end has arrived, for who looks.
    pub(super) fn has_ended(&self, now: Duration) -> bool {
        self.since(self.arrives_after, now)
    }

    /// And was heard of.
    pub(super) fn is_known_to_have_ended(&self, now: Duration) -> bool {
        self.since(self.heard_after, now)
    }

    fn since(&self, time: Duration, now: Duration) -> bool {
        let closed = [self.closes, *self.model.crashed_at.lock()].into_iter().flatten().min();
        closed.is_some_and(|closed| closed + time <= now)
    }
}

// === impl Part ===

impl Part {
    fn of(self, slices: &Slices) -> Addresses {
        match self {
            Self::Slice(index) => slices[index].clone(),
            Self::Whole => {
                let [one, other] = slices;
                let both = |one: &BTreeSet<_>, other: &BTreeSet<_>| one.union(other).copied().collect();
                Addresses { ready: both(&one.ready, &other.ready), not_ready: both(&one.not_ready, &other.not_ready) }
            }
        }
    }
}

// === impl Model ===

impl Model {
    /// The program is there again, if nothing else has happened.
    fn restart(&self) {
        let mut condition = self.condition.lock();
        if *condition == Condition::Dead {
            *condition = Condition::Serving;
        }
    }
}

// === impl Running ===

impl Running {
    fn enter(model: Arc<Model>) -> Self {
        let mut running = model.running.lock();
        *running += 1;
        assert!(model.concurrency == 0 || *running <= model.concurrency, "containerConcurrency was exceeded");
        drop(running);
        Self(model)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.running.lock() -= 1;
    }
}

// === impl Probes ===

impl Prober for Probes {
    fn start(&self, pod: Arc<Pod>, asker: Weak<Backends>) -> DropGuard {
        let token = CancellationToken::new();
        let (revision, cancelled, outstanding) = (self.revision.clone(), token.clone(), self.outstanding.clone());
        *outstanding.lock() += 1;
        let executor = revision.executor.clone();
        executor.clone().spawn(async move {
            let asking = Asking { revision, pod, asker };
            let answered = {
                let ready = Box::pin(until_ready(&asking, asking.pod.address()));
                match select(ready, Box::pin(cancelled.cancelled())).await {
                    Either::Left(_) => true,
                    // An answer may cross with the end of the question.
                    Either::Right((_, ready)) if executor.chance(20) => {
                        matches!(select(ready, executor.sleep(executor.up_to(QUESTION))).await, Either::Left(_))
                    }
                    Either::Right(_) => false,
                }
            };
            if let Some(asker) = asking.asker.upgrade().filter(|_| answered) {
                asker.succeeded(&asking.pod);
            }
            *outstanding.lock() -= 1;
        });
        token.drop_guard()
    }

    /// There is no mesh: the Service answers nobody who asks there without need.
    fn start_service(&self, _: &ServiceRef, _: Weak<Backends>) -> DropGuard {
        CancellationToken::new().drop_guard()
    }
}

// === impl Asking ===

impl Asking {
    /// The pod as it is; none if nothing listens.
    fn model(&self) -> Option<(Arc<Model>, Condition)> {
        let model = self.revision.model(self.pod.endpoint())?;
        let condition = *model.condition.lock();
        Some((model, condition))
    }

    /// Waits for so long that something may have changed.
    async fn a_moment(&self) {
        let executor = &self.revision.executor;
        executor.sleep(Duration::from_millis(1) + executor.up_to(QUESTION / 3)).await;
    }
}

impl Asked for Asking {
    async fn ask(&self) -> Result<(), No> {
        let executor = &self.revision.executor;
        let silent = executor.sleep(QUESTION);
        let answer = async {
            loop {
                executor.sleep(executor.up_to(Duration::from_millis(5))).await;
                match self.model() {
                    None => return Err(No::Absent("connection refused".to_owned())),
                    Some((_, Condition::Serving | Condition::Failing | Condition::Hanging)) => return Ok(()),
                    Some((model, _)) if model.sidecar == Sidecar::Holds => self.a_moment().await,
                    Some(_) => return Err(No::PerhapsMesh("503".to_owned())),
                }
            }
        };
        match select(Box::pin(answer), silent).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => Err(No::Silent),
        }
    }

    async fn told(&self) -> Option<bool> {
        let executor = &self.revision.executor;
        loop {
            executor.sleep(executor.up_to(Duration::from_millis(5))).await;
            match self.model() {
                None => return Some(false),
                Some((model, _)) if model.sidecar == Sidecar::AtOnce => return None,
                // The connection breaks, or the sidecar is started again.
                Some(_) if !self.revision.is_calm() && executor.chance(5) => return Some(false),
                Some((_, Condition::Starting | Condition::Dead)) => self.a_moment().await,
                Some(_) => return Some(true),
            }
        }
    }

    fn suspected(&self) {
        if let Some(asker) = self.asker.upgrade() {
            asker.suspected(&self.pod);
        }
    }

    async fn pause(&self, time: Duration) {
        self.revision.executor.sleep(time).await;
    }
}
