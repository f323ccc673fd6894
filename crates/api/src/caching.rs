//! Group `caching.internal.knative.dev`.

pub mod v1alpha1;

pub const GROUP: &str = "caching.internal.knative.dev";
