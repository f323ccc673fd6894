//! What sidecars say beyond upstream's contract: that a request got no further, and that a pod is ready.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Notify,
};

use crate::{Cluster, Pod, Setup, WAYS, bound, for_revision, get_on, ok, read_answer, read_head, sidecar, until};

/// A revision with two pods: of one the program is gone, which nobody has noticed yet.
async fn half() -> (Setup, (queue_proxy::Handle, TcpSocket), Pod) {
    let setup = Setup::new().await;
    setup.revision("half", 0, 300).await;
    let (refuses, program) = bound();
    let sidecar = queue_proxy::start(sidecar(0, program.port())).await.expect("a free port");
    let pod = Pod::default();
    setup.cluster.endpoints("half", &[loopback(sidecar.serving_address()), pod.start().await], &[]);
    (setup, (sidecar, refuses), pod)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_a_sidecar_could_not_pass_on_goes_elsewhere() {
    for way in WAYS {
        let (setup, _sidecar, pod) = half().await;
        for _ in 0..20 {
            let answer = get_on(way, setup.address(), "/", &for_revision("half")).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        }
        assert_eq!(pod.served.load(Ordering::SeqCst), 20, "each of them once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_here_goes_elsewhere_with_its_request() {
    let (setup, _sidecar, pod) = half().await;
    for number in 0..20 {
        let mut stream = TcpStream::connect(setup.address()).await.expect("listening");
        let head = for_revision("half");
        let request = format!("POST /{number} HTTP/1.1\r\nHost: a\r\n{head}Content-Length: 4\r\n\r\nbody");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(&format!("POST /{number} ")), "{answer}");
        assert!(!answer.to_lowercase().contains("k-unsent"), "{answer}");
    }
    assert_eq!(pod.served.load(Ordering::SeqCst), 20, "each of them once");
}

/// A pod that answers with the body of its request, over either version of HTTP.
async fn echo() -> SocketAddr {
    use http_body_util::BodyExt;

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(net::serve(
        listener,
        net::Connections::new(),
        |request: http::Request<net::Incoming>, _| async move {
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            net::text::<()>(http::StatusCode::OK, String::from_utf8_lossy(&body).into_owned())
        },
    ));
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_http2_goes_elsewhere_too() {
    use http_body_util::BodyExt;

    let (setup, sidecar, _) = half().await;
    setup.cluster.endpoints("half", &[loopback(sidecar.0.serving_address()), echo().await], &[]);
    let client = net::Pool::new(setup.activator.h2c_address(), net::PoolOptions::default());
    for _ in 0..20 {
        let mut request = http::Request::new(net::RequestBody::Full("hello".into()));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static("http://hello.example.com/");
        *request.version_mut() = http::Version::HTTP_2;
        request.headers_mut().insert("knative-serving-namespace", "default".parse().unwrap());
        request.headers_mut().insert("knative-serving-revision", "half".parse().unwrap());
        let response = client.send_http2(request).await.expect("a response");
        assert_eq!(response.status(), http::StatusCode::OK);
        assert_eq!(response.into_body().collect().await.expect("a body").to_bytes(), "hello");
    }
}

/// What a request is answered whose only pod has no program.
async fn answer_of_a_dead_pod(way: &str) -> String {
    let setup = Setup::new().await;
    setup.revision("dead", 0, 300).await;
    let (_refuses, program) = bound();
    let sidecar = queue_proxy::start(sidecar(0, program.port())).await.expect("a free port");
    setup.cluster.endpoints("dead", &[loopback(sidecar.serving_address())], &[]);
    get_on(way, setup.address(), "/", &for_revision("dead")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_else_is_the_sidecars_answer_is_given() {
    // One each: who comes when the pod is known to be dead waits for it.
    let answers = tokio::join!(answer_of_a_dead_pod(WAYS[0]), answer_of_a_dead_pod(WAYS[1]));
    for answer in [answers.0, answers.1] {
        assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
        assert!(answer.to_lowercase().contains("connection refused"), "{answer}");
        assert!(!answer.to_lowercase().contains("k-unsent"), "{answer}");
    }
}

/// How a sidecar is asked about readiness, and what it answers.
#[derive(Clone, Default)]
struct Told {
    ready: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    /// Those who wait to be told.
    waiting: Arc<AtomicUsize>,
    tell: Arc<Notify>,
    knows_nothing: bool,
}

impl Told {
    /// The serving port: says no at once, as upstream's sidecar does.
    async fn serving(&self) -> SocketAddr {
        let told = self.clone();
        listen(move |head| {
            let told = told.clone();
            async move {
                if !head.contains("/healthz") {
                    return ok("served");
                }
                told.asked.fetch_add(1, Ordering::SeqCst);
                match told.ready.load(Ordering::SeqCst) {
                    true => ok("queue"),
                    false => "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".to_owned(),
                }
            }
        })
        .await
    }

    async fn admin(&self) -> SocketAddr {
        let told = self.clone();
        listen(move |head| {
            let told = told.clone();
            async move {
                if told.knows_nothing || !head.starts_with("GET /wait-for-ready ") {
                    return "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned();
                }
                told.waiting.fetch_add(1, Ordering::SeqCst);
                told.tell.notified().await;
                ok("queue")
            }
        })
        .await
    }
}

async fn listen<F>(answer: impl Fn(String) -> F + Clone + Send + Sync + 'static) -> SocketAddr
where
    F: Future<Output = String> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                while let Some(head) = read_head(&mut stream).await {
                    let text = answer(head).await;
                    if stream.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn loopback(address: SocketAddr) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], address.port()))
}

async fn held_by(told: &Told) -> (Setup, tokio::task::JoinHandle<String>) {
    let (serving, admin) = (told.serving().await, told.admin().await);
    let setup = Setup::with(Cluster::default(), |options| options.sidecar_admin_port = admin.port()).await;
    setup.revision("cold", 0, 300).await;
    setup.cluster.endpoints("cold", &[], &[serving]);
    let request = setup.request("cold");
    setup.held(1).await;
    (setup, request)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_can_tell_is_not_asked_again_and_again() {
    let told = Told::default();
    let (_setup, request) = held_by(&told).await;
    until("somebody to wait for the sidecar", || told.waiting.load(Ordering::SeqCst) == 1).await;
    // Nothing is to happen: there is no event to wait for.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((told.asked.load(Ordering::SeqCst), request.is_finished()), (1, false));
    told.ready.store(true, Ordering::SeqCst);
    told.tell.notify_one();
    assert!(request.await.expect("no panic").ends_with("served"));
    assert_eq!((told.asked.load(Ordering::SeqCst), told.waiting.load(Ordering::SeqCst)), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_cannot_tell_is_asked_until_it_says_yes() {
    let told = Told { knows_nothing: true, ..Told::default() };
    let (_setup, request) = held_by(&told).await;
    until("some questions", || told.asked.load(Ordering::SeqCst) > 5).await;
    assert!(!request.is_finished());
    told.ready.store(true, Ordering::SeqCst);
    assert!(request.await.expect("no panic").ends_with("served"));
}

/// The two of them as they are: nothing but the sidecar's word ends the wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_sidecar_tells() {
    let (program, address) = bound();
    let sidecar = queue_proxy::start(sidecar(0, address.port())).await.expect("a free port");
    let admin = sidecar.admin_address().port();
    let setup = Setup::with(Cluster::default(), |options| {
        (options.sidecar_admin_port, options.probe_limit) = (admin, Duration::from_millis(1));
    })
    .await;
    setup.revision("cold", 0, 300).await;
    setup.cluster.endpoints("cold", &[], &[loopback(sidecar.serving_address())]);
    let request = setup.request("cold");
    setup.held(1).await;
    Pod::default().listen(program.listen(10).expect("bound"));
    assert!(request.await.expect("no panic").starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_stays_with_one_pod_connection_after_another() {
    let setup = Setup::with(Cluster::default(), |options| options.workers = 2).await;
    let connections = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let opened = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            opened.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                while read_head(&mut stream).await.is_some() {
                    stream.write_all(ok("served").as_bytes()).await.expect("open");
                }
            });
        }
    });
    setup.revision("kept", 0, 300).await;
    setup.cluster.endpoints("kept", &[address], &[]);
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(TcpStream::connect(setup.address()).await.expect("listening"));
    }
    for _ in 0..20 {
        for client in &mut clients {
            let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", for_revision("kept"));
            client.write_all(request.as_bytes()).await.expect("sent");
            assert!(read_answer(client).await.ends_with("served"));
        }
    }
    let connections = connections.load(Ordering::SeqCst);
    assert!(connections <= 2, "one at a time for each of two threads, not {connections}");
}
