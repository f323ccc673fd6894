//! Pools and servers over real sockets: what is reused, what is closed, what comes back unsent.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use http::{Request, StatusCode, Uri, Version, header};
use http_body_util::BodyExt;
use net::{Connections, Pool, PoolOptions, RequestBody, ResponseBody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// A server that counts its connections and answers each request with `hello` once `gate` lets it.
async fn server(gate: Arc<Semaphore>) -> (SocketAddr, Connections) {
    let listener = net::listen(([127, 0, 0, 1], 0).into()).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let connections = Connections::new();
    tokio::spawn(net::serve(listener, connections.clone(), move |_, _| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.expect("open").forget();
            net::text::<()>(StatusCode::OK, "hello")
        }
    }));
    (address, connections)
}

fn request() -> Request<RequestBody> {
    let mut request = Request::new(RequestBody::Empty);
    request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("a"));
    request
}

fn http2_request() -> Request<RequestBody> {
    let mut request = Request::new(RequestBody::Empty);
    *request.uri_mut() = Uri::from_static("http://a/");
    *request.version_mut() = Version::HTTP_2;
    request
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn one_request_after_another_uses_one_connection() {
    let (address, connections) = server(Arc::new(Semaphore::new(1000))).await;
    let pool = Pool::new(address, PoolOptions::default());
    for _ in 0..100 {
        let response = pool.send(request()).await.expect("a response");
        assert_eq!(response.into_body().collect().await.expect("a body").to_bytes(), "hello");
    }
    assert_eq!((connections.open(), pool.idle()), (1, 1));
}

#[tokio::test]
async fn a_body_that_is_not_read_to_its_end_closes_its_connection() {
    let (address, connections) = server(Arc::new(Semaphore::new(1000))).await;
    let pool = Pool::new(address, PoolOptions::default());
    drop(pool.send(request()).await.expect("a response"));
    until("the connection to close", || connections.open() == 0).await;
    assert_eq!(pool.idle(), 0);
}

#[tokio::test]
async fn idle_connections_are_limited_and_closed_in_time() {
    let gate = Arc::new(Semaphore::new(0));
    let (address, connections) = server(gate.clone()).await;
    let options = PoolOptions { max_idle: 2, idle_timeout: Duration::from_secs(2), ..PoolOptions::default() };
    let pool = Pool::new(address, options);
    let exchange = |pool: Pool| async move {
        let response = pool.send(request()).await.expect("a response");
        response.into_body().collect().await.expect("a body");
    };
    let requests: Vec<_> = (0..5).map(|_| tokio::spawn(exchange(pool.clone()))).collect();
    until("five connections", || connections.open() == 5).await;
    gate.add_permits(5);
    for request in requests {
        request.await.expect("no panic");
    }
    until("only two idle connections", || pool.idle() <= 2 && connections.open() <= 2).await;
    until("no idle connection", || pool.idle() == 0 && connections.open() == 0).await;
}

#[tokio::test]
async fn a_refused_connection_gives_the_request_back() {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let pool = Pool::new(socket.local_addr().expect("bound"), PoolOptions::default());
    for (request, http2) in [(request(), false), (http2_request(), true)] {
        let uri = request.uri().clone();
        let result = if http2 { pool.send_http2(request).await } else { pool.send(request).await };
        let error = result.expect_err("refused");
        assert!(error.to_string().contains("refused"), "{error}");
        assert_eq!(error.into_request().expect("unsent").uri(), &uri);
    }
}

#[tokio::test]
async fn http2_shares_connections_up_to_their_streams() {
    let gate = Arc::new(Semaphore::new(0));
    let (address, connections) = server(gate.clone()).await;
    let pool = Pool::new(address, PoolOptions::default());
    let requests: Vec<_> = (0..150)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.send_http2(http2_request()).await.expect("a response").status() })
        })
        .collect();
    until("a second connection", || connections.open() == 2).await;
    gate.add_permits(150);
    for request in requests {
        assert_eq!(request.await.expect("no panic"), StatusCode::OK);
    }
    assert_eq!(connections.open(), 2);
}

#[tokio::test]
async fn closing_lets_requests_finish_and_idle_connections_go() {
    let gate = Arc::new(Semaphore::new(0));
    let (address, connections) = server(gate.clone()).await;
    let idle = TcpStream::connect(address).await.expect("listening");
    let pool = Pool::new(address, PoolOptions::default());
    let busy = tokio::spawn(async move {
        let response = pool.send(request()).await.expect("a response");
        response.into_body().collect().await.expect("a body").to_bytes()
    });
    until("both connections", || connections.open() == 2).await;
    connections.close();
    until("the idle connection to go", || connections.open() == 1).await;
    gate.add_permits(1);
    assert_eq!(busy.await.expect("no panic"), "hello");
    connections.closed().await;
    drop(idle);
}

#[tokio::test]
async fn a_backend_that_breaks_off_breaks_the_client_off() {
    let backend = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let pool = Pool::new(backend.local_addr().expect("bound"), PoolOptions::default());
    tokio::spawn(async move {
        let (mut stream, _) = backend.accept().await.expect("a connection");
        let mut buffer = [0; 1024];
        let _ = stream.read(&mut buffer).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart").await.expect("sent");
    });
    let listener = net::listen(([127, 0, 0, 1], 0).into()).await.expect("a free port");
    let front = listener.local_addr().expect("bound");
    let dropped = Arc::new(AtomicUsize::new(0));
    let guard = dropped.clone();
    tokio::spawn(net::serve(listener, Connections::new(), move |_, _| {
        let (pool, guard) = (pool.clone(), Dropped(guard.clone()));
        async move {
            let response = pool.send(request()).await.expect("a response");
            response.map(|body| ResponseBody::stream(body, None, guard))
        }
    }));
    let mut client = TcpStream::connect(front).await.expect("listening");
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).expect("text");
    assert!(answer.ends_with("\r\n\r\npart"), "{answer}");
    assert_eq!(dropped.load(SeqCst), 1, "the guard goes with the response");
}

struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[tokio::test]
async fn a_burst_of_connections_waits_in_the_kernel() {
    const BURST: usize = 300;
    let longest =
        std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok().and_then(|text| text.trim().parse().ok());
    if longest.is_none_or(|longest: usize| longest < BURST) {
        return;
    }
    // Nobody accepts: what the queue has no room for is never connected.
    let listener = net::listen(([127, 0, 0, 1], 0).into()).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let burst = futures::future::try_join_all((0..BURST).map(|_| TcpStream::connect(address)));
    let connected = tokio::time::timeout(Duration::from_secs(60), burst).await.expect("there is room");
    assert_eq!(connected.expect("connected").len(), BURST);
}

type Told = std::sync::mpsc::Receiver<()>;

/// A backend on a thread of its own: it answers one request on its first connection, closes it when it is told to, and
/// tells when it has; it returns what it gets on the second.
fn closing_backend(close: Told) -> (SocketAddr, Told, std::thread::JoinHandle<String>) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (closed, closing) = std::sync::mpsc::channel();
    let backend = std::thread::spawn(move || {
        let read_to = |stream: &mut std::net::TcpStream, end: &[u8]| {
            let mut read = Vec::new();
            while !read.ends_with(end) {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a request");
                read.push(byte[0]);
            }
            String::from_utf8(read).expect("text")
        };
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let (mut first, _) = listener.accept().expect("a connection");
        read_to(&mut first, b"\r\n\r\n");
        first.write_all(answer).expect("sent");
        close.recv().expect("somebody tells");
        drop(first);
        closed.send(()).expect("somebody waits");
        let (mut second, _) = listener.accept().expect("another connection");
        let request = read_to(&mut second, b"0\r\n\r\n");
        second.write_all(answer).expect("sent");
        request
    });
    (address, closing, backend)
}

/// A body in pieces goes to another connection, from its beginning, if the first was closed while it was idle, even
/// if nobody could be told of that before.
#[tokio::test]
async fn a_body_in_pieces_is_not_lost_on_a_connection_that_was_closed() {
    let (close, told) = std::sync::mpsc::channel();
    let (address, closed, backend) = closing_backend(told);
    let pool = Pool::new(address, PoolOptions::default());
    pool.send(request()).await.expect("a response").into_body().collect().await.expect("its body");
    assert_eq!(pool.idle(), 1);
    let closing = Arc::new(parking_lot::Mutex::new((close, closed)));
    let listener = net::listen(([127, 0, 0, 1], 0).into()).await.expect("a free port");
    let front = listener.local_addr().expect("bound");
    tokio::spawn(net::serve(listener, Connections::new(), move |request, peer: SocketAddr| {
        let (pool, closing) = (pool.clone(), closing.clone());
        async move {
            let mut outbound = net::Outbound::new::<()>(request, peer.ip()).expect("not CONNECT");
            // The thread that would hear of it is kept from hearing of it.
            {
                let closing = closing.lock();
                closing.0.send(()).expect("it waits");
                closing.1.recv().expect("it closes");
            }
            match outbound.send_spared(&pool).await {
                Ok((response, _)) => net::empty::<()>(response.status()),
                Err(failure) => net::bad_gateway(&failure),
            }
        }
    }));
    let mut client = TcpStream::connect(front).await.expect("listening");
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        .await
        .expect("sent");
    client.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.expect("sent");
    let mut answer = vec![0; 15];
    client.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 200 OK");
    let request = backend.join().expect("it got a request");
    assert!(request.contains("one") && request.ends_with("0\r\n\r\n"), "{request}");
}
