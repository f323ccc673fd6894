//! Requests to a gateway: one, or many until it is enough.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
};

use super::Certificate;

#[derive(Clone)]
pub(crate) struct Request<'a> {
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) headers: Vec<(&'a str, &'a str)>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Of the response; what the backend got is in the body.
    pub(crate) headers: hyper::HeaderMap,
    body: Value,
}

/// Requests without pause, until stopped.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<Vec<String>>>,
}

impl<'a> Request<'a> {
    pub(crate) fn to(host: &'a str) -> Self {
        Request { host, path: "/", headers: Vec::new() }
    }
}

impl Answer {
    /// The whole body, as JSON.
    pub(crate) fn raw(&self) -> String {
        self.body.to_string()
    }

    /// The whole body, where it is no JSON.
    pub(crate) fn body(&self) -> &str {
        self.body.as_str().unwrap_or_default()
    }

    pub(crate) fn text(&self, field: &str) -> &str {
        self.body[field].as_str().unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.body["headers"][name].as_str().unwrap_or_default()
    }
}

/// One request on a connection of its own.
pub(crate) async fn send(to: SocketAddr, request: &Request<'_>) -> Result<Answer, String> {
    let stream = tokio::net::TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    send_on(stream, request).await
}

/// One request over TLS, for the server name of its host; the certificate must be this one.
pub(crate) async fn send_tls(
    to: SocketAddr,
    certificate: &Certificate,
    request: &Request<'_>,
) -> Result<Answer, String> {
    let stream = tokio::net::TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    let name = ServerName::try_from(request.host.to_owned()).map_err(|e| e.to_string())?;
    let stream = certificate.connector(&["http/1.1"]).connect(name, stream).await.map_err(|e| e.to_string())?;
    send_on(stream, request).await
}

/// One request on this connection.
pub(crate) async fn send_on(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: &Request<'_>,
) -> Result<Answer, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| text(&e))?;
    let connection = tokio::spawn(connection);
    let mut builder = hyper::Request::get(request.path).header("host", request.host);
    for (name, value) in &request.headers {
        builder = builder.header(*name, *value);
    }
    let request = builder.body(Full::<Bytes>::default()).map_err(|e| text(&e))?;
    let response = sender.send_request(request).await.map_err(|e| text(&e))?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.into_body().collect().await.map_err(|e| text(&e))?.to_bytes();
    connection.abort();
    let plain = || Value::String(String::from_utf8_lossy(&body).into_owned());
    Ok(Answer { status, headers, body: serde_json::from_slice(&body).unwrap_or_else(|_| plain()) })
}

// === impl Traffic ===

impl Traffic {
    /// `patient`: what the gateway did not answer at all is asked again, as load balancers do; more than once, because a
    /// process that was killed takes connections until the kernel has taken it apart.
    pub(super) fn start(to: SocketAddr, host: &'static str, patient: bool) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let worker = || {
            let (stop, answered) = (stop.clone(), answered.clone());
            tokio::spawn(async move {
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let mut answer = send(to, &Request::to(host)).await;
                    for _ in 0..if patient { 20 } else { 0 } {
                        if answer.is_err() {
                            answer = send(to, &Request::to(host)).await;
                        }
                    }
                    match answer {
                        Ok(answer) if answer.status == 200 => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Ok(answer) => failed.push(format!("{answer:?}")),
                        Err(error) => failed.push(error),
                    }
                }
                failed
            })
        };
        Traffic { tasks: vec![worker(), worker()], stop, answered }
    }

    /// How many requests were answered well so far.
    pub(crate) fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    pub(crate) async fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        for task in self.tasks {
            failed.extend(task.await.unwrap());
        }
        (self.answered.load(Ordering::Relaxed), failed)
    }
}
