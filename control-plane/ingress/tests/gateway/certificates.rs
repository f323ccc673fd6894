//! Certificates: server names, renewal, bad ones, one for all, and what clients and gateways agree on.

use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{
    host, split,
    support::{Backend, Certificate, Request, Rig, send_tls},
};
use controller::ObjectKey;
use ingress::world::Pending;

fn secured(name: &str, secret: &str) -> Value {
    let mut spec = host(name, json!([split("app", 100)]));
    spec["tls"] = json!([{"hosts": [name], "secretName": secret, "secretNamespace": "default"}]);
    spec
}

async fn start(state_of_the_world: bool) -> Option<(Rig, Backend)> {
    let rig = Rig::start(state_of_the_world).await?;
    let backend = Backend::start("app").await;
    rig.service("app", "http", &[backend.address]);
    Some((rig, backend))
}

async fn answered(rig: &Rig, certificate: &Certificate, name: &str) {
    let request = Request::to(name);
    rig.until("TLS", async || {
        send_tls(rig.external_tls, certificate, &request).await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_host_has_its_own_certificate_and_a_renewed_one_changes_no_listener() {
    for state_of_the_world in [false, true] {
        let Some((rig, _backend)) = start(state_of_the_world).await else { return };
        let (one, two) = (Certificate::new(&["one.example.com"]), Certificate::new(&["two.example.com"]));
        rig.secret("default", "one", &one.data());
        rig.secret("default", "two", &two.data());
        rig.ingress("one", secured("one.example.com", "one"));
        rig.ingress("two", secured("two.example.com", "two"));
        rig.ready("one").await;
        rig.ready("two").await;
        answered(&rig, &one, "one.example.com").await;
        answered(&rig, &two, "two.example.com").await;

        let before = rig.updates().await;
        let renewed = Certificate::new(&["one.example.com"]);
        rig.secret("default", "one", &renewed.data());
        rig.settle().await;
        answered(&rig, &renewed, "one.example.com").await;
        answered(&rig, &two, "two.example.com").await;
        assert_eq!(rig.updates().await, before, "no cluster, listener or route was updated");

        rig.remove_ingress("one");
        rig.settle().await;
        let request = Request::to("one.example.com");
        rig.until("no TLS", async || send_tls(rig.external_tls, &renewed, &request).await.is_err()).await;
        answered(&rig, &two, "two.example.com").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_certificate_is_told_on_its_ingress_and_disturbs_nobody() {
    let Some((rig, _backend)) = start(false).await else { return };
    let good = Certificate::new(&["good.example.com"]);
    let other = Certificate::new(&["bad.example.com"]);
    rig.secret("default", "good", &good.data());
    rig.secret("default", "bad", &[("tls.crt", &good.chain), ("tls.key", &other.key)]);
    rig.ingress("good", secured("good.example.com", "good"));
    rig.ingress("bad", secured("bad.example.com", "bad"));
    rig.ingress("missing", secured("missing.example.com", "nowhere"));
    rig.ready("good").await;
    answered(&rig, &good, "good.example.com").await;
    for (name, expected) in [
        (
            "bad",
            "failed to translate ingress: failed to translate ingressTLS: invalid secret is specified: default/bad",
        ),
        ("missing", "failed to translate ingress: failed to translate ingressTLS: failed to fetch secret: "),
    ] {
        let Pending::Invalid(message) = rig.pending(name) else { panic!("{:?}", rig.pending(name)) };
        assert!(message.starts_with(expected), "{message}");
    }

    // Corrected, it needs nothing else. Broken again, what was good stays in force.
    rig.secret("default", "bad", &other.data());
    rig.secret("default", "nowhere", &Certificate::new(&["missing.example.com"]).data());
    rig.ready("bad").await;
    rig.ready("missing").await;
    answered(&rig, &other, "bad.example.com").await;
    rig.secret("default", "bad", &[("tls.crt", "junk"), ("tls.key", "junk")]);
    rig.settle().await;
    assert!(matches!(rig.pending("bad"), Pending::Invalid(_)));
    answered(&rig, &other, "bad.example.com").await;
    answered(&rig, &good, "good.example.com").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_certificate_serves_what_has_none_of_its_own() {
    for state_of_the_world in [false, true] {
        let Some((rig, _backend)) = start(state_of_the_world).await else { return };
        let wildcard = Certificate::new(&["*.example.com"]);
        let own = Certificate::new(&["own.example.com"]);
        let cluster = Certificate::new(&["app.default.svc.cluster.local"]);
        rig.ingress("app", host("app.example.com", json!([split("app", 100)])));
        let mut local = host("app.default.svc.cluster.local", json!([split("app", 100)]));
        local["rules"][0]["visibility"] = json!("ClusterLocal");
        rig.ingress("local", local);
        rig.configure(|settings| {
            settings.certificate = Some(ObjectKey::new("tls", "wildcard"));
            settings.cluster_certificate = Some(ObjectKey::new("knative-serving", "server-certs"));
        });
        rig.ready("app").await;
        let request = Request::to("app.example.com");
        assert!(send_tls(rig.external_tls, &wildcard, &request).await.is_err(), "there is no certificate yet");

        rig.secret("tls", "wildcard", &wildcard.data());
        rig.secret("knative-serving", "server-certs", &cluster.data());
        rig.ready("app").await;
        answered(&rig, &wildcard, "app.example.com").await;
        let inside = Request::to("app.default.svc.cluster.local");
        rig.until("cluster-local TLS", async || {
            send_tls(rig.internal_tls, &cluster, &inside).await.is_ok_and(|answer| answer.status == 200)
        })
        .await;
        assert_eq!(send_tls(rig.external_tls, &wildcard, &request).await.unwrap().header("x-forwarded-proto"), "https");

        // A host with a certificate of its own beside it.
        rig.secret("default", "own", &own.data());
        rig.ingress("own", secured("own.example.com", "own"));
        rig.ready("own").await;
        answered(&rig, &own, "own.example.com").await;
        answered(&rig, &wildcard, "app.example.com").await;

        // Renewed without anybody's help.
        let renewed = Certificate::new(&["*.example.com"]);
        rig.secret("tls", "wildcard", &renewed.data());
        rig.settle().await;
        answered(&rig, &renewed, "app.example.com").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn protocols_are_negotiated_and_cipher_suites_limited() {
    let Some((rig, _backend)) = start(false).await else { return };
    let certificate = Certificate::new(&["tls.example.com"]);
    rig.secret("default", "cert", &certificate.data());
    rig.ingress("tls", secured("tls.example.com", "cert"));
    rig.ready("tls").await;
    answered(&rig, &certificate, "tls.example.com").await;
    for (offered, chosen) in [(&["h2", "http/1.1"][..], "h2"), (&["http/1.1"], "http/1.1")] {
        let stream = TcpStream::connect(rig.external_tls).await.unwrap();
        let name = ServerName::try_from("tls.example.com").unwrap();
        let stream = certificate.connector(offered).connect(name, stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(chosen.as_bytes()));
    }
    rig.configure(|settings| {
        settings.cipher_suites =
            ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"].map(str::to_owned).into();
    });
    rig.settle().await;
    let dump = rig.admin_raw("/config_dump").await;
    assert!(dump.contains(r#""cipher_suites":["ECDHE-ECDSA-AES128-GCM-SHA256","ECDHE-ECDSA-CHACHA20-POLY1305"]"#));
    answered(&rig, &certificate, "tls.example.com").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_demand_a_new_certificate_changes_no_listener() {
    let started = Rig::start_control_plane_with(|options| options.certificates_on_demand = true).await;
    let Some(mut rig) = started else { return };
    let app = Backend::start("app").await;
    rig.service("app", "http", &[app.address]);
    let put = |n: usize, certificate: &Certificate| {
        let name = format!("h{n}.example.com");
        rig.secret("default", &format!("s{n}"), &certificate.data());
        let mut spec = host(&name, json!([split("app", 100)]));
        spec["tls"] = json!([{"hosts": [name], "secretName": format!("s{n}"), "secretNamespace": "default"}]);
        rig.ingress(&format!("i{n}"), spec);
    };
    let certificates: Vec<Certificate> = (0..30).map(|n| Certificate::new(&[&format!("h{n}.example.com")])).collect();
    for (n, certificate) in certificates[..29].iter().enumerate() {
        put(n, certificate);
    }
    rig.ready("i28").await;
    let served = async |rig: &Rig, n: usize, certificate: &Certificate| {
        let host = format!("h{n}.example.com");
        send_tls(rig.external_tls, certificate, &Request::to(&host)).await.is_ok_and(|answer| answer.status == 200)
    };
    for (n, certificate) in certificates[..29].iter().enumerate() {
        rig.until("its own certificate", async || served(&rig, n, certificate).await).await;
    }
    let ([_, listeners, _], bytes) = (rig.updates().await, rig.received().await);
    put(29, &certificates[29]);
    rig.ready("i29").await;
    assert!(served(&rig, 29, &certificates[29]).await, "Ready is served, at the first attempt");
    assert_eq!(rig.updates().await[1], listeners);
    let bytes = rig.received().await - bytes;
    assert!(bytes < 8192, "{bytes} bytes for one certificate among 30");
    // Renewed, and gone.
    let renewed = Certificate::new(&["h3.example.com"]);
    rig.secret("default", "s3", &renewed.data());
    rig.until("the renewed certificate", async || served(&rig, 3, &renewed).await).await;
    assert!(send_tls(rig.external_tls, &renewed, &Request::to("unknown.example.com")).await.is_err());
    rig.remove_ingress("i4");
    rig.settle().await;
    rig.until("the end of a certificate", async || !served(&rig, 4, &certificates[4]).await).await;
    assert_eq!(rig.updates().await[1], listeners);
    // Nothing is asked for again, and what was in use goes on without the control plane's help.
    rig.restart_control_plane().await;
    assert!(served(&rig, 3, &renewed).await);
    rig.settle().await;
    assert!(served(&rig, 5, &certificates[5]).await);

    // Beside a certificate for all the others there is a chain for each again.
    let others = Certificate::new(&["other.example.com"]);
    rig.secret("knative-serving", "others", &others.data());
    let key = controller::ObjectKey::new("knative-serving", "others");
    rig.configure(|settings| settings.certificate = Some(key));
    rig.ingress("other", host("other.example.com", json!([split("app", 100)])));
    rig.ready("other").await;
    rig.until("the one for the others", async || {
        send_tls(rig.external_tls, &others, &Request::to("other.example.com")).await.is_ok_and(|a| a.status == 200)
    })
    .await;
    assert!(served(&rig, 5, &certificates[5]).await && served(&rig, 3, &renewed).await);
    assert_eq!(rig.rejections().await, 0);
}
