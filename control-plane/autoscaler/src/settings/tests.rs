use std::time::Duration;

use api::autoscaling::v1alpha1::PodAutoscaler;
use api::config;

use super::Settings;
use crate::decider::{Inputs, ScalingMetric};

fn autoscaler(concurrency: i64, annotations: &[(&str, &str)]) -> PodAutoscaler {
    let mut autoscaler = PodAutoscaler::default();
    autoscaler.metadata.name = Some("hello-00001".into());
    autoscaler.spec.container_concurrency = concurrency;
    let labels = [("configuration", "hello"), ("revision", "hello-00001")];
    autoscaler.metadata.labels =
        Some(labels.map(|(key, value)| (format!("serving.knative.dev/{key}"), value.to_owned())).into());
    let annotated = annotations.iter();
    autoscaler.metadata.annotations =
        Some(annotated.map(|(key, value)| (format!("autoscaling.knative.dev/{key}"), (*value).to_owned())).collect());
    autoscaler
}

fn inputs(concurrency: i64, annotations: &[(&str, &str)]) -> Inputs {
    let config = config::Autoscaler::default();
    Settings::of(&autoscaler(concurrency, annotations), &config).inputs("hello-00001").unwrap()
}

#[test]
fn defaults_come_from_the_config_map() {
    let inputs = inputs(0, &[]);
    assert_eq!(inputs.metric, ScalingMetric::Concurrency);
    assert_eq!((inputs.target, inputs.total, inputs.burst_capacity), (70.0, 100.0, 211.0));
    assert_eq!((inputs.panic_threshold, inputs.max_scale_up_rate, inputs.max_scale_down_rate), (2.0, 1000.0, 2.0));
    assert_eq!((inputs.stable_window, inputs.panic_window), (Duration::from_secs(60), Duration::from_secs(6)));
    assert_eq!((inputs.initial_scale, inputs.activation_scale, inputs.reachable), (1, 1, true));
    assert_eq!(inputs.activator_capacity, 100.0);
}

#[test]
fn targets() {
    let target = |concurrency, annotations: &[_]| {
        let inputs = inputs(concurrency, annotations);
        ((inputs.target * 1e6).round() / 1e6, inputs.total)
    };
    assert_eq!(target(10, &[]), (7.0, 10.0));
    assert_eq!(target(10, &[("target", "20")]), (7.0, 10.0), "never above the hard limit");
    assert_eq!(target(0, &[("target", "20"), ("target-utilization-percentage", "50")]), (10.0, 20.0));
    assert_eq!(target(0, &[("targetUtilizationPercentage", "90")]), (90.0, 100.0));
    assert_eq!(target(0, &[("target", "0.01"), ("target-utilization-percentage", "1")]), (0.01, 0.01));
    assert_eq!(target(10, &[("metric", "rps")]), (140.0, 200.0));
    assert_eq!(target(10, &[("metric", "rps"), ("target", "50")]), (35.0, 50.0));
}

#[test]
fn windows_and_percentages() {
    let with = |annotations: &[_]| inputs(0, annotations);
    assert_eq!(with(&[("window", "6s")]).panic_window, Duration::from_secs(1));
    assert_eq!(with(&[("window", "25s")]).panic_window, Duration::from_secs(3));
    assert_eq!(with(&[("panic-window-percentage", "50")]).panic_window, Duration::from_secs(30));
    assert_eq!(with(&[("panic-threshold-percentage", "150.5")]).panic_threshold, 1.505);
    assert_eq!(with(&[("scaleDownDelay", "1m")]).scale_down_delay, Duration::from_secs(60));
    assert_eq!(with(&[("activation-scale", "3")]).activation_scale, 3);
    assert_eq!(with(&[("target-burst-capacity", "-1")]).burst_capacity, -1.0);
}

#[test]
fn bounds() {
    let config = config::Autoscaler { min_scale: 2, max_scale: 9, ..config::Autoscaler::default() };
    let mut autoscaler = autoscaler(0, &[("min-scale", "3"), ("initial-scale", "0")]);
    let settings = Settings::of(&autoscaler, &config);
    assert_eq!((settings.min_scale(), settings.max_scale()), (3, 9));
    assert_eq!(settings.initial_scale(), 1, "zero is not allowed by default");
    autoscaler.spec.reachability = "Unreachable".into();
    let settings = Settings::of(&autoscaler, &config);
    assert_eq!(settings.min_scale(), 0);
    assert!(!settings.inputs("x").unwrap().reachable);
}

#[test]
fn figures_need_their_labels() {
    let mut autoscaler = autoscaler(0, &[]);
    autoscaler.metadata.labels = None;
    let error = Settings::of(&autoscaler, &config::Autoscaler::default()).inputs("hello-00001").unwrap_err();
    assert!(error.to_string().contains("serving.knative.dev/configuration"));
}
