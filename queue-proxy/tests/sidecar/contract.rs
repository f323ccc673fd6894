//! Rows of the contract that need their own rig: upgrade to HTTP/2, interim responses, tunnels and their limits,
//! half-closed connections, slow clients, bounded waiting, readiness and profiles.

use std::io::Write as _;

use super::*;
use crate::{http2::http2_program, wire::raw_program};

/// A program that takes one upgrade and hands the connection to `serve`.
async fn upgrading<F, R>(serve: F) -> u16
where
    F: Fn(TcpStream) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = ()> + Send,
{
    let (port, _) = raw_program(move |mut stream| {
        let serve = serve.clone();
        async move {
            read_head(&mut stream).await.expect("a head");
            let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.expect("sent");
            serve(stream).await;
        }
    })
    .await;
    port
}

/// A tunnel. Tries again where a short limit ends the request before it becomes one, on a busy machine.
async fn upgrade(address: SocketAddr) -> TcpStream {
    loop {
        let mut client = TcpStream::connect(address).await.expect("listening");
        let request = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        client.write_all(request.as_bytes()).await.expect("sent");
        let head = read_head(&mut client).await.expect("a head");
        if head.starts_with("HTTP/1.1 101 ") {
            return client;
        }
        assert!(head.starts_with("HTTP/1.1 504 "), "{head}");
    }
}

/// Reads to the end of the connection, however it ends.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("it ends");
    all
}

#[tokio::test]
async fn every_limit_ends_a_tunnel_in_which_nothing_moves() {
    let short = Some(Duration::from_millis(100));
    let long = Duration::from_secs(300);
    for (timeout, response_start, idle) in
        [(Duration::from_millis(100), None, None), (long, short, None), (long, None, short)]
    {
        let port = upgrading(|mut stream| async move { assert!(stream.read_u8().await.is_err()) }).await;
        let config = Config { timeout, response_start_timeout: response_start, idle_timeout: idle, ..config(port) };
        let proxy = start(config).await;
        let mut client = upgrade(proxy.serving_address()).await;
        assert!(rest(&mut client).await.is_empty());
        until("nothing in flight", || proxy.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn a_tunnel_ends_at_its_total_limit_although_it_is_active() {
    let port = upgrading(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let proxy = start(Config { timeout: Duration::from_millis(200), ..config(port) }).await;
    let mut client = upgrade(proxy.serving_address()).await;
    while client.write_all(b"ping").await.is_ok() {
        let mut echo = [0; 4];
        if tokio::time::timeout(PATIENCE, client.read_exact(&mut echo)).await.expect("it ends").is_err() {
            break;
        }
    }
    until("nothing in flight", || proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn each_side_of_a_tunnel_may_end_before_the_other() {
    let port = upgrading(|mut stream| async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.expect("an end");
        stream.write_all(b"got ").await.expect("sent");
        stream.write_all(&all).await.expect("sent");
    })
    .await;
    let proxy = start(config(port)).await;
    let mut client = upgrade(proxy.serving_address()).await;
    client.write_all(b"all").await.expect("sent");
    client.shutdown().await.expect("half closed");
    assert_eq!(rest(&mut client).await, b"got all");
    until("nothing in flight", || proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn a_client_that_half_closes_cancels_its_request_as_upstream() {
    for way in BOTH {
        let ended = Arc::new(AtomicUsize::new(0));
        let seen = ended.clone();
        let (port, connections) = raw_program(move |mut stream| {
            let ended = seen.clone();
            async move {
                read_head(&mut stream).await.expect("a head");
                assert!(stream.read_u8().await.is_err());
                ended.fetch_add(1, Ordering::SeqCst);
            }
        })
        .await;
        let proxy = start(config(port)).await;
        let mut client = TcpStream::connect(proxy.serving_address()).await.expect("listening");
        let close = if matches!(way, Way::Full) { "Connection: close, x-none\r\n" } else { "" };
        client.write_all(format!("GET / HTTP/1.1\r\nHost: a\r\n{close}\r\n").as_bytes()).await.expect("sent");
        until("the request at the program", || connections.load(Ordering::SeqCst) == 1).await;
        client.shutdown().await.expect("half closed");
        until("the program to learn of it", || ended.load(Ordering::SeqCst) == 1).await;
        assert!(rest(&mut client).await.is_empty(), "{way:?}");
        until("nothing in flight", || proxy.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn a_program_that_half_closes_after_its_answer_is_heard() {
    for way in BOTH {
        let (port, _) = raw_program(|mut stream| async move {
            read_head(&mut stream).await.expect("a head");
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nwithout a length").await.expect("sent");
            stream.shutdown().await.expect("half closed");
            let _ = stream.read_u8().await;
        })
        .await;
        let proxy = start(config(port)).await;
        let answer = get(way, proxy.serving_address(), "").await;
        assert!(answer.contains("without a length"), "{way:?} {answer:?}");
        until("nothing in flight", || proxy.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn requests_that_come_byte_by_byte_are_served() {
    let port = program(|head| async move { ok(&head) }).await;
    let proxy = start(config(port)).await;
    for extra in ["", "Connection: close\r\n"] {
        let mut client = TcpStream::connect(proxy.serving_address()).await.expect("listening");
        client.set_nodelay(true).expect("a socket option");
        for byte in format!("GET /slow HTTP/1.1\r\nHost: a\r\n{extra}\r\n").bytes() {
            client.write_all(&[byte]).await.expect("sent");
            tokio::task::yield_now().await;
        }
        assert!(read_answer(&mut client).await.contains("GET /slow HTTP/1.1"));
    }
}

#[tokio::test]
async fn a_slow_program_holds_a_fast_writer_back() {
    const TOTAL: usize = 64 << 20;
    let go = Arc::new(Notify::new());
    let wait = go.clone();
    let (port, _) = raw_program(move |mut stream| {
        let go = wait.clone();
        async move {
            read_head(&mut stream).await.expect("a head");
            go.notified().await;
            let mut left = TOTAL;
            let mut buffer = vec![0; 1 << 20];
            while left > 0 {
                left -= stream.read(&mut buffer).await.expect("the body");
            }
            stream.write_all(ok("taken").as_bytes()).await.expect("sent");
        }
    })
    .await;
    let proxy = start(config(port)).await;
    let mut client = TcpStream::connect(proxy.serving_address()).await.expect("listening");
    client
        .write_all(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {TOTAL}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let piece = vec![b'x'; 64 << 10];
    let mut sent = 0;
    // Until the sockets are full.
    while let Ok(step) = tokio::time::timeout(Duration::from_millis(500), client.write(&piece)).await {
        sent += step.expect("still open");
        assert!(sent < TOTAL / 2, "{sent} bytes were taken although nobody reads");
    }
    go.notify_one();
    while sent < TOTAL {
        sent += client.write(&piece[..piece.len().min(TOTAL - sent)]).await.expect("still open");
    }
    assert!(read_answer(&mut client).await.ends_with("taken"));
}

#[tokio::test]
async fn interim_responses_pass_on_the_full_way_too() {
    let port = program(|head| async move {
        let path = head.split(' ').nth(1).expect("a path").to_owned();
        format!("HTTP/1.1 103 Early Hints\r\nlink: {path}\r\nkeep-alive: 5\r\n\r\n{}", ok(&path))
    })
    .await;
    let proxy = start(config(port)).await;
    let mut client = TcpStream::connect(proxy.serving_address()).await.expect("listening");
    for path in ["/1", "/2", "/3"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n");
        client.write_all(request.as_bytes()).await.expect("sent");
        let interim = tokio::time::timeout(PATIENCE, read_head(&mut client)).await.expect("in time").expect("a head");
        assert_eq!(interim, format!("HTTP/1.1 103 Early Hints\r\nLink: {path}\r\n\r\n"));
        assert!(read_answer(&mut client).await.ends_with(path));
    }
    // HTTP/1.0 has none.
    let old = raw(proxy.serving_address(), "GET /4 HTTP/1.0\r\nHost: a\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 OK\r\n") || old.starts_with("HTTP/1.1 200 OK\r\n"), "{old}");
}

/// Type, flags, stream and payload of the next frame.
async fn frame(stream: &mut TcpStream) -> (u8, u8, u8, Vec<u8>) {
    let mut head = [0; 9];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut head)).await.expect("in time").expect("a frame");
    let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
    stream.read_exact(&mut payload).await.expect("its payload");
    (head[3], head[4], head[8], payload)
}

/// The data of `stream` until its end.
async fn data_of(client: &mut TcpStream, stream: u8) -> Vec<u8> {
    let mut data = Vec::new();
    loop {
        let (kind, flags, of, payload) = frame(client).await;
        assert_ne!((kind, of), (3, stream), "the stream was reset: {payload:?}");
        if of == stream && kind == 0 {
            data.extend(payload);
        }
        if of == stream && flags & 1 == 1 && kind <= 1 {
            return data;
        }
    }
}

#[tokio::test]
async fn a_connection_is_upgraded_to_http2_when_asked() {
    let proxy = start(config(http2_program().await)).await;
    for body in ["", "hello"] {
        let mut client = TcpStream::connect(proxy.serving_address()).await.expect("listening");
        let request = format!(
            "POST /echo HTTP/1.1\r\nHost: first.example.com\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
             HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        client.write_all(request.as_bytes()).await.expect("sent");
        let head = tokio::time::timeout(PATIENCE, read_head(&mut client)).await.expect("in time").expect("a head");
        assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("Upgrade: h2c\r\n"), "{head}");
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("sent");
        assert_eq!(data_of(&mut client, 1).await, format!("first.example.com{body}").into_bytes());

        // The connection goes on: stream 3, headers as literals.
        let mut block = vec![];
        for (name, value) in [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "second")] {
            block.extend([0, name.len() as u8]);
            block.extend(name.bytes());
            block.push(value.len() as u8);
            block.extend(value.bytes());
        }
        let mut sent = vec![0, 0, block.len() as u8, 1, 5, 0, 0, 0, 3];
        sent.extend(block);
        client.write_all(&sent).await.expect("sent");
        assert_eq!(data_of(&mut client, 3).await, b"second");
        drop(client);
        until("nothing in flight", || proxy.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn what_waiting_requests_hold_is_bounded() {
    for way in BOTH {
        let gate = Gate::default();
        let config = config(gate.program().await);
        let proxy = start(Config { container_concurrency: 1, pending_bytes: 32 << 10, ..config }).await;
        let address = proxy.serving_address();
        let first = tokio::spawn(get(way, address, ""));
        until("the first request to run", || gate.current.load(Ordering::SeqCst) == 1).await;
        let large = format!("X-Large: {}\r\n", "x".repeat(20 << 10));
        let waiting = tokio::spawn({
            let large = large.clone();
            async move { get(way, address, &large).await }
        });
        until("a large request in the queue", || proxy.queued() == 2).await;
        assert!(proxy.pending_bytes() > 20 << 10, "{way:?}");
        let refused = get(way, address, &large).await;
        assert!(refused.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{way:?} {refused}");
        assert!(refused.contains("Retry-After: 1\r\n"), "{way:?} {refused}");
        assert!(refused.ends_with("\r\n\r\npending request bytes full\n"), "{way:?} {refused}");
        let small = tokio::spawn(get(way, address, ""));
        until("a small one beside it", || proxy.queued() == 3).await;
        for request in [first, waiting, small] {
            while !request.is_finished() {
                gate.open.notify_one();
                tokio::task::yield_now().await;
            }
            assert!(request.await.expect("no panic").ends_with("done"));
        }
        until("nothing held", || proxy.pending_bytes() == 0).await;
    }
}

#[tokio::test]
async fn a_body_that_waited_in_the_queue_arrives_whole() {
    let free = Arc::new(Notify::new());
    let wait = free.clone();
    let (port, connections) = raw_program(move |mut stream| {
        let free = wait.clone();
        async move {
            while let Some(head) = read_head(&mut stream).await {
                let length = head.split("Content-Length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
                let mut body = vec![0; length.unwrap_or(0)];
                stream.read_exact(&mut body).await.expect("the body");
                free.notified().await;
                let answer = ok(std::str::from_utf8(&body).expect("text"));
                stream.write_all(answer.as_bytes()).await.expect("sent");
            }
        }
    })
    .await;
    let proxy = start(Config { container_concurrency: 1, ..config(port) }).await;
    let send = async |body: String| {
        let mut client = TcpStream::connect(proxy.serving_address()).await.expect("listening");
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        // Another behind it, to be answered after it.
        client.write_all(format!("{request}{request}").as_bytes()).await.expect("sent");
        client
    };
    let bodies = ["first".to_owned(), "y".repeat(5000)];
    let mut first = send(bodies[0].clone()).await;
    until("the first at the program", || connections.load(Ordering::SeqCst) == 1).await;
    let mut second = send(bodies[1].clone()).await;
    until("the second in the queue", || proxy.queued() == 2).await;
    let answers = async {
        for (client, body) in [(&mut first, &bodies[0]), (&mut second, &bodies[1])] {
            let mut seen = String::new();
            while seen.matches("HTTP/1.1 200 OK").count() < 2 || !seen.ends_with(&**body) {
                let mut buffer = [0; 4096];
                let read = client.read(&mut buffer).await.expect("an answer");
                assert!(read > 0, "{seen}");
                seen.push_str(std::str::from_utf8(&buffer[..read]).expect("text"));
            }
            assert_eq!(seen.matches(&**body).count(), 2);
        }
    };
    let opening = async {
        loop {
            free.notify_one();
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = opening => {}
        done = tokio::time::timeout(PATIENCE, answers) => done.expect("in time"),
    }
}

#[tokio::test]
async fn a_limit_says_why_it_stops_wherever_the_answer_is() {
    for (sent, expected) in [
        ("Transfer-Encoding: chunked\r\n\r\n9\r\npart", "partrequest timeout"),
        ("Transfer-Encoding: chunked\r\n\r\n4\r\npart", "partrequest timeout"),
        ("Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n", "partrequest timeout"),
        ("Content-Length: 100\r\n\r\npart", "partrequest timeout"),
        ("Content-Length: 10\r\n\r\npart", "part"),
    ] {
        for way in BOTH {
            let answer = format!("HTTP/1.1 200 OK\r\n{sent}");
            let port = program(move |_| std::future::ready(answer.clone())).await;
            let proxy = start(Config { timeout: Duration::from_millis(100), ..config(port) }).await;
            let close = if matches!(way, Way::Full) { "Connection: close, x-none\r\n" } else { "" };
            let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{close}\r\n");
            let seen = loop {
                let mut client = TcpStream::connect(proxy.serving_address()).await.expect("listening");
                client.write_all(request.as_bytes()).await.expect("sent");
                let mut start = [0; 12];
                client.read_exact(&mut start).await.expect("an answer");
                // On a busy machine the limit may come before the answer.
                if start.ends_with(b"200") {
                    break String::from_utf8(rest(&mut client).await).expect("text");
                }
            };
            let (head, body) = seen.split_once("\r\n\r\n").expect("a head");
            let chunked = head.contains("Transfer-Encoding");
            assert!(!chunked || body.ends_with("0\r\n\r\n"), "{way:?} {sent:?}: {seen:?}");
            let body = if chunked { wire::unchunked(body) } else { body.to_owned() };
            assert_eq!(body, expected, "{way:?} {sent:?}");
        }
    }
}

#[tokio::test]
async fn whoever_waits_for_readiness_is_told_the_moment_the_port_accepts() {
    let address = unused().await;
    let mut config = config(address.port());
    // With a period: a probe of the kubelet would be one attempt.
    let (port, host) = (address.port(), address.ip());
    let json = format!(r#"{{"tcpSocket":{{"port":{port},"host":"{host}"}},"periodSeconds":5}}"#);
    config.readiness_probes = queue_proxy::Probe::parse(&json, address.port()).expect("valid");
    let proxy = start(config).await;
    let admin = proxy.admin_address();
    let all: Vec<_> = (0..3).map(|_| tokio::spawn(get_path(admin, "/wait-for-ready"))).collect();
    let kubelet = "User-Agent: kube-probe/1.35\r\nK-Network-Probe: queue\r\n";
    assert!(get(Way::Full, proxy.serving_address(), kubelet).await.starts_with("HTTP/1.1 503 "));
    assert!(all.iter().all(|one| !one.is_finished()), "told although nobody listens");
    let _listener = TcpListener::bind(address).await.expect("still free");
    for one in all {
        let answer = one.await.expect("no panic");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nqueue"), "{answer}");
    }
    assert!(get_path(admin, "/wait-for-ready").await.ends_with("queue"), "at once from then on");
}

#[tokio::test]
async fn probes_over_http_follow_redirects_and_tell_protocols_apart() {
    let probe = |port: u16, path: &str| {
        let json = format!(
            r#"{{"httpGet":{{"port":{port},"host":"127.0.0.1","path":"{path}","httpHeaders":[{{"name":"X-Probe","value":"1"}}]}},"periodSeconds":1}}"#
        );
        queue_proxy::Probe::parse(&json, port).expect("valid")
    };
    let ready = async |config: Config| {
        let proxy = start(config).await;
        let kubelet = "User-Agent: kube-probe/1.35\r\nK-Network-Probe: queue\r\n";
        get(Way::Full, proxy.serving_address(), kubelet).await.starts_with("HTTP/1.1 200 ")
    };
    let port = program(|head| async move {
        let status = match head.split(' ').nth(1) {
            Some("/moved") => "302 Found\r\nLocation: /here",
            Some("/loop") => "307 Temporary Redirect\r\nLocation: /loop",
            Some("/here") if head.contains("X-Probe: 1") && head.contains("User-Agent: kube-probe//") => {
                "204 No Content"
            }
            _ => "500 Internal Server Error\r\nContent-Length: 0",
        };
        format!("HTTP/1.1 {status}\r\n\r\n")
    })
    .await;
    for (path, expected) in [("/here", true), ("/moved", true), ("/loop", false), ("/other", false)] {
        let config = Config { readiness_probes: probe(port, path), ..config(port) };
        assert_eq!(ready(config).await, expected, "{path}");
    }
    // Detection: a program of HTTP/2 alone passes only with it.
    let port = http2_program().await;
    for detect in [true, false] {
        let config = Config { readiness_probes: probe(port, "/"), http2_detection: detect, ..config(port) };
        assert_eq!(ready(config).await, detect, "detection {detect}");
    }
    // Several probes: all have to pass.
    let both: Vec<_> = [probe(port, "/"), probe(1, "/")].concat();
    assert!(!ready(Config { readiness_probes: both, http2_detection: true, ..config(port) }).await);
}

#[tokio::test]
async fn profiles_are_served_where_they_are_switched_on() {
    let mut config = Config { profiling_port: 0, ..config(1) };
    assert!(start(config.clone()).await.profiling_address().is_none());
    config.observability = queue_proxy::Observability::parse(r#"{"runtime":{"profiling":"enabled"}}"#).expect("valid");
    let proxy = start(config).await;
    let address = proxy.profiling_address().expect("on");
    let bytes = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.expect("listening");
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        String::from_utf8_lossy(&rest(&mut stream).await).into_owned()
    };
    // Something to be seen.
    std::io::sink().write_all(b"").expect("taken");
    for (path, expected) in [
        ("/debug/pprof/", "heap"),
        ("/debug/pprof/heap", "inuse_space"),
        ("/debug/pprof/heap?debug=1", "Rss:"),
        ("/debug/pprof/profile?seconds=1", "nanoseconds"),
        ("/debug/pprof/threadcreate", "threadcreate"),
        ("/debug/pprof/cmdline", "sidecar"),
    ] {
        let answer = bytes(path).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(expected), "{path}: {answer}");
    }
    assert!(bytes("/other").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_stops_arriving_ends_its_connection_after_a_minute() {
    let proxy = start(config(1)).await;
    // The second is more than the short way looks at.
    for begun in ["GET / HTTP/1.1\r\nHo".to_owned(), format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(40 << 10))] {
        let mut client = TcpStream::connect(proxy.serving_address()).await.expect("listening");
        tokio::time::sleep(Duration::from_secs(600)).await;
        client.write_all(begun.as_bytes()).await.expect("sent");
        let before = tokio::time::Instant::now();
        assert!(client.read_u8().await.is_err(), "still open");
        assert!((60..=121).contains(&before.elapsed().as_secs()), "{:?}", before.elapsed());
    }
}

#[tokio::test]
async fn streams_finish_when_the_process_is_told_to_end_and_their_connection_closes() {
    let (gate, inside) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let (open, counted) = (gate.clone(), inside.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (open, counted) = (open.clone(), counted.clone());
            let service = hyper::service::service_fn(move |_: http::Request<hyper::body::Incoming>| {
                let (open, counted) = (open.clone(), counted.clone());
                async move {
                    counted.fetch_add(1, Ordering::SeqCst);
                    open.notified().await;
                    let body = http_body_util::Full::new(bytes::Bytes::from_static(b"finished"));
                    Ok::<_, std::convert::Infallible>(http::Response::new(body))
                }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let server = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
            tokio::spawn(server.serve_connection(io, service));
        }
    });
    let drain = DrainRule { quiet: Duration::from_millis(50), idle: None };
    let proxy = Arc::new(start(Config { drain, ..config(port) }).await);
    let stream = TcpStream::connect(proxy.serving_address()).await.expect("listening");
    let io = hyper_util::rt::TokioIo::new(stream);
    let handshake = hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await;
    let (sender, connection) = handshake.expect("a handshake");
    let connection = tokio::spawn(connection);
    let request = http::Request::get("http://a/").body(http_body_util::Empty::<bytes::Bytes>::new()).expect("valid");
    let mut asking = sender.clone();
    let answer = tokio::spawn(async move {
        let response = asking.send_request(request).await.expect("an answer");
        http_body_util::BodyExt::collect(response.into_body()).await.expect("whole").to_bytes()
    });
    until("the stream at the program", || inside.load(Ordering::SeqCst) == 1).await;
    let ending = tokio::spawn({
        let proxy = proxy.clone();
        async move { proxy.terminate().await }
    });
    // The drain is over when nobody listens any more; the stream goes on.
    let started = Instant::now();
    while TcpStream::connect(proxy.serving_address()).await.is_ok() {
        assert!(started.elapsed() < PATIENCE, "still listening");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(!answer.is_finished() && !ending.is_finished());
    gate.notify_one();
    assert_eq!(answer.await.expect("no panic"), "finished");
    tokio::time::timeout(PATIENCE, ending).await.expect("in time").expect("no panic");
    let _ = tokio::time::timeout(PATIENCE, connection).await.expect("closed");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_gets_a_minute_after_the_drain() {
    let port = upgrading(|mut stream| async move {
        let _ = stream.read_u8().await;
    })
    .await;
    let drain = DrainRule { quiet: Duration::from_secs(30), idle: Some(Duration::from_secs(1)) };
    let proxy = start(Config { drain, timeout: Duration::from_secs(600), ..config(port) }).await;
    let client = upgrade(proxy.serving_address()).await;
    let before = tokio::time::Instant::now();
    proxy.terminate().await;
    let waited = before.elapsed().as_secs();
    assert!((90..=91).contains(&waited), "quiet period and a minute, not {waited} s");
    drop(client);
}
