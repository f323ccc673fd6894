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

#[cfg(test)]
mod tests {
    use std::{future::pending, net::SocketAddr};

    use super::*;
    use crate::{
        backends::{Addresses, Groups, NoProbes, Reach, Treatment},
        throttler::{Bound, Policy, QueueLimit},
    };

    /// A request that only pods beyond the first take; the first one's program is not there.
    struct Picky;

    impl Attempt for Picky {
        type Answer = u16;
        type End = &'static str;

        async fn wait<F: Future + Send>(&mut self, slot: F) -> Result<F::Output, &'static str> {
            Ok(slot.await)
        }

        fn admitted(&mut self) {}

        async fn send(&mut self, lease: &Lease) -> Result<u16, Broken<&'static str>> {
            match lease.pod().address().port() {
                1 => Err(Broken { error: "no program", reached: Reached::Sidecar }),
                2 => Err(Broken { error: "refused", reached: Reached::Nobody }),
                port => Ok(port),
            }
        }
    }

    fn listed(ports: &[u16]) -> Groups {
        let ready = ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port)).into()).collect();
        Addresses { ready, ..Addresses::default() }.groups()
    }

    /// What comes of a request to a revision with pods at these ports, while `meanwhile` goes on.
    async fn outcome(ports: &[u16], meanwhile: impl AsyncFnOnce(&Backends)) -> Result<u16, &'static str> {
        let bound = Bound { each: 1000, total: 1000 };
        let throttler = Throttler::new(QueueLimit::new(bound, bound), Policy::FirstAvailable);
        let treatment = Treatment { reach: Reach::Pods, ..Treatment::of("rev") };
        let backends = Backends::new(throttler.clone(), treatment, Arc::new(NoProbes));
        backends.update("rev-private", &listed(ports));
        let turn = Turn::new(0);
        let mut picky = Picky;
        let dispatched = std::pin::pin!(dispatch(&throttler, &backends, turn, &mut picky));
        let changes = std::pin::pin!(async {
            meanwhile(&backends).await;
            pending::<()>().await;
        });
        match select(dispatched, changes).await {
            Either::Left((Ok((port, _)), _)) => Ok(port),
            Either::Left((Err(Failure::End(end)), _)) => Err(end),
            _ => panic!("refused"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_without_its_program_is_said_so_unless_another_takes_the_request() {
        let begun = tokio::time::Instant::now();
        assert_eq!(outcome(&[1, 3], async |_| {}).await, Ok(3));
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(outcome(&[1], async |_| {}).await, Err("no program"));
        assert_eq!(outcome(&[1, 2], async |_| {}).await, Err("no program"));
        assert_eq!(begun.elapsed().as_secs(), 2 * PATIENCE.as_secs());
        let soon = async |backends: &Backends| {
            tokio::time::sleep(PATIENCE / 2).await;
            backends.update("rev-private", &listed(&[1, 4]));
        };
        assert_eq!(outcome(&[1], soon).await, Ok(4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_left_was_on_its_way_out_and_the_request_waits() {
        let late = async |backends: &Backends| {
            tokio::time::sleep(PATIENCE / 2).await;
            backends.update("rev-private", &listed(&[]));
            tokio::time::sleep(PATIENCE * 10).await;
            backends.update("rev-private", &listed(&[4]));
        };
        assert_eq!(outcome(&[1], late).await, Ok(4));
        // Who was not reached at all waits as well.
        let late = async |backends: &Backends| {
            tokio::time::sleep(PATIENCE * 10).await;
            backends.update("rev-private", &listed(&[2, 5]));
        };
        assert_eq!(outcome(&[2], late).await, Ok(5));
    }
}
