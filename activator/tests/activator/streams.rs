//! What lasts: streams in both directions, tunnels, and a shutdown while they are there.

use std::{convert::Infallible, net::SocketAddr, sync::atomic::Ordering};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, channel::Channel};
use hyper::{body::Incoming, client::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{Cluster, PATIENCE, Pod, Setup, WAYS, for_revision, ok, read_answer, read_head, until};

/// A pod that answers over HTTP/2 with every message as it comes, and a status at the end.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                let messages = futures::stream::unfold(Some(request.into_body()), |body| async move {
                    let mut body = body?;
                    match body.frame().await {
                        Some(Ok(frame)) if frame.is_data() => {
                            Some((Ok(Frame::data(frame.into_data().expect("data"))), Some(body)))
                        }
                        _ => {
                            let mut trailers = HeaderMap::new();
                            trailers.insert("grpc-status", "0".parse().expect("a value"));
                            Some((Ok::<_, Infallible>(Frame::trailers(trailers)), None))
                        }
                    }
                });
                Ok::<_, Infallible>(Response::new(StreamBody::new(messages)))
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(async move { server.serve_connection(TokioIo::new(stream), service).await });
        }
    });
    address
}

/// A call whose messages go both ways, as gRPC has them.
struct Call {
    send: http_body_util::channel::Sender<Bytes, Infallible>,
    answer: Incoming,
}

impl Call {
    async fn start(activator: SocketAddr, revision: &str) -> Self {
        let stream = TcpStream::connect(activator).await.expect("listening");
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
        tokio::spawn(connection);
        let (send, body) = Channel::new(4);
        let request = Request::post("http://hello.example.com/pkg.Service/Chat")
            .header("te", "trailers")
            .header("knative-serving-namespace", "default")
            .header("knative-serving-revision", revision)
            .body(body)
            .expect("valid");
        let answer = sender.send_request(request).await.expect("a response").into_body();
        Self { send, answer }
    }

    async fn echoed(&mut self, message: &'static str) {
        self.send.send_data(Bytes::from(message)).await.expect("sent");
        let frame = self.answer.frame().await.expect("a frame").expect("no error");
        assert_eq!(frame.into_data().expect("data"), message);
    }

    async fn end(mut self) {
        drop(self.send);
        let last = self.answer.frame().await.expect("a frame").expect("no error");
        assert_eq!(last.into_trailers().expect("trailers")["grpc-status"], "0");
        assert!(self.answer.frame().await.is_none());
    }
}

/// A pod that switches protocols and sends back what it gets.
async fn tunnel() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        read_head(&mut stream).await.expect("a head");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.expect("sent");
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.expect("echoed");
    });
    address
}

async fn upgraded(activator: SocketAddr, revision: &str) -> TcpStream {
    let mut client = TcpStream::connect(activator).await.expect("listening");
    let head = for_revision(revision);
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{head}\r\n");
    client.write_all(request.as_bytes()).await.expect("sent");
    assert!(read_head(&mut client).await.expect("a head").starts_with("HTTP/1.1 101 "));
    client
}

async fn echo_through(client: &mut TcpStream) {
    client.write_all(b"there").await.expect("sent");
    let mut buffer = [0; 5];
    client.read_exact(&mut buffer).await.expect("the echo");
    assert_eq!(&buffer, b"there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_both_ways_while_a_call_is_open() {
    let setup = Setup::new().await;
    setup.revision("chat", 1, 300).await;
    setup.cluster.endpoints("chat", &[echo().await], &[]);
    // On either port; both speak both protocols.
    for port in [setup.activator.h2c_address(), setup.address()] {
        let mut call = Call::start(port, "chat").await;
        for message in ["one", "two", "three"] {
            call.echoed(message).await;
        }
        assert_eq!(setup.activator.in_flight(), 1);
        call.end().await;
        until("the slot to be free", || setup.activator.in_flight() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_1_a_response_begins_while_its_request_goes_on() {
    let setup = Setup::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    setup.revision("duplex", 0, 300).await;
    setup.cluster.endpoints("duplex", &[listener.local_addr().expect("bound")], &[]);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        read_head(&mut stream).await.expect("a head");
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.expect("sent");
        // Chunks are passed on as they are, so what comes back has the same form.
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.expect("echoed");
    });
    let mut client = TcpStream::connect(setup.address()).await.expect("listening");
    let head = for_revision("duplex");
    let request = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{head}\r\n");
    client.write_all(request.as_bytes()).await.expect("sent");
    assert!(read_head(&mut client).await.expect("a head").starts_with("HTTP/1.1 200 OK\r\n"));
    for piece in ["3\r\none\r\n", "3\r\ntwo\r\n", "0\r\n\r\n"] {
        client.write_all(piece.as_bytes()).await.expect("sent");
        let mut buffer = vec![0; piece.len()];
        client.read_exact(&mut buffer).await.expect("the echo");
        assert_eq!(buffer, piece.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_finishes_what_is_in_flight() {
    for way in 0..WAYS.len() {
        let setup = Setup::new().await;
        setup.requests.store(way, Ordering::SeqCst);
        let pod = Pod::gated();
        setup.revision("rev", 0, 300).await;
        setup.cluster.endpoints("rev", &[pod.start().await], &[]);
        let request = setup.request("rev");
        until("a request in flight", || pod.current.load(Ordering::SeqCst) == 1).await;
        let draining = tokio::spawn({
            let activator = setup.activator.clone();
            async move { activator.drain().await }
        });
        while TcpStream::connect(setup.address()).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(!draining.is_finished());
        pod.open();
        assert!(request.await.expect("no panic").starts_with("HTTP/1.1 200 OK\r\n"));
        draining.await.expect("no panic");
        setup.tasks.shutdown().await;
    }
}

/// Upstream waits for neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_waits_for_streams_and_tunnels() {
    let setup = Setup::new().await;
    setup.revision("chat", 0, 300).await;
    setup.revision("ws", 0, 300).await;
    setup.cluster.endpoints("chat", &[echo().await], &[]);
    setup.cluster.endpoints("ws", &[tunnel().await], &[]);
    let mut call = Call::start(setup.activator.h2c_address(), "chat").await;
    let mut client = upgraded(setup.address(), "ws").await;
    call.echoed("before").await;
    echo_through(&mut client).await;
    let draining = tokio::spawn({
        let activator = setup.activator.clone();
        async move { activator.drain().await }
    });
    while TcpStream::connect(setup.address()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    call.echoed("meanwhile").await;
    call.end().await;
    until("the call to end", || setup.activator.in_flight() == 1).await;
    echo_through(&mut client).await;
    assert!(!draining.is_finished());
    drop(client);
    draining.await.expect("no panic");
    setup.tasks.shutdown().await;
}

/// While it is still listed the activator serves as before, and every answer says that the connection ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_under_load_fails_no_request() {
    let setup = Setup::new().await;
    let pod = Pod::default();
    setup.revision("busy", 0, 300).await;
    setup.cluster.endpoints("busy", &[pod.start().await], &[]);
    let address = setup.address();
    let clients: Vec<_> = (0..16)
        .map(|number| {
            tokio::spawn(async move {
                let mut answered = 0;
                let head = for_revision("busy");
                // The short way, and the long one.
                let way = if number % 2 == 0 { "" } else { "Connection: keep-alive, x-none\r\n" };
                // A client whose connection is refused knows that nothing was lost, and so does one whose idle
                // connection was closed before it asked.
                'connections: while let Ok(mut stream) = TcpStream::connect(address).await {
                    loop {
                        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{way}{head}\r\n");
                        let sent = stream.write_all(request.as_bytes()).await;
                        let Some(head) = read_head(&mut stream).await.filter(|_| sent.is_ok()) else {
                            assert!(answered > 0, "a new connection was closed without an answer");
                            continue 'connections;
                        };
                        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
                        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
                        let length = length.expect("a length").parse().expect("a number");
                        stream.read_exact(&mut vec![0; length]).await.expect("the whole answer");
                        answered += 1;
                        if head.contains("Connection: close") {
                            continue 'connections;
                        }
                    }
                }
                answered
            })
        })
        .collect();
    until("some answers", || pod.served.load(Ordering::SeqCst) > 500).await;
    setup.activator.drain().await;
    let mut answered = 0;
    for client in clients {
        answered += client.await.expect("no failed request");
    }
    // Whatever the pod served reached its client.
    assert_eq!(answered, pod.served.load(Ordering::SeqCst));
    setup.tasks.shutdown().await;
}

/// Many at once are spread over the threads, and those that ask one after the other are gathered again: whichever
/// thread a connection is on, it gets its own answers, and a drain finds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_served_on_whatever_thread_they_are() {
    let setup = Setup::with(Cluster::default(), |options| options.workers = 3).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    setup.revision("echo", 0, 300).await;
    setup.cluster.endpoints("echo", &[listener.local_addr().expect("bound")], &[]);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                while let Some(head) = read_head(&mut stream).await {
                    let path = head.split(' ').nth(1).expect("a path");
                    stream.write_all(ok(path).as_bytes()).await.expect("open");
                }
            });
        }
    });
    let ask = async |client: &mut TcpStream, path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{}\r\n", for_revision("echo"));
        client.write_all(request.as_bytes()).await.expect("sent");
        let answer = tokio::time::timeout(PATIENCE, read_answer(client)).await.expect("in time");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(path), "{answer}");
    };
    let address = setup.address();
    let mut clients: Vec<_> = (0..100)
        .map(|number| {
            tokio::spawn(async move {
                let mut client = TcpStream::connect(address).await.expect("listening");
                for turn in 0..40 {
                    ask(&mut client, &format!("/{number}/{turn}")).await;
                }
                client
            })
        })
        .collect();
    let mut idle = Vec::new();
    for client in clients.drain(..) {
        idle.push(client.await.expect("no panic"));
    }
    for turn in 0..10 {
        for (number, client) in idle.iter_mut().enumerate() {
            ask(client, &format!("/{number}/alone/{turn}")).await;
        }
    }
    tokio::time::timeout(PATIENCE, setup.activator.drain()).await.expect("every connection hears of it");
    for mut client in idle {
        assert_eq!(client.read(&mut [0]).await.expect("closed in order"), 0);
    }
    setup.tasks.shutdown().await;
}
