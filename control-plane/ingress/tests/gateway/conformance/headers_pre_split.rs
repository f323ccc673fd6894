//! `headers/pre-split`: a header of the path is set, whatever the client sent.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_the_path_replace_the_clients() {
    both(async |rig| {
        let backend = Backend::start("app").await;
        rig.service("app", "http", &[backend.address]);
        let paths = json!([{"splits": [to("app", 100)], "appendHeaders": {"Foo": "bar-baz"}}]);
        rig.ingress("headers", external(&["headers.example.com"], paths));
        rig.ready("headers").await;
        assert_eq!(rig.get("headers.example.com").await.header("foo"), "bar-baz");
        let forged = Request { headers: vec![("Foo", "forged")], ..Request::to("headers.example.com") };
        assert_eq!(rig.send(&forged).await.header("foo"), "bar-baz");
    })
    .await;
}
