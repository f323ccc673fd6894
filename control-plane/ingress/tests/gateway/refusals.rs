//! What cannot be served: a port that is taken at the gateway, and Ingresses that ask for what no gateway takes. Nobody
//! else notices.

use ingress::world::Pending;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    host, split,
    support::{Backend, Certificate, Request, Rig, send_tls},
};

fn secured(name: &str, secret: &str) -> Value {
    let mut spec = host(name, json!([split("app", 100)]));
    spec["tls"] = json!([{"hosts": [name], "secretName": secret, "secretNamespace": "default"}]);
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_told_once_and_tried_again_with_the_next_change() {
    for state_of_the_world in [false, true] {
        let Some(rig) = Rig::start(state_of_the_world).await else { return };
        let app = Backend::start("app").await;
        rig.service("app", "http", &[app.address]);
        let taken = TcpListener::bind(rig.external_tls).await.unwrap();
        let certificate = Certificate::new(&["tls.example.com"]);
        rig.secret("default", "tls", &certificate.data());
        rig.ingress("tls", secured("tls.example.com", "tls"));
        rig.ingress("plain", host("plain.example.com", json!([split("app", 100)])));
        rig.settle().await;
        rig.until("the refusal", async || rig.refused_resources() == 1).await;
        let refused = rig.rejections().await;
        assert_eq!(rig.get("plain.example.com").await.status, 200);
        let pending = rig.pending("tls");
        assert!(matches!(&pending, Pending::Shared(message) if message.contains("listener_8443")), "{pending:?}");
        assert_eq!(rig.pending("plain"), Pending::Nothing);

        // Other changes go on, and do not bring it up again.
        for n in 0..5 {
            let name = format!("h{n}.example.com");
            rig.ingress(&format!("h{n}"), host(&name, json!([split("app", 100)])));
            rig.settle().await;
            assert_eq!(rig.get(&name).await.status, 200);
        }
        assert_eq!(rig.rejections().await, refused);

        drop(taken);
        let other = Certificate::new(&["other.example.com"]);
        rig.secret("default", "other", &other.data());
        rig.ingress("other", secured("other.example.com", "other"));
        rig.settle().await;
        for (certificate, name) in [(&certificate, "tls.example.com"), (&other, "other.example.com")] {
            rig.until("TLS", async || {
                send_tls(rig.external_tls, certificate, &Request::to(name)).await.is_ok_and(|a| a.status == 200)
            })
            .await;
        }
        assert_eq!((rig.refused_resources(), rig.rejections().await), (0, refused));
        rig.ready("tls").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_values_are_told_on_their_ingress_and_reach_no_gateway() {
    for state_of_the_world in [false, true] {
        let Some(rig) = Rig::start(state_of_the_world).await else { return };
        let app = Backend::start("app").await;
        rig.service("app", "http", &[app.address]);
        let long = "x".repeat(100_000);
        let with = |name: &str, path: Value| {
            let mut spec = host(name, json!([split("app", 100)]));
            for (key, value) in path.as_object().unwrap() {
                spec["rules"][0]["http"]["paths"][0][key] = value.clone();
            }
            spec
        };
        let negative = json!([{"serviceNamespace": "default", "serviceName": "app", "servicePort": 80, "percent": -1},
            split("app", 101)]);
        let hostile = [
            with("internalkourier", json!({})),
            with("a.example.com:*", json!({})),
            with("", json!({})),
            with("line\nbreak.example.com", json!({})),
            with(&long, json!({})),
            with("a.example.com", json!({"path": format!("/{long}")})),
            with("a.example.com", json!({"path": "/\u{0}"})),
            with("a.example.com", json!({"rewriteHost": "x\r\nSet-Cookie: a"})),
            with("a.example.com", json!({"headers": {"bad name": {"exact": "x"}}})),
            with("a.example.com", json!({"headers": {"x": {"exact": "a\r\nb"}}})),
            with("a.example.com", json!({"appendHeaders": {"x": "a\r\nb: c"}})),
            with("a.example.com", json!({"appendHeaders": {"x": long}})),
            with("a.example.com", json!({"appendHeaders": {":authority": "x"}})),
            with("a.example.com", json!({"appendHeaders": {"Host": "x"}})),
            with("a.example.com", json!({"splits": negative})),
            with("a.example.com", json!({"splits": [split("app", 0), split("app", 0)]})),
        ];
        for (n, spec) in hostile.iter().enumerate() {
            rig.ingress(&format!("hostile-{n}"), spec.clone());
        }
        // Strange, and no reason to refuse anything.
        let strange = json!({"path": "/%41 ?#", "appendHeaders": {"X-Text": "100% %REQ(host)% \"ü\"", "X-Empty": ""}});
        rig.ingress("strange", with("STRANGE.example.com", strange));
        rig.ingress("good", with("good.example.com", json!({"appendHeaders": {"X-Text": "100% %REQ(host)%"}})));
        rig.ready("good").await;
        rig.ready("strange").await;
        let answer = rig.get("good.example.com").await;
        assert_eq!((answer.status, answer.header("x-text")), (200, "100% %REQ(host)%"));
        assert_eq!(rig.internal(&Request { path: "/ready", ..Request::to("internalkourier") }).await.status, 200);
        for n in 0..hostile.len() {
            let pending = rig.pending(&format!("hostile-{n}"));
            assert!(matches!(&pending, Pending::Invalid(message) if message.len() < 500), "{n}: {pending:?}");
        }
        assert_eq!(rig.rejections().await, 0);

        // Corrected, it is served; spoiled again, it goes on as it was.
        rig.ingress("hostile-5", with("a.example.com", json!({})));
        rig.ready("hostile-5").await;
        assert_eq!(rig.get("a.example.com").await.status, 200);
        rig.ingress("hostile-5", hostile[5].clone());
        rig.settle().await;
        assert!(matches!(rig.pending("hostile-5"), Pending::Invalid(_)));
        assert_eq!(rig.get("a.example.com").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_spellings_of_a_host_are_one_and_a_rejected_change_keeps_what_is_served() {
    let Some(rig) = Rig::start(false).await else { return };
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    rig.service("one", "http", &[one.address]);
    rig.service("two", "http", &[two.address]);
    rig.ingress("first", host("Shared.example.com", json!([split("one", 100)])));
    rig.ready("first").await;
    rig.ingress("second", host("shared.EXAMPLE.com", json!([split("two", 100)])));
    rig.settle().await;
    assert_eq!(rig.pending("second"), Pending::Conflict);
    assert_eq!(rig.get("shared.example.com").await.text("backend"), "one");

    // Upstream takes the working routes away before it rejects.
    rig.ingress("third", host("third.example.com", json!([split("two", 100)])));
    rig.ready("third").await;
    rig.ingress("third", host("shared.example.com", json!([split("two", 100)])));
    rig.settle().await;
    assert_eq!(rig.pending("third"), Pending::Conflict);
    assert_eq!(rig.get("third.example.com").await.text("backend"), "two");

    rig.remove_ingress("first");
    rig.settle().await;
    let winner = rig.get("shared.example.com").await;
    assert_eq!(winner.text("backend"), "two");
    let conflicts = ["second", "third"].iter().filter(|name| rig.pending(name) == Pending::Conflict).count();
    assert_eq!(conflicts, 1, "one of them has it now");
    assert_eq!(rig.rejections().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_service_is_a_503_of_its_own_ingress_only() {
    let Some(rig) = Rig::start(false).await else { return };
    let app = Backend::start("app").await;
    rig.service("app", "http", &[app.address]);
    rig.ingress("missing", host("missing.example.com", json!([split("nowhere", 100)])));
    rig.ingress("good", host("good.example.com", json!([split("app", 100)])));
    rig.ready("good").await;
    assert_eq!(rig.get("good.example.com").await.status, 200);
    assert!(matches!(rig.pending("missing"), Pending::Services(_)));
    assert_eq!(rig.get("missing.example.com").await.status, 503);
    rig.service("nowhere", "http", &[app.address]);
    rig.ready("missing").await;
    rig.until("its endpoints", async || rig.get("missing.example.com").await.status == 200).await;
    assert_eq!(rig.rejections().await, 0);
}
