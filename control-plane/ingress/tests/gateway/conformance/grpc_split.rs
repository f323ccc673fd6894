//! `grpc/split`: streams are split between backends, and each stays where it is.

use std::collections::BTreeSet;

use super::{backends::Stream, *};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_split_and_stick() {
    both(async |rig| {
        let (one, two) = (backends::echo_stream(" one").await, backends::echo_stream(" two").await);
        rig.service("one", "h2c", &[one.address]);
        rig.service("two", "h2c", &[two.address]);
        let splits = json!([{"splits": [to("one", 50), to("two", 50)]}]);
        rig.ingress("grpc", external(&["grpc.example.com"], splits));
        rig.ready("grpc").await;
        let mut seen = BTreeSet::new();
        for _ in 0..100 {
            let mut stream = Stream::open(rig.external, "grpc.example.com:80").await;
            let first = stream.ask("ping").await;
            for _ in 0..10 {
                assert_eq!(stream.ask("ping").await, first);
            }
            seen.insert(first);
            if seen.len() == 2 {
                return;
            }
        }
        panic!("only {seen:?} in 100 streams");
    })
    .await;
}
