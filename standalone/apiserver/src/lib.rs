//! A table-driven Kubernetes API over the store, as a tower service and an HTTPS listener.
//!
//! Everything the server knows about a resource is one entry of the [`registry`]: built-in kinds are entries made at start, custom resource
//! definitions add entries at run time, and routing, discovery, OpenAPI and the write pipeline are functions of that table.

pub mod admission;
mod auth;
mod body;
pub mod boot;
mod change;
mod core;
mod crd;
mod delete;
pub mod discovery;
mod duration;
pub mod errors;
mod expiry;
mod handler;
pub mod jsonpath;
pub mod kinds;
pub mod logs;
mod metadata;
pub mod names;
mod network;
pub mod openapi;
mod pipeline;
mod protobuf;
mod read;
pub mod registry;
mod request;
pub mod selectors;
mod server;
pub mod strategic;
pub mod tables;
mod view;
mod watching;

pub use admission::{Admission, AdmissionRequest, Denied, Operation};
pub use body::Body;
pub use core::Identity;
pub use errors::{FieldError, Status};
pub use logs::{LogRequest, LogSource};
pub use registry::{
    Column, Conversion, FieldLabel, Kind, ListStrategy, Registry, ScalePaths, Schema, Scope, Strategy, Subresource,
    WriteContext,
};
pub use server::{Error, Options, Server, Service};
