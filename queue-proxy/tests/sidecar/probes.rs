//! What the kubelet, the activator and the autoscaler ask for, and the drain.

use proto::Message;

use super::*;

#[tokio::test]
async fn probes_are_answered_as_upstream_answers_them() {
    for way in BOTH {
        let port = program(|_| async { ok("program") }).await;
        let proxy = start(config(port)).await;
        let kubelet = "User-Agent: kube-probe/1.35\r\n";
        let cases = [
            ("K-Network-Probe: queue\r\n".to_owned(), "200 OK", "program"),
            ("K-Network-Probe: probe\r\nK-Network-Hash: abc\r\n".to_owned(), "200 OK", ""),
            (
                "K-Network-Probe: probe\r\n".to_owned(),
                "400 Bad Request",
                "a probe request must contain a non-empty \"K-Network-Hash\" header\n",
            ),
            (kubelet.to_owned(), "400 Bad Request", "unexpected probe header value: \n"),
            (format!("{kubelet}K-Network-Probe: queue\r\n"), "200 OK", "queue"),
            ("User-Agent: Knative-Activator-Probe\r\nK-Network-Probe: queue\r\n".to_owned(), "200 OK", "queue"),
            (
                "User-Agent: Knative-Autoscaling-Probe\r\nK-Network-Probe: activator\r\n".to_owned(),
                "400 Bad Request",
                "unexpected probe header value: activator\n",
            ),
            ("K-Kubelet-Probe: yes\r\n".to_owned(), "200 OK", "program"),
        ];
        for (headers, status, body) in cases {
            let answer = get(way, proxy.serving_address(), &headers).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{headers}: {answer}");
            assert_eq!(answer.split_once("\r\n\r\n").expect("a head").1, body, "{headers}");
        }
        let echoed = get(way, proxy.serving_address(), "K-Network-Probe: probe\r\nK-Network-Hash: abc\r\n").await;
        assert!(echoed.contains("K-Network-Hash: abc\r\n"), "{echoed}");
    }
}

#[tokio::test]
async fn a_held_probe_is_answered_when_the_port_opens() {
    let address = unused().await;
    let mut config = config(address.port());
    let (port, host) = (address.port(), address.ip());
    let json = format!(r#"{{"tcpSocket":{{"port":{port},"host":"{host}"}},"successThreshold":1}}"#);
    config.readiness_probes = queue_proxy::Probe::parse(&json, address.port()).expect("valid");
    let proxy = start(config).await;
    let serving = proxy.serving_address();
    let probe = tokio::spawn(async move {
        let answer = get(Way::Full, serving, "User-Agent: kube-probe/1.35\r\nK-Network-Probe: queue\r\n").await;
        (answer, Instant::now())
    });
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert!(!probe.is_finished(), "answered although nobody listens");
    let opened = Instant::now();
    let _listener = TcpListener::bind(address).await.expect("still free");
    let (answer, answered) = probe.await.expect("no panic");
    assert!(answer.ends_with("\r\n\r\nqueue"), "{answer}");
    assert!(answered - opened < Duration::from_millis(150), "{:?} after the port opened", answered - opened);
}

#[tokio::test]
async fn the_autoscaler_scrapes_a_bare_stat() {
    let proxy = start(config(1)).await;
    let answer =
        raw(proxy.autoscaling_address(), "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains("Content-Type: application/protobuf"), "{head}");
    let stat = proto::Stat::decode(body.as_bytes()).expect("a stat");
    assert_eq!(stat, proto::Stat { pod_name: "hello-pod".into(), ..proto::Stat::default() });
    assert!(get(Way::Full, proxy.autoscaling_address(), "").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn a_drain_loses_nothing_and_ends_when_nothing_is_left() {
    for way in BOTH {
        let gate = Gate::default();
        let drain = DrainRule { idle: Some(Duration::from_millis(100)), ..DrainRule::default() };
        let proxy = Arc::new(start(Config { drain, ..config(gate.program().await) }).await);
        let address = proxy.serving_address();
        let before = tokio::spawn(get(way, address, ""));
        until("a request in flight", || gate.current.load(Ordering::SeqCst) == 1).await;

        let hook = tokio::spawn(get_path(proxy.admin_address(), "/wait-for-drain"));
        let ending = tokio::spawn({
            let proxy = proxy.clone();
            async move { proxy.terminate().await }
        });
        let probe = "User-Agent: kube-probe/1.35\r\nK-Network-Probe: queue\r\n";
        while !get(way, address, probe).await.ends_with("shutting down\n") {
            tokio::task::yield_now().await;
        }
        let after = tokio::spawn(get(way, address, ""));
        until("a late request in flight", || gate.current.load(Ordering::SeqCst) == 2).await;
        assert!(!ending.is_finished() && !hook.is_finished());
        for request in [before, after] {
            gate.open.notify_one();
            assert!(request.await.expect("no panic").ends_with("done"));
        }
        let finished = Instant::now();
        assert!(hook.await.expect("no panic").starts_with("HTTP/1.1 200 "));
        ending.await.expect("no panic");
        assert!(finished.elapsed() < Duration::from_secs(25), "waited for the quiet period of upstream");
        assert!(TcpStream::connect(address).await.is_err(), "still listening");
    }
}

#[tokio::test]
async fn a_drain_of_the_program_alone_is_taken_back() {
    let port = program(|_| async { ok("program") }).await;
    let proxy = start(config(port)).await;
    let answer = get_path(proxy.admin_address(), "/wait-for-drain").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let probe =
        get(Way::Full, proxy.serving_address(), "User-Agent: kube-probe/1.35\r\nK-Network-Probe: queue\r\n").await;
    assert!(probe.ends_with("\r\n\r\nqueue"), "{probe}");
}

#[tokio::test]
async fn a_drain_of_the_program_alone_is_taken_back_although_who_asked_has_left() {
    let port = program(|_| async { ok("program") }).await;
    let proxy = start(config(port)).await;
    let mut hook = TcpStream::connect(proxy.admin_address()).await.expect("listening");
    hook.write_all(b"GET /wait-for-drain HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
    let fields = "User-Agent: kube-probe/1.35\r\nK-Network-Probe: queue\r\n";
    let probed = async |expected: &str| {
        let started = Instant::now();
        while !get(Way::Full, proxy.serving_address(), fields).await.starts_with(expected) {
            assert!(started.elapsed() < PATIENCE, "{expected} did not come");
        }
    };
    probed("HTTP/1.1 503 ").await;
    drop(hook);
    probed("HTTP/1.1 200 ").await;
}
