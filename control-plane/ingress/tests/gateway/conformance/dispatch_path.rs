//! `dispatch/path`: the longest prefix decides, and there is a default.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_path_chooses_the_backend() {
    both(async |rig| {
        let (_backends, _) = shares(rig, &[("foo", 0), ("bar", 0), ("baz", 0), ("default", 0)]).await;
        let paths = json!([
            {"path": "/foo", "splits": [to("foo", 100)]},
            {"path": "/bar", "splits": [to("bar", 100)]},
            {"path": "/baz", "splits": [to("baz", 100)]},
            {"splits": [to("default", 100)]},
        ]);
        rig.ingress("paths", external(&["paths.example.com"], paths));
        rig.ready("paths").await;
        for (path, backend) in [
            ("/foo", "foo"),
            ("/foo/deeper", "foo"),
            ("/bar", "bar"),
            ("/baz", "baz"),
            ("/", "default"),
            ("/asdf", "default"),
        ] {
            let answer = rig.send(&Request { path, ..Request::to("paths.example.com") }).await;
            assert_eq!(answer.text("backend"), backend, "{path}");
        }
    })
    .await;
}
