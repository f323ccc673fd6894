//! Probes: when they run, what their results mean, and how they are made.
//!
//! The kubelet lets a whole period pass between two readiness probes, which would add seconds to every cold start. Here
//! the first success is looked for at once and then at growing distances of at most 50 ms; afterwards the period
//! counts. What a result means (thresholds, start-up before the others) is as upstream.
//!
//! Our sidecar says itself when its program is ready (`docs/readiness.md`), so it is asked to, and is probed once more
//! then; another's is probed as any container.

mod check;

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

pub(crate) use check::{Exec, Target, check, exec, http_get};

/// Distances between probes until the first success: fine at first, when most programs get ready.
const SEEKING: [u64; 11] = [1, 1, 2, 2, 3, 4, 6, 10, 16, 25, 50];

/// Where a sidecar holds a request until its program is ready, and what it says then.
const TELLS: (i32, &str) = (8022, "/wait-for-ready");
const READY: (u16, &str) = (200, "queue");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Startup,
    Readiness,
    Liveness,
}

/// What the container's life is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Started,
    Ready(bool),
    /// A failure that users should see in an event.
    Unhealthy(Kind, String),
}

/// The counting side of one probe.
#[derive(Debug)]
pub(crate) struct Counter {
    success_threshold: i32,
    failure_threshold: i32,
    /// How often in a row the last result came.
    run: i32,
    last: Option<bool>,
}

/// Timing and thresholds with their defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) delay: Duration,
    pub(crate) timeout: Duration,
    pub(crate) period: Duration,
}

// === impl Counter ===

impl Counter {
    pub(crate) fn new(probe: &Probe) -> Self {
        Self {
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
            run: 0,
            last: None,
        }
    }

    /// `Some` when the threshold of this result is reached.
    pub(crate) fn count(&mut self, success: bool) -> Option<bool> {
        self.run = if self.last == Some(success) { self.run + 1 } else { 1 };
        self.last = Some(success);
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        (self.run >= threshold).then_some(success)
    }
}

// === impl Timing ===

impl Timing {
    pub(crate) fn of(probe: &Probe) -> Self {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).filter(|v| *v > 0).unwrap_or(default))
        };
        Self {
            delay: seconds(probe.initial_delay_seconds, 0),
            timeout: seconds(probe.timeout_seconds, 1),
            period: seconds(probe.period_seconds, 10),
        }
    }
}

/// Runs all probes of a started container until one asks for its death, and says which. Dropping it stops probing.
pub(crate) async fn run(container: &Container, target: &Target, mut tell: impl FnMut(Event) + Send) -> Kind {
    if let Some(probe) = &container.startup_probe
        && watch(Kind::Startup, probe, container, target, &mut tell).await
    {
        return Kind::Startup;
    }
    tell(Event::Started);
    let (told, mut results) = tokio::sync::mpsc::unbounded_channel();
    let readiness = async {
        match &container.readiness_probe {
            Some(probe) => {
                let mut tell = |event| drop(told.send(event));
                watch(Kind::Readiness, probe, container, target, &mut tell).await;
            }
            None => drop(told.send(Event::Ready(true))),
        }
        std::future::pending::<()>().await;
    };
    let liveness = async {
        match &container.liveness_probe {
            Some(probe) => {
                let mut tell = |event| drop(told.send(event));
                watch(Kind::Liveness, probe, container, target, &mut tell).await;
            }
            None => std::future::pending().await,
        }
    };
    let forward = async {
        while let Some(event) = results.recv().await {
            tell(event);
        }
    };
    tokio::select! {
        () = readiness => {}
        () = liveness => {}
        () = forward => {}
    }
    while let Ok(event) = results.try_recv() {
        tell(event);
    }
    Kind::Liveness
}

/// One probe's life. A start-up probe ends with its first success (false); start-up and liveness end when the failure
/// threshold is reached (true).
async fn watch(
    kind: Kind,
    probe: &Probe,
    container: &Container,
    target: &Target,
    tell: &mut (impl FnMut(Event) + Send),
) -> bool {
    let timing = Timing::of(probe);
    let mut counter = Counter::new(probe);
    tokio::time::sleep(timing.delay).await;
    let began = tokio::time::Instant::now();
    let mut seeking = (kind != Kind::Liveness).then_some(0usize);
    // Failures while seeking count once per period, as if only those probes had been made.
    let mut counted_until = began;
    let mut telling = (kind == Kind::Readiness && is_of_sidecar(probe)).then(|| Box::pin(told(container, target)));
    loop {
        let now = tokio::time::Instant::now();
        let result = check(probe, container, target, timing.timeout).await;
        let counts = seeking.is_none() || result.is_ok() || now >= counted_until;
        if counts {
            counted_until += timing.period;
            if let Err(message) = &result {
                // A refused connection right after the start is how every start looks.
                if seeking.is_none() || now.duration_since(began) >= timing.period {
                    tell(Event::Unhealthy(kind, message.clone()));
                }
            }
            match (kind, counter.count(result.is_ok())) {
                (Kind::Startup, Some(success)) => return !success,
                (Kind::Readiness, Some(ready)) => {
                    tell(Event::Ready(ready));
                    if ready {
                        (seeking, telling) = (None, None);
                    }
                }
                (Kind::Liveness, Some(false)) => return true,
                _ => {}
            }
        }
        let wait = match &mut seeking {
            None => timing.period,
            // The next failure that counts.
            Some(_) if telling.is_some() => counted_until.saturating_duration_since(tokio::time::Instant::now()),
            Some(n) => {
                *n += 1;
                distance(*n - 1)
            }
        };
        match &mut telling {
            None => tokio::time::sleep(wait).await,
            Some(told) => tokio::select! {
                told = told => {
                    telling = None;
                    if !told {
                        tracing::debug!(container = container.name, "the sidecar does not say when it is ready: it is probed");
                    }
                }
                () = tokio::time::sleep(wait) => {}
            },
        }
    }
}

/// Between the probe of this number, from 0, and the next one.
fn distance(number: usize) -> Duration {
    Duration::from_millis(SEEKING[number.min(SEEKING.len() - 1)])
}

/// Whether a probe asks a sidecar about its program.
fn is_of_sidecar(probe: &Probe) -> bool {
    let headers = probe.http_get.iter().flat_map(|action| action.http_headers.iter().flatten());
    headers.into_iter().any(|header| header.name.eq_ignore_ascii_case("k-network-probe") && header.value == READY.1)
}

/// Waits until a sidecar says that its program is ready; false if it does not say such things.
async fn told(container: &Container, target: &Target) -> bool {
    let (port, path) = TELLS;
    let action =
        HTTPGetAction { path: Some(path.to_owned()), port: IntOrString::Int(port), ..HTTPGetAction::default() };
    for number in 0.. {
        match http_get(&action, container, target, &[]).await {
            Ok((status, body)) => return (status, &*body) == READY,
            // It is about to listen.
            Err(_) => tokio::time::sleep(distance(number)).await,
        }
    }
    false
}

/// The number of a port given by number or by the name of one of the container's ports.
pub(crate) fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())
        }
    };
    let number = number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0);
    number.ok_or_else(|| match port {
        IntOrString::Int(number) => format!("invalid port number: {number}"),
        IntOrString::String(name) => format!("couldn't find port named {name:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_results_in_a_row() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut counter = Counter::new(&probe);
        let results = [true, false, true, true, false, false, false];
        let counted: Vec<_> = results.into_iter().map(|result| counter.count(result)).collect();
        assert_eq!(counted, [None, None, None, Some(true), None, None, Some(false)]);
    }

    #[tokio::test]
    async fn readiness_is_found_long_before_the_period_ends() {
        let reserved = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = reserved.local_addr().unwrap();
        drop(reserved);
        let probe: Probe = serde_json::from_value(
            // A period that the test would not outlive.
            serde_json::json!({"tcpSocket": {"port": address.port()}, "periodSeconds": 3600}),
        )
        .unwrap();
        let container = Container { readiness_probe: Some(probe), ..Container::default() };
        let target = Target::address(std::net::Ipv4Addr::LOCALHOST);
        let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
        let task = tokio::spawn(async move { run(&container, &target, move |event| drop(send.send(event))).await });
        assert_eq!(receive.recv().await, Some(Event::Started));
        let _listener = tokio::net::TcpListener::bind(address).await.unwrap();
        assert_eq!(receive.recv().await, Some(Event::Ready(true)));
        task.abort();
    }

    /// A sidecar at an address of its own: answers `/wait-for-ready` with `says` once it is let, and probes with 503 until
    /// then. Gives the probe, and how many probes were made.
    async fn sidecar(
        ip: std::net::Ipv4Addr,
        says: &'static str,
        ready: tokio::sync::watch::Receiver<bool>,
    ) -> (Probe, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let probes = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let serving = tokio::net::TcpListener::bind((ip, 0)).await.unwrap();
        let port = serving.local_addr().unwrap().port();
        let admin = tokio::net::TcpListener::bind((ip, TELLS.0 as u16)).await.unwrap();
        for (listener, is_admin) in [(serving, false), (admin, true)] {
            let (ready, probes) = (ready.clone(), probes.clone());
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let (mut ready, probes) = (ready.clone(), probes.clone());
                    tokio::spawn(async move {
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n") {
                            head.push(stream.read_u8().await.unwrap());
                        }
                        let answer = if is_admin {
                            assert!(head.starts_with(b"GET /wait-for-ready "), "{head:?}");
                            if says.starts_with("200") {
                                ready.wait_for(|ready| *ready).await.unwrap();
                            }
                            says
                        } else {
                            probes.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            if *ready.borrow() { "200 OK\r\n\r\nqueue" } else { "503 Not\r\n\r\n" }
                        };
                        stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await.unwrap();
                    });
                }
            });
        }
        let headers = serde_json::json!([{"name": "K-Network-Probe", "value": "queue"}]);
        let probe = serde_json::json!({"httpGet": {"port": port, "httpHeaders": headers}, "periodSeconds": 3600});
        (serde_json::from_value(probe).unwrap(), probes)
    }

    /// An address of the machine that nobody else listens on.
    fn own_address(last: u8) -> std::net::Ipv4Addr {
        let process = std::process::id();
        [127, 192 + (process / 256 % 32) as u8, (process % 256) as u8, last].into()
    }

    #[tokio::test]
    async fn a_sidecar_tells_when_it_is_ready_and_another_one_is_probed() {
        let says = ["200 OK\r\n\r\nqueue", "404 Not Found\r\n\r\n404 page not found\n"];
        for (says, last) in says.into_iter().zip(1..) {
            let (ready, is_ready) = tokio::sync::watch::channel(false);
            let ip = own_address(last);
            let (probe, probes) = sidecar(ip, says, is_ready).await;
            let made = || probes.load(std::sync::atomic::Ordering::SeqCst);
            let container = Container { readiness_probe: Some(probe), ..Container::default() };
            let target = Target::address(ip);
            let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
            let task = tokio::spawn(async move { run(&container, &target, move |event| drop(send.send(event))).await });
            assert_eq!(receive.recv().await, Some(Event::Started));
            let tells = says.starts_with("200");
            while made() < if tells { 1 } else { 20 } {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            ready.send_replace(true);
            while receive.recv().await != Some(Event::Ready(true)) {}
            // One at the start, and one that found what was told.
            assert!(!tells || made() == 2, "{} probes", made());
            task.abort();
        }
    }

    #[tokio::test]
    async fn liveness_kills_at_its_threshold() {
        // Nobody listens on port 1.
        let probe = serde_json::json!({"tcpSocket": {"port": 1}, "failureThreshold": 1});
        let probe: Probe = serde_json::from_value(probe).unwrap();
        let container = Container { liveness_probe: Some(probe), ..Container::default() };
        let target = Target::address(std::net::Ipv4Addr::LOCALHOST);
        let mut events = Vec::new();
        let killed = run(&container, &target, |event| events.push(event)).await;
        assert_eq!(killed, Kind::Liveness);
        let told = [Event::Started, Event::Ready(true)];
        assert_eq!(events[..2], told, "without a readiness probe a started container is ready");
        assert!(matches!(events[2], Event::Unhealthy(Kind::Liveness, _)), "{events:?}");
    }

    #[tokio::test]
    async fn https_is_asked_whoever_answers() {
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let made = rcgen::generate_simple_self_signed(["nobody".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config)).accept(stream).await.unwrap();
            let mut head = vec![0; 4096];
            let read = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await.unwrap();
            let answer = b"HTTP/1.1 418 x\r\ncontent-length: 2\r\n\r\nno";
            tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.unwrap();
            String::from_utf8_lossy(&head[..read]).into_owned()
        });
        let action = serde_json::json!({"scheme": "HTTPS", "path": "/ready?x=1", "port": port});
        let action = serde_json::from_value(action).unwrap();
        let target = Target::address(std::net::Ipv4Addr::LOCALHOST);
        let answer = http_get(&action, &Container::default(), &target, &[]).await;
        assert_eq!(answer, Ok((418, "no".to_owned())));
        assert!(server.await.unwrap().starts_with("GET /ready?x=1 HTTP/1.1\r\n"));
    }
}
