use std::{
    future::Future,
    net::SocketAddr,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use futures::task::noop_waker_ref;

use super::*;

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(noop_waker_ref()))
}

fn pod(port: u16, concurrency: usize) -> Arc<Pod> {
    Pod::new(SocketAddr::from(([127, 0, 0, 1], port)).into(), concurrency, &Link::plain())
}

fn throttler() -> Throttler {
    Throttler::new(limit(100, 1000), Policy::default())
}

fn limit(each: usize, total: usize) -> Arc<QueueLimit> {
    QueueLimit::new(Bound { each, total }, Bound { each: 1 << 20, total: 1 << 20 })
}

async fn acquire(throttler: &Throttler) -> Result<Lease, Refused> {
    throttler.acquire(&mut Turn::new(100)).await
}

fn port(lease: &Lease) -> u16 {
    lease.pod().address().port()
}

#[test]
fn waiters_are_released_by_the_first_pod() {
    let throttler = throttler();
    let mut waiters: Vec<_> = (0..3).map(|_| Box::pin(acquire(&throttler))).collect();
    assert!(waiters.iter_mut().all(|waiter| poll(waiter.as_mut()).is_pending()));
    throttler.set_pods(vec![pod(1, 0)]);
    assert!(waiters.iter_mut().all(|waiter| poll(waiter.as_mut()).is_ready()));
    assert_eq!(throttler.waiting(), 0);
}

#[test]
fn concurrency_is_exact_and_slots_go_to_the_longest_waiter() {
    let throttler = throttler();
    throttler.set_pods(vec![pod(1, 1), pod(2, 1)]);
    let Poll::Ready(Ok(first)) = poll(pin!(acquire(&throttler))) else { panic!("free") };
    let Poll::Ready(Ok(second)) = poll(pin!(acquire(&throttler))) else { panic!("free") };
    assert_ne!(port(&first), port(&second));
    let mut third = Box::pin(acquire(&throttler));
    let mut fourth = Box::pin(acquire(&throttler));
    assert!(poll(third.as_mut()).is_pending() && poll(fourth.as_mut()).is_pending());
    drop(first);
    assert!(poll(pin!(acquire(&throttler))).is_pending(), "the slot is taken");
    assert!(poll(fourth.as_mut()).is_pending());
    assert!(poll(third.as_mut()).is_ready());
}

#[test]
fn who_leaves_is_out_at_once_even_with_a_slot_in_hand() {
    let throttler = throttler();
    throttler.set_pods(vec![pod(1, 1)]);
    let Poll::Ready(Ok(running)) = poll(pin!(acquire(&throttler))) else { panic!("free") };
    let mut leaving = Box::pin(acquire(&throttler));
    let mut staying = Box::pin(acquire(&throttler));
    assert!(poll(leaving.as_mut()).is_pending() && poll(staying.as_mut()).is_pending());
    drop(running); // grants the slot to the one who leaves
    drop(leaving);
    assert!(poll(staying.as_mut()).is_ready());
    assert_eq!((throttler.waiting(), throttler.shared.limit.held()), (0, (0, 0)));
}

#[test]
fn a_pod_that_goes_away_takes_its_slots_with_it() {
    let throttler = throttler();
    let (gone, stays) = (pod(1, 1), pod(2, 1));
    throttler.set_pods(vec![gone]);
    let Poll::Ready(Ok(hangs)) = poll(pin!(acquire(&throttler))) else { panic!("free") };
    throttler.set_pods(vec![stays]);
    let Poll::Ready(Ok(other)) = poll(pin!(acquire(&throttler))) else { panic!("the other pod is free") };
    assert_eq!((port(&hangs), port(&other)), (1, 2));
    let mut waiter = Box::pin(acquire(&throttler));
    assert!(poll(waiter.as_mut()).is_pending());
    drop(hangs);
    assert!(poll(waiter.as_mut()).is_pending(), "the slot of a pod that is gone is no slot");
    drop(other);
    assert!(poll(waiter.as_mut()).is_ready());
}

#[test]
fn the_queue_is_bounded_per_revision_and_in_bytes() {
    let limit = limit(2, 100);
    let throttler = Throttler::new(limit.clone(), Policy::default());
    let mut waiters: Vec<_> = (0..2).map(|_| Box::pin(acquire(&throttler))).collect();
    assert!(waiters.iter_mut().all(|waiter| poll(waiter.as_mut()).is_pending()));
    assert!(matches!(poll(pin!(acquire(&throttler))), Poll::Ready(Err(Refused::QueueFull))));
    waiters.clear();
    assert_eq!(limit.held(), (0, 0));
    let mut large = Turn::new(1 << 21);
    assert!(matches!(poll(pin!(throttler.acquire(&mut large))), Poll::Ready(Err(Refused::QueueFull))));
    assert_eq!(limit.held(), (0, 0));
}

#[test]
fn one_revision_cannot_take_all_the_room() {
    let limit = limit(1000, 1000);
    let (greedy, modest) = (Throttler::new(limit.clone(), Policy::default()), Throttler::new(limit, Policy::default()));
    let mut waiters = Vec::new();
    loop {
        let mut waiter = Box::pin(acquire(&greedy));
        if poll(waiter.as_mut()).is_ready() {
            break;
        }
        waiters.push(waiter);
    }
    assert_eq!(waiters.len(), 800);
    let mut other: Vec<_> = (0..100).map(|_| Box::pin(acquire(&modest))).collect();
    assert!(other.iter_mut().all(|waiter| poll(waiter.as_mut()).is_pending()));
}

#[test]
fn who_comes_back_goes_to_the_head_of_the_queue() {
    let throttler = throttler();
    throttler.set_pods(vec![pod(1, 1)]);
    let mut turn = Turn::new(0);
    let Poll::Ready(Ok(lease)) = poll(pin!(throttler.acquire(&mut turn))) else { panic!("free") };
    let mut later = Box::pin(acquire(&throttler));
    assert!(poll(later.as_mut()).is_pending());
    throttler.set_pods(Vec::new());
    assert!(!lease.pod().is_open());
    drop(lease);
    let mut back = Box::pin(throttler.acquire(&mut turn));
    assert!(poll(back.as_mut()).is_pending());
    throttler.set_pods(vec![pod(2, 1)]);
    assert!(poll(later.as_mut()).is_pending());
    assert!(poll(back.as_mut()).is_ready());
}

#[test]
fn nobody_waits_for_a_revision_that_is_gone() {
    let throttler = throttler();
    let mut waiter = Box::pin(acquire(&throttler));
    assert!(poll(waiter.as_mut()).is_pending());
    throttler.close();
    assert!(matches!(poll(waiter.as_mut()), Poll::Ready(Err(Refused::Gone))));
    assert!(matches!(poll(pin!(acquire(&throttler))), Poll::Ready(Err(Refused::Gone))));
    assert_eq!(throttler.waiting(), 0);
}

/// Threads take and return slots of few pods while pods come and go; nothing is exceeded, lost or stuck.
#[test]
fn slots_are_never_exceeded_or_lost_under_contention() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().expect("threads");
    runtime.block_on(async {
        let throttler = Throttler::new(limit(10_000, 100_000), Policy::default());
        let pods: Vec<_> = (1..=3).map(|port| pod(port, 2)).collect();
        throttler.set_pods(pods.clone());
        let requests: Vec<_> = (0..500)
            .map(|_| {
                let throttler = throttler.clone();
                tokio::spawn(async move {
                    for _ in 0..20 {
                        let lease = acquire(&throttler).await.expect("room");
                        assert!(lease.pod().in_flight() <= 2);
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for round in 0..200 {
            let some = pods.iter().enumerate().filter(|(index, _)| round % 4 != *index).map(|(_, pod)| pod.clone());
            throttler.set_pods(some.collect());
            tokio::task::yield_now().await;
        }
        throttler.set_pods(pods.clone());
        for request in requests {
            request.await.expect("every request ran");
        }
        assert_eq!(throttler.waiting(), 0);
        assert!(pods.iter().all(|pod| pod.in_flight() == 0));
    });
}
