//! `dispatch/percentage`: requests are shared out as the splits say.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_shared_out() {
    both(async |rig| {
        let (_backends, splits) = shares(rig, &TENTHS).await;
        rig.ingress("split", external(&["split.example.com"], json!([{"splits": splits}])));
        rig.ready("split").await;
        let counts = count(rig.external, &Request::to("split.example.com"), 1000).await;
        assert_shares(&counts, &TENTHS, 1000);
    })
    .await;
}
