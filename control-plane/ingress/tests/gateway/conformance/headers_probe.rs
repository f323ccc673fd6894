//! `headers/probe`: the hash of the Ingress that is in force can be asked for.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hash_that_is_in_force_can_be_asked_for() {
    both(async |rig| {
        let backend = Backend::start("app").await;
        rig.service("app", "http", &[backend.address]);
        let spec = external(&["probe.example.com"], json!([{"splits": [to("app", 100)]}]));
        rig.ingress("probe", spec.clone());
        rig.ready("probe").await;
        let ask = async |hash: &str| {
            let headers = vec![("K-Network-Probe", "probe"), ("K-Network-Hash", hash)];
            let answer = rig.send(&Request { headers, ..Request::to("probe.example.com") }).await;
            assert_eq!(answer.status, 200);
            answer.headers["k-network-hash"].to_str().unwrap().to_owned()
        };
        let spec = ingress::translate::defaulted(&serde_json::from_value(spec).unwrap());
        assert_eq!(ask("override").await, ingress::hash::ingress_hash(&spec, "default", "probe"));
        assert_eq!(ask("something else").await, "something else");
        // The probe's own port shows the same.
        let headers = vec![("K-Network-Hash", "override")];
        let request = Request { headers, path: "/healthz", ..Request::to("probe.example.com") };
        assert_eq!(send(rig.probe, &request).await.unwrap().headers["k-network-hash"].len(), 64);
    })
    .await;
}
