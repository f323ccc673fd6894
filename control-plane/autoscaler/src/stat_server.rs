//! Where activators report: a WebSocket server that takes binary frames of `WireStatMessages`.
//!
//! A stat is handled in the task that read it, there is no queue between the socket and the decision. A slow decision holds
//! back its own sender only.
//!
//! There is one autoscaler so far. With several, each owns some buckets of keys: the owner check for hosts `autoscaler-bucket-*`
//! goes where the request is upgraded, and forwarding to the owner where [`Sink`] is called.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use controller::{ObjectKey, Tasks};
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use proto::{Message as _, Stat, WireStatMessages};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// What happens with each received stat.
pub type Sink = Arc<dyn Fn(ObjectKey, Stat) + Send + Sync>;

const READ_HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// Senders ping every few seconds; one that is silent this long is gone.
const SILENCE: Duration = Duration::from_secs(180);
/// How long saying goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// A batch of this size holds some hundred thousand revisions.
const MESSAGE_LIMIT: usize = 16 << 20;

/// Binds and starts the server on `tasks`; it says goodbye with code 1012 when they are cancelled.
pub async fn start(tasks: &Tasks, listen: SocketAddr, sink: Sink) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let connections = tasks.clone();
    tasks.spawn("stat server", async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (tasks, sink) = (connections.clone(), sink.clone());
                    connections.spawn("stat connection", connection(stream, tasks, sink));
                }
                Err(error) => {
                    tracing::warn!(%error, "stat server: accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    });
    Ok(address)
}

async fn connection(stream: TcpStream, tasks: Tasks, sink: Sink) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let (tasks, sink) = (tasks.clone(), sink.clone());
        async move { Ok::<_, Infallible>(handle(request, &tasks, sink)) }
    });
    let serve = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = serve.await {
        tracing::debug!(%error, "stat connection ended");
    }
}

fn handle(mut request: Request<Incoming>, tasks: &Tasks, sink: Sink) -> Response<Full<Bytes>> {
    if is_kubelet_probe(request.headers()) {
        return Response::default();
    }
    let key = match websocket_key(request.headers()) {
        Ok(key) => key,
        Err((status, reason)) => return refuse(status, reason),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let group = tasks.clone();
    // Graceful: it ends on cancellation by itself, after the goodbye.
    tasks.spawn_graceful("stat stream", async move {
        let upgraded = tokio::select! {
            upgraded = upgrade => upgraded,
            () = group.token().cancelled() => return,
        };
        match upgraded {
            Ok(upgraded) => {
                let config = WebSocketConfig::default()
                    .max_message_size(Some(MESSAGE_LIMIT))
                    .max_frame_size(Some(MESSAGE_LIMIT))
                    .read_buffer_size(4096);
                let io = TokioIo::new(upgraded);
                receive(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await, &group, &sink).await;
            }
            Err(error) => tracing::debug!(%error, "stat stream: upgrade failed"),
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::UPGRADE, "websocket")
        .header(header::CONNECTION, "Upgrade")
        .header(header::SEC_WEBSOCKET_ACCEPT, key)
        .body(Full::default())
        .expect("a response of constants is valid")
}

type Upgraded = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

async fn receive(mut socket: Upgraded, tasks: &Tasks, sink: &Sink) {
    loop {
        let message = tokio::select! {
            message = tokio::time::timeout(SILENCE, socket.next()) => message,
            () = tasks.token().cancelled() => {
                let goodbye = CloseFrame { code: CloseCode::Restart, reason: Utf8Bytes::from_static("Restarting") };
                let close = async {
                    let _ = socket.send(Message::Close(Some(goodbye))).await;
                    let _ = socket.flush().await;
                };
                let _ = tokio::time::timeout(CLOSE_TIMEOUT, close).await;
                return;
            }
        };
        match message {
            Ok(Some(Ok(Message::Binary(payload)))) => dispatch(payload, sink),
            // Pongs are answered while reading on.
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
            Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) | Err(_) => return,
            Ok(Some(Ok(other))) => {
                tracing::warn!(len = other.len(), "stat stream: dropping a frame that is not binary")
            }
        }
    }
}

fn dispatch(payload: Bytes, sink: &Sink) {
    match WireStatMessages::decode(payload) {
        Ok(batch) => {
            for message in batch.messages {
                if let Some(stat) = message.stat {
                    sink(ObjectKey::new(message.namespace, message.name), stat);
                }
            }
        }
        Err(error) => tracing::warn!(%error, "stat stream: dropping a frame that is not a batch of stats"),
    }
}

fn is_kubelet_probe(headers: &HeaderMap) -> bool {
    headers.get(header::USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"kube-probe/"))
        || headers.get("k-kubelet-probe").is_some_and(|value| !value.is_empty())
}

/// Checks the opening handshake and returns the answer to its key.
fn websocket_key(headers: &HeaderMap) -> Result<String, (StatusCode, &'static str)> {
    let bad = |reason| Err((StatusCode::BAD_REQUEST, reason));
    let has_token = |name: header::HeaderName, token: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    if !has_token(header::CONNECTION, "upgrade") || !has_token(header::UPGRADE, "websocket") {
        return bad("Bad Request: this port takes WebSocket connections only");
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return bad("Bad Request: WebSocket version must be 13");
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let authority =
            origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        if !authority.zip(host).is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host)) {
            return Err((StatusCode::FORBIDDEN, "Forbidden: request origin not allowed"));
        }
    }
    match headers.get(header::SEC_WEBSOCKET_KEY) {
        Some(key) => Ok(derive_accept_key(key.as_bytes())),
        None => bad("Bad Request: Sec-WebSocket-Key is missing"),
    }
}

fn refuse(status: StatusCode, reason: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{reason}\n"))));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::Arc;

    use controller::{ObjectKey, Tasks};
    use futures::{SinkExt, StreamExt};
    use proto::{Message as _, Stat, WireStatMessage, WireStatMessages};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::mpsc;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

    fn stat(pod: &str) -> Option<Stat> {
        Some(Stat { pod_name: pod.to_owned(), average_concurrent_requests: 1.0, ..Stat::default() })
    }

    async fn server() -> (Tasks, SocketAddr, mpsc::UnboundedReceiver<(ObjectKey, Stat)>) {
        let tasks = Tasks::new();
        let (sender, receiver) = mpsc::unbounded_channel();
        let sink = Arc::new(move |key, stat| sender.send((key, stat)).unwrap());
        let address = super::start(&tasks, (Ipv4Addr::LOCALHOST, 0).into(), sink).await.unwrap();
        (tasks, address, receiver)
    }

    #[tokio::test]
    async fn takes_batches_skips_rubbish_and_says_goodbye() {
        let (tasks, address, mut stats) = server().await;
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{address}/any"), stream).await.unwrap();
        socket.send(Message::Binary(vec![0xff, 0xff].into())).await.unwrap();
        socket.send(Message::Text("hello".into())).await.unwrap();
        socket.send(Message::Ping(vec![].into())).await.unwrap();
        let message = |name: &str, stat| WireStatMessage { namespace: "default".into(), name: name.into(), stat };
        let batch =
            WireStatMessages { messages: vec![message("a", stat("p")), message("b", None), message("c", stat("q"))] };
        socket.send(Message::Binary(batch.encode_to_vec().into())).await.unwrap();
        let (first, second) = (stats.recv().await.unwrap(), stats.recv().await.unwrap());
        assert_eq!(first.0, ObjectKey::new("default", "a"));
        assert_eq!(first.1.pod_name, "p");
        assert_eq!(second.0, ObjectKey::new("default", "c"));
        assert!(matches!(socket.next().await, Some(Ok(Message::Pong(_)))));
        tokio::join!(tasks.shutdown(), async {
            let Some(Ok(Message::Close(Some(close)))) = socket.next().await else { panic!("no goodbye") };
            assert_eq!((close.code, close.reason.as_str()), (CloseCode::Restart, "Restarting"));
        });
    }

    async fn raw(address: SocketAddr, headers: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: autoscaler\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn answers_probes_and_refuses_what_is_not_a_websocket() {
        let (tasks, address, _stats) = server().await;
        assert!(raw(address, "User-Agent: kube-probe/1.35\r\n").await.starts_with("HTTP/1.1 200 OK"));
        assert!(raw(address, "").await.starts_with("HTTP/1.1 400 Bad Request"));
        let foreign = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://elsewhere\r\n";
        assert!(raw(address, foreign).await.starts_with("HTTP/1.1 403 Forbidden"));
        tasks.shutdown().await;
    }
}
