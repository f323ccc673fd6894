//! Autoscaling annotations, on templates, Revisions, PodAutoscalers and Metrics.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::admission::ConfigSnapshot;
use crate::config::Autoscaler;
use crate::field_error::FieldErrors;
use crate::go::{self, Nanos};
use crate::keys::{self, autoscaling as key};

type Annotations = BTreeMap<String, String>;

const SECOND: Nanos = 1_000_000_000;
const HOUR: Nanos = 3600 * SECOND;

/// Prefixed `metadata.annotations`.
pub fn autoscaling_annotations(meta: &ObjectMeta, config: &ConfigSnapshot) -> FieldErrors {
    meta.annotations.as_ref().map_or_else(FieldErrors::none, |a| check(a, config).via("metadata"))
}

/// Prefixed `annotations`.
pub(super) fn check(annotations: &Annotations, config: &ConfigSnapshot) -> FieldErrors {
    if annotations.is_empty() {
        return FieldErrors::none();
    }
    let scaler = &config.autoscaler;
    let mut errors = class(annotations);
    errors.add(scales(annotations, scaler));
    errors.add(floats(annotations));
    errors.add(durations(annotations));
    errors.add(metric(annotations, scaler));
    errors.add(initial_scale(annotations, scaler));
    errors.via("annotations")
}

fn class(annotations: &Annotations) -> FieldErrors {
    match annotations.get(key::CLASS) {
        Some(class) if class.ends_with(".knative.dev") && class != key::KPA && class != key::HPA => {
            FieldErrors::invalid(class, key::CLASS)
        }
        _ => FieldErrors::none(),
    }
}

fn scales(annotations: &Annotations, config: &Autoscaler) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let mut read = |aliases: &[&str]| match keys::first(annotations, aliases) {
        None => 0,
        Some((key, value)) => match go::parse_i64(value) {
            Err(_) => {
                errors.add(FieldErrors::invalid(value, key));
                0
            }
            Ok(n) if !(0..=i64::from(i32::MAX)).contains(&n) => {
                errors.add(FieldErrors::out_of_range(value, 0, i32::MAX, key));
                0
            }
            Ok(n) => n,
        },
    };
    let (min, max) = (read(key::MIN_SCALE), read(key::MAX_SCALE));
    if max != 0 && max < min {
        let message = format!("max-scale={max} is less than min-scale={min}");
        errors.add(FieldErrors::new(message, &[key::MAX_SCALE[0], key::MIN_SCALE[0]]));
    }
    let limit = i64::from(config.max_scale_limit);
    if let Some((key, _)) = keys::first(annotations, key::MAX_SCALE).filter(|_| limit != 0) {
        if max > limit {
            errors.add(FieldErrors::out_of_range(max, 1, limit, key));
        }
        if max == 0 {
            errors.add(FieldErrors::new(format!("max-scale=0 (unlimited), must be less than {limit}"), &[key]));
        }
    }
    if let Some((key, value)) = keys::first(annotations, key::ACTIVATION_SCALE) {
        errors.add(match go::parse_i32(value).map(i64::from) {
            Err(_) => FieldErrors::invalid(value, key),
            Ok(a) if min > a => {
                FieldErrors::new(format!("min-scale={min} is greater than activation-scale={a}"), &[key])
            }
            Ok(a) if max != 0 && max < a => {
                FieldErrors::new(format!("max-scale={max} is less than activation-scale={a}"), &[key])
            }
            Ok(a) if a < 2 => FieldErrors::new(format!("activation-scale={a} must be greater than 1"), &[key]),
            Ok(_) => FieldErrors::none(),
        });
    }
    errors
}

fn floats(annotations: &Annotations) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for (aliases, low, high) in [
        (key::PANIC_WINDOW_PERCENTAGE, 1.0, 100.0),
        (key::PANIC_THRESHOLD_PERCENTAGE, 110.0, 1000.0),
        (key::TARGET_UTILIZATION, 1.0, 100.0),
    ] {
        let Some((key, value)) = keys::first(annotations, aliases) else { continue };
        match go::parse_f64(value) {
            Err(_) => errors.add(FieldErrors::invalid(value, key)),
            Ok(n) if n < low || n > high => errors.add(FieldErrors::out_of_range(value, low, high, key)),
            Ok(_) => {}
        }
    }
    if let Some((key, value)) = keys::first(annotations, key::TARGET) {
        match go::parse_f64(value) {
            Err(_) => errors.add(FieldErrors::invalid(value, key)),
            Ok(n) if n < Autoscaler::MIN_TARGET => {
                errors.add(FieldErrors::new(format!("target {value} should be at least 0.01"), &[key]));
            }
            Ok(_) => {}
        }
    }
    if let Some((key, value)) = keys::first(annotations, key::TARGET_BURST_CAPACITY)
        && !go::parse_f64(value).is_ok_and(|n| n >= 0.0 || n == -1.0)
    {
        errors.add(FieldErrors::invalid(value, key));
    }
    errors
}

fn durations(annotations: &Annotations) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for (aliases, low, whole) in [
        (key::WINDOW, 6 * SECOND, true),
        (key::SCALE_TO_ZERO_POD_RETENTION, 0, false),
        (key::SCALE_DOWN_DELAY, 0, true),
    ] {
        let Some((key, value)) = keys::first(annotations, aliases) else { continue };
        errors.add(match go::parse_duration(value) {
            Err(_) => FieldErrors::invalid(value, key),
            Ok(d) if d < low || d > HOUR => {
                FieldErrors::out_of_range(value, go::format_duration(low), go::format_duration(HOUR), key)
            }
            Ok(d) if whole && d % SECOND != 0 => {
                FieldErrors::new("must be specified with at most second precision", &[key])
            }
            Ok(_) => FieldErrors::none(),
        });
    }
    errors
}

fn metric(annotations: &Annotations, config: &Autoscaler) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let explicit = annotations.get(key::CLASS).map(String::as_str);
    if let Some(metric) = annotations.get(key::METRIC) {
        let valid = match explicit.unwrap_or(&config.pod_autoscaler_class) {
            key::KPA => metric == key::CONCURRENCY || metric == key::RPS,
            key::HPA => !metric.is_empty(),
            _ => true,
        };
        if !valid {
            errors.add(FieldErrors::invalid(metric, key::METRIC));
        }
    }
    if let Some((key, value)) = keys::first(annotations, key::METRIC_AGGREGATION) {
        let known = ["", "linear", "weighted-exponential", "weightedExponential"].contains(&value);
        if explicit == Some(key::KPA) && !known {
            errors.add(FieldErrors::invalid(value, key));
        }
    }
    errors
}

fn initial_scale(annotations: &Annotations, config: &Autoscaler) -> FieldErrors {
    let Some((key, value)) = keys::first(annotations, key::INITIAL_SCALE) else { return FieldErrors::none() };
    match go::parse_i32(value) {
        Err(_) => FieldErrors::invalid(value, key),
        Ok(n) if n < 0 => FieldErrors::invalid(value, &format!("{key} must be greater than 0")),
        Ok(0) if !config.allow_zero_initial_scale => {
            FieldErrors::invalid(value, &format!("{key}=0 not allowed by cluster"))
        }
        Ok(_) => FieldErrors::none(),
    }
}
