//! Concurrency accounting over real sockets: clients that come, wait, read slowly, give up or reset in any order, and a
//! program that answers, stalls, breaks off or resets. From fixed seeds; what they meet still depends on the scheduler,
//! so nothing is expected of single requests, only that the limit holds at every moment and that all places come back.

use super::*;
use crate::wire::raw_program;

/// Xorshift: the same decisions on every run.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Counts requests inside the program. A request that the sidecar gives up leaves the program later than the sidecar, so
/// only those that are certain not to be given up stay longer than a moment.
#[derive(Clone, Default)]
struct Inside {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

struct Visit(Inside);

impl Inside {
    fn enter(&self) -> Visit {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        Visit(self.clone())
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What the program does with a request, by the number in its path.
async fn act(stream: &mut TcpStream, number: u64, patient: bool, visit: Visit) -> bool {
    match number % 8 {
        0..=2 => {
            if patient {
                for _ in 0..number % 50 {
                    tokio::task::yield_now().await;
                }
            }
            // Before the answer leaves, since the next request may come right after it.
            drop(visit);
            stream.write_all(ok("fine").as_bytes()).await.is_ok()
        }
        3 => {
            drop(visit);
            let begin = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nlong\r\n";
            if stream.write_all(begin.as_bytes()).await.is_err() {
                return false;
            }
            tokio::task::yield_now().await;
            stream.write_all(b"0\r\n\r\n").await.is_ok()
        }
        4 => {
            drop(visit);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbroken").await;
            false
        }
        5 => {
            drop(visit);
            let _ = stream.set_zero_linger();
            false
        }
        6 => {
            drop(visit);
            let _ = stream.write_all(b"nonsense\r\n\r\n").await;
            false
        }
        // Until the sidecar gives up: at its time limit, or when the client has left.
        _ => {
            drop(visit);
            let _ = stream.read_u8().await;
            false
        }
    }
}

async fn client(address: SocketAddr, mut random: Random) {
    let Ok(mut stream) = TcpStream::connect(address).await else { return };
    for _ in 0..=random.below(3) {
        let leaves = random.below(2) == 0;
        // Those who stay until the end are not made to wait for a limit.
        let number = if leaves { random.below(1000) } else { random.below(7) + 8 * random.below(100) };
        let kind = if leaves { "may-leave" } else { "patient" };
        let way = if random.below(2) == 0 { "" } else { "TE: trailers\r\n" };
        let request = format!("GET /{number}/{kind} HTTP/1.1\r\nHost: a\r\n{way}\r\n");
        let cut = if random.below(10) == 0 { random.below(request.len() as u64) as usize } else { request.len() };
        if stream.write_all(&request.as_bytes()[..cut]).await.is_err() || cut < request.len() {
            return;
        }
        let patience = Duration::from_millis(random.below(40));
        match random.below(2) {
            _ if !leaves => {
                let answer =
                    tokio::time::timeout(PATIENCE, read_answer(&mut stream)).await.expect("an answer or an end");
                if !answer.ends_with("fine") && !answer.ends_with("0\r\n\r\n") {
                    return;
                }
            }
            0 => {
                let _ = tokio::time::timeout(patience, stream.read_u8()).await;
                let _ = stream.set_zero_linger();
                return;
            }
            _ => {
                let _ = tokio::time::timeout(patience, read_answer(&mut stream)).await;
                return;
            }
        }
    }
}

#[tokio::test]
async fn the_limit_holds_and_every_place_comes_back() {
    let mut met = false;
    for seed in 1..=12_u64 {
        // Either short limits, or requests that stay in the program long enough to meet there.
        let holds = seed % 2 == 0;
        let inside = Inside::default();
        let counted = inside.clone();
        let (port, _) = raw_program(move |mut stream| {
            let inside = counted.clone();
            async move {
                let mut head = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    head.push(byte);
                    if head.ends_with(b"\r\n\r\n") {
                        let visit = inside.enter();
                        let text = String::from_utf8_lossy(&head);
                        let number = text.split(['/', ' ']).nth(2).and_then(|number| number.parse().ok());
                        let patient = holds && text.contains("/patient ");
                        if !act(&mut stream, number.expect("a number"), patient, visit).await {
                            return;
                        }
                        head.clear();
                    }
                }
            }
        })
        .await;
        let limit = 1 + seed as u32 % 4;
        let timeout = if holds { PATIENCE } else { Duration::from_millis(60) };
        let proxy = Arc::new(start(Config { container_concurrency: limit, timeout, ..config(port) }).await);
        let address = proxy.serving_address();
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let clients: Vec<_> = (0..60)
            .map(|_| {
                let one = Random(random.below(u64::MAX - 1) + 1);
                tokio::spawn(client(address, one))
            })
            .collect();
        let most = 11 * limit as usize;
        for one in clients {
            while !one.is_finished() {
                assert!(proxy.queued() <= most, "seed {seed}: {} run or wait of {most}", proxy.queued());
                assert!(proxy.running() <= limit as usize, "seed {seed}: {} run of {limit}", proxy.running());
                tokio::task::yield_now().await;
            }
            one.await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
        until("every place to come back", || (proxy.queued(), proxy.in_flight(), proxy.pending_bytes()) == (0, 0, 0))
            .await;
        let seen = inside.most.load(Ordering::SeqCst);
        assert!(seen <= limit as usize, "seed {seed}: {seen} at once, {limit} allowed");
        met |= seen > 1;
        // All of them can be used again, and one by one nothing is refused.
        for _ in 0..=most {
            let answer = get_path(address, "/0/patient").await;
            // A busy machine may exceed the short limits.
            let late = !holds && answer.starts_with("HTTP/1.1 504 ");
            assert!(late || answer.ends_with("fine"), "seed {seed}: {answer}");
        }
    }
    assert!(met, "no two requests were ever in the program together");
}
