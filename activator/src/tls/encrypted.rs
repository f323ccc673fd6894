//! An encrypted connection to a pod, whose socket can be looked at.
//!
//! A pod closes connections that it has kept for long enough. Before a request that may not be repeated is written to
//! one, the pool looks whether the end of it has arrived, in the socket as well as in what was decrypted.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

pub(super) struct Encrypted(TlsStream<TcpStream>);

// === impl Encrypted ===

impl Encrypted {
    pub(super) fn new(stream: TlsStream<TcpStream>) -> Self {
        Self(stream)
    }
}

impl net::Wrapped for Encrypted {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self.0.get_ref().0)
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::SocketAddr,
        sync::{Arc, mpsc},
        thread::JoinHandle,
    };

    use futures::future::BoxFuture;
    use http::{HeaderValue, Method, Request, StatusCode, header};
    use http_body_util::BodyExt;
    use net::{Pool, PoolOptions, RequestBody};
    use rcgen::{CertifiedKey, KeyPair};
    use rustls::{ClientConfig, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
    use rustls_pki_types::{PrivateKeyDer, ServerName};
    use tokio_rustls::TlsConnector;

    use super::*;

    /// How a pod closes a connection.
    #[derive(Debug, Clone, Copy)]
    enum Close {
        /// It says so, and listens on.
        Notify,
        /// Without a word.
        End,
    }

    struct Trusting(Arc<ClientConfig>);

    impl std::fmt::Debug for Trusting {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Trusting")
        }
    }

    impl net::Wrap for Trusting {
        fn wrap(&self, stream: TcpStream) -> BoxFuture<'static, io::Result<Box<dyn net::Wrapped>>> {
            let connector = TlsConnector::from(self.0.clone());
            Box::pin(async move {
                let name = ServerName::try_from("pod").expect("a name");
                Ok(Box::new(Encrypted::new(connector.connect(name, stream).await?)) as Box<dyn net::Wrapped>)
            })
        }
    }

    type Pod = StreamOwned<ServerConnection, std::net::TcpStream>;

    /// Reads a request of which the last is `end`, and answers it.
    fn answer(pod: &mut Pod, end: &[u8]) {
        let mut read = Vec::new();
        while !read.ends_with(end) {
            let mut byte = [0];
            pod.read_exact(&mut byte).expect("a request");
            read.push(byte[0]);
        }
        pod.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("sent");
        pod.flush().expect("sent");
    }

    /// A pod on a thread of its own: it answers a request without a body on its first connection, closes it when it is
    /// told to, and tells when it has; it answers a request that ends with `body` on the second. It returns what came
    /// on the first after it was closed.
    fn closing_pod(
        config: Arc<ServerConfig>,
        how: Close,
        close: mpsc::Receiver<()>,
        closed: mpsc::Sender<()>,
    ) -> (SocketAddr, JoinHandle<Vec<u8>>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let pod = std::thread::spawn(move || {
            let accept = || {
                let (stream, _) = listener.accept().expect("a connection");
                stream.set_nodelay(true).expect("a connection");
                StreamOwned::new(ServerConnection::new(config.clone()).expect("a configuration"), stream)
            };
            let mut first = accept();
            answer(&mut first, b"\r\n\r\n");
            close.recv().expect("somebody tells");
            match how {
                Close::Notify => {
                    first.conn.send_close_notify();
                    first.flush().expect("sent");
                }
                Close::End => first.sock.shutdown(std::net::Shutdown::Write).expect("open"),
            }
            closed.send(()).expect("somebody waits");
            answer(&mut accept(), b"body");
            let mut late = Vec::new();
            let _ = first.read_to_end(&mut late);
            late
        });
        (address, pod)
    }

    /// Even if nobody could be told of it before: the one thread that would hear of it waits until it has happened.
    #[tokio::test]
    async fn what_may_not_be_repeated_is_not_written_to_a_connection_that_was_closed() {
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["pod".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(KeyPair::serialize_der(&signing_key)).expect("a key");
        let server = ServerConfig::builder_with_provider(super::super::provider())
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key));
        let server = Arc::new(server.expect("a certificate"));
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).expect("valid");
        let client = ClientConfig::builder_with_provider(super::super::provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = Arc::new(Trusting(Arc::new(client)));
        for how in [Close::Notify, Close::End] {
            let ((close, told), (tell, closed)) = (mpsc::channel(), mpsc::channel());
            let (address, pod) = closing_pod(server.clone(), how, told, tell);
            let pool = Pool::wrapped(address, PoolOptions::default(), Some(client.clone()));
            let request = |method: Method, body: RequestBody| {
                let mut request = Request::new(body);
                *request.method_mut() = method;
                request.headers_mut().insert(header::HOST, HeaderValue::from_static("pod"));
                request
            };
            let first = pool.send(request(Method::GET, RequestBody::Empty)).await.expect("a response");
            first.into_body().collect().await.expect("its body");
            assert_eq!(pool.idle(), 1, "{how:?}");
            close.send(()).expect("it waits");
            closed.recv().expect("it closes");
            let answer = loop {
                match pool.send(request(Method::POST, RequestBody::Full("body".into()))).await {
                    Ok(answer) => break answer,
                    Err(error) => assert!(error.is_unsent(), "{how:?}: {error}"),
                }
            };
            assert_eq!(answer.status(), StatusCode::OK, "{how:?}");
            drop((answer, pool));
            let late = tokio::task::spawn_blocking(|| pod.join()).await.expect("no panic").expect("no panic");
            assert!(late.is_empty(), "{how:?}: {}", String::from_utf8_lossy(&late));
        }
    }
}
