//! The time limits of the requests of one connection, with one sleep for all of them.
//!
//! Limits usually lie minutes ahead and requests end in milliseconds: the sleep of the first request is left as it is
//! by the following ones, whose limits are later. When it fires, it is set to the limit that counts then.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use net::Limits;
use tokio::time::{Instant, Sleep};

pub(crate) struct Clock {
    limits: Limits,
    started: Instant,
    wrote: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

// === impl Clock ===

impl Clock {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, started: Instant::now(), wrote: None, sleep: None }
    }

    /// A request starts, with limits of its own.
    pub(crate) fn start(&mut self, now: Instant, limits: Limits) {
        (self.limits, self.started, self.wrote) = (limits, now, None);
    }

    pub(crate) fn message(&self) -> &'static str {
        self.limits.message
    }

    /// Notes that a piece of the response was written, if a limit depends on it.
    pub(crate) fn wrote(&mut self) {
        let Limits { idle, response_start, .. } = self.limits;
        if idle.is_some() || response_start.is_some() && self.wrote.is_none() {
            self.wrote = Some(Instant::now());
        }
    }

    /// Ready once one of the limits is exceeded.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let next = self.next();
        let sleep = match &mut self.sleep {
            Some(sleep) => {
                if sleep.deadline() > next {
                    sleep.as_mut().reset(next);
                }
                sleep
            }
            none => none.insert(Box::pin(tokio::time::sleep_until(next))),
        };
        loop {
            ready!(sleep.as_mut().poll(cx));
            if next <= Instant::now() {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(next);
        }
    }

    fn next(&self) -> Instant {
        let mut next = self.started + self.limits.total;
        if let Some(limit) = self.limits.response_start
            && self.wrote.is_none()
        {
            next = next.min(self.started + limit);
        }
        if let Some(limit) = self.limits.idle {
            next = next.min(self.wrote.unwrap_or(self.started) + limit);
        }
        next
    }
}
