//! One plain request on its way through the chain.

use http::StatusCode;
use net::{Breaker, Slot};
use tokio::time::Instant;
use wire::{Client, Cut, Failure, Plain};

use super::{Direct, head::Asked, watch::Watch};
use crate::chain::Ticket;

/// Why a request got no slot.
enum Refusal {
    Cut(Cut),
    /// There is no room to wait, for this reason.
    Full(String),
}

// === impl Direct ===

impl Direct {
    /// Serves the request at the start of the client's input, whose head for the program is `out`. True if the
    /// connection can carry another.
    pub(super) async fn exchange(&self, client: &mut Client, plain: Plain, asked: Asked, out: &mut Vec<u8>) -> bool {
        let chain = &self.chain;
        let Asked { proxied, seen } = asked;
        let mut watch = Watch::new(&chain.observers, seen);
        chain.drainer.request();
        let now = Instant::now();
        client.start(now, chain.limits);
        let mut ticket = Ticket::new(chain.in_flight.enter());
        ticket.count(&chain.stats, now.into_std(), proxied);
        // What waits gives its buffer back; a body that is here already waits apart.
        let mut body = Vec::new();
        let plain = if let Some(breaker) = &chain.breaker {
            watch.waits();
            let (slot, plain) = match breaker.try_acquire() {
                Some(slot) => (slot, client.release(plain, None)),
                None => {
                    let plain = client.release(plain, Some(&mut body));
                    match self.wait(client, breaker, out.len() + body.len()).await {
                        Ok(slot) => (slot, plain),
                        Err(Refusal::Cut(cut)) => return watch.cut(client, cut).await && !plain.last,
                        Err(Refusal::Full(why)) => {
                            let fields = "X-Content-Type-Options: nosniff\r\nRetry-After: 1\r\n";
                            let status = StatusCode::SERVICE_UNAVAILABLE;
                            return watch.reply(client, status, fields, &format!("{why}\n")).await && !plain.last;
                        }
                    }
                }
            };
            ticket.admit(slot);
            plain
        } else {
            client.release(plain, None)
        };
        watch.dispatched(chain.breaker.as_ref());
        match client.begin(&self.program, plain, &[], &body, out).await {
            Ok(begun) => {
                watch.answered(out);
                let status = begun.answer.status;
                let relayed = client.relay(begun, &self.program, out).await;
                watch.relayed(status, relayed);
                relayed.keep
            }
            Err(Failure::Cut(cut)) => watch.cut(client, cut).await && !plain.last,
            Err(Failure::Client) => false,
            Err(Failure::Backend { message, unsent, .. }) => {
                net::log_failure(&message);
                let mut fields = "X-Content-Type-Options: nosniff\r\n";
                if unsent {
                    client.consume(plain.head + plain.body);
                    if proxied {
                        fields = "X-Content-Type-Options: nosniff\r\nK-Unsent: true\r\n";
                    }
                }
                watch.reply(client, StatusCode::BAD_GATEWAY, fields, &format!("{message}\n")).await && !plain.last
            }
        }
    }

    /// Waits for a slot; the request holds `bytes` meanwhile.
    async fn wait(&self, client: &mut Client, breaker: &Breaker, bytes: usize) -> Result<Slot, Refusal> {
        let _held = self.chain.pending.hold(bytes).map_err(|full| Refusal::Full(full.to_string()))?;
        match client.race(breaker.acquire()).await {
            Ok(slot) => slot.map_err(|full| Refusal::Full(full.to_string())),
            Err(cut) => Err(Refusal::Cut(cut)),
        }
    }
}
