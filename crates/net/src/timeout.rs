//! The three time limits of a request: in total, until the response starts, and between two pieces of it.
//!
//! One sleep per request serves all three. It is set to whichever limit comes first; when it fires it looks at what
//! was written since and either ends the request or is set again, so that writing costs no timer operation.
//!
//! As upstream: the total limit is hard, also in the middle of a response; a request that has written nothing yet is
//! idle from its start; progress of the request's body does not count; an interim response is something written.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use crate::{Incoming, incoming::Interim};

/// What a revision allows its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub total: Duration,
    pub response_start: Option<Duration>,
    pub idle: Option<Duration>,
    /// The body of the 504, and what is appended to a response that is cut off.
    pub message: &'static str,
}

/// The limits of one request, counting from its creation.
#[derive(Debug)]
pub struct Timer {
    limits: Limits,
    started: Instant,
    last_write: Option<Instant>,
    sleep: Pin<Box<Sleep>>,
    /// Where interim responses are written.
    interim: Option<Interim>,
}

// === impl Timer ===

impl Timer {
    pub fn start(limits: Limits) -> Self {
        let started = Instant::now();
        let first = [Some(limits.total), limits.response_start, limits.idle].into_iter().flatten().min();
        let sleep = Box::pin(tokio::time::sleep_until(started + first.unwrap_or(limits.total)));
        Self { limits, started, last_write: None, sleep, interim: None }
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn message(&self) -> &'static str {
        self.limits.message
    }

    /// Counts interim responses of `request` as written.
    pub fn watch(&mut self, request: &http::Request<Incoming>) {
        self.interim = Interim::of(request);
    }

    /// When the total limit is reached.
    pub fn deadline(&self) -> Instant {
        self.started + self.limits.total
    }

    /// Notes that a piece of the response was written.
    pub fn wrote(&mut self) {
        if self.limits.idle.is_some() || self.last_write.is_none() {
            self.last_write = Some(Instant::now());
        }
    }

    /// Ready once one of the limits is exceeded.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            match self.next(Instant::now()) {
                Some(next) => self.sleep.as_mut().reset(next),
                None => return Poll::Ready(()),
            }
        }
    }

    /// Runs `work` within the limits; `None` if they end it. The work is dropped then.
    pub async fn limit<F: Future>(&mut self, work: F) -> Option<F::Output> {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(output) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            self.poll_expired(cx).map(|()| None)
        })
        .await
    }

    /// The next moment to look again, or `None` if a limit is exceeded at `now`.
    fn next(&self, now: Instant) -> Option<Instant> {
        let mut next = self.deadline();
        let last_write = self.last_write.or_else(|| self.interim.as_ref()?.told());
        if let Some(limit) = self.limits.response_start
            && last_write.is_none()
        {
            next = next.min(self.started + limit);
        }
        if let Some(limit) = self.limits.idle {
            next = next.min(last_write.unwrap_or(self.started) + limit);
        }
        (next > now).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(total: u64, response_start: u64, idle: u64) -> Limits {
        let optional = |seconds| (seconds > 0).then(|| Duration::from_secs(seconds));
        Limits {
            total: Duration::from_secs(total),
            response_start: optional(response_start),
            idle: optional(idle),
            message: "request timeout",
        }
    }

    /// Seconds after its start at which the timer looks again if it looks now, `None` if it expires now.
    fn next(timer: &Timer, now: u64) -> Option<u64> {
        timer.next(timer.started + Duration::from_secs(now)).map(|next| (next - timer.started).as_secs())
    }

    #[tokio::test]
    async fn the_first_limit_that_applies_ends_the_request() {
        let timer = Timer::start(limits(30, 0, 0));
        assert_eq!((next(&timer, 29), next(&timer, 30)), (Some(30), None));
        let timer = Timer::start(limits(30, 10, 0));
        assert_eq!((next(&timer, 0), next(&timer, 10)), (Some(10), None));
        let timer = Timer::start(limits(30, 10, 5));
        assert_eq!((next(&timer, 0), next(&timer, 5)), (Some(5), None));
    }

    #[tokio::test]
    async fn a_started_response_has_met_its_start_limit() {
        let mut timer = Timer::start(limits(30, 10, 0));
        timer.wrote();
        assert_eq!((next(&timer, 10), next(&timer, 30)), (Some(30), None));
    }

    #[tokio::test]
    async fn idle_counts_from_the_last_write() {
        let mut timer = Timer::start(limits(30, 0, 10));
        timer.last_write = Some(timer.started + Duration::from_secs(8));
        assert_eq!((next(&timer, 10), next(&timer, 18)), (Some(18), None));
    }

    #[tokio::test]
    async fn no_time_at_all_ends_at_once() {
        let mut timer = Timer::start(limits(0, 0, 0));
        assert_eq!(timer.limit(std::future::pending::<()>()).await, None);
    }
}
