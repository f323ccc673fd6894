//! Pods that a mesh does not let anyone reach by their own addresses.

use std::sync::atomic::Ordering;

use activator::Reach;

use crate::{Cluster, Pod, Setup, WAYS, bound, for_revision, get_on};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_cannot_be_reached_are_used_behind_their_service() {
    for reach in [Reach::Either, Reach::Service] {
        let setup = Setup::with(Cluster::default(), |options| options.reach = reach).await;
        let pod = Pod::default();
        let service = pod.start().await;
        setup.revision("meshed", 2, 300).await;
        setup.cluster.service("meshed", service);
        let (_refuses, address) = bound();
        let waiting: Vec<_> = (0..10).map(|_| setup.request("meshed")).collect();
        setup.held(10).await;
        setup.cluster.endpoints("meshed", &[address], &[]);
        for request in waiting {
            let answer = request.await.expect("no panic");
            assert!(
                answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(&format!("Host: {service}")),
                "{answer}"
            );
        }
        assert!(pod.most.load(Ordering::SeqCst) <= 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_pods_answer_for_themselves_their_service_is_left_alone() {
    let setup = Setup::with(Cluster::default(), |options| options.reach = Reach::Either).await;
    let (pod, service) = (Pod::default(), Pod::default());
    setup.revision("plain", 0, 300).await;
    setup.cluster.service("plain", service.start().await);
    setup.cluster.endpoints("plain", &[pod.start().await], &[]);
    for _ in 0..10 {
        assert!(setup.request("plain").await.expect("no panic").starts_with("HTTP/1.1 200 OK\r\n"));
    }
    assert_eq!((pod.served.load(Ordering::SeqCst), service.served.load(Ordering::SeqCst)), (10, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_may_want_pods_addressed_by_their_services_name() {
    let setup = Setup::with(Cluster::default(), |options| options.passthrough = true).await;
    setup.revision("rev", 0, 300).await;
    setup.cluster.endpoints("rev", &[Pod::default().start().await], &[]);
    for way in WAYS {
        let answer = get_on(way, setup.address(), "/", &for_revision("rev")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        for line in ["\r\nHost: rev-private.default\r\n", "\r\nK-Passthrough-Lb: true\r\n"] {
            assert!(answer.contains(line), "{line}: {answer}");
        }
    }
}
