//! Pods that are learned from EndpointSlices, where they may be listed.

use serde_json::{Value, json};

use super::*;

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
