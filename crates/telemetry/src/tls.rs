//! TLS as Go's programs are told of it, and as a client.

pub mod client;
mod server;
mod settings;

pub use server::{ClientAuth, Contents, Fixed, HTTP, Paths, handshake, parse, read};
pub use settings::{Mistake, TlsRange, TlsSettings, Which};
