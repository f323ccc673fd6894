//! `config-autoscaler`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::data::{Data, SECOND, duration, whole_seconds};
use crate::go::{format_duration, format_f64};
use crate::keys;

#[derive(Clone, Debug, PartialEq)]
pub struct Autoscaler {
    /// In (0, 1].
    pub container_concurrency_target_fraction: f64,
    pub container_concurrency_target_default: f64,
    pub rps_target_default: f64,
    pub target_burst_capacity: f64,
    pub stable_window: Duration,
    pub panic_window_percentage: f64,
    pub panic_threshold_percentage: f64,
    pub max_scale_up_rate: f64,
    pub max_scale_down_rate: f64,
    pub enable_scale_to_zero: bool,
    pub scale_to_zero_grace_period: Duration,
    pub scale_to_zero_pod_retention_period: Duration,
    pub scale_down_delay: Duration,
    pub pod_autoscaler_class: String,
    pub activator_capacity: f64,
    pub initial_scale: i32,
    pub allow_zero_initial_scale: bool,
    pub min_scale: i32,
    /// 0 means unlimited.
    pub max_scale: i32,
    /// 0 means none.
    pub max_scale_limit: i32,
}

// === impl Autoscaler ===

impl Default for Autoscaler {
    fn default() -> Self {
        Self {
            container_concurrency_target_fraction: 0.7,
            container_concurrency_target_default: 100.0,
            rps_target_default: 200.0,
            target_burst_capacity: 211.0,
            stable_window: Duration::from_secs(60),
            panic_window_percentage: 10.0,
            panic_threshold_percentage: 200.0,
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            enable_scale_to_zero: true,
            scale_to_zero_grace_period: Duration::from_secs(30),
            scale_to_zero_pod_retention_period: Duration::ZERO,
            scale_down_delay: Duration::ZERO,
            pod_autoscaler_class: keys::autoscaling::KPA.to_owned(),
            activator_capacity: 100.0,
            initial_scale: 1,
            allow_zero_initial_scale: false,
            min_scale: 0,
            max_scale: 0,
            max_scale_limit: 0,
        }
    }
}

impl Autoscaler {
    /// The share of a target that is planned for, where the metric is not concurrency.
    pub const TARGET_UTILIZATION: f64 = 0.7;
    pub const MIN_TARGET: f64 = 0.01;
    pub const WINDOW_MIN: Duration = Duration::from_secs(6);
    pub const WINDOW_MAX: Duration = Duration::from_secs(3600);

    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut config = Self::default();
        let mut stable_window = 60 * SECOND;
        let mut grace = 30 * SECOND;
        let mut retention = 0;
        let mut delay = 0;
        let mut percentage = 70.0;
        config
            .read(Data(data), &mut percentage, &mut stable_window, &mut grace, &mut retention, &mut delay)
            .map_err(|error| format!("failed to parse data: {error}"))?;

        config.container_concurrency_target_fraction = if percentage > 1.0 { percentage / 100.0 } else { percentage };
        if grace <= 0 {
            return Err(format!("scale-to-zero-grace-period must be positive, was: {}", format_duration(grace)));
        }
        if delay < 0 {
            return Err(format!("scale-down-delay cannot be negative, was: {}", format_duration(delay)));
        }
        if !whole_seconds(delay) {
            return Err(format!(
                "scale-down-delay = {}, must be specified with at most second precision",
                format_duration(delay)
            ));
        }
        if retention < 0 {
            return Err(format!(
                "scale-to-zero-pod-retention-period cannot be negative, was: {}",
                format_duration(retention)
            ));
        }
        config.check_targets()?;
        if !(6 * SECOND..=3600 * SECOND).contains(&stable_window) {
            return Err(format!("stable-window = {}, must be in [6s; 1h0m0s] range", format_duration(stable_window)));
        }
        if !whole_seconds(stable_window) {
            return Err(format!(
                "stable-window = {}, must be specified with at most second precision",
                format_duration(stable_window)
            ));
        }
        config.check_scales()?;
        config.stable_window = duration(stable_window);
        config.scale_to_zero_grace_period = duration(grace);
        config.scale_to_zero_pod_retention_period = duration(retention);
        config.scale_down_delay = duration(delay);
        Ok(config)
    }

    fn read(
        &mut self,
        data: Data<'_>,
        percentage: &mut f64,
        stable_window: &mut i64,
        grace: &mut i64,
        retention: &mut i64,
        delay: &mut i64,
    ) -> Result<(), String> {
        data.string(&["pod-autoscaler-class"], &mut self.pod_autoscaler_class);
        data.bool(&["enable-scale-to-zero"], &mut self.enable_scale_to_zero)?;
        data.bool(&["allow-zero-initial-scale"], &mut self.allow_zero_initial_scale)?;
        data.f64(&["max-scale-up-rate"], &mut self.max_scale_up_rate)?;
        data.f64(&["max-scale-down-rate"], &mut self.max_scale_down_rate)?;
        data.f64(&["container-concurrency-target-percentage"], percentage)?;
        data.f64(&["container-concurrency-target-default"], &mut self.container_concurrency_target_default)?;
        data.f64(&["requests-per-second-target-default"], &mut self.rps_target_default)?;
        data.f64(&["target-burst-capacity"], &mut self.target_burst_capacity)?;
        data.f64(&["panic-window-percentage"], &mut self.panic_window_percentage)?;
        data.f64(&["activator-capacity"], &mut self.activator_capacity)?;
        data.f64(&["panic-threshold-percentage"], &mut self.panic_threshold_percentage)?;
        data.i32(&["initial-scale"], &mut self.initial_scale)?;
        data.i32(&["min-scale"], &mut self.min_scale)?;
        data.i32(&["max-scale"], &mut self.max_scale)?;
        data.i32(&["max-scale-limit"], &mut self.max_scale_limit)?;
        data.nanos(&["stable-window"], stable_window)?;
        data.nanos(&["scale-down-delay"], delay)?;
        data.nanos(&["scale-to-zero-grace-period"], grace)?;
        data.nanos(&["scale-to-zero-pod-retention-period"], retention)
    }

    fn check_targets(&self) -> Result<(), String> {
        if self.target_burst_capacity < 0.0 && self.target_burst_capacity != -1.0 {
            return Err(format!(
                "target-burst-capacity must be either non-negative or -1 (for unlimited), was: {:.6}",
                self.target_burst_capacity
            ));
        }
        let fraction = self.container_concurrency_target_fraction;
        if fraction <= 0.0 || fraction > 1.0 {
            return Err(format!(
                "container-concurrency-target-percentage = {fraction:.6} is outside of valid range of (0, 100]"
            ));
        }
        let target = fraction * self.container_concurrency_target_default;
        if target < Self::MIN_TARGET {
            return Err(format!(
                "container-concurrency-target-percentage and container-concurrency-target-default yield target concurrency of {}, can't be less than 0.01",
                format_f64(target)
            ));
        }
        if self.rps_target_default < Self::MIN_TARGET {
            return Err(format!(
                "requests-per-second-target-default must be at least 0.01, was: {}",
                format_f64(self.rps_target_default)
            ));
        }
        if self.activator_capacity < 1.0 {
            return Err(format!("activator-capacity = {}, must be at least 1", format_f64(self.activator_capacity)));
        }
        for (key, rate) in
            [("max-scale-up-rate", self.max_scale_up_rate), ("max-scale-down-rate", self.max_scale_down_rate)]
        {
            if rate <= 1.0 {
                return Err(format!("{key} = {}, must be greater than 1.0", format_f64(rate)));
            }
        }
        Ok(())
    }

    fn check_scales(&self) -> Result<(), String> {
        let panic = self.panic_window_percentage;
        if !(1.0..=100.0).contains(&panic) {
            return Err(format!("panic-window-percentage = {}, must be in [1, 100] interval", format_f64(panic)));
        }
        if self.initial_scale < 0 || (self.initial_scale == 0 && !self.allow_zero_initial_scale) {
            return Err(format!(
                "initial-scale = {}, must be at least 0 (or at least 1 when allow-zero-initial-scale is false)",
                self.initial_scale
            ));
        }
        if self.min_scale < 0 {
            return Err(format!("min-scale = {}, must be at least 0", self.min_scale));
        }
        let limit = self.max_scale_limit;
        let lowest = i32::from(limit > 0);
        if self.max_scale < lowest || (limit > 0 && self.max_scale > limit) {
            return Err(format!(
                "max-scale = {}, must be in [{lowest}, max-scale-limit({limit})] range",
                self.max_scale
            ));
        }
        if limit < 0 {
            return Err(format!("max-scale-limit = {limit}, must be at least 0"));
        }
        if self.max_scale > 0 && self.min_scale > self.max_scale {
            return Err(format!("min-scale ({}) must be less than max-scale ({})", self.min_scale, self.max_scale));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Autoscaler, String> {
        Autoscaler::parse(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn empty_is_the_default_and_percentages_become_fractions() {
        assert_eq!(parse(&[("_example", "x")]), Ok(Autoscaler::default()));
        let config = parse(&[("container-concurrency-target-percentage", "0.5"), ("stable-window", "6s")]).unwrap();
        assert_eq!(config.container_concurrency_target_fraction, 0.5);
        assert_eq!(config.stable_window, Duration::from_secs(6));
    }

    #[test]
    fn bad_values_say_what_is_allowed() {
        for (key, value, text) in [
            ("stable-window", "5s", "stable-window = 5s, must be in [6s; 1h0m0s] range"),
            (
                "max-scale",
                "x",
                "failed to parse data: failed to parse \"max-scale\": strconv.ParseInt: parsing \"x\": invalid syntax",
            ),
            ("max-scale-up-rate", "1", "max-scale-up-rate = 1, must be greater than 1.0"),
            (
                "target-burst-capacity",
                "-2",
                "target-burst-capacity must be either non-negative or -1 (for unlimited), was: -2.000000",
            ),
            ("max-scale-limit", "5", "max-scale = 0, must be in [1, max-scale-limit(5)] range"),
            ("scale-to-zero-grace-period", "0s", "scale-to-zero-grace-period must be positive, was: 0s"),
        ] {
            assert_eq!(parse(&[(key, value)]), Err(text.to_owned()));
        }
    }
}
