//! `/debug/pprof/`: what can be told of a native process from within, in the form that `go tool pprof` reads.
//!
//! There is no runtime that knows its stacks. A CPU profile says how much time each thread spent in user and in kernel
//! mode while it was taken; a heap profile says which mappings are resident. Where time goes within a thread is seen
//! from outside (`perf record -p`), which needs no help from the process.

mod proto;

use std::{fs, time::Duration};

use http::{Request, Response, StatusCode, header, header::HeaderValue};
use net::{Incoming, ResponseBody};

use self::proto::Sampled;

/// Where upstream serves profiles; `PROFILING_PORT` overrides it.
pub const PORT: u16 = 8008;
/// As Go's, unless `seconds` says otherwise.
const SECONDS: u64 = 30;
const MAX_SECONDS: u64 = 600;
const INDEX: &str = "/debug/pprof/\n\ncmdline\nheap\nprofile\nthreadcreate\n";

pub async fn answer<G>(request: Request<Incoming>) -> Response<ResponseBody<G>> {
    let query = request.uri().query().unwrap_or("");
    let parameter = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse::<u64>().ok())
    };
    let text = parameter("debug").is_some_and(|level| level > 0);
    match request.uri().path() {
        "/debug/pprof/" | "/debug/pprof" => net::text(StatusCode::OK, INDEX),
        "/debug/pprof/cmdline" => net::text(StatusCode::OK, fs::read("/proc/self/cmdline").unwrap_or_default()),
        "/debug/pprof/heap" | "/debug/pprof/allocs" if text => {
            net::text(StatusCode::OK, fs::read("/proc/self/smaps_rollup").unwrap_or_default())
        }
        "/debug/pprof/heap" | "/debug/pprof/allocs" => profile(heap()),
        "/debug/pprof/profile" => profile(cpu(parameter("seconds").unwrap_or(SECONDS).clamp(1, MAX_SECONDS)).await),
        "/debug/pprof/threadcreate" => profile(threads()),
        "/debug/pprof/symbol" => net::text(StatusCode::OK, "num_symbols: 0\n"),
        "/debug/pprof/trace" => {
            net::http_error(StatusCode::NOT_IMPLEMENTED, "take a trace of this process with perf trace -p")
        }
        _ => net::http_error(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

fn profile<G>(bytes: Vec<u8>) -> Response<ResponseBody<G>> {
    let mut response = net::text(StatusCode::OK, bytes);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Time of each thread, in nanoseconds, over `seconds`.
async fn cpu(seconds: u64) -> Vec<u8> {
    let before = times();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let mut samples = Vec::new();
    for (thread, after) in times() {
        let start = before.iter().find(|(known, _)| known.id == thread.id).map_or([0, 0], |(_, start)| *start);
        for (mode, spent) in ["[user]", "[kernel]"].into_iter().zip(after.iter().zip(start)) {
            let ticks = spent.0.saturating_sub(spent.1);
            if ticks > 0 {
                // The kernel counts hundredths of a second.
                let stack = vec![mode.to_owned(), thread.name.clone()];
                samples.push(Sampled { stack, values: vec![ticks, ticks * 10_000_000] });
            }
        }
    }
    let types = [("samples", "count"), ("cpu", "nanoseconds")];
    proto::encode(&types, &samples, Some(Duration::from_secs(seconds)), Some((("cpu", "nanoseconds"), 10_000_000)))
}

/// Resident memory by mapping.
fn heap() -> Vec<u8> {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let mut samples: Vec<Sampled> = Vec::new();
    let mut name = String::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or("");
        if first == "Rss:" {
            let bytes = words.next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) * 1024;
            let stack = vec![std::mem::take(&mut name)];
            match samples.iter_mut().find(|sample| sample.stack == stack) {
                Some(known) => known.values[1] += bytes,
                None if bytes > 0 => samples.push(Sampled { stack, values: vec![1, bytes] }),
                None => {}
            }
        } else if !first.ends_with(':') {
            name = words.nth(4).unwrap_or("[anonymous]").to_owned();
        }
    }
    let types = [("inuse_objects", "count"), ("inuse_space", "bytes")];
    proto::encode(&types, &samples, None, Some((("space", "bytes"), 1)))
}

fn threads() -> Vec<u8> {
    let stack = |thread: Thread| Sampled { stack: vec![thread.name], values: vec![1] };
    let samples: Vec<_> = times().into_iter().map(|(thread, _)| stack(thread)).collect();
    proto::encode(&[("threadcreate", "count")], &samples, None, None)
}

struct Thread {
    id: String,
    name: String,
}

/// Every thread's user and system time in ticks.
fn times() -> Vec<(Thread, [u64; 2])> {
    let folder = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let read = |entry: fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (start, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<_> = rest.split(' ').collect();
        let ticks = |index: usize| fields.get(index).and_then(|text| text.parse().ok()).unwrap_or(0);
        let name = start.split_once('(')?.1.to_owned();
        let id = entry.file_name().to_string_lossy().into_owned();
        Some((Thread { id, name }, [ticks(11), ticks(12)]))
    };
    folder.filter_map(read).collect()
}
