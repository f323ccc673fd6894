//! Backends that do something special, and the clients for them.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full, channel};
use hyper::body::{Bytes, Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use super::Backend;

/// Answers the first request with 503, the others with 200.
pub(super) async fn unavailable_once() -> Backend {
    let asked = Arc::new(AtomicBool::new(false));
    Backend::connections(move |stream| {
        let asked = asked.clone();
        async move {
            let service = hyper::service::service_fn(move |_: hyper::Request<Incoming>| {
                let status = if asked.swap(true, Ordering::SeqCst) { 200 } else { 503 };
                let response = hyper::Response::builder().status(status).body(Full::<Bytes>::default());
                std::future::ready(response)
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await
}

/// Waits `initialTimeout` ms before the headers and `timeout` ms before the body.
pub(super) async fn slow() -> Backend {
    Backend::connections(|stream| async move {
        let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| async move {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let pause = |name: &str| {
                let values = query.split('&').filter_map(|pair| pair.split_once('='));
                let value = values.filter(|(key, _)| *key == name).find_map(|(_, value)| value.parse().ok());
                Duration::from_millis(value.unwrap_or(0))
            };
            tokio::time::sleep(pause("initialTimeout")).await;
            let later = pause("timeout");
            let (mut sender, body) = channel::Channel::<Bytes, Infallible>::new(1);
            tokio::spawn(async move {
                tokio::time::sleep(later).await;
                let _ = sender.send_data(Bytes::from_static(b"done")).await;
            });
            Ok::<_, Infallible>(hyper::Response::new(body))
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

/// HTTP/2 streams that say every message again, with a suffix.
pub(super) async fn echo_stream(suffix: &'static str) -> Backend {
    Backend::connections(move |stream| async move {
        let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| async move {
            let (mut sender, body) = channel::Channel::<Bytes, Infallible>::new(1);
            tokio::spawn(async move {
                let mut incoming = request.into_body();
                while let Some(Ok(frame)) = incoming.frame().await {
                    let Ok(data) = frame.into_data() else { break };
                    let echo = [&data[..], suffix.as_bytes()].concat();
                    if sender.send_data(echo.into()).await.is_err() {
                        break;
                    }
                }
            });
            let response = hyper::Response::builder().header("content-type", "application/grpc").body(body);
            Ok::<_, Infallible>(response.unwrap())
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

/// WebSocket connections that say every message again, with a suffix.
pub(super) async fn echo_socket(suffix: &'static str) -> Backend {
    Backend::connections(move |stream| async move {
        let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
        while let Some(Ok(message)) = socket.next().await {
            let Message::Text(text) = message else { break };
            if socket.send(Message::text(format!("{text} {suffix}"))).await.is_err() {
                break;
            }
        }
    })
    .await
}

/// The client of [`echo_stream`].
pub(super) struct Stream {
    sender: channel::Sender<Bytes, Infallible>,
    answers: Incoming,
    _connection: Connected,
}

struct Connected(tokio::task::JoinHandle<()>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Stream {
    pub(super) async fn open(to: SocketAddr, authority: &str) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let connection = Connected(tokio::spawn(async move { drop(connection.await) }));
        let (sender, body) = channel::Channel::<Bytes, Infallible>::new(1);
        let request = hyper::Request::post(format!("http://{authority}/ping.PingService/PingStream"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        Stream { sender, answers: response.into_body(), _connection: connection }
    }

    pub(super) async fn ask(&mut self, message: &str) -> String {
        self.sender.send(Frame::data(Bytes::from(message.to_owned()))).await.unwrap();
        let frame = self.answers.frame().await.expect("the stream goes on").unwrap();
        String::from_utf8(frame.into_data().expect("no trailers yet").to_vec()).unwrap()
    }
}

/// The client of [`echo_socket`].
pub(super) struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    pub(super) async fn open(to: SocketAddr, host: &str) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        let (socket, _) = tokio_tungstenite::client_async(format!("ws://{host}/"), stream).await.unwrap();
        Socket(socket)
    }

    pub(super) async fn ask(&mut self, message: &str) -> String {
        self.0.send(Message::text(message)).await.unwrap();
        self.0.next().await.unwrap().unwrap().into_text().unwrap().to_string()
    }
}
