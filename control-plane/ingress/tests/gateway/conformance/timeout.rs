//! `timeout`: the gateway has no time limit of its own, neither before nor within an answer.
//!
//! Envoy's own limit would be 15 s for a route: too long to wait for here, so that it is off is read from the gateway.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_answers_are_waited_for() {
    both(async |rig| {
        let backend = backends::slow().await;
        rig.service("slow", "http", &[backend.address]);
        rig.ingress("slow", external(&["slow.example.com"], json!([{"splits": [to("slow", 100)]}])));
        rig.ready("slow").await;
        for path in ["/?initialTimeout=1200", "/?timeout=1200"] {
            let answer = rig.send(&Request { path, ..Request::to("slow.example.com") }).await;
            assert_eq!(answer.status, 200, "{path}");
        }
        let dump: Value = serde_json::from_str(&rig.admin_raw("/config_dump").await).unwrap();
        let text = dump.to_string();
        assert!(text.contains(r#""stream_idle_timeout":"0s""#), "{text}");
        assert!(text.contains(r#""timeout":"0s""#) && !text.contains("retry_policy\":{\"retry_on"), "{text}");
    })
    .await;
}
