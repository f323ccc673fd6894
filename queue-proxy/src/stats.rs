//! What the autoscaler scrapes: the report of the last full second.
//!
//! Upstream closes a period with a ticker. Here periods are closed by whoever looks next, a request or a scrape: the
//! result is the same, and an idle sidecar sleeps.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use net::{Report, RequestStats};
use parking_lot::Mutex;
use proto::Stat;

const PERIOD: Duration = Duration::from_secs(1);

/// The statistics of this pod.
pub(crate) struct Stats {
    pod: String,
    started: Instant,
    state: Mutex<State>,
}

struct State {
    requests: RequestStats,
    period_end: Instant,
    last: Option<(Instant, Report)>,
}

/// Counts one request while it lives.
pub(crate) struct StatsGuard {
    stats: Arc<Stats>,
    proxied: bool,
}

// === impl Stats ===

impl Stats {
    pub(crate) fn new(pod: String, now: Instant) -> Arc<Self> {
        let state = State { requests: RequestStats::new(now), period_end: now + PERIOD, last: None };
        Arc::new(Self { pod, started: now, state: Mutex::new(state) })
    }

    /// Counts a request; `proxied` if an activator reports it as well.
    pub(crate) fn enter(self: &Arc<Self>, now: Instant, proxied: bool) -> StatsGuard {
        let mut state = self.state.lock();
        state.advance(now);
        state.requests.enter(now, proxied);
        StatsGuard { stats: self.clone(), proxied }
    }

    /// The stat of the last full period; only the pod's name before the first has ended.
    pub(crate) fn stat(&self, now: Instant) -> Stat {
        let mut state = self.state.lock();
        state.advance(now);
        let mut stat = Stat { pod_name: self.pod.clone(), ..Stat::default() };
        if let Some((closed, report)) = state.last {
            stat.process_uptime = (closed - self.started).as_secs_f64();
            stat.average_concurrent_requests = report.average_concurrency;
            stat.average_proxied_concurrent_requests = report.average_proxied_concurrency;
            stat.request_count = report.request_count / PERIOD.as_secs_f64();
            stat.proxied_request_count = report.proxied_request_count / PERIOD.as_secs_f64();
        }
        stat
    }
}

// === impl State ===

impl State {
    fn advance(&mut self, now: Instant) {
        let Some(past) = now.checked_duration_since(self.period_end) else { return };
        let further = u32::try_from(past.as_secs()).unwrap_or(u32::MAX);
        if further > 0 {
            // Only the last of several periods matters, and nothing changed in it.
            self.requests.report(self.period_end + PERIOD * (further - 1));
            self.period_end += PERIOD * further;
        }
        self.last = Some((self.period_end, self.requests.report(self.period_end)));
        self.period_end += PERIOD;
    }
}

// === impl StatsGuard ===

impl Drop for StatsGuard {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.stats.state.lock();
        state.advance(now);
        state.requests.leave(now, self.proxied);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_sees_the_last_full_second() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let stats = Stats::new("pod".into(), start);
        assert_eq!(stats.stat(at(900)), Stat { pod_name: "pod".into(), ..Stat::default() });
        std::mem::forget(stats.enter(at(1500), false));
        std::mem::forget(stats.enter(at(1500), true));
        let stat = stats.stat(at(2100));
        assert_eq!((stat.average_concurrent_requests, stat.request_count), (1.0, 2.0));
        assert_eq!((stat.average_proxied_concurrent_requests, stat.proxied_request_count), (0.5, 1.0));
        assert_eq!(stat.process_uptime, 2.0);
        // A long while later: still two in flight, nothing new.
        let stat = stats.stat(at(60_300));
        assert_eq!((stat.average_concurrent_requests, stat.request_count, stat.process_uptime), (2.0, 0.0, 60.0));
    }
}
