//! A gateway, a control plane and backends on free ports of this machine.

mod backend;
mod certificate;
mod client;
mod gateway;
mod objects;
mod rig;

pub(crate) use self::{
    backend::Backend,
    certificate::{Authority, Certificate},
    client::{Answer, Request, Traffic, send, send_on, send_tls},
    gateway::{envoy, free_ports, spawn, spawn_text},
    rig::Rig,
};
