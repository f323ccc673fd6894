//! `hosts/multiple`: every host of a rule is answered.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_host_of_a_rule_is_answered() {
    both(async |rig| {
        let backend = Backend::start("app").await;
        rig.service("app", "http", &[backend.address]);
        let hosts = [
            "foo.com",
            "www.foo.com",
            "a-b-1.something-really-really-long.knative.dev",
            "add.your.interesting.domain.here.io",
        ];
        rig.ingress("hosts", external(&hosts, json!([{"splits": [to("app", 100)]}])));
        rig.ready("hosts").await;
        for host in hosts {
            assert_eq!(rig.get(host).await.status, 200, "{host}");
        }
    })
    .await;
}
