//! TLS as Go's programs are told of it, and as a client.

pub mod client;
mod settings;

pub use settings::{Mistake, TlsRange, TlsSettings, Which};
