//! The xDS discovery protocol, without any knowledge of Kubernetes.
//!
//! * [`resource`]: what travels: kinds, versions from content, bodies encoded once.
//! * [`core`]: the protocol as a pure state machine; requests and changes in, responses out. No IO, no clock.
//! * [`Message`]: a protobuf message written by hand.
//! * [`server`]: the gRPC binding and the [`Xds`] handle that publishes and tells what gateways have accepted.

pub mod core;
mod message;
pub mod resource;
mod server;
mod wire;

pub use crate::{
    core::{Change, Event, Settled},
    message::Message,
    resource::{ALL, Body, Kind, Name, Requires, Resource, Version},
    server::{Error, Node, ROUTES, SCOPES, Server, Views, Xds},
};
