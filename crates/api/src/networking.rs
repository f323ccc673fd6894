//! Group `networking.internal.knative.dev`.

pub mod v1alpha1;

pub const GROUP: &str = "networking.internal.knative.dev";
