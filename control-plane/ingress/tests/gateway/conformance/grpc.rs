//! `grpc`: one stream carries many round trips; the authority may carry the port.

use super::{backends::Stream, *};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_both_ways() {
    both(async |rig| {
        let backend = backends::echo_stream("- pong").await;
        rig.service("grpc", "h2c", &[backend.address]);
        rig.ingress("grpc", external(&["grpc.example.com"], json!([{"splits": [to("grpc", 100)]}])));
        rig.ready("grpc").await;
        let mut stream = Stream::open(rig.external, "grpc.example.com:80").await;
        for n in 0..100 {
            assert_eq!(stream.ask(&format!("hello {n}")).await, format!("hello {n}- pong"));
        }
    })
    .await;
}
