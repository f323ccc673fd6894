//! `visibility`: cluster-local hosts are unknown outside, in all their forms.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_hosts_are_unknown_outside() {
    both(async |rig| {
        let backend = Backend::start("app").await;
        rig.service("app", "http", &[backend.address]);
        let hosts = ["app.default.svc.cluster.local", "app.default.svc", "app.default"];
        rig.ingress("local", local(&hosts, json!([{"splits": [to("app", 100)]}])));
        rig.ready("local").await;
        for host in hosts {
            assert_eq!(rig.get(host).await.status, 404, "{host}");
            assert_eq!(send(rig.probe, &Request::to(host)).await.unwrap().status, 404, "{host}");
            assert_eq!(rig.internal(&Request::to(host)).await.status, 200, "{host}");
        }
    })
    .await;
}
