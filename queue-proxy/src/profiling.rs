//! What `/debug/pprof/` can say without a runtime like Go's: the process and its memory as the kernel sees them.
//!
//! Profiles of a native program are taken from outside (`perf record -p`), which needs no help from it.

use http::{Response, StatusCode};
use net::ResponseBody;

/// Where upstream serves profiles; `PROFILING_PORT` overrides it.
pub(crate) const PORT: u16 = 8008;

pub(crate) fn answer(path: &str) -> Response<ResponseBody> {
    let file = |path| net::text(StatusCode::OK, std::fs::read(path).unwrap_or_default());
    match path {
        "/debug/pprof/" | "/debug/pprof" => net::text(StatusCode::OK, "cmdline\nheap\nthreadcreate\n"),
        "/debug/pprof/cmdline" => file("/proc/self/cmdline"),
        "/debug/pprof/heap" => file("/proc/self/smaps_rollup"),
        "/debug/pprof/threadcreate" => file("/proc/self/status"),
        "/debug/pprof/profile" | "/debug/pprof/trace" => {
            net::http_error(StatusCode::NOT_IMPLEMENTED, "take a profile of this process with perf record -p")
        }
        _ => net::http_error(StatusCode::NOT_FOUND, "404 page not found"),
    }
}
