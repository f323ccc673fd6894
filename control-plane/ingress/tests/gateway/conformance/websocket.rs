//! `websocket`: a connection can be upgraded and goes both ways.

use super::{backends::Socket, *};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_can_be_upgraded() {
    both(async |rig| {
        let backend = backends::echo_socket("one").await;
        rig.service("ws", "http", &[backend.address]);
        rig.ingress("ws", external(&["ws.example.com"], json!([{"splits": [to("ws", 100)]}])));
        rig.ready("ws").await;
        let mut socket = Socket::open(rig.external, "ws.example.com").await;
        for n in 0..100 {
            assert_eq!(socket.ask(&format!("hello {n}")).await, format!("hello {n} one"));
        }
    })
    .await;
}
