//! Probes of serving containers and sidecars.

use serde_json::Value;

use super::fields::present;
use crate::config::Features;
use crate::field_error::FieldErrors;

const PROBES: &[&str] = &["livenessProbe", "readinessProbe", "startupProbe"];
const MAX: i64 = i32::MAX as i64;

/// Field and the name it has in "got both".
const HANDLERS: &[(&str, &str)] =
    &[("httpGet", "httpGet"), ("tcpSocket", "tcpSocket"), ("exec", "exec"), ("grpc", "gRPC")];

const NUMBERS: &[&str] =
    &["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"];

/// `port` is the name of the container's port.
pub(super) fn serving(container: &Value, port: &str) -> FieldErrors {
    let port = if port.is_empty() { "http" } else { port };
    let mut errors = FieldErrors::none();
    for kind in PROBES {
        let probe = &container[*kind];
        if probe.is_null() {
            continue;
        }
        let mut own = handlers(probe);
        for handler in ["httpGet", "tcpSocket"] {
            if let Some(name) = probe[handler]["port"].as_str().filter(|name| *name != port) {
                own.add(
                    FieldErrors::invalid(name, &format!("{handler}.port"))
                        .with_details("Probe port must match container port"),
                );
            }
        }
        if *kind == "readinessProbe" {
            own.add(readiness(probe));
        }
        errors.add(own.via(kind));
    }
    errors
}

pub(super) fn sidecar(container: &Value, features: &Features) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for kind in PROBES {
        let probe = &container[*kind];
        if probe.is_null() {
            continue;
        }
        let own = if features.multi_container_probing.is_enabled() {
            let mut own = handlers(probe);
            for handler in ["httpGet", "tcpSocket"].into_iter().filter(|h| present(probe, h)) {
                let port = &probe[handler]["port"];
                if port.is_null() || port == 0 || port == "" {
                    own.add(
                        FieldErrors::invalid(0, &format!("{handler}.port"))
                            .with_details("Probe port must be specified"),
                    );
                }
            }
            if *kind == "readinessProbe" {
                own.add(readiness(probe));
            }
            own
        } else {
            let mut paths: Vec<&str> = NUMBERS.iter().copied().filter(|n| number(probe, n) != 0).collect();
            if HANDLERS.iter().any(|(field, _)| present(probe, field)) {
                paths.push("");
            }
            FieldErrors::disallowed(&paths)
        };
        errors.add(own.via(kind));
    }
    errors
}

fn handlers(probe: &Value) -> FieldErrors {
    let given: Vec<&str> =
        HANDLERS.iter().filter(|(field, _)| present(probe, field)).map(|(_, shown)| *shown).collect();
    match given.as_slice() {
        [] => FieldErrors::neither(&["httpGet", "tcpSocket", "exec", "grpc"]),
        [_] => FieldErrors::none(),
        many => FieldErrors::both(many),
    }
}

fn readiness(probe: &Value) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let mut least = |key: &str, low: i64| {
        let value = number(probe, key);
        if value < low {
            errors.add(FieldErrors::out_of_range(value, low, MAX, key));
        }
    };
    least("periodSeconds", 0);
    least("initialDelaySeconds", 0);
    least("successThreshold", 1);
    if number(probe, "periodSeconds") != 0 {
        least("timeoutSeconds", 1);
        least("failureThreshold", 1);
        return errors;
    }
    for key in ["failureThreshold", "timeoutSeconds"] {
        if number(probe, key) != 0 {
            errors.add(FieldErrors::new(format!("{key} is disallowed when periodSeconds is zero"), &[key]));
        }
    }
    errors
}

fn number(probe: &Value, key: &str) -> i64 {
    probe[key].as_i64().unwrap_or(0)
}
