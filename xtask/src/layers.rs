//! The dependency directions of ARCHITECTURE.md, checked against `cargo metadata`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A package and what it may use of ours. Tests and benches may use anything.
const MAY_USE: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("proto", &[]),
    ("net", &[]),
    ("observe", &[]),
    ("store", &[]),
    ("hello", &[]),
    ("xtask", &[]),
    ("controller", &["api", "observe"]),
    ("xds", &["proto"]),
    ("ingress", &["api", "controller", "xds"]),
    ("serving", &["api", "controller", "net", "observe"]),
    ("autoscaler", &["api", "controller", "net", "observe", "proto"]),
    ("telemetry", &["net", "observe"]),
    ("wire", &["net"]),
    ("queue-proxy", &["net", "observe", "proto", "telemetry", "wire"]),
    ("activator", &["api", "controller", "net", "observe", "proto", "telemetry", "wire"]),
    ("control-plane", &["api", "autoscaler", "controller", "ingress", "net", "observe", "serving", "telemetry", "xds"]),
    ("apiserver", &["store"]),
    ("cluster", &["api", "controller"]),
    ("pods", &["controller"]),
];

/// Outside packages that must stay out of the small processes.
const MUST_NOT_USE: &[(&str, &[&str])] = &[
    ("queue-proxy", &["kube", "k8s-openapi", "envoy-types", "axum", "tonic"]),
    ("net", &["kube", "k8s-openapi"]),
    ("activator", &["envoy-types"]),
];

pub(crate) fn check(root: &Path) -> Result<()> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("cannot start cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let ours: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut wrong = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let uses = package["dependencies"].as_array().into_iter().flatten();
        for used in uses.filter(|d| d["kind"].is_null()).filter_map(|d| d["name"].as_str()) {
            let allowed = MAY_USE.iter().find(|(n, _)| *n == name).map(|(_, allowed)| *allowed);
            if ours.contains(&used) && allowed.is_some_and(|allowed| !allowed.contains(&used)) {
                wrong.push(format!("{name} uses {used}"));
            }
            if MUST_NOT_USE.iter().any(|(n, banned)| *n == name && banned.contains(&used)) {
                wrong.push(format!("{name} uses {used}, which it must do without"));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("dependencies against the direction (ARCHITECTURE.md):\n  {}", wrong.join("\n  "));
    }
    println!("dependency directions hold");
    Ok(())
}
