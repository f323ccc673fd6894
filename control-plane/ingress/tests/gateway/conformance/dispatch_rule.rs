//! `dispatch/rule`: each rule has its own hosts and its own treatment.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_rule_is_its_own() {
    both(async |rig| {
        let backend = Backend::start("app").await;
        rig.service("app", "http", &[backend.address]);
        let paths = |which: &str| json!([{"splits": [to("app", 100)], "appendHeaders": {"Which-Rule": which}}]);
        let rules = [
            rule("ExternalIP", &["foo.example.com"], paths("foo")),
            rule("ExternalIP", &["bar.example.com"], paths("bar")),
        ];
        rig.ingress("rules", json!({"rules": rules}));
        rig.ready("rules").await;
        assert_eq!(rig.get("foo.example.com").await.header("which-rule"), "foo");
        assert_eq!(rig.get("bar.example.com").await.header("which-rule"), "bar");
    })
    .await;
}
