//! From a held request to a pod that has it.
//!
//! A request goes to the pod whose slot it was given. If that pod has certainly not seen it (no connection, or one
//! that went away before the request was written), the pod is set aside and the request waits for another slot, at
//! the head of the queue.

use std::future::Future;

use net::SendFailure;

use crate::{
    backends::Backends,
    throttler::{Lease, Refused, Throttler, Turn},
};

/// How often a request that no pod has seen yet is sent again.
const ATTEMPTS: usize = 20;

/// Sends one request, as often as it takes.
pub(crate) trait Attempt {
    type Answer;
    /// It is this request's turn, though its pod may have gone away since.
    fn granted(&mut self) {}
    /// A slot was had.
    fn admitted(&mut self);
    fn send(&mut self, lease: &Lease) -> impl Future<Output = Result<Self::Answer, SendFailure>> + Send;
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Refused(#[from] Refused),
    #[error("{0}")]
    Send(#[from] SendFailure),
}

/// Waits for a slot and sends the request to its pod; the slot is kept for the response.
pub(crate) async fn dispatch<S: Attempt>(
    throttler: &Throttler,
    backends: &Backends,
    mut turn: Turn,
    request: &mut S,
) -> Result<(S::Answer, Lease), Failure> {
    let mut attempt = 1;
    loop {
        let lease = throttler.acquire(&mut turn).await?;
        request.granted();
        if !lease.pod().is_open() {
            // It went away between the grant and now.
            continue;
        }
        request.admitted();
        let failure = match request.send(&lease).await {
            Ok(answer) => return Ok((answer, lease)),
            Err(failure) => failure,
        };
        if !failure.unsent || attempt == ATTEMPTS {
            return Err(failure.into());
        }
        tracing::debug!(pod = %lease.pod().address(), error = %failure, "sending elsewhere");
        attempt += 1;
        backends.failed(lease.pod());
    }
}
