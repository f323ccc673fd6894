//! `retry`: the gateway never repeats a request on its own.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_answer_is_the_answer() {
    both(async |rig| {
        let backend = backends::unavailable_once().await;
        rig.service("retry", "http", &[backend.address]);
        rig.ingress("retry", external(&["retry.example.com"], json!([{"splits": [to("retry", 100)]}])));
        rig.ready("retry").await;
        assert_eq!(rig.get("retry.example.com").await.status, 503);
        assert_eq!(rig.get("retry.example.com").await.status, 200);
    })
    .await;
}
