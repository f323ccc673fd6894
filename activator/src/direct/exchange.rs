//! One plain request on its way to a pod.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use http::{Method, StatusCode, Version};
use tokio::time::Instant;
use wire::{Begun, Client, Cut, Plain};

use super::{Direct, head::Asked};
use crate::{
    dispatch::{Attempt, Broken, Failure, Reached, dispatch},
    handler::{LEFT_SENT, LEFT_WAITING, Progress, REQUEST},
    observed::Described,
    throttler::{Lease, Turn},
};

/// A request that looks for a pod.
struct Sending<'a> {
    client: &'a mut Client,
    plain: Plain,
    /// Its head but for the end.
    out: &'a mut Vec<u8>,
    /// Its body, if it had to wait.
    body: Vec<u8>,
    progress: Progress<'a>,
    /// Its method and the length of its body, if metrics want them.
    seen: Option<(Method, u64)>,
    described: Option<&'a Described>,
    /// What is told of it if the client leaves now.
    left: StatusCode,
}

// === impl Direct ===

impl Direct {
    /// Serves the request at the start of the client's input, whose head for the pod is `out`. When that was done, if
    /// the connection can carry another.
    pub(super) async fn exchange(
        &self,
        client: &mut Client,
        plain: Plain,
        asked: Asked,
        out: &mut Vec<u8>,
    ) -> Option<std::time::Instant> {
        let handler = &*self.handler;
        let Asked { revision, seen, described } = asked;
        let _in_flight = handler.in_flight.enter();
        let now = Instant::now();
        let counted = handler.reporter.enter(&revision, now.into_std());
        client.start(now, revision.limits);
        let plain = client.release(plain, None);
        let turn = Turn::new(REQUEST + out.capacity() + plain.body);
        let progress = Progress::start(&revision, &handler.metrics, now.into_std());
        let watched = seen.as_ref().map(|seen| (seen.method.clone(), seen.bytes));
        if let Some(described) = &described {
            let _ = described.waiting.set(now.into_std());
        }
        let described = described.as_deref();
        let mut sending =
            Sending { client, plain, out, body: Vec::new(), progress, seen: watched, described, left: LEFT_WAITING };
        let outcome = dispatch(&revision.throttler, &revision.backends, turn, &mut sending).await;
        let Sending { client, plain, out, progress, left, .. } = sending;
        let (keep, status, bytes) = match outcome {
            Ok((begun, lease)) => {
                if handler.server_timing {
                    out.truncate(out.len() - 2);
                    wire::write_field(out, "Server-Timing", progress.timing().as_bytes());
                    out.extend_from_slice(b"\r\n");
                }
                let status = StatusCode::from_u16(begun.answer.status).unwrap_or(StatusCode::OK);
                let relayed = client.relay(begun, lease.pod().direct(), out).await;
                (relayed.keep, if relayed.broken { StatusCode::INTERNAL_SERVER_ERROR } else { status }, relayed.bytes)
            }
            Err(failure) => {
                client.consume(plain.head + plain.body);
                let (keep, status, bytes) = refuse(client, failure, left).await;
                (keep && !plain.last, status, bytes)
            }
        };
        if let Some(seen) = seen {
            handler.metrics.served(Some(&revision), &seen.outcome(status, bytes));
        }
        if let Some(described) = described {
            handler.observers.record(described, &revision, status, bytes);
        }
        let now = std::time::Instant::now();
        counted.leave(now);
        keep.then_some(now)
    }
}

/// Says why there is no answer. Whether the connection can carry another request, and what was answered, or is told
/// (`left`) where the client has gone.
async fn refuse(client: &mut Client, failure: Failure<wire::Failure>, left: StatusCode) -> (bool, StatusCode, u64) {
    const PLAIN: &str = "X-Content-Type-Options: nosniff\r\n";
    let (status, fields, text) = match failure {
        Failure::Refused(refused) => match refused.retry_after() {
            Some(seconds) => {
                (StatusCode::SERVICE_UNAVAILABLE, format!("{PLAIN}Retry-After: {seconds}\r\n"), format!("{refused}\n"))
            }
            None => (StatusCode::INTERNAL_SERVER_ERROR, String::new(), String::new()),
        },
        Failure::End(wire::Failure::Cut(Cut::Time)) => {
            return (client.cut(Cut::Time).await, StatusCode::GATEWAY_TIMEOUT, 0);
        }
        Failure::End(wire::Failure::Cut(Cut::Gone) | wire::Failure::Client) => return (false, left, 0),
        Failure::End(wire::Failure::Backend { message, .. }) => {
            tracing::warn!(error = message, "error reverse proxying request");
            (StatusCode::BAD_GATEWAY, PLAIN.to_owned(), format!("{message}\n"))
        }
    };
    let line = format!("{} {}", status.as_str(), status.canonical_reason().unwrap_or_default());
    (client.reply(&line, &fields, &text).await, status, text.len() as u64)
}

// === impl Sending ===

impl Attempt for Sending<'_> {
    type Answer = Begun;
    type End = wire::Failure;

    async fn wait<F: Future + Send>(&mut self, work: F) -> Result<F::Output, wire::Failure> {
        let mut work = pin!(work);
        if let Poll::Ready(done) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Ok(done);
        }
        self.left = LEFT_WAITING;
        // It may be long, and others need the buffer.
        self.plain = self.client.release(self.plain, Some(&mut self.body));
        self.client.race(work).await.map_err(wire::Failure::Cut)
    }

    fn admitted(&mut self) {
        self.progress.admitted();
        self.left = LEFT_SENT;
        if let Some(described) = self.described {
            let _ = described.sent.set(std::time::Instant::now());
        }
    }

    async fn send(&mut self, lease: &Lease) -> Result<Begun, Broken<wire::Failure>> {
        let pod = lease.pod();
        let begun = self.client.begin(pod.direct(), self.plain, pod.end_of_head(), &self.body, self.out).await;
        if let Some((method, bytes)) = &self.seen {
            let status = begun.as_ref().ok().and_then(|begun| StatusCode::from_u16(begun.answer.status).ok());
            self.progress.sent(pod, method.as_str(), Version::HTTP_11, *bytes, status);
        }
        begun.map_err(|error| {
            let reached = match error {
                wire::Failure::Backend { told: true, .. } => Reached::Sidecar,
                wire::Failure::Backend { unsent: true, .. } => Reached::Nobody,
                _ => Reached::Perhaps,
            };
            if reached == Reached::Perhaps {
                // It is consumed.
                self.plain = Plain { head: 0, body: 0, ..self.plain };
            }
            Broken { error, reached }
        })
    }
}
