//! `basics`: a host is answered.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_answered() {
    both(async |rig| {
        let backend = Backend::start("app").await;
        rig.service("app", "http", &[backend.address]);
        rig.ingress("basic", external(&["basic.example.com"], json!([{"splits": [to("app", 100)]}])));
        rig.ready("basic").await;
        let answer = rig.get("basic.example.com").await;
        assert_eq!((answer.status, answer.text("version")), (200, "HTTP/1.1"));
        assert_eq!(rig.get("other.example.com").await.status, 404);
    })
    .await;
}
