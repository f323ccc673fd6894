//! A request through the chain: what the program sees, who waits, what ends it.

use super::*;

#[tokio::test]
async fn the_program_sees_what_upstream_shows_it() {
    for way in BOTH {
        let port = program(|head| async move { ok(&head) }).await;
        let proxy = start(config(port)).await;
        let seen = get(way,
            proxy.serving_address(),
            "X-Forwarded-For: 10.244.0.21\r\nX-Forwarded-Proto: http\r\nK-Proxy-Request: activator\r\n\
             K-Original-Host: echo.default.example.com\r\nKnative-Serving-Revision: r\r\nKnative-Serving-Namespace: n\r\n\
             Keep-Alive: 5\r\n",
        )
        .await;
        assert!(seen.starts_with("HTTP/1.1 200 OK\r\n"), "{seen}");
        let mut lines: Vec<_> = seen.split("\r\n\r\n").nth(1).expect("a body").lines().collect();
        assert_eq!(lines.remove(0), "GET / HTTP/1.1");
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "Forwarded: for=10.244.0.21;proto=http",
                "Host: echo.default.example.com",
                "K-Proxy-Request: activator",
                "X-Forwarded-For: 10.244.0.21, 127.0.0.1",
                "X-Forwarded-Proto: http",
            ]
        );
    }
}

#[tokio::test]
async fn container_concurrency_is_never_exceeded_and_the_queue_is_bounded() {
    for way in BOTH {
        let gate = Gate::default();
        let proxy = start(Config { container_concurrency: 2, ..config(gate.program().await) }).await;
        let address = proxy.serving_address();
        let requests: Vec<_> = (0..22).map(|_| tokio::spawn(get(way, address, ""))).collect();
        until("a full queue", || proxy.queued() == 22).await;
        let refused = get(way, address, "").await;
        assert!(refused.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{refused}");
        assert!(refused.ends_with("\r\n\r\npending request queue full\n"), "{refused}");
        for request in requests {
            while !request.is_finished() {
                gate.open.notify_one();
                tokio::task::yield_now().await;
            }
            assert!(request.await.expect("no panic").ends_with("done"));
        }
        assert_eq!(gate.most.load(Ordering::SeqCst), 2);
        until("an empty queue", || proxy.queued() == 0).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    for way in BOTH {
        let gate = Gate::default();
        let proxy = start(Config { container_concurrency: 1, ..config(gate.program().await) }).await;
        let address = proxy.serving_address();
        let first = tokio::spawn(get(way, address, ""));
        until("the first request to run", || gate.current.load(Ordering::SeqCst) == 1).await;
        let queued: Vec<_> = (0..10).map(|_| tokio::spawn(get(way, address, ""))).collect();
        until("a full queue", || proxy.queued() == 11).await;
        for request in &queued {
            request.abort();
        }
        until("the queue to empty", || proxy.queued() == 1).await;
        gate.open.notify_one();
        assert!(first.await.expect("no panic").ends_with("done"));
    }
}

#[tokio::test]
async fn time_limits_end_a_request_with_504() {
    for way in BOTH {
        let port = program(|_| std::future::pending()).await;
        let short = Some(Duration::from_millis(30));
        let long = Duration::from_secs(300);
        for (timeout, response_start, idle) in
            [(Duration::from_millis(30), None, None), (long, short, None), (long, None, short)]
        {
            let config = Config { timeout, response_start_timeout: response_start, idle_timeout: idle, ..config(port) };
            let proxy = start(config).await;
            let answer = get(way, proxy.serving_address(), "").await;
            assert!(answer.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"), "{answer}");
            assert!(answer.ends_with("\r\n\r\nrequest timeout"), "{answer}");
            until("nothing in flight", || proxy.in_flight() == 0).await;
        }
    }
}

#[tokio::test]
async fn a_started_response_is_cut_with_the_message_appended() {
    for way in BOTH {
        let port =
            program(|_| async { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\npartial\r\n".into() }).await;
        let proxy = start(Config { timeout: Duration::from_millis(50), ..config(port) }).await;
        let answer = get(way, proxy.serving_address(), "").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("partial") && answer.contains("request timeout"), "{answer}");
    }
}

#[tokio::test]
async fn a_program_that_does_not_listen_gives_502() {
    for way in BOTH {
        let proxy = start(config(1)).await;
        let answer = get(way, proxy.serving_address(), "").await;
        assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
        assert!(answer.contains("dial tcp 127.0.0.1:1: "), "{answer}");
    }
}

#[tokio::test]
async fn a_kept_alive_connection_that_the_program_closes_costs_no_request() {
    for way in BOTH {
        // Answers one request per connection and closes it without having said so.
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    read_head(&mut stream).await;
                    let _ = stream.write_all(ok("once").as_bytes()).await;
                });
            }
        });
        let proxy = start(config(port)).await;
        for _ in 0..200 {
            assert!(get(way, proxy.serving_address(), "").await.ends_with("once"));
        }
    }
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let head = read_head(&mut stream).await.expect("a head");
        assert!(head.contains("Upgrade: websocket\r\n") && head.contains("Connection: Upgrade\r\n"), "{head}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello";
        stream.write_all(answer.as_bytes()).await.expect("sent");
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.expect("echoed");
    });
    let proxy = start(config(port)).await;
    let mut client = TcpStream::connect(proxy.serving_address()).await.expect("listening");
    let request = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\r\n";
    client.write_all(request.as_bytes()).await.expect("sent");
    let head = read_head(&mut client).await.expect("a head");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut buffer = [0; 5];
    client.read_exact(&mut buffer).await.expect("what came with the head");
    assert_eq!(&buffer, b"hello");
    client.write_all(b"there").await.expect("sent");
    client.read_exact(&mut buffer).await.expect("the echo");
    assert_eq!(&buffer, b"there");
    assert_eq!(proxy.in_flight(), 1);
    drop(client);
    until("the tunnel to end", || proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn requests_stream_in_both_directions_with_trailers() {
    // Echoes the chunks of a request of unknown length, each before the next is sent.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let head = read_head(&mut stream).await.expect("a head");
        assert!(head.contains("Transfer-Encoding: chunked"), "{head}");
        let start = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
        stream.write_all(start.as_bytes()).await.expect("sent");
        let mut seen = Vec::new();
        while !seen.ends_with(b"0\r\n\r\n") {
            let byte = stream.read_u8().await.expect("the body");
            seen.push(byte);
            if seen.ends_with(b"ping\r\n") {
                stream.write_all(b"4\r\npong\r\n").await.expect("sent");
            }
        }
        stream.write_all(b"0\r\nX-Sum: 2\r\n\r\n").await.expect("sent");
    });
    let proxy = start(config(port)).await;
    let mut client = TcpStream::connect(proxy.serving_address()).await.expect("listening");
    let head = "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.write_all(head.as_bytes()).await.expect("sent");
    for _ in 0..2 {
        client.write_all(b"4\r\nping\r\n").await.expect("sent");
        let mut seen = Vec::new();
        while !seen.ends_with(b"pong\r\n") {
            seen.push(client.read_u8().await.expect("an answer before the request ends"));
        }
    }
    client.write_all(b"0\r\n\r\n").await.expect("sent");
    let mut rest = Vec::new();
    while !rest.ends_with(b"\r\n\r\n") {
        rest.push(client.read_u8().await.expect("the end"));
    }
    assert_eq!(String::from_utf8_lossy(&rest).to_lowercase(), "0\r\nx-sum: 2\r\n\r\n");
}

#[tokio::test]
async fn tls_serves_the_same_without_negotiation() {
    let port = program(|head| async move { ok(&head) }).await;
    let made = rcgen::generate_simple_self_signed(["kn-user-default".to_owned()]).expect("a certificate");
    let folder = tempfile::tempdir().expect("writable");
    std::fs::write(folder.path().join("tls.crt"), made.cert.pem()).expect("writable");
    std::fs::write(folder.path().join("tls.key"), made.signing_key.serialize_pem()).expect("writable");
    let proxy = start(Config { certificates: folder.path().into(), ..config(port) }).await;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let name = rustls_pki_types::ServerName::try_from("kn-user-default").expect("a name");
    let address = proxy.tls_address().expect("there is a certificate");
    let connect = async || {
        let stream = TcpStream::connect(address).await.expect("listening");
        connector.connect(name.clone(), stream).await.expect("a handshake")
    };
    let mut stream = connect().await;
    stream.write_all(b"GET /tls HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(String::from_utf8_lossy(&answer).contains("GET /tls HTTP/1.1"), "{}", String::from_utf8_lossy(&answer));

    // HTTP/2 with prior knowledge inside: the server's preface is a SETTINGS frame.
    let mut stream = connect().await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("sent");
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).await.expect("a frame");
    assert_eq!(frame[3], 4, "{frame:?}");
}
