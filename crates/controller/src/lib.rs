//! What every Kubernetes controller here is made of.
//!
//! A controller is a [`Cache`] (one shared watch per kind, with indexes), a [`Queue`] of keys that events feed, and a
//! [`Reconcile`] whose decisions are functions of cached objects. [`drive`] connects them with the loop that upstream
//! Knative generates for each kind: copy from the cache, prepare, reconcile, groom condition times, write the status
//! only if it differs. Nothing polls: a key is reconciled because an event, a result or a named delay put it in.
//!
//! ```text
//! API --watch--> Cache --Change--> handlers --key--> Queue --key--> Reconcile --writes--> API
//! ```

pub mod cache;
pub mod config;
pub mod context;
pub mod error;
pub mod events;
pub mod key;
pub mod leases;
pub mod probes;
pub mod queue;
pub mod reconcile;
pub mod status;
pub mod tasks;
pub mod tracker;

pub use cache::{Cache, Change, Old};
pub use config::Config;
pub use context::Context;
pub use error::Error;
pub use events::Recorder;
pub use key::{ObjectKey, owner_reference};
pub use leases::{Leadership, Replica, elect};
pub use probes::probe_tls;
pub use queue::Queue;
pub use reconcile::{Reconcile, drive};
pub use tasks::Tasks;
pub use tracker::Tracker;
