//! `visibility/path`: cluster-local requests are dispatched by path.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_requests_are_dispatched_by_path() {
    both(async |rig| {
        let (_backends, _) = shares(rig, &[("foo", 0), ("bar", 0), ("baz", 0), ("default", 0)]).await;
        let paths = json!([
            {"path": "/foo", "splits": [to("foo", 100)]},
            {"path": "/bar", "splits": [to("bar", 100)]},
            {"path": "/baz", "splits": [to("baz", 100)]},
            {"splits": [to("default", 100)]},
        ]);
        rig.ingress("local", local(&["app.default.svc"], paths));
        rig.ready("local").await;
        for (path, backend) in [("/foo", "foo"), ("/bar", "bar"), ("/baz", "baz"), ("/", "default"), ("/x", "default")]
        {
            let request = Request { path, ..Request::to("app.default.svc") };
            assert_eq!(rig.send(&request).await.status, 404, "{path}");
            assert_eq!(rig.internal(&request).await.text("backend"), backend, "{path}");
        }
    })
    .await;
}
