//! The sidecar over real sockets: what a gateway, a program, the kubelet and the autoscaler see.
//!
//! Every row of the handler chain, and where it is proven. HTTP/1.1 has two implementations (`support::Way`), and tests that
//! say `BOTH` run through each; TLS carries the same bytes into the second, and HTTP/2 into `net`'s streams.
//!
//! | row | HTTP/1.1 | HTTP/2 | TLS |
//! |---|---|---|---|
//! | protocol detection | `requests`, `contract` (upgrade to h2c, heads that stop) | `http2` | `requests` (no ALPN) |
//! | metrics, spans | `telemetry` | `http2` (1xx with metrics on) | `telemetry` (the scrape) |
//! | request log | `process` | | |
//! | probes and drain | `probes`, `process` | `http2` | |
//! | in flight, tunnels | `requests`, `contract` | | |
//! | full duplex, trailers | `requests` | `http2` | |
//! | route tag | `telemetry` | | |
//! | time limits | `requests`, `contract`, `wire` | `http2` | |
//! | `Forwarded`, hosts | `requests` | `http2` | `requests` |
//! | statistics | `probes` | | |
//! | breaker, pending bytes | `requests`, `contract`, `simulation` | `http2` | |
//! | reverse proxy, 502 | `requests`, `wire` | `http2` | `requests` |
//! | 1xx | `wire`, `contract` | `http2` | |
//! | half-closed, slow, reset | `wire`, `contract` | `http2` | |
//! | malformed | `wire`, `fuzz.rs` | h2's own tests | |
//! | shutdown | `wire`, `process`, `contract` | `contract` | |

mod contract;
mod http2;
mod probes;
mod process;
mod requests;
mod simulation;
mod support;
mod telemetry;
mod wire;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use queue_proxy::{Config, DrainRule, Environment, Handle, MetricsListener};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use self::support::*;
