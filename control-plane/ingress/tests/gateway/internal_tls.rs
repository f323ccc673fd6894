//! `system-internal-tls`: backends must prove who they are.

use ingress::world::Pending;
use serde_json::json;

use crate::{
    host, split,
    support::{Authority, Backend, Request, Rig},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_must_prove_who_they_are() {
    for state_of_the_world in [false, true] {
        let Some(rig) = Rig::start(state_of_the_world).await else { return };
        let (authority, stranger) = (Authority::new("routing"), Authority::new("stranger"));
        let good = Backend::start_tls("good", &authority.issue(&["kn-user-default"])).await;
        let routing = Backend::start_tls("routing", &authority.issue(&["kn-routing"])).await;
        let wrong = Backend::start_tls("wrong", &authority.issue(&["kn-user-other"])).await;
        let bundled = Backend::start_tls("bundled", &stranger.issue(&["kn-user-default"])).await;
        for (name, port, backend) in [
            ("good", "http", &good),
            ("routing", "h2c", &routing),
            ("wrong", "http", &wrong),
            ("bundled", "http", &bundled),
        ] {
            rig.service(name, port, &[backend.address]);
            rig.ingress(name, host(&format!("{name}.example.com"), json!([split(name, 100)])));
        }
        rig.configure(|settings| settings.internal_tls = true);
        rig.settle().await;
        let Pending::Invalid(message) = rig.pending("good") else { panic!("{:?}", rig.pending("good")) };
        assert!(message.starts_with("failed to fetch Secret knative-serving/routing-serving-certs: "), "{message}");

        rig.secret("knative-serving", "routing-serving-certs", &[("ca.crt", "")]);
        let Pending::Invalid(message) = rig.pending("good") else { panic!("{:?}", rig.pending("good")) };
        assert!(message.starts_with("failed to build trust-chain, as no valid CA certificate was provided."));

        rig.secret("knative-serving", "routing-serving-certs", &[("ca.crt", &authority.pem)]);
        for name in ["good", "routing", "wrong", "bundled"] {
            rig.ready(name).await;
        }
        let status = async |name: &str| {
            let host = format!("{name}.example.com");
            rig.try_send(rig.external, &Request::to(&host)).await.map_or(0, |answer| answer.status)
        };
        rig.until("TLS to the backend", async || status("good").await == 200).await;
        rig.until("TLS to the activator", async || status("routing").await == 200).await;
        assert_eq!(rig.get("routing.example.com").await.text("version"), "HTTP/2.0");
        assert_eq!(status("wrong").await, 503, "its name is not one of this namespace");
        assert_eq!(status("bundled").await, 503, "nobody trusts who signed for it");

        let before = rig.updates().await;
        rig.trust_bundle("bundle/ca.crt", &stranger.pem);
        rig.settle().await;
        rig.until("the bundle", async || status("bundled").await == 200).await;
        assert_eq!(rig.updates().await, before, "trust travels on its own");
        assert_eq!(status("wrong").await, 503);
        assert_eq!(status("good").await, 200);
    }
}
