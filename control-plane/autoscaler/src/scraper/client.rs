//! `GET http://<pod>:9090/metrics` over connections that are kept while their pod lives.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use controller::Tasks;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use proto::{Message, Stat};
use tokio::net::TcpStream;

use super::Error;

const TIMEOUT: Duration = Duration::from_secs(3);
/// A stat with the longest pod name there can be; more is not a stat.
const BODY_LIMIT: usize = 336;

type Sender = SendRequest<Empty<Bytes>>;

#[derive(Debug)]
pub(super) struct Connections {
    tasks: Tasks,
    port: u16,
    idle: Mutex<HashMap<IpAddr, Sender>>,
}

// === impl Connections ===

impl Connections {
    pub(super) fn new(tasks: Tasks, port: u16) -> Self {
        Connections { tasks, port, idle: Mutex::default() }
    }

    /// Closes idle connections to every address but those that `keep` wants.
    pub(super) fn retain(&self, keep: impl Fn(IpAddr) -> bool) {
        self.idle.lock().retain(|address, sender| keep(*address) && !sender.is_closed());
    }

    pub(super) async fn stat(&self, address: IpAddr) -> Result<Stat, Error> {
        let to = SocketAddr::new(address, self.port);
        let failed = |reason: String| Error::Pod { url: format!("http://{to}/metrics"), reason };
        match tokio::time::timeout(TIMEOUT, self.request(to)).await {
            Ok(Ok(stat)) => Ok(stat),
            Ok(Err(reason)) => Err(failed(reason)),
            Err(_) => Err(failed(format!("no answer within {} s", TIMEOUT.as_secs()))),
        }
    }

    async fn request(&self, to: SocketAddr) -> Result<Stat, String> {
        let kept = self.idle.lock().remove(&to.ip());
        if let Some(mut sender) = kept.filter(|sender| sender.is_ready()) {
            // The pod may have closed it at this very moment: then a new connection decides.
            if let Ok(response) = send(&mut sender, to).await {
                return self.finish(sender, to, response).await;
            }
        }
        let mut sender = self.connect(to).await?;
        let response = send(&mut sender, to).await?;
        self.finish(sender, to, response).await
    }

    async fn connect(&self, to: SocketAddr) -> Result<Sender, String> {
        let stream = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        self.tasks.spawn("scrape connection", async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    async fn finish(&self, sender: Sender, to: SocketAddr, response: Response<Incoming>) -> Result<Stat, String> {
        let status = response.status();
        if !status.is_success() {
            return Err(format!("unexpected status {status}"));
        }
        let content_type = response.headers().get(header::CONTENT_TYPE).cloned();
        if content_type.as_ref().is_none_or(|value| value.as_bytes() != proto::CONTENT_TYPE.as_bytes()) {
            return Err(format!(
                "unsupported metric type: {:?}",
                content_type.unwrap_or(header::HeaderValue::from_static(""))
            ));
        }
        let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await.map_err(|e| e.to_string())?;
        let stat = Stat::decode(body.to_bytes()).map_err(|e| format!("not a stat: {e}"))?;
        self.idle.lock().insert(to.ip(), sender);
        Ok(stat)
    }
}

async fn send(sender: &mut Sender, to: SocketAddr) -> Result<Response<Incoming>, String> {
    let request = Request::get("/metrics")
        .header(header::HOST, to.to_string())
        .header(header::ACCEPT, proto::CONTENT_TYPE)
        .body(Empty::new())
        .expect("a constant request is valid");
    sender.ready().await.map_err(|e| e.to_string())?;
    sender.send_request(request).await.map_err(|e| e.to_string())
}
