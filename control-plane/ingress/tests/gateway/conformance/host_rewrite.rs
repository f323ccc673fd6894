//! `host-rewrite`: vanity hosts lead through the gateway to a cluster-local host, as a DomainMapping does.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vanity_hosts_lead_to_a_local_host() {
    both(async |rig| {
        let backend = Backend::start("app").await;
        rig.service("app", "http", &[backend.address]);
        rig.ingress("app", local(&["app.default.svc.cluster.local"], json!([{"splits": [to("app", 100)]}])));
        // The gateway's own cluster-local port, by a name that this gateway has nobody to ask for.
        rig.external_name("loop", "kourier-internal.kourier-system.svc.cluster.local", 80);
        let paths = json!([{
            "rewriteHost": "app.default.svc.cluster.local",
            "splits": [{"serviceNamespace": "default", "serviceName": "loop",
                "servicePort": 80, "percent": 100}],
        }]);
        let hosts = ["vanity.ismy.name", "vanity.isalsomy.number"];
        rig.ingress("vanity", external(&hosts, paths));
        rig.ready("app").await;
        rig.ready("vanity").await;
        for host in hosts {
            rig.until("the loop", async || rig.get(host).await.status == 200).await;
            let answer = rig.get(host).await;
            assert_eq!(answer.text("backend"), "app");
            assert_eq!(answer.header("host"), "app.default.svc.cluster.local");
        }
    })
    .await;
}
