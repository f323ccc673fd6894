//! The sidecar as the kubelet starts it: its environment, its signals, its standard output and its end.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use super::*;

/// A process with an address of its own, so that its fixed ports are free.
pub(crate) struct Sidecar {
    child: Child,
    pub(crate) address: SocketAddr,
}

fn command(ip: &str, user_port: u16, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_queue-proxy"));
    command.env_clear().envs([
        ("CONTAINER_CONCURRENCY", "0"),
        ("QUEUE_SERVING_PORT", "8012"),
        ("QUEUE_SERVING_TLS_PORT", "8112"),
        ("REVISION_TIMEOUT_SECONDS", "300"),
        ("SERVING_LOGGING_CONFIG", ""),
        ("SERVING_LOGGING_LEVEL", "info"),
        ("SERVING_NAMESPACE", "default"),
        ("SERVING_CONFIGURATION", "hello"),
        ("SERVING_REVISION", "hello-00001"),
        ("SERVING_POD", "hello-pod"),
        ("SERVING_POD_IP", ip),
    ]);
    command.env("USER_PORT", user_port.to_string()).envs(variables.iter().copied());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Sidecar {
    pub(crate) async fn start(user_port: u16, variables: &[(&str, &str)]) -> Self {
        let ip = own_address().to_string();
        let child = command(&ip, user_port, variables).spawn().expect("it can be started");
        let address: SocketAddr = format!("{ip}:8012").parse().expect("an address");
        let started = Instant::now();
        while TcpStream::connect(address).await.is_err() {
            assert!(started.elapsed() < PATIENCE, "nothing listens on {address}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Self { child, address }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().expect("kill can be run").success());
    }

    async fn ended(&mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status.code();
            }
            assert!(started.elapsed() < PATIENCE, "it does not end");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Lines of standard output until `count` are there.
    pub(crate) async fn lines(&mut self, count: usize) -> Vec<String> {
        let out = BufReader::new(self.child.stdout.take().expect("piped"));
        tokio::task::spawn_blocking(move || out.lines().take(count).map(|line| line.expect("text")).collect())
            .await
            .expect("no panic")
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn it_serves_drains_and_ends_in_peace() {
    let port = program(|_| async { ok("hello") }).await;
    let mut sidecar = Sidecar::start(port, &[("QUEUE_DRAIN_IDLE_PERIOD", "20ms")]).await;
    assert!(get(Way::Short, sidecar.address, "").await.ends_with("hello"));
    sidecar.signal("TERM");
    assert_eq!(sidecar.ended().await, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let mut sidecar = Sidecar::start(1, &[]).await;
    sidecar.signal("TERM");
    let probe = "User-Agent: kube-probe/1.35\r\nK-Network-Probe: queue\r\n";
    while !get(Way::Full, sidecar.address, probe).await.ends_with("shutting down\n") {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    sidecar.signal("INT");
    assert_eq!(sidecar.ended().await, Some(1));
}

#[test]
fn an_environment_that_makes_no_sense_is_said_and_fatal() {
    let cases = [
        ("CONTAINER_CONCURRENCY", "many", "CONTAINER_CONCURRENCY"),
        ("SERVING_READINESS_PROBE", "{", "SERVING_READINESS_PROBE"),
        ("METRICS_PROMETHEUS_PORT", "80", "METRICS_PROMETHEUS_PORT"),
        ("QUEUE_PROXY_TLS_CURVE_PREFERENCES", "P-1", "QUEUE_PROXY_TLS_CURVE_PREFERENCES"),
    ];
    for (name, value, said) in cases {
        let output = command("127.0.0.1", 1, &[(name, value)]).output().expect("it can be started");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}={value}: {text}");
        assert!(text.contains(said), "{name}={value}: {text}");
    }
}

#[tokio::test]
async fn request_log_and_spans_go_to_standard_output() {
    let port = program(|_| async { ok("hello") }).await;
    let json = r#"{"enableRequestLog":true,"requestLogTemplate":"{{.Request.Method}} {{.Response.Code}} {{.TraceID}}",
        "tracing":{"protocol":"stdout"}}"#;
    let variables = [("OBSERVABILITY_CONFIG", json), ("CONTAINER_CONCURRENCY", "1")];
    let mut sidecar = Sidecar::start(port, &variables).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("traceparent: 00-{trace}-00f067aa0ba902b7-00\r\n");
    get(Way::Short, sidecar.address, &parent).await;
    let lines = tokio::time::timeout(PATIENCE, sidecar.lines(5)).await.expect("in time");
    assert_eq!(lines[0], format!("GET 200 {trace}"));
    let spans: Vec<serde_json::Value> =
        lines[1..].iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let names: Vec<_> = spans.iter().map(|span| span["Name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["queue", "kn.queueproxy.proxy", "kn.queueproxy.wait", "HTTP GET"]);
    assert!(spans.iter().all(|span| span["SpanContext"]["TraceID"] == trace));
    assert_eq!(spans[0]["Parent"]["SpanID"], "00f067aa0ba902b7");
    assert_eq!(spans[1]["Parent"]["SpanID"], spans[0]["SpanContext"]["SpanID"]);
}

#[tokio::test]
async fn probes_over_https_verify_certificates() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("valid");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let (port, _) = wire::raw_program(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                head.push(byte);
            }
            let _ = stream.write_all(ok("ready").as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    })
    .await;
    let folder = tempfile::tempdir().expect("writable");
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, made.cert.pem()).expect("writable");
    let probe = format!(r#"{{"httpGet":{{"port":{port},"host":"127.0.0.1","scheme":"HTTPS"}},"periodSeconds":1}}"#);
    let other = folder.path().join("other.pem");
    let stranger = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    std::fs::write(&other, stranger.cert.pem()).expect("writable");
    for (trusted, status) in [(&file, "200"), (&other, "503")] {
        let variables = [("SERVING_READINESS_PROBE", &*probe), ("SSL_CERT_FILE", trusted.to_str().expect("text"))];
        let sidecar = Sidecar::start(port, &variables).await;
        let kubelet = "User-Agent: kube-probe/1.35\r\nK-Network-Probe: queue\r\n";
        let answer = get(Way::Full, sidecar.address, kubelet).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}
