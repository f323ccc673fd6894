//! Settings that change while the gateway serves: nothing is restarted.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use ingress::{Authorization, AuthorizationProtocol, Tracing};
use rustls_pki_types::ServerName;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    host, split,
    support::{Backend, Certificate, Request, Rig, send, send_on, send_tls},
};

pub(crate) async fn start(state_of_the_world: bool) -> Option<(Rig, Backend)> {
    let rig = Rig::start(state_of_the_world).await?;
    let backend = Backend::start("app").await;
    rig.service("app", "http", &[backend.address]);
    rig.ingress_with("app", json!({"labels": {"team": "blue"}}), host("app.example.com", json!([split("app", 100)])));
    rig.ready("app").await;
    Some((rig, backend))
}

/// Lets in what asks for `/success`, under `/verify`.
async fn authorizer() -> Backend {
    Backend::connections(|stream| async move {
        let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| async move {
            let known = request.headers().get("client").is_some_and(|client| client == "kourier");
            let status = if known && request.uri().path() == "/verify/success" { 200 } else { 403 };
            let response = hyper::Response::builder().status(status).body(Full::<Bytes>::default()).unwrap();
            Ok::<_, Infallible>(response)
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

pub(crate) fn asking(address: SocketAddr) -> Authorization {
    Authorization {
        host: "127.0.0.1".to_owned(),
        port: address.port(),
        protocol: AuthorizationProtocol::Http,
        failure_mode_allow: false,
        max_request_bytes: 8192,
        timeout: Duration::from_secs(2),
        path_prefix: "/verify".to_owned(),
        pack_as_bytes: false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorization_comes_and_goes_without_a_restart() {
    for state_of_the_world in [false, true] {
        let Some((rig, _backend)) = start(state_of_the_world).await else { return };
        let mut acme = host("acme.example.com", json!([]));
        acme["rules"][0]["http"]["paths"] = json!([
            {"path": "/.well-known/acme-challenge/x", "splits": [split("app", 100)]},
            {"splits": [split("app", 100)]},
        ]);
        acme["httpOption"] = json!("Redirected");
        rig.ingress("acme", acme);
        rig.ready("acme").await;
        let status = async |host: &str, path: &str| {
            let request = Request { path, ..Request::to(host) };
            rig.try_send(rig.external, &request).await.map_or(0, |answer| answer.status)
        };
        assert_eq!(status("app.example.com", "/").await, 200);

        let authorizer = authorizer().await;
        rig.configure(|settings| settings.authorization = Some(asking(authorizer.address)));
        rig.ready("app").await;
        rig.until("authorization", async || status("app.example.com", "/").await == 403).await;
        rig.until("permission", async || status("app.example.com", "/success").await == 200).await;
        rig.until("the open path", async || status("acme.example.com", "/.well-known/acme-challenge/x").await == 200)
            .await;
        let ready = Request { path: "/ready", ..Request::to("internalkourier") };
        assert_eq!(rig.internal(&ready).await.status, 200);
        let dump = rig.admin_raw("/config_dump").await;
        // Envoy does not show the values.
        assert!(dump.contains(r#""team":"#) && dump.contains(r#""visibility":"#), "{dump}");

        rig.configure(|_| {});
        rig.ready("app").await;
        rig.until("no authorization", async || status("app.example.com", "/").await == 200).await;
        assert_eq!(rig.rejections().await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorization_over_grpc_is_accepted_by_the_gateway() {
    let Some((rig, backend)) = start(false).await else { return };
    rig.configure(|settings| {
        let authorization = asking(backend.address);
        settings.authorization = Some(Authorization {
            protocol: AuthorizationProtocol::Grpc,
            failure_mode_allow: true,
            pack_as_bytes: true,
            ..authorization
        });
    });
    rig.ready("app").await;
    // Nobody answers there as an authorizer would: the failure mode decides.
    rig.until("requests", async || rig.try_send(rig.external, &Request::to("app.example.com")).await.is_ok()).await;
    assert_eq!(rig.rejections().await, 0);
    assert!(rig.admin_raw("/config_dump").await.contains(r#""pack_as_bytes":true"#));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_protocol_is_spoken_outside_only() {
    let Some((rig, _backend)) = start(false).await else { return };
    rig.configure(|settings| {
        settings.proxy_protocol = true;
        settings.trusted_hops = 1;
    });
    rig.settle().await;
    let request = Request::to("app.example.com");
    rig.until("plain requests to fail", async || rig.try_send(rig.external, &request).await.is_err()).await;
    assert_eq!(rig.internal(&request).await.status, 200);
    assert_eq!(send(rig.probe, &request).await.unwrap().status, 200);
    let mut stream = TcpStream::connect(rig.external).await.unwrap();
    stream.write_all(b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\r\n").await.unwrap();
    let answer = send_on(stream, &request).await.unwrap();
    assert_eq!((answer.status, answer.header("x-forwarded-for")), (200, "203.0.113.7"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_headers_logs_traces_and_idle_time() {
    for state_of_the_world in [false, true] {
        let Some((rig, backend)) = start(state_of_the_world).await else { return };
        let request = Request::to("app.example.com");
        assert_eq!(send(rig.external, &request).await.unwrap().headers["server"], "envoy");
        let has_ipv6 = tokio::net::TcpListener::bind("[::1]:0").await.is_ok();
        rig.configure(|settings| {
            settings.hide_server_header = true;
            settings.access_log = true;
            settings.access_log_template = "%REQ(:AUTHORITY)% %RESPONSE_CODE%\n".to_owned();
            settings.stream_idle_timeout = Duration::from_secs(50);
            settings.use_remote_address = true;
            settings.listen_ips = vec!["127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap()];
            if has_ipv6 {
                settings.listen_ips.push("::1".parse().unwrap());
            }
            settings.tracing = Some(Tracing {
                host: "127.0.0.1".to_owned(),
                port: backend.address.port(),
                path: "/v1/traces".to_owned(),
                grpc: false,
                sampled_per_million: 1_000_000,
                service_name: "kourier-knative".to_owned(),
            });
        });
        rig.ready("app").await;
        let mut addresses = vec![SocketAddr::from(([127, 0, 0, 2], rig.external.port()))];
        if has_ipv6 {
            addresses.push(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], rig.external.port())));
        }
        for address in addresses {
            rig.until("the other address", async || send(address, &request).await.is_ok_and(|a| a.status == 200)).await;
            let answer = send(address, &request).await.unwrap();
            assert!(!answer.headers.contains_key("server"));
            assert!(!answer.header("traceparent").is_empty(), "a trace starts here: {answer:?}");
        }
        let dump = rig.admin_raw("/config_dump").await;
        assert!(dump.contains(r#""stream_idle_timeout":"50s""#) && dump.contains("%RESPONSE_CODE%"));
        assert_eq!(rig.rejections().await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_proxy_protocol_tls_is_asked_for_after_it_and_probes_do_without() {
    let Some((rig, _backend)) = start(false).await else { return };
    let certificate = Certificate::new(&["tls.example.com"]);
    rig.secret("default", "tls", &certificate.data());
    let mut secured = host("tls.example.com", json!([split("app", 100)]));
    secured["tls"] = json!([{"hosts": ["tls.example.com"], "secretName": "tls", "secretNamespace": "default"}]);
    rig.ingress("tls", secured);
    rig.configure(|settings| settings.proxy_protocol = true);
    rig.ready("tls").await;
    let request = Request::to("tls.example.com");
    let through_proxy = async || -> Result<u16, String> {
        let mut stream = TcpStream::connect(rig.external_tls).await.map_err(|e| e.to_string())?;
        stream.write_all(b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 443\r\n").await.map_err(|e| e.to_string())?;
        let name = ServerName::try_from("tls.example.com").unwrap();
        let stream = certificate.connector(&["http/1.1"]).connect(name, stream).await.map_err(|e| e.to_string())?;
        let answer = send_on(stream, &request).await?;
        assert_eq!(answer.header("x-forwarded-for"), "203.0.113.7");
        Ok(answer.status)
    };
    rig.until("the PROXY protocol", async || through_proxy().await == Ok(200)).await;
    assert!(send_tls(rig.external_tls, &certificate, &request).await.is_err(), "without it nothing is answered");
    assert_eq!(send_tls(rig.probe_tls, &certificate, &request).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_idle_for_too_long_is_ended() {
    let Some((rig, _backend)) = start(false).await else { return };
    // Takes the request and never answers.
    let silent = Backend::connections(|mut stream| async move {
        let mut head = [0; 1024];
        while stream.read(&mut head).await.is_ok_and(|read| read > 0) {}
    })
    .await;
    rig.service("silent", "http", &[silent.address]);
    rig.ingress("silent", host("silent.example.com", json!([split("silent", 100)])));
    rig.configure(|settings| settings.stream_idle_timeout = Duration::from_millis(300));
    rig.ready("silent").await;
    let answer = async || rig.try_send(rig.external, &Request::to("silent.example.com")).await.map(|a| a.status);
    rig.until("the time limit", async || answer().await == Ok(504)).await;
    assert_eq!(rig.get("app.example.com").await.status, 200);
}
