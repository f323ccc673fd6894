//! One plain request on its way through the chain.

use tokio::time::Instant;
use wire::{Client, Failure, Plain};

use super::Direct;
use crate::chain::Ticket;

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
        if let Some(breaker) = &chain.breaker {
            let slot = match breaker.try_acquire() {
                Some(slot) => Ok(Ok(slot)),
                None => client.race(breaker.acquire()).await,
            };
            match slot {
                Ok(Ok(slot)) => ticket.admit(slot),
                Ok(Err(full)) => {
                    client.consume(plain.head + plain.body);
                    let fields = "X-Content-Type-Options: nosniff\r\nRetry-After: 1\r\n";
                    let kept = client.reply("503 Service Unavailable", fields, &format!("{full}\n")).await;
                    return kept && !plain.last;
                }
                Err(cut) => {
                    client.consume(plain.head + plain.body);
                    return client.cut(cut).await && !plain.last;
                }
            }
        }
        let plain = client.release(plain, None);
        match client.begin(&self.program, plain, &[], &[], out).await {
            Ok(begun) => client.relay(begun, &self.program, out).await.keep,
            Err(Failure::Cut(cut)) => client.cut(cut).await && !plain.last,
            Err(Failure::Client) => false,
            Err(Failure::Backend { message, unsent }) => {
                tracing::warn!(error = message, "error reverse proxying request");
                if unsent {
                    client.consume(plain.head + plain.body);
                }
                let fields = "X-Content-Type-Options: nosniff\r\n";
                client.reply("502 Bad Gateway", fields, &format!("{message}\n")).await && !plain.last
            }
        }
    }
}
