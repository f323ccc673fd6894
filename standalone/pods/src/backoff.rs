//! When a container that ended may start again: at once the first time, then after 10 s, doubling to 5 min. Ten
//! minutes of running forgive everything.

use std::time::Duration;

const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(crate) struct Backoff {
    next: Option<Duration>,
}

// === impl Backoff ===

impl Backoff {
    /// How long to wait after a run of `ran`; zero means start at once.
    pub(crate) fn after(&mut self, ran: Duration) -> Duration {
        if ran >= FORGIVEN_AFTER {
            self.next = None;
        }
        let wait = self.next.unwrap_or(Duration::ZERO);
        self.next = Some(self.next.map_or(FIRST, |last| (last * 2).min(LONGEST)));
        wait
    }
}

/// Go's notation of whole seconds: `10s`, `1m20s`, `5m0s`.
pub(crate) fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_five_minutes_and_forgives() {
        let mut backoff = Backoff::default();
        let waits: Vec<String> = (0..8).map(|_| go_duration(backoff.after(Duration::from_secs(1)))).collect();
        assert_eq!(waits, ["0s", "10s", "20s", "40s", "1m20s", "2m40s", "5m0s", "5m0s"]);
        assert_eq!(backoff.after(Duration::from_secs(600)), Duration::ZERO);
        assert_eq!(backoff.after(Duration::ZERO), FIRST);
    }
}
