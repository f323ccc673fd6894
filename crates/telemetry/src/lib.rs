//! What the proxies tell about requests and about themselves, in the forms that upstream's tell it: the request log,
//! spans and metrics over OTLP, profiles; and how they are told what to do: the environment, and whom to trust.

mod calendar;
pub mod call;
mod described;
pub mod environment;
pub mod otlp;
pub mod profiling;
mod request_log;
pub mod tls;
pub mod trace;

pub use described::Described;
pub use request_log::{Lines, Record, RequestLog, Revision, try_template};
