//! What goes wrong on the wire: malformed messages, resets in every phase, slow readers, pipelines, shutdown.

use super::*;

/// A program that hands every connection to `serve`, and counts them.
pub(crate) async fn raw_program<F, R>(serve: F) -> (u16, Arc<AtomicUsize>)
where
    F: Fn(TcpStream) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let serve = serve.clone();
            tokio::spawn(async move { serve(stream).await });
        }
    });
    (port, connections)
}

/// Closes with a reset instead of an end.
fn reset(stream: TcpStream) {
    stream.set_zero_linger().expect("a socket option");
}

#[tokio::test]
async fn requests_that_readers_disagree_about_never_reach_the_program() {
    let (port, connections) = raw_program(|_| async {}).await;
    let proxy = start(config(port)).await;
    for fields in [
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "Content-Length: +5\r\n\r\nhello",
        "Content-Length: -1\r\n\r\n",
        "Content-Length: 5, 5\r\n\r\nhello",
        "Transfer-Encoding: xchunked\r\n\r\n",
        "Transfer-Encoding: chunked, identity\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "X: a\rb\r\n\r\n",
        "X: a\0b\r\n\r\n",
        "X: a\r\n folded\r\n\r\n",
        "X y: z\r\n\r\n",
    ] {
        let answer = raw(proxy.serving_address(), &format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}")).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{fields:?}: {answer:?}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0);
    assert_eq!(proxy.in_flight(), 0);
}

#[tokio::test]
async fn a_request_with_two_lengths_has_one_behind_the_proxy() {
    let port = program(|head| async move { ok(&head) }).await;
    let proxy = start(config(port)).await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                   0\r\n\r\n";
    let answer = raw(proxy.serving_address(), request).await.to_ascii_lowercase();
    let seen = answer.split_once("\r\n\r\n").expect("a head").1;
    let both = seen.contains("content-length") && seen.contains("transfer-encoding");
    assert!(answer.starts_with("http/1.1 400") || !both, "{answer}");
}

#[tokio::test]
async fn chunk_sizes_that_overflow_break_the_request() {
    let ended = Arc::new(AtomicUsize::new(0));
    let seen = ended.clone();
    let (port, _) = raw_program(move |mut stream| {
        let ended = seen.clone();
        async move {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
            assert!(!all.ends_with(b"0\r\n\r\n"), "the body was taken for complete");
            ended.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let proxy = start(config(port)).await;
    for (size, count) in [("ffffffffffffffffff", 1), ("0x3", 2), ("-1", 3), ("3;\n", 4)] {
        let request =
            format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{size}\r\nabc\r\n0\r\n\r\n");
        let answer = raw(proxy.serving_address(), &request).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{size}: {answer}");
        let _ = count;
    }
    until("nothing in flight", || proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn a_program_that_resets_gives_502_before_its_answer_and_a_cut_after() {
    let long = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n";
    for (sent, status) in [("", "502"), ("HTTP/1.1 200 OK\r\nContent-Le", "502"), (long, "200"), (chunked, "200")] {
        for way in BOTH {
            for hard in [true, false] {
                let (port, _) = raw_program(move |mut stream| async move {
                    read_head(&mut stream).await;
                    stream.write_all(sent.as_bytes()).await.expect("sent");
                    if hard {
                        // What was sent should arrive before the reset does.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        reset(stream);
                    }
                })
                .await;
                let proxy = start(config(port)).await;
                let answer = get(way, proxy.serving_address(), "").await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{way:?} {sent:?}: {answer:?}");
                assert!(!answer.ends_with("0\r\n\r\n"), "{way:?} {sent:?}: ended as if complete: {answer:?}");
                until("nothing in flight", || proxy.in_flight() == 0).await;
            }
        }
    }
}

#[tokio::test]
async fn answers_that_make_no_sense_give_502() {
    for answer in [
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
    ] {
        let port = program(move |_| async move { answer.to_owned() }).await;
        let proxy = start(config(port)).await;
        for way in BOTH {
            let seen = get(way, proxy.serving_address(), "").await;
            assert!(seen.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{way:?} {answer:?}: {seen:?}");
        }
    }
}

#[tokio::test]
async fn every_framing_of_an_answer_arrives_whole() {
    let cases = [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "hello"),
        ("HTTP/1.0 200 OK\r\n\r\nhello", "hello"),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello", "hello"),
        ("HTTP/1.1 204 No Content\r\n\r\n", ""),
    ];
    for (sent, body) in cases {
        let (port, _) = raw_program(move |mut stream| async move {
            read_head(&mut stream).await;
            for piece in sent.as_bytes().chunks(7) {
                stream.write_all(piece).await.expect("sent");
                tokio::task::yield_now().await;
            }
        })
        .await;
        let proxy = start(config(port)).await;
        for way in BOTH {
            let mut answer = String::new();
            let mut stream = TcpStream::connect(proxy.serving_address()).await.expect("listening");
            let close = if matches!(way, Way::Full) { "Connection: close, x-none\r\n" } else { "" };
            stream.write_all(format!("GET / HTTP/1.1\r\nHost: a\r\n{close}\r\n").as_bytes()).await.expect("sent");
            let ended = |answer: &str| {
                let (head, rest) = answer.split_once("\r\n\r\n")?;
                let chunked = head.contains("Transfer-Encoding: chunked");
                let whole = if chunked { rest.ends_with("0\r\n\r\n") } else { rest.len() == body.len() };
                whole.then(|| if chunked { unchunked(rest) } else { rest.to_owned() })
            };
            let found = loop {
                if let Some(found) = ended(&answer) {
                    break found;
                }
                let mut buffer = [0; 1024];
                let read =
                    tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.expect("in time").expect("read");
                assert!(read > 0, "{way:?} {sent:?}: {answer:?}");
                answer.push_str(std::str::from_utf8(&buffer[..read]).expect("text"));
            };
            assert_eq!(found, body, "{way:?} {sent:?}");
        }
    }
}

pub(crate) fn unchunked(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        out.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    out
}

#[tokio::test]
async fn interim_responses_come_first_and_pipelined_requests_in_order() {
    let port = program(|head| async move {
        let path = head.split(' ').nth(1).expect("a path").to_owned();
        format!("HTTP/1.1 103 Early Hints\r\nLink: {path}\r\n\r\n{}", ok(&path))
    })
    .await;
    let proxy = start(config(port)).await;
    let mut stream = TcpStream::connect(proxy.serving_address()).await.expect("listening");
    stream
        .write_all(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\nPOST /3 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        .await
        .expect("sent");
    let mut seen = String::new();
    while !seen.ends_with("\r\n\r\n/3") {
        let mut buffer = [0; 1024];
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.expect("in time").expect("read");
        assert!(read > 0, "{seen}");
        seen.push_str(std::str::from_utf8(&buffer[..read]).expect("text"));
    }
    // Bodies have no line end.
    let found = |what: &str| seen.match_indices(what).map(|(at, _)| at).collect::<Vec<_>>();
    let (interim, answers) = (found("HTTP/1.1 103 Early Hints\r\n"), found("HTTP/1.1 200 OK\r\n"));
    assert_eq!((interim.len(), answers.len()), (3, 3), "{seen}");
    let in_order: Vec<_> = interim.iter().zip(&answers).flat_map(|(interim, answer)| [*interim, *answer]).collect();
    assert!(in_order.is_sorted(), "{seen}");
    let links = [1, 2, 3].map(|n| seen.find(&format!("Link: /{n}\r\n")).expect("a hint"));
    assert!(links.is_sorted(), "{seen}");
}

#[tokio::test]
async fn a_client_that_waits_for_leave_gets_it() {
    let (port, _) = raw_program(|mut stream| async move {
        let _ = read_head(&mut stream).await;
        let mut body = [0; 5];
        stream.read_exact(&mut body).await.expect("the body");
        stream.write_all(ok(std::str::from_utf8(&body).expect("text")).as_bytes()).await.expect("sent");
    })
    .await;
    let proxy = start(config(port)).await;
    let mut stream = TcpStream::connect(proxy.serving_address()).await.expect("listening");
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("sent");
    let interim = tokio::time::timeout(PATIENCE, read_head(&mut stream)).await.expect("in time").expect("a head");
    assert!(interim.starts_with("HTTP/1.1 100 "), "{interim}");
    stream.write_all(b"hello").await.expect("sent");
    assert!(read_answer(&mut stream).await.ends_with("hello"));
}

#[tokio::test]
async fn clients_that_reset_end_the_work_in_every_phase() {
    for way in BOTH {
        let closed = Arc::new(AtomicUsize::new(0));
        let seen = closed.clone();
        let (port, connections) = raw_program(move |mut stream| {
            let closed = seen.clone();
            async move {
                let head = read_head(&mut stream).await.expect("a head");
                if head.starts_with("GET /started") {
                    let begin = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin";
                    stream.write_all(begin.as_bytes()).await.expect("sent");
                }
                let _ = stream.read_u8().await;
                closed.fetch_add(1, Ordering::SeqCst);
            }
        })
        .await;
        let proxy = start(Config { container_concurrency: 1, ..config(port) }).await;
        for (round, path) in [(1, "/waiting"), (2, "/started")] {
            let close = if matches!(way, Way::Full) { "Connection: close, x-none\r\n" } else { "" };
            let mut stream = TcpStream::connect(proxy.serving_address()).await.expect("listening");
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{close}\r\n");
            stream.write_all(request.as_bytes()).await.expect("sent");
            until("the request at the program", || connections.load(Ordering::SeqCst) == round).await;
            if round == 2 {
                read_head(&mut stream).await.expect("a head");
            }
            reset(stream);
            until("the program to learn of it", || closed.load(Ordering::SeqCst) == round).await;
            until("nothing in flight", || proxy.in_flight() == 0 && proxy.queued() == 0).await;
        }
    }
}

#[tokio::test]
async fn a_slow_reader_holds_the_program_back() {
    const TOTAL: usize = 64 << 20;
    for way in BOTH {
        let written = Arc::new(AtomicUsize::new(0));
        let progress = written.clone();
        let (port, _) = raw_program(move |mut stream| {
            let written = progress.clone();
            async move {
                read_head(&mut stream).await.expect("a head");
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {TOTAL}\r\n\r\n");
                stream.write_all(head.as_bytes()).await.expect("sent");
                let piece = vec![b'x'; 64 << 10];
                for _ in 0..TOTAL / piece.len() {
                    stream.write_all(&piece).await.expect("sent");
                    written.fetch_add(piece.len(), Ordering::SeqCst);
                }
            }
        })
        .await;
        let proxy = start(config(port)).await;
        let mut stream = TcpStream::connect(proxy.serving_address()).await.expect("listening");
        let close = if matches!(way, Way::Full) { "Connection: close, x-none\r\n" } else { "" };
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: a\r\n{close}\r\n").as_bytes()).await.expect("sent");
        read_head(&mut stream).await.expect("a head");
        // Until it stands still.
        let mut before = usize::MAX;
        while before != written.load(Ordering::SeqCst) {
            before = written.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(before < TOTAL / 2, "{way:?}: {before} bytes were taken although nobody reads");
        let mut received = 0;
        let mut buffer = vec![0; 1 << 20];
        while received < TOTAL {
            let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.expect("in time").expect("read");
            assert!(read > 0, "{way:?}: ended after {received} bytes");
            received += read;
        }
    }
}

#[tokio::test]
async fn a_limit_that_ends_the_wait_in_the_queue_frees_the_place() {
    let gate = Gate::default();
    let config = config(gate.program().await);
    let proxy = start(Config { container_concurrency: 1, timeout: Duration::from_millis(300), ..config }).await;
    let address = proxy.serving_address();
    let both: Vec<_> = BOTH.map(|way| tokio::spawn(get(way, address, ""))).into();
    for request in both {
        assert!(request.await.expect("no panic").starts_with("HTTP/1.1 504 Gateway Timeout\r\n"));
    }
    until("an empty queue", || proxy.queued() == 0 && proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn large_heads_pass_in_both_directions() {
    let port = program(|head| async move {
        let length = head.len();
        format!("HTTP/1.1 200 OK\r\nX-Large: {}\r\nContent-Length: {length}\r\n\r\n{head}", "y".repeat(100 << 10))
    })
    .await;
    let proxy = start(config(port)).await;
    for way in BOTH {
        for size in [20 << 10, 200 << 10] {
            let answer = get(way, proxy.serving_address(), &format!("X-Own: {}\r\n", "x".repeat(size))).await;
            assert!(answer.contains(&"x".repeat(size)) && answer.contains(&"y".repeat(100 << 10)), "{way:?} {size}");
        }
    }
}

#[tokio::test]
async fn shutdown_closes_idle_connections_and_lets_busy_ones_finish() {
    let gate = Gate::default();
    let drain = DrainRule { quiet: Duration::from_millis(50), idle: None };
    let proxy = Arc::new(start(Config { drain, ..config(gate.program().await) }).await);
    let address = proxy.serving_address();
    let mut idle = TcpStream::connect(address).await.expect("listening");
    let busy = tokio::spawn(get(Way::Short, address, ""));
    until("a request in flight", || gate.current.load(Ordering::SeqCst) == 1).await;
    let ending = tokio::spawn({
        let proxy = proxy.clone();
        async move { proxy.terminate().await }
    });
    let read = tokio::time::timeout(PATIENCE, idle.read_u8()).await.expect("closed in time");
    assert!(read.is_err(), "an idle connection stays open");
    assert!(!ending.is_finished());
    gate.open.notify_one();
    let answer = busy.await.expect("no panic");
    assert!(answer.ends_with("done") && answer.contains("Connection: close\r\n"), "{answer}");
    tokio::time::timeout(PATIENCE, ending).await.expect("in time").expect("no panic");
}

#[tokio::test]
async fn what_a_program_could_take_for_something_else_is_refused() {
    let (port, connections) = raw_program(|_| async {}).await;
    let proxy = start(config(port)).await;
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    for (request, status) in [
        (format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n{chunks}"), "501"),
        (format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n{chunks}"), "501"),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
            ),
            "501",
        ),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(), "400"),
        ("GET other HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "400"),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned(), "502"),
    ] {
        let answer = raw(proxy.serving_address(), &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer:?}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_answer_to_head_has_no_body_whoever_gives_it() {
    let port = program(|_| std::future::pending()).await;
    let late = start(Config { timeout: Duration::from_millis(30), ..config(port) }).await;
    let nobody = start(config(1)).await;
    for (proxy, status) in [(&late, "504"), (&nobody, "502")] {
        for fields in ["", "TE: trailers\r\n"] {
            let mut client = TcpStream::connect(proxy.serving_address()).await.expect("listening");
            let request = format!("HEAD / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            for _ in 0..2 {
                client.write_all(request.as_bytes()).await.expect("sent");
                // The next answer would begin with what does not belong there.
                let head = tokio::time::timeout(PATIENCE, read_head(&mut client)).await.expect("in time");
                let head = head.expect("a head");
                assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{fields:?}: {head}");
            }
        }
    }
}

#[tokio::test]
async fn many_headers_pass_and_those_of_an_answer_that_are_none_are_left_out() {
    let port = program(|head| async move {
        let many: String = (0..300).map(|n| format!("X-{n}: {n}\r\n")).collect();
        let count = head.lines().filter(|line| line.starts_with("X-N")).count();
        format!("HTTP/1.1 200 OK\r\n{many}Not A Header: x\r\nContent-Length: 3\r\n\r\n{count:3}")
    })
    .await;
    let proxy = start(config(port)).await;
    let many: String = (0..300).map(|n| format!("X-N{n}: {n}\r\n")).collect();
    for (way, fields, count) in [(Way::Short, "", 0), (Way::Full, "", 0), (Way::Short, &*many, 300)] {
        let answer = get(way, proxy.serving_address(), fields).await;
        let ended = answer.ends_with(&format!("\r\n\r\n{count:3}"));
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && ended, "{way:?}: {answer}");
        assert!(answer.contains("X-299: 299\r\n") && !answer.contains("Not A Header"), "{way:?}: {answer}");
    }
}
