//! One revision's autoscaling settings: annotations of its PodAutoscaler over ConfigMap `config-autoscaler`.
//!
//! Annotations were validated at admission; a value that does not parse all the same counts as absent, as upstream.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use api::autoscaling::v1alpha1::PodAutoscaler;
use api::config;
use api::keys::{autoscaling as keys, first, serving};
use kube::ResourceExt;

use crate::decider::{Inputs, ScalingMetric};

/// Targets below this make no sense and would divide by zero.
const LEAST_TARGET: f64 = config::Autoscaler::MIN_TARGET;
/// Utilisation for requests per second: not configurable but by annotation.
const RPS_UTILISATION: f64 = config::Autoscaler::TARGET_UTILIZATION;
const UNREACHABLE: &str = "Unreachable";

pub struct Settings<'a> {
    annotations: &'a BTreeMap<String, String>,
    labels: &'a BTreeMap<String, String>,
    container_concurrency: f64,
    pub reachability: &'a str,
    config: &'a config::Autoscaler,
}

#[derive(Debug, thiserror::Error)]
#[error("label {0:?} not found or empty in Decider {1}; the revision's labels lead its figures")]
pub struct MissingLabel(&'static str, String);

// === impl Settings ===

impl<'a> Settings<'a> {
    pub fn of(autoscaler: &'a PodAutoscaler, config: &'a config::Autoscaler) -> Self {
        Settings {
            annotations: autoscaler.annotations(),
            labels: autoscaler.labels(),
            container_concurrency: autoscaler.spec.container_concurrency as f64,
            reachability: &autoscaler.spec.reachability,
            config,
        }
    }

    fn text(&self, aliases: &[&str]) -> Option<&'a str> {
        first(self.annotations, aliases).map(|(_, value)| value)
    }

    fn number<T: FromStr>(&self, aliases: &[&str]) -> Option<T> {
        self.text(aliases)?.parse().ok()
    }

    fn duration(&self, aliases: &[&str]) -> Option<Duration> {
        let nanos = api::go::parse_duration(self.text(aliases)?).ok()?;
        u64::try_from(nanos).ok().map(Duration::from_nanos)
    }

    pub fn unreachable(&self) -> bool {
        self.reachability == UNREACHABLE
    }

    /// Zero for a revision no route reaches.
    pub fn min_scale(&self) -> i32 {
        if self.unreachable() { 0 } else { self.number(keys::MIN_SCALE).unwrap_or(self.config.min_scale) }
    }

    /// Zero means no limit.
    pub fn max_scale(&self) -> i32 {
        self.number(keys::MAX_SCALE).unwrap_or(self.config.max_scale)
    }

    pub fn initial_scale(&self) -> i32 {
        let allowed = |scale: &i32| *scale != 0 || self.config.allow_zero_initial_scale;
        self.number(keys::INITIAL_SCALE).filter(allowed).unwrap_or(self.config.initial_scale)
    }

    pub fn stable_window(&self) -> Duration {
        self.duration(keys::WINDOW).unwrap_or(self.config.stable_window)
    }

    pub fn panic_window(&self) -> Duration {
        let percentage = self.number(keys::PANIC_WINDOW_PERCENTAGE).unwrap_or(self.config.panic_window_percentage);
        let seconds = (self.stable_window().as_secs_f64() * percentage / 100.0).round();
        Duration::from_secs((seconds as u64).max(1))
    }

    pub fn burst_capacity(&self) -> f64 {
        self.number(keys::TARGET_BURST_CAPACITY).unwrap_or(self.config.target_burst_capacity)
    }

    /// Zero for a revision no route reaches: nobody would notice.
    pub fn pod_retention(&self) -> Duration {
        if self.unreachable() {
            return Duration::ZERO;
        }
        self.duration(keys::SCALE_TO_ZERO_POD_RETENTION).unwrap_or(self.config.scale_to_zero_pod_retention_period)
    }

    pub fn progress_deadline(&self, config: &config::Deployment) -> Duration {
        self.duration(&[serving::PROGRESS_DEADLINE]).unwrap_or(config.progress_deadline)
    }

    fn metric(&self) -> ScalingMetric {
        match self.annotations.get(keys::METRIC).map(String::as_str) {
            Some(keys::RPS) => ScalingMetric::Rps,
            _ => ScalingMetric::Concurrency,
        }
    }

    /// (target, total): what a pod should carry, and what it can.
    fn target(&self) -> (f64, f64) {
        let config = self.config;
        let limit = self.container_concurrency;
        let (mut total, mut utilisation) = match self.metric() {
            ScalingMetric::Concurrency => {
                let total = if limit == 0.0 { config.container_concurrency_target_default } else { limit };
                (total, config.container_concurrency_target_fraction)
            }
            ScalingMetric::Rps => (config.rps_target_default, RPS_UTILISATION),
        };
        if let Some(wanted) = self.number::<f64>(keys::TARGET) {
            let limited = self.metric() == ScalingMetric::Concurrency && limit != 0.0;
            total = if limited { wanted.min(limit) } else { wanted };
        }
        if let Some(percentage) = self.number::<f64>(keys::TARGET_UTILIZATION) {
            utilisation = percentage / 100.0;
        }
        ((total * utilisation).max(LEAST_TARGET), total)
    }

    /// Everything the decider works with.
    pub fn inputs(&self, name: &str) -> Result<Inputs, MissingLabel> {
        for label in [serving::CONFIGURATION, serving::REVISION] {
            if self.labels.get(label).is_none_or(String::is_empty) {
                return Err(MissingLabel(label, name.to_owned()));
            }
        }
        let config = self.config;
        let (target, total) = self.target();
        let panic_threshold =
            self.number(keys::PANIC_THRESHOLD_PERCENTAGE).unwrap_or(config.panic_threshold_percentage) / 100.0;
        Ok(Inputs {
            metric: self.metric(),
            target,
            total,
            burst_capacity: self.burst_capacity(),
            activator_capacity: config.activator_capacity,
            panic_threshold,
            max_scale_up_rate: config.max_scale_up_rate,
            max_scale_down_rate: config.max_scale_down_rate,
            stable_window: self.stable_window(),
            panic_window: self.panic_window(),
            scale_down_delay: self.duration(keys::SCALE_DOWN_DELAY).unwrap_or(config.scale_down_delay),
            initial_scale: self.initial_scale(),
            activation_scale: self.number(keys::ACTIVATION_SCALE).unwrap_or(1),
            reachable: !self.unreachable(),
        })
    }
}

#[cfg(test)]
mod tests;
