//! Which scale to apply: bounds, the initial scale, and the careful way to zero.
//!
//! The last pod goes only after (1) a stable window without traffic, which makes the PodAutoscaler inactive and puts the activator
//! in the path, (2) the activator answering for the revision's Service, (3) the grace period and the pod retention.

use std::time::Duration;

/// How much longer than a Deployment's progress deadline an activation may take.
pub(super) const ACTIVATION_BUFFER: Duration = Duration::from_secs(30);
/// When to look again whether the activator is in the path already.
const PROXY_CHECK: Duration = Duration::from_secs(3);

/// How long the PodAutoscaler has been in this state.
#[derive(Debug, Clone, Copy)]
pub(super) enum Active {
    Unknown(Duration),
    True(Duration),
    False(Duration),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Situation {
    pub(super) desired: i32,
    pub(super) min: i32,
    /// 0: no limit.
    pub(super) max: i32,
    pub(super) initial: i32,
    pub(super) initialized: bool,
    pub(super) unreachable: bool,
    pub(super) to_zero_enabled: bool,
    pub(super) active: Active,
    pub(super) activation_timeout: Duration,
    pub(super) stable_window: Duration,
    pub(super) grace: Duration,
    pub(super) retention: Duration,
    pub(super) proxy_mode: bool,
    pub(super) proxied_for: Duration,
    /// The activator never leaves the path, so that nobody has to be asked.
    pub(super) always_proxied: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    /// -1: not known yet.
    pub(super) want: i32,
    pub(super) apply: bool,
    /// When time alone will change the outcome.
    pub(super) again: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Done(Outcome),
    /// Ask whether the activator is in the path; if so the outcome is [`Situation::confirmed`].
    ConfirmActivator,
}

// === impl Situation ===

impl Situation {
    pub(super) fn step(&self) -> Step {
        if self.desired < 0 && !matches!(self.active, Active::Unknown(_)) {
            return leave(self.desired);
        }
        let scale = self.bounded();
        if scale > 0 {
            return apply(scale);
        }
        if !self.to_zero_enabled {
            return apply(1);
        }
        match self.active {
            Active::Unknown(lasted) if lasted > self.activation_timeout => apply(0),
            Active::Unknown(_) => Step::Done(Outcome { want: -1, apply: false, again: Some(self.activation_timeout) }),
            Active::True(lasted) if lasted >= self.stable_window => {
                let again = self.proxy_mode.then_some(PROXY_CHECK);
                Step::Done(Outcome { want: 0, apply: false, again })
            }
            Active::True(lasted) => {
                Step::Done(Outcome { want: 1, apply: true, again: Some(self.stable_window - lasted) })
            }
            Active::False(_) if self.always_proxied => Step::Done(self.confirmed()),
            Active::False(_) => Step::ConfirmActivator,
        }
    }

    /// What holds once requests are known to reach the activator.
    pub(super) fn confirmed(&self) -> Outcome {
        let Active::False(inactive) = self.active else { return Outcome { want: 0, apply: false, again: None } };
        let wait = |again| Outcome { want: 0, apply: false, again: Some(again) };
        let go = Outcome { want: 0, apply: true, again: None };
        if inactive >= self.grace.max(self.retention) {
            go
        } else if inactive < self.retention {
            wait(self.retention - inactive)
        } else if self.proxied_for >= self.grace {
            go
        } else {
            wait(self.grace - self.proxied_for)
        }
    }

    fn bounded(&self) -> i32 {
        let starting = self.initial > 1 && !self.initialized && !self.unreachable;
        let min = if starting { self.min.max(self.initial) } else { self.min };
        match self.desired {
            few if few < min => min,
            many if self.max != 0 && many > self.max => self.max,
            desired => desired.max(0),
        }
    }
}

fn apply(want: i32) -> Step {
    Step::Done(Outcome { want, apply: true, again: None })
}

fn leave(want: i32) -> Step {
    Step::Done(Outcome { want, apply: false, again: None })
}

#[cfg(test)]
mod tests {
    use super::{Active, Duration, Outcome, Situation, Step};

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn at_zero(active: Active) -> Situation {
        Situation {
            desired: 0,
            min: 0,
            max: 0,
            initial: 1,
            initialized: true,
            unreachable: false,
            to_zero_enabled: true,
            active,
            activation_timeout: secs(630),
            stable_window: secs(60),
            grace: secs(30),
            retention: Duration::ZERO,
            proxy_mode: true,
            proxied_for: Duration::ZERO,
            always_proxied: false,
        }
    }

    fn done(want: i32, apply: bool, again: Option<u64>) -> Step {
        Step::Done(Outcome { want, apply, again: again.map(secs) })
    }

    #[test]
    fn bounds_and_initial_scale() {
        let base = Situation { desired: 5, ..at_zero(Active::True(secs(1))) };
        assert_eq!(base.step(), done(5, true, None));
        assert_eq!(Situation { min: 7, ..base }.step(), done(7, true, None));
        assert_eq!(Situation { max: 3, ..base }.step(), done(3, true, None));
        let starting = Situation { desired: -1, initial: 4, initialized: false, ..at_zero(Active::Unknown(secs(1))) };
        assert_eq!(starting.step(), done(4, true, None));
        assert_eq!(Situation { unreachable: true, ..starting }.step(), done(-1, false, Some(630)));
        assert_eq!(Situation { desired: -1, min: 2, ..base }.step(), done(-1, false, None), "nothing known yet");
    }

    #[test]
    fn no_way_to_zero_if_disabled() {
        let situation = Situation { to_zero_enabled: false, ..at_zero(Active::False(secs(999))) };
        assert_eq!(situation.step(), done(1, true, None));
    }

    #[test]
    fn an_activation_gets_its_time() {
        assert_eq!(at_zero(Active::Unknown(secs(630))).step(), done(-1, false, Some(630)));
        assert_eq!(at_zero(Active::Unknown(secs(631))).step(), done(0, true, None));
    }

    #[test]
    fn an_active_revision_first_becomes_inactive() {
        assert_eq!(at_zero(Active::True(secs(20))).step(), done(1, true, Some(40)));
        assert_eq!(at_zero(Active::True(secs(60))).step(), done(0, false, Some(3)));
        let serving = Situation { proxy_mode: false, ..at_zero(Active::True(secs(60))) };
        assert_eq!(serving.step(), done(0, false, None));
    }

    #[test]
    fn the_last_pod_goes_after_grace_and_retention() {
        let outcome = |want, apply, again: Option<u64>| Outcome { want, apply, again: again.map(secs) };
        let inactive = |seconds| at_zero(Active::False(secs(seconds)));
        assert_eq!(inactive(100).step(), Step::ConfirmActivator);
        assert_eq!(Situation { always_proxied: true, ..inactive(30) }.step(), done(0, true, None));
        assert_eq!(inactive(30).confirmed(), outcome(0, true, None));
        assert_eq!(inactive(10).confirmed(), outcome(0, false, Some(30)));
        assert_eq!(Situation { proxied_for: secs(25), ..inactive(10) }.confirmed(), outcome(0, false, Some(5)));
        assert_eq!(Situation { proxied_for: secs(30), ..inactive(10) }.confirmed(), outcome(0, true, None));
        let retained = |seconds| Situation { retention: secs(90), ..inactive(seconds) };
        assert_eq!(Situation { proxied_for: secs(99), ..retained(50) }.confirmed(), outcome(0, false, Some(40)));
        assert_eq!(retained(90).confirmed(), outcome(0, true, None));
    }
}
