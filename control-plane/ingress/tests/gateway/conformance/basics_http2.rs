//! `basics/http2`: a backend whose port is named h2c gets HTTP/2, whatever the client speaks.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2c_backends_get_http2() {
    both(async |rig| {
        let backend = Backend::start("app").await;
        rig.service("app", "h2c", &[backend.address]);
        rig.ingress("h2", external(&["h2.example.com"], json!([{"splits": [to("app", 100)]}])));
        let annotations = json!({"annotations": {"kourier.knative.dev/disable-http2": "True"}});
        let spec = external(&["h1.example.com"], json!([{"splits": [to("app", 100)]}]));
        rig.ingress_with("h1", annotations, spec);
        rig.ready("h2").await;
        rig.ready("h1").await;
        assert_eq!(rig.get("h2.example.com").await.text("version"), "HTTP/2.0");
        assert_eq!(rig.get("h1.example.com").await.text("version"), "HTTP/1.1");
    })
    .await;
}
