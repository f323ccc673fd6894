//! Draining: answering probes with "no" and going on to serve until nobody sends requests any more.
//!
//! Two rules end a drain. Upstream's: no new request for a quiet period (30 s), whatever is still in flight; after
//! that the program itself is told to stop, which is how it gets to close its WebSockets. Ours, where it is set: no
//! new request *and* nothing in flight for a much shorter time. It presumes that whoever deletes the pod has taken it
//! out of routing first, which our own controllers do, so that the short time only has to cover the gateway's reaction.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use net::InFlight;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

/// When a drain is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainRule {
    /// No new request for this long.
    pub quiet: Duration,
    /// No new request and nothing in flight for this long.
    pub idle: Option<Duration>,
}

/// The drain state of the process. Clones share it.
#[derive(Clone)]
pub(crate) struct Drainer {
    shared: Arc<Shared>,
}

struct Shared {
    rule: DrainRule,
    in_flight: InFlight,
    draining: AtomicBool,
    epoch: Instant,
    /// The last request other than a probe, in milliseconds since `epoch`; kept only while draining.
    last_request: AtomicU64,
    /// The running drain, joined by everyone who asks for one; `true` once it is over.
    run: Mutex<Option<watch::Receiver<bool>>>,
    reset: Notify,
}

// === impl DrainRule ===

impl Default for DrainRule {
    fn default() -> Self {
        Self { quiet: Duration::from_secs(30), idle: None }
    }
}

// === impl Drainer ===

impl Drainer {
    pub(crate) fn new(rule: DrainRule, in_flight: InFlight) -> Self {
        let shared = Shared {
            rule,
            in_flight,
            draining: AtomicBool::new(false),
            epoch: Instant::now(),
            last_request: AtomicU64::new(0),
            run: Mutex::new(None),
            reset: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Acquire)
    }

    /// Notes a request that is not a probe.
    pub(crate) fn request(&self) {
        if self.is_draining() {
            self.shared.touch();
        }
    }

    /// Starts to drain, or joins the drain that runs; completes when it is over or was reset.
    pub(crate) async fn drain(&self) {
        let mut over = {
            let mut run = self.shared.run.lock();
            match &*run {
                Some(over) => over.clone(),
                None => {
                    self.shared.touch();
                    self.shared.draining.store(true, Ordering::Release);
                    let (done, over) = watch::channel(false);
                    *run = Some(over.clone());
                    tokio::spawn(Self::watch(self.shared.clone(), done));
                    over
                }
            }
        };
        // An error means that the watcher ended, which it does only when the drain is over.
        let _ = over.wait_for(|over| *over).await;
    }

    /// Takes the drain back: probes succeed again and everyone who waits for it is released.
    pub(crate) fn reset(&self) {
        self.shared.draining.store(false, Ordering::Release);
        if self.shared.run.lock().take().is_some_and(|over| !*over.borrow()) {
            self.shared.reset.notify_one();
        }
    }

    async fn watch(shared: Arc<Shared>, done: watch::Sender<bool>) {
        tokio::select! {
            () = shared.over() => {}
            () = shared.reset.notified() => {}
        }
        done.send_replace(true);
    }
}

// === impl Shared ===

impl Shared {
    fn touch(&self) {
        self.last_request.store(self.epoch.elapsed().as_millis() as u64, Ordering::Release);
    }

    fn last_request(&self) -> Instant {
        self.epoch + Duration::from_millis(self.last_request.load(Ordering::Acquire))
    }

    async fn over(&self) {
        tokio::select! {
            () = self.quiet() => {}
            () = self.idle() => {}
        }
    }

    async fn quiet(&self) {
        loop {
            let until = self.last_request() + self.rule.quiet;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    async fn idle(&self) {
        let Some(period) = self.rule.idle else { return std::future::pending().await };
        loop {
            self.in_flight.idle().await;
            let started = self.in_flight.started();
            sleep_until(Instant::now() + period).await;
            if self.in_flight.started() == started {
                return;
            }
        }
    }
}
