//! What the chart has Kubernetes run before it ends a gateway: open requests are finished, new ones go elsewhere.

use std::{os::unix::fs::symlink, path::Path, process::Stdio, sync::Arc};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::sync::Notify;

use crate::{
    host, split,
    support::{Backend, Request, Rig, send},
};

/// The shell's text in the chart, a folded block.
fn hook() -> String {
    let chart = include_str!("../../../../charts/kourier/templates/gateway.yaml");
    let block = chart.split_once("- >-\n").unwrap().1.split_once("readinessProbe").unwrap().0;
    block.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A folder with nothing but these programs.
fn only(programs: &[&str], folder: &Path) {
    for program in programs {
        let path = std::env::var_os("PATH").unwrap();
        let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file());
        symlink(found.unwrap_or_else(|| panic!("no {program} on PATH")), folder.join(program)).unwrap();
    }
}

/// Answers once it is told to, and tells when it was asked.
async fn held(asked: Arc<Notify>, released: Arc<Notify>) -> Backend {
    Backend::connections(move |stream| {
        let (asked, released) = (asked.clone(), released.clone());
        async move {
            let service = hyper::service::service_fn(move |_: hyper::Request<Incoming>| {
                let (asked, released) = (asked.clone(), released.clone());
                async move {
                    asked.notify_one();
                    released.notified().await;
                    Ok::<_, std::convert::Infallible>(hyper::Response::new(Full::new(Bytes::from("{}"))))
                }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_finishes_what_it_has_with_curl_and_without() {
    for programs in [&["bash", "cat", "sleep", "curl"][..], &["bash", "cat", "sleep"]] {
        // The draining itself never ends here: only the hook's own time does.
        let Some(mut rig) = Rig::start_with(false, |bootstrap| bootstrap.drain_seconds = 600).await else { return };
        let (asked, released) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (slow, app) = (held(asked.clone(), released.clone()).await, Backend::start("app").await);
        rig.service("slow", "http", &[slow.address]);
        rig.service("app", "http", &[app.address]);
        rig.ingress("slow", host("slow.example.com", json!([split("slow", 100)])));
        rig.ingress("app", host("app.example.com", json!([split("app", 100)])));
        rig.ready("slow").await;
        rig.ready("app").await;
        assert!(!rig.get("app.example.com").await.headers.contains_key("connection"));
        let external = rig.external;
        let open = tokio::spawn(async move { send(external, &Request::to("slow.example.com")).await });
        asked.notified().await;

        let folder = tempfile::tempdir().unwrap();
        let has_curl = std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|dir| dir.join("curl").is_file());
        let programs: Vec<&str> = programs.iter().copied().filter(|name| *name != "curl" || has_curl).collect();
        only(&programs, folder.path());
        let text = hook().replace("9901", &rig.admin_port().to_string());
        let hook = tokio::process::Command::new("/bin/sh")
            .args(["-c", &text])
            .env("PATH", folder.path())
            .env("DRAIN_TIME_SECONDS", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let hook = tokio::spawn(hook);
        let closing = |answer: &crate::support::Answer| answer.headers.get("connection").is_some_and(|c| c == "close");
        // Clients are sent away, and not turned away.
        rig.until("draining", async || {
            let answer = rig.get("app.example.com").await;
            assert_eq!(answer.status, 200);
            closing(&answer)
        })
        .await;
        assert!(hook.await.unwrap().unwrap().success());
        released.notify_one();
        let answer = open.await.unwrap().unwrap();
        assert_eq!((answer.status, closing(&answer)), (200, true));
        rig.end_gateway().await;
        rig.try_send(rig.external, &Request::to("app.example.com")).await.unwrap_err();
    }
}
