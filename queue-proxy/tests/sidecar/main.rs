//! The sidecar over real sockets: what a gateway, a program, the kubelet and the autoscaler see.
//!
//! Every row of the handler chain, and where it is proven. HTTP/1.1 has two implementations (`support::Way`), and tests that
//! say `BOTH` run through each; TLS carries the same bytes into the second, and HTTP/2 into `net`'s streams.
//!
//! | row | HTTP/1.1 | HTTP/2 | TLS |
//! |---|---|---|---|
//! | protocol detection | `requests`, `contract` (upgrade to h2c, heads that stop) | `http2` | `requests` (no ALPN) |
//! | metrics, spans | `telemetry` | `http2` | `tls`; `telemetry` (the scrape) |
//! | request log | `process` | `http2` | `telemetry` crate (`.Request.TLS`) |
//! | probes and drain | `probes`, `process` | `http2` | `tls` |
//! | in flight, tunnels | `requests`, `contract` | `http2` (there are none) | `tls` |
//! | full duplex, trailers | `requests` | `http2` | `tls` |
//! | route tag | `telemetry` | `http2` | `tls` |
//! | time limits | `requests`, `contract`, `wire` | `http2` | `tls` |
//! | `Forwarded`, hosts, targets | `requests`, `telemetry` | `http2` | `requests`, `tls` |
//! | statistics | `probes` | `http2` | `tls` |
//! | breaker, pending bytes | `requests`, `contract`, `simulation` | `http2` | `tls` |
//! | reverse proxy, 502 | `requests`, `wire` | `http2` | `requests` |
//! | 1xx | `wire`, `contract` | `http2` | `tls` |
//! | half-closed, slow, reset | `wire`, `contract` | `http2` | `tls` |
//! | malformed | `wire`, `fuzz.rs` | h2's own tests | `tls` |
//! | shutdown | `wire`, `process`, `contract` | `contract` | `tls` |

mod contract;
mod http2;
mod probes;
mod process;
mod requests;
mod simulation;
mod support;
mod telemetry;
mod tls;
mod wire;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use queue_proxy::{Config, DrainRule, Environment, Handle, Scraped};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use self::support::*;
