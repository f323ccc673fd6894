//! Which traces are recorded.

use crate::otlp::Otel;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sampler {
    /// Of traces that begin here.
    rate: f64,
    /// A trace that began elsewhere keeps what was decided there.
    parents: bool,
}

// === impl Sampler ===

impl Sampler {
    pub(super) const ALWAYS: Self = Self { rate: 1.0, parents: false };

    /// The installation's setting: 1 and more is always, 0 and less never, whatever a parent says.
    pub(super) fn of_rate(rate: f64) -> Self {
        Self { rate, parents: rate > 0.0 && rate < 1.0 }
    }

    /// OpenTelemetry's variables, if they name a sampler.
    pub(super) fn of_variables(otel: &Otel) -> Option<Self> {
        let argument = || otel.get("OTEL_TRACES_SAMPLER_ARG").and_then(|text| text.parse().ok()).unwrap_or(1.0);
        let name = otel.get("OTEL_TRACES_SAMPLER")?;
        let (kind, parents) = name.strip_prefix("parentbased_").map_or((name, false), |kind| (kind, true));
        let rate = match kind {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => argument(),
            _ => {
                tracing::error!(sampler = name, "OTEL_TRACES_SAMPLER names no known sampler and has no effect");
                return None;
            }
        };
        Some(Self { rate, parents })
    }

    pub(super) fn samples(&self, trace: u128, parent: Option<bool>) -> bool {
        if let Some(decided) = parent
            && self.parents
        {
            return decided;
        }
        // As OpenTelemetry decides it: by the lower half of the trace's number, less its top bit.
        self.rate >= 1.0 || ((trace as u64 >> 1) as f64) < self.rate * (1_u64 << 63) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_the_rate_are_absolute_and_the_rest_follows_parents() {
        assert!(Sampler::of_rate(1.0).samples(u128::MAX, Some(false)));
        assert!(!Sampler::of_rate(0.0).samples(0, Some(true)));
        let half = Sampler::of_rate(0.5);
        assert!(half.samples(u128::MAX, Some(true)) && !half.samples(0, Some(false)));
        assert!(half.samples(0, None) && !half.samples(u128::from(u64::MAX), None));
    }

    #[test]
    fn variables_name_a_sampler() {
        let of = |pairs: &[(&str, &str)]| {
            let all = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Sampler::of_variables(&Otel(all))
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("OTEL_TRACES_SAMPLER", "always_off")]), Some(Sampler { rate: 0.0, parents: false }));
        let ratio = [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.25")];
        assert_eq!(of(&ratio), Some(Sampler { rate: 0.25, parents: true }));
        assert_eq!(of(&[("OTEL_TRACES_SAMPLER", "mine")]), None);
    }
}
