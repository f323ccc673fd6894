//! `websocket/split`: upgraded connections are split between backends and stay where they are.

use std::collections::BTreeSet;

use super::{backends::Socket, *};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgraded_connections_are_split_and_stick() {
    both(async |rig| {
        let (one, two) = (backends::echo_socket("one").await, backends::echo_socket("two").await);
        rig.service("one", "http", &[one.address]);
        rig.service("two", "http", &[two.address]);
        let splits = json!([{"splits": [to("one", 50), to("two", 50)]}]);
        rig.ingress("ws", external(&["ws.example.com"], splits));
        rig.ready("ws").await;
        let mut seen = BTreeSet::new();
        for _ in 0..100 {
            let mut socket = Socket::open(rig.external, "ws.example.com").await;
            let first = socket.ask("ping").await;
            for _ in 0..10 {
                assert_eq!(socket.ask("ping").await, first);
            }
            seen.insert(first);
            if seen.len() == 2 {
                return;
            }
        }
        panic!("only {seen:?} in 100 connections");
    })
    .await;
}
