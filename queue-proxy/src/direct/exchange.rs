//! One plain request on its way through the chain.

use net::{Breaker, Slot};
use tokio::time::Instant;
use wire::{Client, Cut, Failure, Plain};

use super::Direct;
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
    pub(super) async fn exchange(&self, client: &mut Client, plain: Plain, proxied: bool, out: &mut Vec<u8>) -> bool {
        let chain = &self.chain;
        chain.drainer.request();
        let now = Instant::now();
        client.start(now, chain.limits);
        let mut ticket = Ticket::new(chain.in_flight.enter());
        ticket.count(&chain.stats, now.into_std(), proxied);
        // What waits gives its buffer back; a body that is here already waits apart.
        let mut body = Vec::new();
        let plain = if let Some(breaker) = &chain.breaker {
            let (slot, plain) = match breaker.try_acquire() {
                Some(slot) => (slot, client.release(plain, None)),
                None => {
                    let plain = client.release(plain, Some(&mut body));
                    match self.wait(client, breaker, out.len() + body.len()).await {
                        Ok(slot) => (slot, plain),
                        Err(Refusal::Cut(cut)) => return client.cut(cut).await && !plain.last,
                        Err(Refusal::Full(why)) => {
                            let fields = "X-Content-Type-Options: nosniff\r\nRetry-After: 1\r\n";
                            let kept = client.reply("503 Service Unavailable", fields, &format!("{why}\n")).await;
                            return kept && !plain.last;
                        }
                    }
                }
            };
            ticket.admit(slot);
            plain
        } else {
            client.release(plain, None)
        };
        match client.begin(&self.program, plain, &[], &body, out).await {
            Ok(begun) => client.relay(begun, &self.program, out).await.keep,
            Err(Failure::Cut(cut)) => client.cut(cut).await && !plain.last,
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
                client.reply("502 Bad Gateway", fields, &format!("{message}\n")).await && !plain.last
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
