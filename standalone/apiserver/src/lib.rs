//! A table-driven Kubernetes API over the store, as a tower service and an HTTPS listener.
//!
//! Everything the server knows about a resource is one entry of the [`registry`]: built-in kinds are entries made at start, custom resource
//! definitions add entries at run time, and routing, discovery, OpenAPI and the write pipeline are functions of that table.

mod duration;
pub mod errors;
pub mod jsonpath;
pub mod names;
pub mod registry;
pub mod selectors;
pub mod strategic;
pub mod tables;

pub use errors::{FieldError, Status};
pub use registry::{
    Column, Conversion, FieldLabel, Kind, ListStrategy, Registry, ScalePaths, Schema, Scope, Strategy, Subresource, WriteContext,
};
