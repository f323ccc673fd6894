//! Several threads at one throttler, in every order that a seed may choose.
//!
//! The simulation of everything (see `simulation`) runs on one thread. Here it is the other way round: only admission,
//! by threads that take turns at every step that another could see. `INTERLEAVED_SEED=n` replays a seed,
//! `INTERLEAVED_SEEDS=n` says how many to run.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::Poll,
};

use parking_lot::Mutex;

use super::{Bound, Lease, Link, Pod, Policy, QueueLimit, Refused, Throttler, Turn};
use crate::preempt::{self, point};

/// What the threads share besides the throttler.
struct Rig {
    throttler: Throttler,
    limit: Arc<QueueLimit>,
    concurrency: usize,
    pods: Vec<Arc<Pod>>,
    /// By pod: what runs there, and whether it is certainly not among the pods.
    seen: Mutex<Vec<(usize, bool)>>,
}

// === impl Rig ===

impl Rig {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let bound = Bound { each: 100, total: 100 };
        let limit = QueueLimit::new(bound, Bound { each: 1 << 20, total: 1 << 20 });
        let policies = [Policy::LeastOfTwo, Policy::FirstAvailable, Policy::RoundRobin, Policy::Random];
        let throttler = Throttler::new(limit.clone(), policies[random.usize(..4)]);
        let (concurrency, count) = (random.usize(..3), random.u16(1..=3));
        let pod = |port| Pod::new(SocketAddr::from(([127, 0, 0, 1], port)).into(), concurrency, &Link::plain());
        let seen = Mutex::new(vec![(0, true); usize::from(count)]);
        Self { throttler, limit, concurrency, pods: (1..=count).map(pod).collect(), seen }
    }

    fn index(&self, lease: &Lease) -> usize {
        usize::from(lease.pod().address().port()) - 1
    }

    /// Some requests, one after the other; some are given up at some moment.
    async fn requests(&self) {
        for _ in 0..1 + fastrand::usize(..3) {
            let mut turn = Turn::new(10);
            loop {
                let acquire = self.throttler.acquire(&mut turn);
                let lease = match fastrand::u8(..4) {
                    0 => given_up(acquire).await,
                    _ => Some(acquire.await),
                };
                let Some(lease) = lease else { break };
                let lease = lease.expect("there is room");
                if lease.pod().is_open() {
                    self.run(lease);
                    break;
                }
            }
        }
    }

    fn run(&self, lease: Lease) {
        let index = self.index(&lease);
        {
            let (running, gone) = &mut self.seen.lock()[index];
            assert!(!*gone, "a request goes to a pod that had left before");
            *running += 1;
            assert!(self.concurrency == 0 || *running <= self.concurrency, "containerConcurrency was exceeded");
        }
        (0..fastrand::usize(..4)).for_each(|_| point());
        self.seen.lock()[index].0 -= 1;
        drop(lease);
    }

    /// Pods come and go; in the end all are there.
    fn changes(&self) {
        for _ in 0..fastrand::usize(..6) {
            let some: Vec<bool> = self.pods.iter().map(|_| fastrand::bool()).collect();
            self.publish(&some);
        }
        self.publish(&vec![true; self.pods.len()]);
    }

    fn publish(&self, listed: &[bool]) {
        for (index, listed) in listed.iter().enumerate() {
            self.seen.lock()[index].1 &= !listed;
        }
        let is_used = |pod: &Arc<Pod>| self.throttler.pods().iter().any(|used| Arc::ptr_eq(used, pod));
        let some = |wanted: &dyn Fn(&Arc<Pod>, bool) -> bool| -> Vec<_> {
            let pods = self.pods.iter().zip(listed).filter(|(pod, listed)| wanted(pod, **listed));
            pods.map(|(pod, _)| pod.clone()).collect()
        };
        if fastrand::bool() {
            self.throttler.set_pods(some(&|_, listed| listed));
        } else {
            let gone = some(&|pod, listed| !listed && is_used(pod));
            self.throttler.change_pods(&gone, some(&|pod, listed| listed && !is_used(pod)));
        }
        for (index, listed) in listed.iter().enumerate() {
            self.seen.lock()[index].1 = !listed;
        }
    }
}

/// Looks a few times at most, and is gone then.
async fn given_up(acquire: impl Future<Output = Result<Lease, Refused>>) -> Option<Result<Lease, Refused>> {
    let mut acquire = pin!(acquire);
    poll_fn(|cx| {
        for _ in 0..1 + fastrand::usize(..3) {
            if let Poll::Ready(lease) = acquire.as_mut().poll(cx) {
                return Poll::Ready(Some(lease));
            }
            point();
        }
        Poll::Ready(None)
    })
    .await
}

/// Runs one seed; panics if anything is not as it must be.
fn interleave(seed: u64) {
    let rig = Rig::new(seed);
    let ended = preempt::run(seed, || rig.requests(), || async { rig.changes() });
    assert!(ended, "a request waits though every pod is there and nobody uses them");
    assert_eq!((rig.throttler.waiting(), rig.limit.held()), (0, (0, 0)), "places in the queue leaked");
    assert!(rig.pods.iter().all(|pod| pod.in_flight() == 0), "slots leaked");
}

#[test]
fn threads_take_and_give_slots_in_any_order() {
    preempt::for_seeds(interleave);
}
