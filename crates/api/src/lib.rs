//! Types of the Serving, autoscaling and networking APIs, with their defaulting and validation.
//!
//! Everything here is a pure function of its inputs: no client, no runtime, no clock but the one passed in (or the wall
//! clock where a caller asks for it by name). The same code serves the embedded API, the webhook and the controllers.

pub mod admission;
pub mod autoscaling;
pub mod caching;
pub mod checks;
pub mod conditions;
pub mod config;
pub mod defaults;
pub mod field_error;
pub mod go;
pub mod keys;
mod names;
pub mod networking;
mod podspec;
pub mod serving;
mod status;
pub mod subset;
pub mod template;
pub mod validation;

pub use conditions::{Condition, ConditionSet};
pub use names::child_name;
pub use podspec::PodSpecMap;
pub use status::{Addressable, Conditioned, StatusFields};
