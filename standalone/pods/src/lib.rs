//! The node agent: runs pods as processes in network namespaces.
//!
//! It watches the pods bound to its node and makes each one true: a network namespace from a pool kept ready
//! ([`network`]), processes started from a thread inside it (`sandbox`), probes, logs and a status in the API. There
//! are no images yet: `dev.local/host` runs a program of this machine, `dev.local/<alias>` one of
//! [`Options::binaries`].
//!
//! ```text
//! API --Pod--> agent --> pod (task) --> container (start, probe, end, again) --> sandbox (thread) --> process
//!                          |                   |
//!                          +-- status --> API  +-- logs --> files --> Handle::logs
//! ```

mod agent;
mod backoff;
mod container;
mod dns;
mod env;
mod error;
mod facts;
mod groups;
mod image;
mod logs;
pub mod network;
mod node;
mod options;
mod pod;
mod probe;
mod process;
mod quantity;
mod sandbox;
mod status;
mod volatile;
mod volumes;

pub use agent::{Handle, run};
pub use error::{Error, LogError};
pub use logs::LogOptions;
pub use network::Network;
pub use options::{Binary, Cidr, NetworkMode, Options};
