//! A sidecar, programs behind it and clients before it.

use super::*;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn config(user_port: u16) -> Config {
    let env: Environment = [
        ("CONTAINER_CONCURRENCY", "0"),
        ("QUEUE_SERVING_PORT", "0"),
        ("QUEUE_SERVING_TLS_PORT", "0"),
        ("REVISION_TIMEOUT_SECONDS", "300"),
        ("SERVING_LOGGING_CONFIG", ""),
        ("SERVING_LOGGING_LEVEL", "error"),
        ("SERVING_NAMESPACE", "default"),
        ("SERVING_CONFIGURATION", "hello"),
        ("SERVING_REVISION", "hello-00001"),
        ("SERVING_POD", "hello-pod"),
        ("SERVING_POD_IP", "127.0.0.1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into_iter()
    .chain([("USER_PORT".to_owned(), user_port.to_string())])
    .collect();
    Config { admin_port: 0, autoscaling_port: 0, ..Config::parse(&env).expect("a complete environment") }
}

/// A program: every connection is handled by `serve`, which gets each request's head and answers it.
pub(crate) async fn program<F, R>(answer: F) -> u16
where
    F: Fn(String) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = String> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                while let Some(head) = read_head(&mut stream).await {
                    if stream.write_all(answer(head).await.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

pub(crate) async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).expect("text"))
}

/// Sends raw bytes and reads until the other side closes.
pub(crate) async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("listening");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("in time").expect("text");
    answer
}

/// Which of the two implementations a request takes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    /// A plain request.
    Short,
    /// The same with a `Connection` header that names more, which is not plain.
    Full,
}

pub(crate) const BOTH: [Way; 2] = [Way::Short, Way::Full];

pub(crate) async fn get(way: Way, address: SocketAddr, headers: &str) -> String {
    let head = format!("GET / HTTP/1.1\r\nHost: hello.example.com\r\n{headers}");
    match way {
        Way::Full => raw(address, &format!("{head}Connection: close, x-none\r\n\r\n")).await,
        Way::Short => {
            let mut stream = TcpStream::connect(address).await.expect("listening");
            stream.write_all(format!("{head}\r\n").as_bytes()).await.expect("sent");
            tokio::time::timeout(PATIENCE, read_answer(&mut stream)).await.expect("in time")
        }
    }
}

/// One response, by its own account of its length.
pub(crate) async fn read_answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
            if length == Some(body.len()) || (length.is_none() && body.ends_with("0\r\n\r\n")) {
                return text.into_owned();
            }
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return String::from_utf8_lossy(&answer).into_owned(),
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
        }
    }
}

pub(crate) fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A loopback address that nobody else uses, neither for listening nor for outgoing connections.
pub(crate) fn own_address() -> std::net::Ipv4Addr {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    let process = std::process::id();
    let next = NEXT.fetch_add(1, Ordering::SeqCst) as u8;
    [127, 64 + (process / 256 % 128) as u8, (process % 256) as u8, next].into()
}

/// Where nobody listens yet, and where listening will be possible.
pub(crate) async fn unused() -> SocketAddr {
    let listener = TcpListener::bind((own_address(), 0)).await.expect("a free port");
    listener.local_addr().expect("bound")
}

pub(crate) async fn start(config: Config) -> Handle {
    queue_proxy::start(config).await.expect("free ports")
}

/// A program that counts how many requests it has at once and answers when it is told to.
#[derive(Clone, Default)]
pub(crate) struct Gate {
    pub(crate) current: Arc<AtomicUsize>,
    pub(crate) most: Arc<AtomicUsize>,
    pub(crate) open: Arc<Notify>,
}

impl Gate {
    pub(crate) async fn program(&self) -> u16 {
        let gate = self.clone();
        program(move |_| {
            let gate = gate.clone();
            async move {
                let current = gate.current.fetch_add(1, Ordering::SeqCst) + 1;
                gate.most.fetch_max(current, Ordering::SeqCst);
                gate.open.notified().await;
                gate.current.fetch_sub(1, Ordering::SeqCst);
                ok("done")
            }
        })
        .await
    }
}

pub(crate) async fn get_path(address: SocketAddr, path: &str) -> String {
    raw(address, &format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await
}
