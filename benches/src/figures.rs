//! Order statistics of small samples.

use std::time::Duration;

/// The value below which `share` of the sample lies (nearest rank).
pub(crate) fn quantile(sample: &[Duration], share: f64) -> Duration {
    let mut sorted = sample.to_vec();
    sorted.sort_unstable();
    if sorted.is_empty() {
        return Duration::ZERO;
    }
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Milliseconds with one decimal.
pub(crate) fn ms(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1000.0)
}
