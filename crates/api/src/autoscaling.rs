//! Group `autoscaling.internal.knative.dev`.

pub mod v1alpha1;

pub const GROUP: &str = "autoscaling.internal.knative.dev";
