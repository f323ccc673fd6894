//! How many pods a revision should have: the KPA arithmetic, as a state machine over plain numbers.
//!
//! Two windows watch one metric. The stable window decides normally; when the short panic window asks for `panic_threshold` times
//! the ready pods, the decider panics: from then on it never shrinks until a whole stable window has passed below the threshold.
//! Min and max scale and the way to zero are not decided here but where the decision is applied (`kpa::scale`).

use std::time::Duration;

use crate::window::{Seconds, SlidingMax};

/// The resolved settings of one revision; see `inputs` for where they come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    pub metric: ScalingMetric,
    /// What one pod should carry.
    pub target: f64,
    /// What one pod can carry.
    pub total: f64,
    /// Capacity to keep free for bursts; -1 keeps the activator in the path always, 0 never (when there are pods).
    pub burst_capacity: f64,
    pub activator_capacity: f64,
    pub panic_threshold: f64,
    pub max_scale_up_rate: f64,
    pub max_scale_down_rate: f64,
    pub stable_window: Duration,
    pub panic_window: Duration,
    pub scale_down_delay: Duration,
    pub initial_scale: i32,
    pub activation_scale: i32,
    /// False once no route can reach the revision: it may then go to zero at once.
    pub reachable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScalingMetric {
    #[default]
    Concurrency,
    Rps,
}

/// The two averages a decision is made from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observed {
    pub stable: f64,
    pub panic: f64,
}

/// What should be, as of the last decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// -1 until there has been a decision.
    pub desired: i32,
    /// What the ready pods could take beyond the observed load and the burst to keep free. Below zero the activator stays in the path.
    pub excess_burst: i32,
}

/// One revision's memory between decisions.
#[derive(Debug)]
pub struct Decider {
    inputs: Inputs,
    /// Since when (last time over the threshold) the decider has been panicking.
    panicking: Option<Panic>,
    delay: Option<SlidingMax>,
}

#[derive(Debug, Clone, Copy)]
struct Panic {
    since: Seconds,
    most_pods: i32,
}

// === impl Inputs ===

impl Inputs {
    /// What holds before the first decision.
    pub fn initial_decision(&self) -> Decision {
        let excess = match self.burst_capacity {
            fixed if fixed == 0.0 || fixed == -1.0 => fixed,
            burst => f64::from(self.initial_scale) * self.total - burst,
        };
        Decision { desired: -1, excess_burst: excess as i32 }
    }
}

// === impl Decision ===

impl Decision {
    /// Whether somebody has to act on `next` having replaced `self`.
    pub fn differs(&self, next: &Decision) -> bool {
        self.desired != next.desired || (self.excess_burst < 0) != (next.excess_burst < 0)
    }
}

// === impl Decider ===

impl Decider {
    /// Starts panicking if there is more than one ready pod already, so that a restart of the autoscaler keeps the scale it finds.
    pub fn new(inputs: Inputs, now: Seconds, ready: i32) -> Self {
        let panicking = (ready > 1).then_some(Panic { since: now, most_pods: ready });
        let delay = delay_window(&inputs);
        Decider { inputs, panicking, delay }
    }

    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    pub fn is_panicking(&self) -> bool {
        self.panicking.is_some()
    }

    pub fn update(&mut self, inputs: Inputs) {
        if inputs.scale_down_delay != self.inputs.scale_down_delay {
            self.delay = delay_window(&inputs);
        }
        self.inputs = inputs;
    }

    pub fn decide(&mut self, now: Seconds, ready: i32, observed: Observed) -> Decision {
        let inputs = &self.inputs;
        let pods = f64::from(ready.max(1));
        let most = (inputs.max_scale_up_rate * pods).ceil();
        let least = if inputs.reachable { (pods / inputs.max_scale_down_rate).floor() } else { 0.0 };

        let stable_pods = (observed.stable / inputs.target).ceil();
        let panic_pods = (observed.panic / inputs.target).ceil();
        let bounded = |wanted: f64| -> i32 {
            let bounded = wanted.max(least).min(most) as i32;
            if wanted > 0.0 && inputs.activation_scale > 1 { bounded.max(inputs.activation_scale) } else { bounded }
        };
        let mut desired = bounded(stable_pods);

        if panic_pods / pods >= inputs.panic_threshold {
            self.panicking = Some(Panic { since: now, most_pods: self.panicking.map_or(0, |panic| panic.most_pods) });
        } else if self.panicking.is_some_and(|panic| now > panic.since + inputs.stable_window.as_secs() as Seconds) {
            self.panicking = None;
        }
        if let Some(panic) = &mut self.panicking {
            panic.most_pods = panic.most_pods.max(desired).max(bounded(panic_pods));
            desired = panic.most_pods;
        }
        if let Some(delay) = self.delay.as_mut().filter(|_| inputs.reachable) {
            desired = delay.record(now, desired);
        }

        let excess_burst = match inputs.burst_capacity {
            0.0 => 0.0,
            burst if burst > 0.0 => (f64::from(ready) * inputs.total - burst - observed.panic).floor(),
            _ => -1.0,
        };
        Decision { desired, excess_burst: excess_burst as i32 }
    }
}

fn delay_window(inputs: &Inputs) -> Option<SlidingMax> {
    let seconds = inputs.scale_down_delay.as_secs() as u32;
    (seconds > 0).then(|| SlidingMax::new(seconds))
}

#[cfg(test)]
mod tests;
