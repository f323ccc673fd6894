//! The arithmetic of request statistics: average concurrency as an integral over time, counts as they are.
//!
//! Time is passed in. An event that arrives with an earlier time than the last one (clocks of two threads) adds
//! nothing to the integral and does not move the clock back.

use std::time::Instant;

/// Counts of one revision, or of one pod.
#[derive(Debug)]
pub struct RequestStats {
    concurrency: u64,
    proxied_concurrency: u64,
    request_count: u64,
    proxied_count: u64,
    concurrency_seconds: f64,
    proxied_seconds: f64,
    seconds_in_use: f64,
    last_change: Instant,
}

/// What happened since the last report.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Report {
    pub average_concurrency: f64,
    pub average_proxied_concurrency: f64,
    pub request_count: f64,
    pub proxied_request_count: f64,
}

// === impl RequestStats ===

impl RequestStats {
    pub fn new(now: Instant) -> Self {
        Self {
            concurrency: 0,
            proxied_concurrency: 0,
            request_count: 0,
            proxied_count: 0,
            concurrency_seconds: 0.0,
            proxied_seconds: 0.0,
            seconds_in_use: 0.0,
            last_change: now,
        }
    }

    /// A request starts; `proxied` if another process has reported it already.
    pub fn enter(&mut self, now: Instant, proxied: bool) {
        self.integrate(now);
        self.concurrency += 1;
        self.request_count += 1;
        if proxied {
            self.proxied_concurrency += 1;
            self.proxied_count += 1;
        }
    }

    /// A request ends.
    pub fn leave(&mut self, now: Instant, proxied: bool) {
        self.integrate(now);
        self.concurrency = self.concurrency.saturating_sub(1);
        if proxied {
            self.proxied_concurrency = self.proxied_concurrency.saturating_sub(1);
        }
    }

    /// Requests in flight.
    pub fn concurrency(&self) -> u64 {
        self.concurrency
    }

    /// True if neither a request nor a count waits to be reported.
    pub fn is_quiet(&self) -> bool {
        self.concurrency == 0 && self.request_count == 0
    }

    /// Closes the period.
    pub fn report(&mut self, now: Instant) -> Report {
        self.integrate(now);
        let average = |sum: f64| if self.seconds_in_use > 0.0 { sum / self.seconds_in_use } else { 0.0 };
        let report = Report {
            average_concurrency: average(self.concurrency_seconds),
            average_proxied_concurrency: average(self.proxied_seconds),
            request_count: self.request_count as f64,
            proxied_request_count: self.proxied_count as f64,
        };
        (self.request_count, self.proxied_count) = (0, 0);
        (self.concurrency_seconds, self.proxied_seconds, self.seconds_in_use) = (0.0, 0.0, 0.0);
        report
    }

    fn integrate(&mut self, now: Instant) {
        let Some(passed) = now.checked_duration_since(self.last_change) else { return };
        let seconds = passed.as_secs_f64();
        self.seconds_in_use += seconds;
        self.concurrency_seconds += self.concurrency as f64 * seconds;
        self.proxied_seconds += self.proxied_concurrency as f64 * seconds;
        self.last_change = now;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn averages_are_weighted_by_time_and_carry_over() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut stats = RequestStats::new(start);
        stats.enter(at(0), false);
        stats.enter(at(500), true);
        let report = stats.report(at(1000));
        assert_eq!(
            report,
            Report {
                average_concurrency: 1.5,
                average_proxied_concurrency: 0.5,
                request_count: 2.0,
                proxied_request_count: 1.0
            }
        );
        stats.leave(at(1500), false);
        let report = stats.report(at(2000));
        assert_eq!((report.average_concurrency, report.request_count), (1.5, 0.0));
        assert_eq!(stats.concurrency(), 1);
    }

    #[test]
    fn no_time_means_no_average_and_a_step_back_is_ignored() {
        let start = Instant::now() + Duration::from_secs(1);
        let mut stats = RequestStats::new(start);
        stats.enter(start, false);
        stats.enter(start - Duration::from_secs(1), false);
        let report = stats.report(start);
        assert_eq!((report.average_concurrency, report.request_count), (0.0, 2.0));
        assert_eq!(stats.report(start + Duration::from_secs(1)).average_concurrency, 2.0);
    }
}
