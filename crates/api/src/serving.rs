//! Group `serving.knative.dev`.

pub mod v1;
pub mod v1beta1;

pub const GROUP: &str = "serving.knative.dev";
