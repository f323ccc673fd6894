//! The short way of a plain HTTP/1.1 request through a proxy: one task moves the bytes of both connections.
//!
//! Most requests are complete when they arrive, speak HTTP/1.1 and need no feature of it. For those, parsing into
//! maps and handing bodies from task to task costs more than everything else a proxy does. Here a request goes from
//! the client's buffer to the backend's connection and back with four system calls; what a proxy does in between is
//! its own. The first request that is not plain hands its connection, from that request's first byte on, to a full
//! implementation.

mod body;
mod buffers;
mod chunks;
mod client;
mod clock;
mod exchange;
mod fields;
mod idle;
mod request;
mod response;

pub use chunks::{Chunks, Invalid, Part};
pub use client::{Client, Cut, Next};
pub use exchange::{Begun, Failure, Relayed};
pub use fields::write_field;
pub use idle::Backend;
pub use net::with_date;
pub use request::{Head, Incoming, Plain, request};
pub use response::{Answer, Framing, Malformed, response};
