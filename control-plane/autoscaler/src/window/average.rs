//! The two ways to average a window: every second alike, or recent seconds first.

use super::{Seconds, Window};

/// The least weight a report of the current second gets in a weighted average.
const MIN_DECAY: f64 = 0.2;
/// How much of the total weight the slots of a window must carry.
const WEIGHT_PRECISION: f64 = 0.9999;
/// Linear averages are rounded to this many decimals, to get rid of what subtraction left in the total.
const DECIMALS: f64 = 1e6;

/// How a revision's reports are averaged (annotation `metric-aggregation-algorithm`), fixed when its collection starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Average {
    #[default]
    Linear,
    WeightedExponential,
}

// === impl Average ===

impl Average {
    /// The annotation's value; anything unknown means linear, as upstream.
    pub fn parse(value: Option<&str>) -> Self {
        match value {
            Some("weighted-exponential" | "weightedExponential") => Average::WeightedExponential,
            _ => Average::Linear,
        }
    }

    pub fn of(self, window: &Window, now: Seconds) -> f64 {
        match self {
            Average::Linear => window.linear(now),
            Average::WeightedExponential => window.weighted(now),
        }
    }
}

/// The weight of the newest slot of a window with `slots` slots.
fn decay(slots: u32) -> f64 {
    (1.0 - (1.0 - WEIGHT_PRECISION).powf(1.0 / f64::from(slots))).max(MIN_DECAY)
}

// === impl Window ===

impl Window {
    fn linear(&self, now: Seconds) -> f64 {
        let Some(span) = self.span else { return 0.0 };
        let age = now - span.last;
        let reported = span.last - span.first + 1;
        let average = if age <= 0 {
            self.total / reported.min(self.len()) as f64
        } else if age < self.len() {
            let expired: f64 = (span.last + 1..=now).map(|second| self.slot(second)).sum();
            (self.total - expired) / reported.min(self.len() - age) as f64
        } else {
            0.0
        };
        (average * DECIMALS).round() / DECIMALS
    }

    fn weighted(&self, now: Seconds) -> f64 {
        let Some(span) = self.span.filter(|_| !self.is_empty(now)) else { return 0.0 };
        let alpha = decay(self.seconds);
        let age = (now - span.last).max(0);
        let mut weight = alpha * (1.0 - alpha).powi(age as i32);
        let mut average = 0.0;
        for back in 0..self.len() - age {
            average += self.slot(span.last - back) * weight;
            weight *= 1.0 - alpha;
        }
        average
    }
}

#[cfg(test)]
mod tests {
    use super::decay;

    #[test]
    fn weights_follow_the_number_of_slots() {
        assert_eq!(decay(60), 0.2);
        assert!((decay(40) - 0.20567).abs() < 1e-5);
        assert!((decay(6) - 0.78456).abs() < 1e-5);
    }
}
