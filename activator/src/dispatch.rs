//! From a held request to a pod that has it.
//!
//! A request goes to the pod whose slot it was given. If that pod has certainly not seen it (no connection, or one
//! that went away before the request was written), the pod is set aside and the request waits for another slot, at
//! the head of the queue.
//!
//! It is the same if a sidecar says that its program is not there, except that the client gets that answer, as it would
//! from upstream, if no pod takes the request soon. Should the pod leave the endpoints meanwhile, it was on its way
//! out, and the request waits as long as any other.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures::future::{Either, select};

use crate::{
    backends::Backends,
    throttler::{Lease, Pod, Refused, Throttler, Turn},
};

/// How often a request that no pod has seen yet is sent again.
const ATTEMPTS: usize = 20;
/// How long a request whose pod has no program looks for another: a container that ended is started again at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// Sends one request, as often as it takes.
pub(crate) trait Attempt {
    type Answer;
    /// Why there is no answer.
    type End: Send;
    /// Waits for a slot, as long as that makes sense.
    fn wait<F: Future + Send>(&mut self, slot: F) -> impl Future<Output = Result<F::Output, Self::End>> + Send;
    /// It is this request's turn, though its pod may have gone away since.
    fn granted(&mut self) {}
    /// A slot was had.
    fn admitted(&mut self);
    fn send(&mut self, lease: &Lease) -> impl Future<Output = Result<Self::Answer, Broken<Self::End>>> + Send;
    /// Ends after [`PATIENCE`].
    fn patience(&self) -> Patience {
        Box::pin(tokio::time::sleep(PATIENCE))
    }
}

pub(crate) type Patience = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A request was not answered.
#[derive(Debug)]
pub(crate) struct Broken<E> {
    pub(crate) error: E,
    pub(crate) reached: Reached,
}

/// How far a request got that was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reached {
    /// The pod has certainly not seen it.
    Nobody,
    /// The pod's sidecar, which says that the program has not.
    Sidecar,
    /// Perhaps the program.
    Perhaps,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure<E> {
    Refused(Refused),
    End(E),
}

/// A request that a sidecar could not pass on.
struct Told<E> {
    error: E,
    pod: Arc<Pod>,
}

/// Waits for a slot and sends the request to its pod; the slot is kept for the response.
pub(crate) async fn dispatch<S: Attempt>(
    throttler: &Throttler,
    backends: &Backends,
    mut turn: Turn,
    request: &mut S,
) -> Result<(S::Answer, Lease), Failure<S::End>> {
    let mut attempt = 1;
    let mut told: Option<Told<S::End>> = None;
    let mut patience: Option<Patience> = None;
    loop {
        let waited = match &mut patience {
            None => request.wait(throttler.acquire(&mut turn)).await.map(Some),
            Some(patience) => request.wait(within(throttler.acquire(&mut turn), patience)).await,
        };
        let lease = match waited {
            Ok(Some(Ok(lease))) => lease,
            Ok(Some(Err(refused))) => return Err(Failure::Refused(refused)),
            Ok(None) => {
                patience = None;
                match told.take() {
                    Some(told) if backends.knows(&told.pod) => return Err(Failure::End(told.error)),
                    _ => continue,
                }
            }
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
        if broken.reached == Reached::Perhaps || attempt == ATTEMPTS {
            return Err(Failure::End(broken.error));
        }
        tracing::debug!(pod = %lease.pod().address(), "sending elsewhere");
        attempt += 1;
        backends.failed(lease.pod());
        if broken.reached == Reached::Sidecar {
            told = Some(Told { error: broken.error, pod: lease.pod().clone() });
            patience.get_or_insert_with(|| request.patience());
        }
    }
}

/// The output of `work`, if it ends in time.
async fn within<F: Future>(work: F, patience: &mut Patience) -> Option<F::Output> {
    match select(std::pin::pin!(work), patience).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}
