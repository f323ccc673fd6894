//! Is the user's program ready?
//!
//! The answer is wanted at the moment the port opens, since a cold start waits for it. An aggressive probe therefore
//! tries again after a twentieth of the time it has been waiting already, a millisecond at least: the delay is found
//! within five percent, and a slow start costs little. Whoever asks meanwhile joins the run that is under way and is
//! answered when it ends: a held probe is how readiness is pushed.

mod attempt;
mod spec;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

pub(crate) use self::attempt::{try_health, try_location};
use self::spec::Check;
pub use self::spec::Probe;

const FIRST_DELAY: Duration = Duration::from_millis(1);
const LAST_DELAY: Duration = Duration::from_millis(50);
const ATTEMPT: Duration = Duration::from_millis(100);
const GIVE_UP: Duration = Duration::from_secs(10);

/// Runs the readiness probes of a pod.
pub struct Prober {
    probes: Arc<Vec<State>>,
    http2_detection: bool,
    run: Mutex<Option<watch::Receiver<Option<bool>>>>,
}

/// One probe, and how often in a row it has succeeded.
struct State {
    probe: Probe,
    successes: Mutex<u32>,
}

/// How long to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// As the probe says: once if it has a period, until ready if it has none.
    AsConfigured,
    /// Until ready, in any case: for an activator that holds requests.
    UntilReady,
}

// === impl Prober ===

impl Prober {
    pub fn new(probes: Vec<Probe>, http2_detection: bool) -> Self {
        let probes = probes.into_iter().map(|probe| State { probe, successes: Mutex::new(0) }).collect();
        Self { probes: Arc::new(probes), http2_detection, run: Mutex::new(None) }
    }

    /// True once all probes have passed. Dropping the future does not end the run, which others may wait for.
    pub async fn ready(&self, patience: Patience) -> bool {
        if self.probes.is_empty() {
            return true;
        }
        let mut result = self.join(patience);
        let result = result.wait_for(Option::is_some).await;
        result.is_ok_and(|result| *result == Some(true))
    }

    fn join(&self, patience: Patience) -> watch::Receiver<Option<bool>> {
        let mut run = self.run.lock();
        if let Some(result) = &*run
            && result.borrow().is_none()
            && result.has_changed().is_ok()
        {
            return result.clone();
        }
        let (sender, result) = watch::channel(None);
        *run = Some(result.clone());
        let (probes, detect) = (self.probes.clone(), self.http2_detection);
        tokio::spawn(async move {
            let mut all = tokio::task::JoinSet::new();
            for index in 0..probes.len() {
                let probes = probes.clone();
                all.spawn(async move { probes[index].run(detect, patience).await });
            }
            let mut ready = true;
            while let Some(passed) = all.join_next().await {
                ready &= passed.unwrap_or(false);
            }
            sender.send_replace(Some(ready));
        });
        result
    }
}

// === impl State ===

impl State {
    async fn run(&self, detect: bool, patience: Patience) -> bool {
        let aggressive = self.probe.period.is_zero() || patience == Patience::UntilReady;
        if !aggressive {
            return self.attempt(detect, self.probe.timeout).await.is_ok();
        }
        let started = Instant::now();
        let mut failures = 0;
        loop {
            match self.attempt(detect, ATTEMPT).await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => {
                    failures += 1;
                    if started.elapsed() >= GIVE_UP {
                        tracing::error!("aggressive probe error (failed {failures} times): {error}");
                        return false;
                    }
                }
            }
            sleep((started.elapsed() / 20).clamp(FIRST_DELAY, LAST_DELAY)).await;
        }
    }

    /// One attempt; true if enough have succeeded in a row.
    async fn attempt(&self, detect: bool, limit: Duration) -> Result<bool, String> {
        let result = timeout(limit, attempt::attempt(&self.probe.check, detect))
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
        let mut successes = self.successes.lock();
        match result {
            Ok(()) => *successes += 1,
            Err(error) => {
                *successes = 0;
                return Err(error);
            }
        }
        Ok(*successes >= self.probe.success_threshold)
    }
}
