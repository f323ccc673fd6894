//! KIngress, Services and endpoints in, Envoy resources out: what Kourier does.
//!
//! * [`validate`]: what it may ask for; [`translate`]: an Ingress as virtual hosts and the backends they use; [`backend`]: a Service as a cluster and its
//!   endpoints; [`hash`]: the Ingress hash of the probe handshake. All pure.
//! * [`world`]: who uses what, and which resources an event changes. The only state.
//! * [`envoy`]: the model as Envoy messages; [`bootstrap`]: the gateway's own configuration file.
//! * [`fleets`]: which gateways carry which Ingresses; [`probe`]: gateways that are asked over the network.
//! * [`controller`]: caches, status and the xDS server around it; [`run`] starts the role.

pub mod backend;
pub mod bootstrap;
pub mod certificate;
mod controller;
pub mod envoy;
pub mod fleets;
pub mod hash;
pub mod model;
mod options;
pub mod probe;
mod settings;
pub mod translate;
pub mod validate;
pub mod world;

pub use crate::{
    bootstrap::{Admin, Bootstrap},
    controller::{Error, FleetFigures, Handle, run},
    fleets::Fleets,
    options::{Authorization, AuthorizationProtocol, Options, Settings, Tracing},
};
