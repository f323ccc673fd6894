//! How long a watch that failed waits before it starts again.

use std::time::Duration;

use kube::runtime::utils::{Backoff, ResetTimerBackoff};

const FIRST: Duration = Duration::from_millis(200);
/// A watch may need two tries after the API comes back, one to hear that what it knew is too old. Upstream's wait up
/// to 30 s for each, in which nothing that users change takes effect.
const LONGEST: Duration = Duration::from_secs(3);
/// Lists that succeed between watches that fail do not make the pauses short.
const FORGIVEN: Duration = Duration::from_secs(30);

/// Doubles from [`FIRST`] to [`LONGEST`], each spread over its second half, so that watches do not come all at once.
pub struct Pauses(Duration);

/// Of one watch.
pub fn pauses() -> ResetTimerBackoff<Pauses> {
    ResetTimerBackoff::new(Pauses(FIRST), FORGIVEN)
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST);
        Some(pause.mul_f64(fastrand::f64().mul_add(0.5, 0.5)))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0 = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_grow_to_their_limit_and_start_again() {
        let mut pauses = Pauses(FIRST);
        let mut most = FIRST;
        for _ in 0..8 {
            let pause = pauses.next().unwrap();
            assert!(pause >= most / 2 && pause <= most, "{pause:?} of {most:?}");
            most = (most * 2).min(LONGEST);
        }
        assert_eq!(most, LONGEST);
        pauses.reset();
        assert!(pauses.next().unwrap() <= FIRST);
    }
}
