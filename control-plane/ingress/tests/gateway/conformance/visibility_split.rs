//! `visibility/split`: cluster-local requests are shared out.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_requests_are_shared_out() {
    both(async |rig| {
        let (_backends, splits) = shares(rig, &TENTHS).await;
        rig.ingress("local", local(&["app.default.svc"], json!([{"splits": splits}])));
        rig.ready("local").await;
        assert_eq!(rig.get("app.default.svc").await.status, 404);
        let counts = count(rig.internal, &Request::to("app.default.svc"), 1000).await;
        assert_shares(&counts, &TENTHS, 1000);
    })
    .await;
}
