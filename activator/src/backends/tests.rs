use std::net::SocketAddr;

use super::*;
use crate::throttler::Policy;

fn addresses(ready: &[u16], not_ready: &[u16]) -> Groups {
    let set = |ports: &[u16]| ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port)).into()).collect();
    Addresses { ready: set(ready), not_ready: set(not_ready) }.groups()
}

fn backends() -> (Throttler, Arc<Backends>) {
    treated(Treatment { reach: Reach::Pods, ..Treatment::of("rev") })
}

fn treated(treatment: Treatment) -> (Throttler, Arc<Backends>) {
    let bound = crate::throttler::Bound { each: 1000, total: 1000 };
    let throttler = Throttler::new(crate::throttler::QueueLimit::new(bound, bound), Policy::default());
    (throttler.clone(), Backends::new(throttler, treatment, Arc::new(NoProbes)))
}

fn used(throttler: &Throttler) -> Vec<u16> {
    let mut ports: Vec<_> = throttler.pods().iter().map(|pod| pod.address().port()).collect();
    ports.sort_unstable();
    ports
}

#[test]
fn ready_addresses_are_used_and_those_that_leave_are_not() {
    let (throttler, backends) = backends();
    backends.update("rev-private", &addresses(&[1, 2], &[3]));
    assert_eq!(used(&throttler), [1, 2]);
    backends.update("rev-private", &addresses(&[2], &[1]));
    assert_eq!(used(&throttler), [2]);
    backends.update("rev-private", &addresses(&[], &[]));
    assert!(used(&throttler).is_empty());
}

#[test]
fn a_pod_may_move_from_one_slice_to_another() {
    let (throttler, backends) = treated(Treatment { concurrency: 1, reach: Reach::Pods, ..Treatment::of("rev") });
    backends.update("one", &addresses(&[1, 2], &[]));
    backends.update("two", &addresses(&[3], &[4]));
    assert_eq!(used(&throttler), [1, 2, 3]);
    let first = throttler.pods().get(0).clone();
    // In both for a while, and as ready as either says.
    backends.update("two", &addresses(&[3, 1], &[4, 2]));
    backends.update("one", &addresses(&[2], &[1]));
    assert_eq!(used(&throttler), [1, 2, 3]);
    backends.update("one", &addresses(&[2], &[]));
    backends.update("one", &addresses(&[2], &[]));
    assert_eq!(used(&throttler), [1, 2, 3]);
    assert!(throttler.pods().iter().any(|pod| Arc::ptr_eq(pod, &first)), "it is the same pod all the time");
    // In none for a while.
    backends.update("two", &addresses(&[3], &[]));
    assert_eq!(used(&throttler), [2, 3]);
    backends.update("one", &addresses(&[1, 2], &[]));
    assert_eq!(used(&throttler), [1, 2, 3]);
    backends.update("one", &Groups::default());
    assert_eq!(used(&throttler), [3]);
    backends.clear();
    assert!(used(&throttler).is_empty());
}

/// Many pods of which a few come, go, fail and answer again, while activators join and leave.
#[test]
fn any_few_of_many_pods_leave_each_activator_its_part() {
    let mut random = fastrand::Rng::with_seed(13);
    let (throttler, backends) = treated(Treatment { concurrency: 3, reach: Reach::Pods, ..Treatment::of("rev") });
    let mut peers = Peers { index: 0, count: 1 };
    let mut ready: std::collections::BTreeSet<u16> = (100..160).collect();
    let mut failed = std::collections::BTreeSet::new();
    for _ in 0..2000 {
        match random.u8(..8) {
            0 => {
                let count = random.usize(1..5);
                peers = Peers { index: random.usize(..count), count };
                backends.set_peers(peers);
            }
            1..4 if !ready.is_empty() => {
                let port = random.choice(&ready).copied().expect("some");
                let is_it = |known: &&Known| known.pod.address().port() == port;
                let pod = backends.state.lock().pods.values().find(is_it).expect("listed").pod.clone();
                match failed.remove(&port) {
                    true => backends.succeeded(&pod),
                    false => {
                        backends.failed(&pod);
                        failed.insert(port);
                    }
                }
            }
            _ => {
                let port = random.u16(100..160);
                if !ready.remove(&port) {
                    ready.insert(port);
                }
                failed.remove(&port);
            }
        }
        backends.update("a", &addresses(&ready.iter().copied().collect::<Vec<_>>(), &[]));
        let healthy: Vec<_> = ready.difference(&failed).copied().collect();
        let owned = |index: usize| peers.owns(index, healthy.len());
        let expected: Vec<_> = healthy.iter().enumerate().filter(|(i, _)| owned(*i)).map(|(_, port)| *port).collect();
        assert_eq!(used(&throttler), expected);
    }
}

/// Whatever objects say in whatever order, the pods in use are those that some object lists as ready.
#[test]
fn any_sequence_of_changes_ends_where_it_should() {
    let mut random = fastrand::Rng::with_seed(11);
    for divided in [false, true] {
        let (throttler, backends) = treated(Treatment { concurrency: 3, reach: Reach::Pods, ..Treatment::of("rev") });
        let peers = Peers { index: 0, count: 2 };
        if divided {
            backends.set_peers(peers);
        }
        let mut told: [(Vec<u16>, Vec<u16>); 3] = Default::default();
        for _ in 0..500 {
            let source = random.usize(..3);
            let mut some = || -> Vec<u16> { (1..=9).filter(|_| random.u8(..3) == 0).collect() };
            told[source] = (some(), some());
            backends.update(["a", "b", "c"][source], &addresses(&told[source].0, &told[source].1));
            let ready: std::collections::BTreeSet<_> = told.iter().flat_map(|(ready, _)| ready.clone()).collect();
            let count = ready.len();
            let owned = |index: usize| !divided || peers.owns(index, count);
            let expected: Vec<_> = ready.into_iter().enumerate().filter(|(i, _)| owned(*i)).map(|(_, p)| p).collect();
            assert_eq!(used(&throttler), expected);
        }
    }
}

#[test]
fn a_pod_that_answered_a_probe_stays_in_use_while_it_is_not_ready_yet() {
    let (throttler, backends) = backends();
    backends.update("rev-private", &addresses(&[], &[3]));
    let pod = backends.state.lock().pods.values().next().expect("known").pod.clone();
    backends.succeeded(&pod);
    backends.update("rev-private", &addresses(&[], &[3, 4]));
    assert_eq!(used(&throttler), [3]);
}

#[test]
fn a_pod_that_failed_comes_back_by_its_probe_not_by_the_next_event() {
    let (throttler, backends) = backends();
    backends.update("rev-private", &addresses(&[1, 2], &[]));
    let pod = throttler.pods().get(0).clone();
    backends.failed(&pod);
    backends.update("rev-private", &addresses(&[1, 2, 3], &[]));
    assert_eq!(used(&throttler), [2, 3]);
    backends.succeeded(&pod);
    assert_eq!(used(&throttler), [1, 2, 3]);
}

#[test]
fn a_pod_that_comes_back_still_has_its_requests() {
    let (throttler, backends) = treated(Treatment { concurrency: 1, reach: Reach::Pods, ..Treatment::of("rev") });
    backends.update("rev-private", &addresses(&[1], &[]));
    let acquire = || futures::FutureExt::now_or_never(throttler_acquire(&throttler));
    let lease = acquire().expect("free");
    backends.update("rev-private", &addresses(&[], &[]));
    backends.update("rev-private", &addresses(&[1], &[]));
    assert!(acquire().is_none(), "its only slot is taken");
    drop(lease);
    assert!(acquire().is_some());
}

async fn throttler_acquire(throttler: &Throttler) -> crate::throttler::Lease {
    throttler.acquire(&mut crate::throttler::Turn::new(0)).await.expect("room")
}

#[test]
fn where_only_the_kubelet_can_tell_an_answer_is_not_enough() {
    let (throttler, backends) = treated(Treatment { probe_early: false, reach: Reach::Pods, ..Treatment::of("rev") });
    backends.update("rev-private", &addresses(&[1], &[]));
    let pod = throttler.pods().get(0).clone();
    backends.failed(&pod);
    backends.update("rev-private", &addresses(&[], &[1]));
    backends.succeeded(&pod);
    assert!(used(&throttler).is_empty());
    backends.update("rev-private", &addresses(&[1], &[]));
    assert_eq!(used(&throttler), [1]);
}

fn pod(backends: &Backends, port: u16) -> Arc<Pod> {
    let state = backends.state.lock();
    let mut pods = state.pods.values().map(|known| known.pod.clone());
    pods.find(|pod| pod.address().port() == port).expect("known")
}

#[test]
fn unless_it_is_said_how_pods_are_reached_the_first_has_to_answer() {
    let (throttler, backends) = treated(Treatment::of("rev"));
    backends.update("rev-private", &addresses(&[1, 2], &[]));
    assert!(used(&throttler).is_empty());
    backends.succeeded(&pod(&backends, 1));
    assert_eq!(used(&throttler), [1, 2]);
    backends.update("rev-private", &addresses(&[1, 2, 3], &[]));
    assert_eq!(used(&throttler), [1, 2, 3]);
    // Once pods are known to be reached, a Service that answers late changes nothing.
    backends.service_answered(SocketAddr::from(([10, 96, 0, 1], 80)));
    assert_eq!(used(&throttler), [1, 2, 3]);
}

#[test]
fn where_only_the_service_answers_it_stands_for_the_ready_pods() {
    let (throttler, backends) = treated(Treatment { concurrency: 10, ..Treatment::of("rev") });
    let service = SocketAddr::from(([10, 96, 0, 1], 80));
    backends.update("rev-private", &addresses(&[1, 2], &[3]));
    backends.suspected(&pod(&backends, 3));
    assert!(!backends.state.lock().service.is_asked(), "a pod that is not ready says nothing about a mesh");
    backends.suspected(&pod(&backends, 1));
    assert!(backends.state.lock().service.is_asked());
    backends.service_answered(service);
    let capacity = || throttler.pods().iter().map(|pod| (pod.address(), pod.capacity())).collect::<Vec<_>>();
    assert_eq!(capacity(), [(service, 20)]);
    backends.set_peers(Peers { index: 0, count: 5 });
    assert_eq!(capacity(), [(service, 4)]);
    backends.set_peers(Peers { index: 0, count: 200 });
    assert_eq!(capacity(), [(service, 1)]);
    // It is down as long as it does not answer, and asked again.
    let failed = throttler.pods().get(0).clone();
    backends.failed(&failed);
    assert!(throttler.is_empty() && backends.state.lock().service.is_asked());
    backends.service_answered(service);
    assert!(Arc::ptr_eq(throttler.pods().get(0), &failed));
    backends.update("rev-private", &addresses(&[], &[1, 2]));
    assert!(throttler.is_empty() && !backends.state.lock().service.is_asked());
}

#[test]
fn in_a_mesh_the_service_is_asked_as_soon_as_a_pod_is_ready() {
    let (throttler, backends) = treated(Treatment { reach: Reach::Service, ..Treatment::of("rev") });
    backends.update("rev-private", &addresses(&[], &[1]));
    assert!(!backends.state.lock().service.is_asked());
    backends.update("rev-private", &addresses(&[1], &[]));
    assert!(backends.state.lock().service.is_asked() && throttler.is_empty());
    backends.service_answered(SocketAddr::from(([10, 96, 0, 1], 80)));
    assert_eq!(used(&throttler), [80]);
}
