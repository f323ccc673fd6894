//! The control plane with a real Envoy and real backends. Here without a Kubernetes API: objects are put into the world
//! as the event handlers do. In `role.rs` with the embedded API.

mod authorization;
mod certificates;
mod cluster;
mod conformance;
mod crashes;
mod drain;
mod fleets;
mod internal_tls;
mod permissions;
mod refusals;
mod replicas;
mod role;
mod settings;
mod statuses;
mod support;

use std::collections::BTreeMap;

use serde_json::json;
use support::{Backend, Request, Rig};
use xds::{Change, Kind, Resource, Version};

fn split(service: &str, percent: u32) -> serde_json::Value {
    json!({"serviceNamespace": "default", "serviceName": service, "servicePort": 80, "percent": percent,
        "appendHeaders": {"X-Split": service}})
}

fn host(host: &str, splits: serde_json::Value) -> serde_json::Value {
    json!({"rules": [{"hosts": [host], "visibility": "ExternalIP", "http": {"paths": [{"splits": splits}]}}]})
}

macro_rules! rig {
    ($($option:tt)*) => {
        match Rig::start($($option)*).await {
            Some(rig) => rig,
            None => return,
        }
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_by_host_header_and_share() {
    for state_of_the_world in [false, true] {
        let rig = rig!(state_of_the_world);
        let (one, two, h2) = (Backend::start("one").await, Backend::start("two").await, Backend::start("h2").await);
        rig.service("one", "http", &[one.address]);
        rig.service("two", "http", &[two.address]);
        rig.service("h2", "h2c", &[h2.address]);
        rig.ingress("plain", host("one.example.com", json!([split("one", 100)])));
        rig.ingress("split", host("split.example.com", json!([split("one", 80), split("two", 20)])));
        let mut tagged = host("tag.example.com", json!([split("one", 100)]));
        let paths = json!([
            {"splits": [split("one", 100)]},
            {"headers": {"Knative-Serving-Tag": {"exact": "two"}}, "splits": [split("two", 100)],
                "appendHeaders": {"X-Path": "tagged"}},
            {"path": "/api", "rewriteHost": "inner.example.com", "splits": [split("h2", 100)]},
        ]);
        tagged["rules"][0]["http"]["paths"] = paths;
        rig.ingress("tag", tagged);
        let mut local = host("local.default.svc", json!([split("two", 100)]));
        local["rules"][0]["visibility"] = json!("ClusterLocal");
        rig.ingress("local", local);
        rig.settle().await;

        assert_eq!(rig.get("one.example.com").await.text("backend"), "one");
        assert_eq!(rig.get("one.example.com:80").await.status, 200);
        assert_eq!(rig.get("unknown.example.com").await.status, 404);
        // Both routes match `/`; equally long prefixes keep the order of the spec, as upstream.
        let tagged = Request { headers: vec![("Knative-Serving-Tag", "two")], ..Request::to("tag.example.com") };
        assert_eq!(rig.send(&tagged).await.text("backend"), "one");
        assert_eq!(rig.get("local.default.svc").await.status, 404, "cluster-local hosts are unknown outside");
        assert_eq!(rig.internal(&Request::to("local.default.svc")).await.text("backend"), "two");
        assert_eq!(rig.internal(&Request::to("one.example.com")).await.text("backend"), "one");
        assert_eq!(rig.internal(&Request { path: "/ready", ..Request::to("internalkourier") }).await.status, 200);

        let api = rig.send(&Request { path: "/api/x", ..Request::to("tag.example.com") }).await;
        assert_eq!((api.text("backend"), api.text("version")), ("h2", "HTTP/2.0"));
        assert_eq!(api.header("host"), "inner.example.com");

        let sent = Request { headers: vec![("X-Split", "forged")], ..Request::to("one.example.com") };
        assert_eq!(rig.send(&sent).await.header("x-split"), "one", "headers are set, not appended");

        let probe = Request {
            headers: vec![("K-Network-Probe", "probe"), ("K-Network-Hash", "override")],
            ..Request::to("one.example.com")
        };
        let hash = rig.send(&probe).await.header("k-network-hash").to_owned();
        assert_eq!(hash.len(), 64);

        let mut twos = 0;
        for _ in 0..1000 {
            let answer = rig.get("split.example.com").await;
            assert_eq!(answer.header("x-split"), answer.text("backend"));
            twos += usize::from(answer.text("backend") == "two");
        }
        assert!((150..=250).contains(&twos), "20 percent of 1000 were {twos}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_match_before_the_default_wins() {
    let rig = rig!(false);
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    rig.service("one", "http", &[one.address]);
    rig.service("two", "http", &[two.address]);
    let mut spec = host("tag.example.com", json!([]));
    spec["rules"][0]["http"]["paths"] = json!([
        {"headers": {"Knative-Serving-Tag": {"exact": "two"}}, "splits": [split("two", 100)]},
        {"splits": [split("one", 100)]},
    ]);
    rig.ingress("tag", spec);
    rig.settle().await;
    for (tag, backend) in [("two", "two"), ("other", "one"), ("", "one")] {
        let request = Request { headers: vec![("Knative-Serving-Tag", tag)], ..Request::to("tag.example.com") };
        assert_eq!(rig.send(&request).await.text("backend"), backend);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_travels_as_endpoints_only() {
    for state_of_the_world in [false, true] {
        let rig = rig!(state_of_the_world);
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        rig.service("app", "http", &[one.address]);
        rig.ingress("app", host("app.example.com", json!([split("app", 100)])));
        rig.settle().await;
        assert_eq!(rig.get("app.example.com").await.text("backend"), "one");
        let before = rig.updates().await;
        rig.service("app", "http", &[two.address]);
        rig.settle().await;
        rig.until("the new address", async || rig.get("app.example.com").await.text("backend") == "two").await;
        assert_eq!(rig.updates().await, before, "no cluster, listener or route was updated");
        rig.service("app", "http", &[]);
        rig.settle().await;
        rig.until("no address", async || rig.get("app.example.com").await.status == 503).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_resource_is_left_out_and_named() {
    for state_of_the_world in [false, true] {
        let rig = rig!(state_of_the_world);
        let one = Backend::start("one").await;
        rig.service("one", "http", &[one.address]);
        // Envoy refuses to set more than 1000 headers.
        let mut bad = host("bad.example.com", json!([split("one", 100)]));
        let many: BTreeMap<String, &str> = (0..1001).map(|n| (format!("x-{n}"), "y")).collect();
        bad["rules"][0]["http"]["paths"][0]["splits"][0]["appendHeaders"] = json!(many);
        rig.ingress("bad", bad);
        for name in ["a", "b", "c"] {
            rig.ingress(name, host(&format!("{name}.example.com"), json!([split("one", 100)])));
        }
        rig.settle().await;
        for name in ["a", "b", "c"] {
            assert_eq!(rig.get(&format!("{name}.example.com")).await.status, 200, "{name}");
        }
        assert_eq!(rig.get("bad.example.com").await.status, 404);
        let refused = rig.refused("bad");
        assert!(refused.contains("default/bad"), "{refused}");
        assert_eq!(rig.refused("a"), "");

        let responses = rig.rejections().await;
        rig.ingress("d", host("d.example.com", json!([split("one", 100)])));
        rig.settle().await;
        assert_eq!(rig.get("d.example.com").await.status, 200);
        assert_eq!(rig.rejections().await, responses, "what was refused is not offered again");

        rig.ingress("bad", host("bad.example.com", json!([split("one", 100)])));
        rig.settle().await;
        assert_eq!(rig.get("bad.example.com").await.status, 200);
        assert_eq!(rig.refused("bad"), "");

        // A cluster that Envoy refuses, in the middle of good ones.
        let mut change = Change::default();
        for (name, valid) in [("x/1", true), ("x/2", false), ("x/3", true)] {
            let model = ingress::model::Cluster {
                name: name.to_owned(),
                http2: false,
                location: ingress::model::Location::Dns {
                    host: "localhost".to_owned(),
                    port: if valid { 80 } else { 0 },
                },
                tls: None,
            };
            let mut message = ingress::envoy::cluster(&model);
            if !valid {
                message.connect_timeout = Some(Default::default());
            }
            change.set.push(Resource::new(Kind::Cluster, name, Version::of(&model), &message));
        }
        rig.xds().publish(change);
        rig.settle().await;
        let clusters = rig.admin("/clusters").await;
        assert!(clusters.contains("x/1::") && clusters.contains("x/3::") && !clusters.contains("x/2::"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_revisions_and_the_control_plane_come_and_go() {
    for state_of_the_world in [false, true] {
        let mut rig = rig!(state_of_the_world);
        let backends = [Backend::start("one").await, Backend::start("two").await];
        rig.service("r0", "http", &[backends[0].address]);
        rig.ingress("app", host("app.example.com", json!([split("r0", 100)])));
        rig.settle().await;
        let traffic = rig.traffic("app.example.com");
        for step in 1..=10 {
            let (old, new) = (format!("r{}", step - 1), format!("r{step}"));
            rig.service(&new, "http", &[backends[step % 2].address]);
            rig.ingress("app", host("app.example.com", json!([split(&new, 100)])));
            rig.settle().await;
            rig.remove_service(&old);
            let answer = rig.get("app.example.com").await;
            assert_eq!(answer.header("x-split"), new, "what is acknowledged is served");
        }
        rig.restart_control_plane().await;
        rig.settle().await;
        rig.ingress("late", host("late.example.com", json!([split("r10", 100)])));
        rig.settle().await;
        assert_eq!(rig.get("late.example.com").await.status, 200);
        let (answered, failed) = traffic.stop().await;
        assert!(answered > 50, "only {answered} requests");
        assert_eq!(failed, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_backend_is_proven_before_the_old_one_goes() {
    let rig = rig!(false);
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    rig.service("one", "http", &[one.address]);
    rig.ingress("app", host("app.example.com", json!([split("one", 100)])));
    rig.settle().await;
    rig.service("two", "http", &[]);
    rig.ingress("app", host("app.example.com", json!([split("two", 100)])));
    rig.settle().await;
    assert_eq!(rig.get("app.example.com").await.text("backend"), "one");
    rig.service("two", "http", &[two.address]);
    rig.settle().await;
    assert_eq!(rig.get("app.example.com").await.text("backend"), "two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_waits_for_its_backend_holds_up_no_other_host() {
    let rig = rig!(false);
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    rig.service("one", "http", &[one.address]);
    rig.service("two", "http", &[two.address]);
    let hosts = |first: &str, second: &str| {
        let mut spec = host("a.example.com", json!([split(first, 100)]));
        let other = host("b.example.com", json!([split(second, 100)]));
        spec["rules"].as_array_mut().unwrap().push(other["rules"][0].clone());
        spec
    };
    rig.ingress("app", hosts("one", "one"));
    rig.settle().await;
    rig.service("three", "http", &[]);
    rig.ingress("app", hosts("three", "two"));
    rig.settle().await;
    assert_eq!(rig.get("a.example.com").await.text("backend"), "one");
    assert_eq!(rig.get("b.example.com").await.text("backend"), "two");
    rig.service("three", "http", &[two.address]);
    rig.settle().await;
    assert_eq!(rig.get("a.example.com").await.header("x-split"), "three");
    rig.ready("app").await;
    assert_eq!(rig.rejections().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_and_goes_leaves_nothing_in_a_stream() {
    for state_of_the_world in [false, true] {
        let rig = rig!(state_of_the_world);
        let one = Backend::start("one").await;
        rig.service("one", "http", &[one.address]);
        rig.ingress("stays", host("stays.example.com", json!([split("one", 100)])));
        rig.settle().await;
        let mut before = None;
        for _ in 0..2 {
            for n in 0..200 {
                rig.service(&format!("s{n}"), "http", &[one.address]);
                rig.ingress(
                    &format!("i{n}"),
                    host(&format!("h{n}.example.com"), json!([split(&format!("s{n}"), 100)])),
                );
            }
            rig.settle().await;
            assert_eq!(rig.get("h199.example.com").await.status, 200);
            for n in 0..200 {
                rig.remove_ingress(&format!("i{n}"));
                rig.remove_service(&format!("s{n}"));
            }
            rig.settle().await;
            rig.until("routes to go", async || rig.get("h199.example.com").await.status == 404).await;
            // Removals end with their acknowledgement, after what they follow.
            let quiet = async || {
                let clusters = rig.admin("/clusters").await;
                !clusters.contains("default/s") && !rig.xds().describe()[0].contains("in flight 1")
            };
            rig.until("clusters to go", quiet).await;
            let now = rig.xds().describe();
            assert_eq!(*before.get_or_insert_with(|| now.clone()), now);
        }
        assert_eq!(rig.get("stays.example.com").await.status, 200);
        assert_eq!(rig.rejections().await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_more_ingress_beside_many_is_served() {
    let rig = rig!(false);
    let one = Backend::start("one").await;
    rig.service("one", "http", &[one.address]);
    for n in 0..200 {
        rig.ingress(&format!("i{n}"), host(&format!("h{n}.example.com"), json!([split("one", 100)])));
    }
    rig.settle().await;
    rig.ingress("new", host("new.example.com", json!([split("one", 100)])));
    rig.settle().await;
    for name in ["h0", "h199", "new"] {
        assert_eq!(rig.get(&format!("{name}.example.com")).await.status, 200, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_found_however_they_are_written_and_patterns_too() {
    for state_of_the_world in [false, true] {
        let rig = rig!(state_of_the_world);
        let one = Backend::start("one").await;
        rig.service("one", "http", &[one.address]);
        rig.ingress("app", host("app.example.com", json!([split("one", 100)])));
        rig.ready("app").await;
        let check = async || {
            for host in ["app.example.com", "App.Example.COM", "app.example.com:8080", "APP.example.com:80"] {
                let forged =
                    Request { headers: vec![("x-postrider-scope", "external_services/x")], ..Request::to(host) };
                let answer = rig.send(&forged).await;
                assert_eq!((answer.status, answer.text("backend")), (200, "one"), "{host}");
                assert_eq!(answer.header("host"), host, "the backend sees the host as it was sent");
            }
        };
        check().await;
        assert_eq!(rig.get("Other.example.com").await.status, 404);
        assert_eq!(rig.get("app.example.com.").await.status, 404);
        let traffic = rig.traffic("app.example.com");
        // A pattern has no scope: while there is one, everybody gets tables.
        rig.ingress("pattern", host("*.pattern.example.com", json!([split("one", 100)])));
        rig.ready("pattern").await;
        rig.until("the pattern", async || rig.get("any.pattern.example.com").await.status == 200).await;
        check().await;
        rig.remove_ingress("pattern");
        rig.settle().await;
        rig.until("the end of the pattern", async || rig.get("any.pattern.example.com").await.status == 404).await;
        check().await;
        let (answered, failed) = traffic.stop().await;
        assert!(answered > 0);
        assert_eq!(failed, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_route_is_all_that_travels() {
    let rig = rig!(false);
    let one = Backend::start("one").await;
    rig.service("one", "http", &[one.address]);
    for n in 0..100 {
        rig.ingress(&format!("i{n}"), host(&format!("h{n}.example.com"), json!([split("one", 100)])));
    }
    rig.settle().await;
    let before = rig.received().await;
    let mut changed = host("h7.example.com", json!([split("one", 100)]));
    changed["rules"][0]["http"]["paths"][0]["appendHeaders"] = json!({"X-Step": "1"});
    rig.ingress("i7", changed);
    rig.settle().await;
    rig.until("the change", async || rig.get("h7.example.com").await.header("x-step") == "1").await;
    let bytes = rig.received().await - before;
    assert!(bytes < 4096, "{bytes} bytes for one route among 100");
}
