//! Gateways and control planes that end without a warning, under traffic.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    host, split,
    support::{Backend, Rig},
};

/// Envoy refuses to set more than 1000 headers.
fn refused(name: &str, service: &str) -> serde_json::Value {
    let mut spec = host(name, json!([split(service, 100)]));
    let many: BTreeMap<String, &str> = (0..1001).map(|n| (format!("x-{n}"), "y")).collect();
    spec["rules"][0]["http"]["paths"][0]["splits"][0]["appendHeaders"] = json!(many);
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_when_one_of_two_gateways_is_killed_and_comes_back() {
    for state_of_the_world in [false, true] {
        let Some(mut rig) = Rig::start(state_of_the_world).await else { return };
        let backends = [Backend::start("one").await, Backend::start("two").await];
        rig.service("app", "http", &[backends[0].address]);
        rig.ingress("app", host("app.example.com", json!([split("app", 100)])));
        rig.ready("app").await;
        rig.another_gateway().await;
        let traffic = rig.patient_traffic("app.example.com");
        for step in 0..3 {
            let before = traffic.answered();
            rig.until("requests with both", async || traffic.answered() > before + 50).await;
            rig.kill_gateway().await;
            // Changes go on with the other.
            rig.service("app", "http", &[backends[(step + 1) % 2].address]);
            rig.ingress(&format!("new-{step}"), host(&format!("new-{step}.example.com"), json!([split("app", 100)])));
            let before = traffic.answered();
            rig.until("requests with one", async || traffic.answered() > before + 50).await;
            rig.another_gateway().await;
            rig.ready(&format!("new-{step}")).await;
            assert_eq!(rig.get(&format!("new-{step}.example.com")).await.status, 200);
        }
        let (_, failed) = traffic.stop().await;
        assert_eq!(failed, Vec::<String>::new());
        assert_eq!(rig.xds().settled().borrow().gateways, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_gateway_is_not_ready_again_before_it_has_everything() {
    for state_of_the_world in [false, true] {
        let Some(mut rig) = Rig::start(state_of_the_world).await else { return };
        let app = Backend::start("app").await;
        for n in 0..100 {
            rig.service(&format!("s{n}"), "http", &[app.address]);
            let splits = json!([split(&format!("s{n}"), 100)]);
            rig.ingress(&format!("i{n}"), host(&format!("h{n}.example.com"), splits));
        }
        rig.settle().await;
        for _ in 0..3 {
            rig.kill_gateway().await;
            rig.start_gateway();
            rig.until_ready().await;
            for n in 0..100 {
                assert_eq!(rig.get(&format!("h{n}.example.com")).await.status, 200, "{n}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_served_in_the_place_of_a_refused_change_outlives_the_control_plane() {
    let Some(mut rig) = Rig::start(false).await else { return };
    let app = Backend::start("app").await;
    for service in ["app", "old", "new"] {
        rig.service(service, "http", &[app.address]);
    }
    rig.ingress("good", host("good.example.com", json!([split("app", 100)])));
    rig.ingress("bad", host("bad.example.com", json!([split("old", 100)])));
    rig.ready("bad").await;
    let traffic = rig.traffic("bad.example.com");
    rig.ingress("bad", refused("bad.example.com", "new"));
    rig.settle().await;
    assert!(rig.refused("bad").contains("default/bad"));
    for n in 0..3 {
        rig.restart_control_plane().await;
        rig.settle().await;
        assert_eq!(rig.get("bad.example.com").await.header("x-split"), "old");
        // Others go on, and the refusal is known again.
        let name = format!("n{n}");
        rig.ingress(&name, host(&format!("{name}.example.com"), json!([split("app", 100)])));
        rig.ready(&name).await;
        assert_eq!(rig.get(&format!("{name}.example.com")).await.status, 200);
        assert!(rig.refused("bad").contains("default/bad"));
    }
    let mut corrected = host("bad.example.com", json!([split("new", 100)]));
    corrected["rules"][0]["http"]["paths"][0]["appendHeaders"] = json!({"X-New": "yes"});
    rig.ingress("bad", corrected);
    rig.ready("bad").await;
    assert_eq!(rig.get("bad.example.com").await.header("x-new"), "yes");
    let (answered, failed) = traffic.stop().await;
    assert!(answered > 0);
    assert_eq!(failed, Vec::<String>::new());
}
