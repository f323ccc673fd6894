//! Pods, their endpoints and an autoscaler, as far as an activator sees them: everything late, some of it broken.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use net::{Breaker, SendFailure, Slot};
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::executor::Executor;
use crate::{
    backends::{Addresses, Backends, Prober, ServiceRef},
    throttler::{Endpoint, Pod},
};

const SECOND: Duration = Duration::from_secs(1);

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
    endpoints: Addresses,
    /// What may still be heard of.
    history: Vec<Addresses>,
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
    crashed: CancellationToken,
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
}

/// What a request holds in a pod until its response has ended.
pub(super) struct Work {
    pub(super) status: u16,
    _slot: Option<Slot>,
    _running: Running,
}

struct Running(Arc<Model>);

/// Asks the models.
pub(super) struct Probes {
    pub(super) revision: Arc<Revision>,
    pub(super) outstanding: Arc<Mutex<usize>>,
}

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
            if matches!(condition, Condition::Hanging | Condition::Failing) {
                self.crash(model);
                self.list(endpoint, None);
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
            if !state.endpoints.ready.is_empty() || !state.endpoints.not_ready.is_empty() || state.starting > 0 {
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
    pub(super) fn endpoints(&self) -> Addresses {
        self.state.lock().endpoints.clone()
    }

    /// The endpoints as a watch that lags might tell of them.
    pub(super) fn stale_endpoints(&self) -> Addresses {
        let state = self.state.lock();
        let back = self.executor.below(4) as usize;
        let index = state.history.len().saturating_sub(back + 1);
        state.history.get(index).cloned().unwrap_or_default()
    }

    /// A pod's life.
    async fn live(self: Arc<Self>) {
        let executor = self.executor.clone();
        let endpoint = {
            let mut state = self.state.lock();
            state.next += 1;
            // Few addresses, so that they are used again.
            let address = SocketAddr::from(([10, 0, 0, 1], 1 + state.next % 5));
            Endpoint { address, uid: state.next.to_string().into() }
        };
        let model = Arc::new(Model {
            condition: Mutex::new(Condition::Absent),
            breaker: (self.concurrency > 0).then(|| Breaker::new(self.concurrency * 10, self.concurrency)),
            running: Mutex::new(0),
            concurrency: self.concurrency,
            crashed: CancellationToken::new(),
        });
        self.state.lock().pods.insert(endpoint.clone(), model.clone());
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
            match executor.below(8) {
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
                _ => {}
            }
        }
    }

    fn crash(&self, model: &Model) {
        *model.condition.lock() = Condition::Absent;
        model.crashed.cancel();
    }

    fn list(&self, endpoint: &Endpoint, ready: Option<bool>) {
        let mut state = self.state.lock();
        let crashed = state.pods.get(endpoint).is_some_and(|model| model.crashed.is_cancelled());
        let ready = if crashed { None } else { ready };
        state.endpoints.ready.remove(endpoint);
        state.endpoints.not_ready.remove(endpoint);
        match ready {
            Some(true) => drop(state.endpoints.ready.insert(endpoint.clone())),
            Some(false) => drop(state.endpoints.not_ready.insert(endpoint.clone())),
            None => {}
        }
        let now = state.endpoints.clone();
        state.history.push(now);
    }

    fn model(&self, endpoint: &Endpoint) -> Option<Arc<Model>> {
        let state = self.state.lock();
        state.pods.get(endpoint).filter(|model| *model.condition.lock() != Condition::Absent).cloned()
    }

    /// What a request meets at the pod; `delivered` once the program may have seen it.
    pub(super) async fn serve(&self, endpoint: &Endpoint, delivered: &mut bool) -> Result<Work, SendFailure> {
        let executor = &self.executor;
        executor.sleep(executor.up_to(Duration::from_millis(5))).await;
        let Some(model) = self.model(endpoint) else { return Err(SendFailure::new("connection refused", true)) };
        if !self.is_calm() && executor.chance(3) {
            return Err(SendFailure::new("closed before the request was written", true));
        }
        assert!(!std::mem::replace(delivered, true), "a request was sent to two pods");
        let broken = || SendFailure::new("connection reset", false);
        let work = async {
            let slot = match &model.breaker {
                Some(breaker) => Some(breaker.acquire().await.expect("activators send no more than the sidecar takes")),
                None => None,
            };
            let running = Running::enter(model.clone());
            loop {
                let condition = *model.condition.lock();
                executor.sleep(Duration::from_millis(1) + executor.up_to(SECOND / 4)).await;
                match condition {
                    Condition::Hanging | Condition::Starting => {}
                    Condition::Failing => return Work { status: 500, _slot: slot, _running: running },
                    _ => return Work { status: 200, _slot: slot, _running: running },
                }
            }
        };
        match futures::future::select(Box::pin(work), Box::pin(model.crashed.cancelled())).await {
            futures::future::Either::Left((work, _)) => Ok(work),
            futures::future::Either::Right(_) => Err(broken()),
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
            loop {
                executor.sleep(Duration::from_millis(1) + executor.up_to(Duration::from_millis(300))).await;
                // An answer may cross with the end of the question.
                if cancelled.is_cancelled() && executor.chance(80) {
                    break;
                }
                let model = revision.model(pod.endpoint());
                if model.is_none()
                    && let Some(asker) = asker.upgrade()
                {
                    asker.suspected(&pod);
                }
                if model.is_some_and(|model| *model.condition.lock() != Condition::Starting) {
                    if let Some(asker) = asker.upgrade() {
                        asker.succeeded(&pod);
                    }
                    break;
                }
                if cancelled.is_cancelled() {
                    break;
                }
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
