//! What is told of a plain request while it goes its way, where somebody wants to know. Nothing otherwise.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use http::StatusCode;
use net::Breaker;
use wire::{Client, Cut, Relayed, write_field};

use crate::observed::{Ending, Observers, Seen};

pub(super) struct Watch<'a> {
    observers: &'a Observers,
    /// With what records the request as one whose client has left, until it is known how it ended.
    seen: Option<(Arc<Seen>, Ending)>,
}

// === impl Watch ===

impl<'a> Watch<'a> {
    pub(super) fn new(observers: &'a Arc<Observers>, seen: Option<Arc<Seen>>) -> Self {
        let seen = seen.map(|seen| {
            let ending = Ending::new(observers, &seen);
            (seen, ending)
        });
        Self { observers, seen }
    }

    /// It comes to the breaker.
    pub(super) fn waits(&self) {
        if let Some((seen, _)) = &self.seen {
            let _ = seen.waited.set(Instant::now());
        }
    }

    /// It goes to the program.
    pub(super) fn dispatched(&self, breaker: Option<&Breaker>) {
        let Some((seen, _)) = &self.seen else { return };
        let _ = seen.program.set(Instant::now());
        if let (Some(metrics), Some(breaker)) = (&self.observers.metrics, breaker) {
            metrics.dispatched(breaker.in_flight());
        }
    }

    /// The program has answered; `head` is what the client gets.
    pub(super) fn answered(&self, head: &mut Vec<u8>) {
        let Some((seen, _)) = &self.seen else { return };
        seen.answered.store(true, Ordering::Release);
        if let Some(timing) = self.timing() {
            head.truncate(head.len() - 2);
            write_field(head, "Server-Timing", timing.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
    }

    pub(super) fn relayed(&mut self, status: u16, relayed: Relayed) {
        self.record(StatusCode::from_u16(status).unwrap_or_default(), relayed.bytes, relayed.broken);
    }

    /// An answer of our own. True if the client took it.
    pub(super) async fn reply(&mut self, client: &mut Client, status: StatusCode, fields: &str, text: &str) -> bool {
        let line = format!("{} {}", status.as_str(), status.canonical_reason().unwrap_or_default());
        let timing = self.timing().map(|timing| format!("{fields}Server-Timing: {timing}\r\n"));
        let taken = client.reply(&line, timing.as_deref().unwrap_or(fields), text).await;
        self.record(status, if client.is_bodiless() { 0 } else { text.len() as u64 }, false);
        taken
    }

    /// What a cut leads to. True if the connection can carry another request.
    pub(super) async fn cut(&mut self, client: &mut Client, cut: Cut) -> bool {
        match cut {
            Cut::Gone => false,
            Cut::Time => {
                let message = client.message();
                self.reply(client, StatusCode::GATEWAY_TIMEOUT, "", message).await
            }
        }
    }

    fn timing(&self) -> Option<String> {
        self.seen.as_ref().filter(|_| self.observers.server_timing)?.0.timing()
    }

    fn record(&mut self, status: StatusCode, bytes: u64, broken: bool) {
        if let Some((seen, ending)) = self.seen.take() {
            ending.disarm();
            self.observers.record(&seen, status, bytes, broken);
        }
    }
}
