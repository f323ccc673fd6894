//! The one-machine mode: embedded API, controllers, gateway, activator and node agent in one command.
//!
//! Only an assembly: every part is the same code that runs on Kubernetes, or an ordinary crate beside this one. Reading
//! order: [`up`] (what is started, in which order, and how it stops), then [`install`] (the objects of a fresh
//! installation), [`gateway`] (Envoy as a child), [`identity`] (certificates and the kubeconfig).

pub mod admission;
pub mod gateway;
pub mod identity;
pub mod install;
pub mod logs;
pub mod options;
pub mod preflight;
pub mod supervise;
pub mod up;

pub use options::Options;
