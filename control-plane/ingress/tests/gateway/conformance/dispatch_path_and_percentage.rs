//! `dispatch/path_and_percentage`: a path has a split of its own.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_is_shared_out() {
    both(async |rig| {
        let halves = [("one", 50), ("two", 50)];
        let (_backends, splits) = shares(rig, &halves).await;
        let (_default, _) = shares(rig, &[("default", 0)]).await;
        let paths = json!([{"path": "/foo", "splits": splits}, {"splits": [to("default", 100)]}]);
        rig.ingress("split", external(&["split.example.com"], paths));
        rig.ready("split").await;
        let request = Request { path: "/foo", ..Request::to("split.example.com") };
        assert_shares(&count(rig.external, &request, 1000).await, &halves, 1000);
        assert_eq!(rig.get("split.example.com").await.text("backend"), "default");
    })
    .await;
}
