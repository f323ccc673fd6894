//! Pods that are learned from EndpointSlices, where they may be listed.

use serde_json::{Value, json};

use super::{fakes::Slices, *};

const REVISION: &str = "rev-00001";

fn endpoint(ip: &str, conditions: Value) -> Value {
    json!({"addresses": [ip], "conditions": conditions, "targetRef": {"kind": "Pod", "uid": ip}})
}

/// Pods on addresses of this machine with the same port, as slices want it.
async fn pods(count: u8) -> (Vec<Pod>, u16) {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = first.local_addr().expect("bound").port();
        let mut listeners = vec![first];
        for number in 2..=count {
            listeners.extend(TcpListener::bind(SocketAddr::from(([127, 0, 0, number], port))).await);
        }
        // Somebody may use the port on one of the others.
        if listeners.len() == usize::from(count) {
            let start = |listener| {
                let pod = Pod::default();
                pod.listen(listener);
                pod
            };
            return (listeners.into_iter().map(start).collect(), port);
        }
    }
}

fn served(pods: &[Pod]) -> Vec<usize> {
    pods.iter().map(|pod| pod.served.swap(0, Ordering::SeqCst)).collect()
}

#[tokio::test]
async fn requests_go_to_the_pods_of_all_slices_and_to_no_pod_that_ends() {
    let setup = Setup::with(Cluster::with_slices(), |_| {}).await;
    setup.revision(REVISION, 0, 60).await;
    let (pods, port) = pods(3).await;
    let ready = json!({"ready": true, "serving": true, "terminating": false});
    // Held until some slice lists a pod.
    let first = setup.request(REVISION);
    setup.held(1).await;
    setup.cluster.slice(REVISION, "one", port, &[endpoint("127.0.0.1", ready.clone())]);
    assert!(first.await.expect("answered").starts_with("HTTP/1.1 200"));
    assert_eq!(served(&pods), [1, 0, 0]);
    setup.cluster.slice(
        REVISION,
        "two",
        port,
        &[endpoint("127.0.0.2", json!({})), endpoint("127.0.0.3", ready.clone())],
    );
    let ask = async |count: usize| {
        for _ in 0..count {
            let answer = setup.request(REVISION).await.expect("answered");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        served(&pods)
    };
    while !ask(20).await.iter().all(|count| *count > 0) {}
    // One ends, still serving what it has; the other's slice is gone.
    let ending = json!({"ready": false, "serving": true, "terminating": true});
    setup.cluster.slice(REVISION, "two", port, &[endpoint("127.0.0.2", ending), endpoint("127.0.0.3", ready)]);
    setup.cluster.slice(REVISION, "one", port, &[]);
    while ask(20).await[2] < 20 {}
    assert_eq!(ask(20).await, [0, 0, 20]);
}

#[tokio::test]
async fn a_pod_that_a_slice_lists_as_not_ready_is_used_once_it_answers() {
    let setup = Setup::with(Cluster::with_slices(), |_| {}).await;
    setup.revision(REVISION, 0, 60).await;
    let (pods, port) = pods(1).await;
    let first = setup.request(REVISION);
    setup.held(1).await;
    setup.cluster.slice(REVISION, "one", port, &[endpoint("127.0.0.1", json!({"ready": false, "serving": false}))]);
    assert!(first.await.expect("answered").starts_with("HTTP/1.1 200"));
    assert_eq!(served(&pods), [1]);
}

#[tokio::test]
async fn where_slices_may_be_listed_but_not_watched_pods_are_learned_from_endpoints() {
    let cluster = Cluster::default();
    cluster.grant(Slices { list: true, watch: false });
    let setup = Setup::with(cluster, |_| {}).await;
    setup.revision(REVISION, 0, 60).await;
    let (pods, port) = pods(1).await;
    let first = setup.request(REVISION);
    setup.held(1).await;
    setup.cluster.endpoints(REVISION, &[SocketAddr::from(([127, 0, 0, 1], port))], &[]);
    assert!(first.await.expect("answered").starts_with("HTTP/1.1 200"));
    assert_eq!(served(&pods), [1]);
}

#[tokio::test]
async fn slices_that_are_refused_later_give_way_to_endpoints_without_a_failed_request() {
    for slices in [Slices { list: true, watch: false }, Slices::default()] {
        let setup = Setup::with(Cluster::with_slices(), |_| {}).await;
        setup.revision(REVISION, 0, 60).await;
        let (pods, port) = pods(3).await;
        let address = |number: u8| SocketAddr::from(([127, 0, 0, number], port));
        let ready = json!({"ready": true});
        setup.cluster.endpoints(REVISION, &[address(1), address(2)], &[]);
        let listed = [endpoint("127.0.0.1", ready.clone()), endpoint("127.0.0.2", ready)];
        setup.cluster.slice(REVISION, "one", port, &listed);
        let ask = async || {
            for _ in 0..20 {
                let answer = setup.request(REVISION).await.expect("answered");
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            }
            served(&pods)
        };
        while ask().await[..2].contains(&0) {}
        setup.cluster.grant(slices);
        // Nobody hears of this from slices any more: one pod goes and one comes.
        setup.cluster.endpoints(REVISION, &[address(2), address(3)], &[]);
        let (mut counts, started) = (ask().await, Instant::now());
        while counts[0] > 0 || counts[2] == 0 {
            assert!(started.elapsed() < PATIENCE, "{counts:?}");
            counts = ask().await;
        }
        setup.cluster.endpoints(REVISION, &[address(3)], &[]);
        while ask().await != [0, 0, 20] {
            assert!(started.elapsed() < PATIENCE, "the change is not heard of");
        }
        // A revision that comes later has its pods from there as well.
        setup.revision("rev-00002", 0, 60).await;
        setup.cluster.endpoints("rev-00002", &[address(1)], &[]);
        assert!(setup.request("rev-00002").await.expect("answered").starts_with("HTTP/1.1 200"));
        setup.tasks.shutdown().await;
    }
}
