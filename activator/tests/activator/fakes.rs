//! The activator's surroundings.

mod autoscaler;
mod cluster;

pub(crate) use autoscaler::Autoscaler;
pub(crate) use cluster::{Cluster, Slices};
