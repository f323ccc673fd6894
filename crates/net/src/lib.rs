//! Shared parts of the proxies: connections, pools, breaker, probes, drain.
//!
//! The activator and queue-proxy do the same work on a request: accept it, decide whether it may go on now, send it
//! over a pooled connection and stream the answer back under time limits. What they share is here; it knows nothing
//! of Kubernetes and nothing of revisions.
//!
//! On cancellation: dropping any future of this crate gives back what it holds at once (a place in a breaker's queue,
//! a slot, a connection). An HTTP/1 exchange dropped before its end closes its connection; an HTTP/2 one is reset.

mod accept;
mod body;
mod breaker;
mod date;
mod dial;
mod drain;
mod files;
mod forward;
mod h2c;
mod idle;
mod incoming;
mod kept;
mod pool;
mod prefixed;
mod respond;
mod retry;
mod serve;
mod stats;
mod streams;
mod target;
mod timeout;
mod tunnel;
mod watched;
mod workers;

pub mod headers;

pub use accept::{Connections, Member, accept, listen, serve};
pub use body::{BodyError, RequestBody, ResponseBody};
pub use breaker::{Breaker, QueueFull, Slot};
pub use date::{civil, with_date};
pub use dial::{DialError, connect, reason};
pub use drain::{InFlight, InFlightGuard};
pub use files::raise_open_files;
pub use forward::{Outbound, SendFailure, Spare, bad_gateway, log_failure, respond};
pub use idle::{Idle, IdleLimits, Look};
pub use incoming::{ConnectionError, Incoming};
pub use pool::{BoxIo, Io, Pool, PoolOptions, PooledBody, SendError, Wrap, Wrapped, is_closed, send_on};
pub use prefixed::Prefixed;
pub use respond::{empty, exposition, http_error, text};
pub use retry::{Retry, after_break};
pub use serve::Http;
pub use stats::{Report, RequestStats};
pub use timeout::{Limits, Timer};
pub use watched::HEAD_TIME;
pub use workers::{Seat, Stay, Workers};
