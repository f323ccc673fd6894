//! From a held request to a pod that has it.
//!
//! A request goes to the pod whose slot it was given. If that pod has certainly not seen it (no connection, or one
//! that went away before the request was written), the pod is set aside and the request waits for another slot, at
//! the head of the queue.

use std::future::Future;

use crate::{
    backends::Backends,
    throttler::{Lease, Refused, Throttler, Turn},
};

/// How often a request that no pod has seen yet is sent again.
const ATTEMPTS: usize = 20;

/// Sends one request, as often as it takes.
pub(crate) trait Attempt {
    type Answer;
    /// Why there is no answer.
    type End;
    /// Waits for a slot, as long as that makes sense.
    fn wait<F: Future + Send>(&mut self, slot: F) -> impl Future<Output = Result<F::Output, Self::End>> + Send;
    /// It is this request's turn, though its pod may have gone away since.
    fn granted(&mut self) {}
    /// A slot was had.
    fn admitted(&mut self);
    fn send(&mut self, lease: &Lease) -> impl Future<Output = Result<Self::Answer, Broken<Self::End>>> + Send;
}

/// A request was not answered.
#[derive(Debug)]
pub(crate) struct Broken<E> {
    pub(crate) error: E,
    /// The pod has certainly not seen it.
    pub(crate) unsent: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure<E> {
    Refused(Refused),
    End(E),
}

/// Waits for a slot and sends the request to its pod; the slot is kept for the response.
pub(crate) async fn dispatch<S: Attempt>(
    throttler: &Throttler,
    backends: &Backends,
    mut turn: Turn,
    request: &mut S,
) -> Result<(S::Answer, Lease), Failure<S::End>> {
    let mut attempt = 1;
    loop {
        let lease = match request.wait(throttler.acquire(&mut turn)).await {
            Ok(Ok(lease)) => lease,
            Ok(Err(refused)) => return Err(Failure::Refused(refused)),
            Err(end) => return Err(Failure::End(end)),
        };
        request.granted();
        if !lease.pod().is_open() {
            // It went away between the grant and now.
            continue;
        }
        request.admitted();
        let broken = match request.send(&lease).await {
            Ok(answer) => return Ok((answer, lease)),
            Err(broken) => broken,
        };
        if !broken.unsent || attempt == ATTEMPTS {
            return Err(Failure::End(broken.error));
        }
        tracing::debug!(pod = %lease.pod().address(), "sending elsewhere");
        attempt += 1;
        backends.failed(lease.pod());
    }
}
