//! The node agent: runs pods as processes in network namespaces.

mod error;
pub mod network;
mod options;
mod sandbox;

pub use error::{Error, LogError};
pub use network::Network;
pub use options::{Binary, Cidr, NetworkMode, Options};
