//! Behaviour across crates with real Envoy, kubectl and processes: see `machine/main.rs`.
