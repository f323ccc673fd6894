//! `update`: while an Ingress changes and its backends are replaced, every request is answered, and what is Ready is
//! what answers.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_during_updates() {
    both(async |rig| {
        let first = Backend::start("r0").await;
        rig.service("r0", "http", &[first.address]);
        let spec = |service: &str, who: &str| {
            external(
                &["update.example.com"],
                json!([{"splits": [to(service, 100)], "appendHeaders": {"Who-Are-You": who}}]),
            )
        };
        rig.ingress("update", spec("r0", "start"));
        rig.ready("update").await;
        let traffic = rig.traffic("update.example.com");
        for n in 0..10 {
            let who = format!("header-{n}");
            rig.ingress("update", spec("r0", &who));
            rig.ready("update").await;
            assert_eq!(rig.get("update.example.com").await.header("who-are-you"), who);
        }
        let mut backends = vec![first];
        for n in 1..=10 {
            let (old, new) = (format!("r{}", n - 1), format!("r{n}"));
            let backend = Backend::start("rollout").await;
            rig.service(&new, "http", &[backend.address]);
            rig.ingress("update", spec(&new, &new));
            rig.ready("update").await;
            rig.remove_service(&old);
            assert_eq!(rig.get("update.example.com").await.header("who-are-you"), new);
            backends.push(backend);
        }
        let (answered, failed) = traffic.stop().await;
        assert!(answered > 20, "only {answered} requests");
        assert_eq!(failed, Vec::<String>::new());
    })
    .await;
}
