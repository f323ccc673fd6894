use std::time::Duration;

use super::{Decider, Decision, Inputs, Observed, ScalingMetric};

const NOW: i64 = 1_700_000_000;

fn inputs() -> Inputs {
    Inputs {
        metric: ScalingMetric::Concurrency,
        target: 10.0,
        total: 100.0,
        burst_capacity: 100.0,
        activator_capacity: 100.0,
        panic_threshold: 2.0,
        max_scale_up_rate: 10.0,
        max_scale_down_rate: 10.0,
        stable_window: Duration::from_secs(60),
        panic_window: Duration::from_secs(6),
        scale_down_delay: Duration::ZERO,
        initial_scale: 1,
        activation_scale: 1,
        reachable: true,
    }
}

fn decide(inputs: Inputs, ready: i32, stable: f64, panic: f64) -> Decision {
    Decider::new(inputs, NOW, 0).decide(NOW, ready, Observed { stable, panic })
}

#[test]
fn zero_load_wants_zero_pods() {
    assert_eq!(decide(inputs(), 0, 0.0, 0.0), Decision { desired: 0, excess_burst: -100 });
    assert_eq!(decide(inputs(), 1, 0.0, 0.0), Decision { desired: 0, excess_burst: 0 });
}

#[test]
fn load_is_divided_by_the_target_and_rounded_up() {
    assert_eq!(decide(inputs(), 5, 51.0, 51.0).desired, 6);
    assert_eq!(decide(inputs(), 1, 0.1, 0.1).desired, 1);
}

#[test]
fn one_step_is_bounded_both_ways() {
    assert_eq!(decide(inputs(), 1, 1000.0, 1000.0).desired, 10, "at most ten times");
    assert_eq!(decide(inputs(), 100, 1.0, 1.0).desired, 10, "at least a tenth");
    let unreachable = Inputs { reachable: false, ..inputs() };
    assert_eq!(decide(unreachable, 100, 1.0, 1.0).desired, 1, "nobody asks: no lower bound");
    let slow = Inputs { max_scale_down_rate: 1.2, ..inputs() };
    assert_eq!(decide(slow, 10, 0.0, 0.0).desired, 8);
}

#[test]
fn activation_scale_applies_to_any_load_but_not_to_none() {
    let inputs = Inputs { activation_scale: 5, max_scale_up_rate: 2.0, ..inputs() };
    assert_eq!(decide(inputs.clone(), 0, 1.0, 1.0).desired, 5, "even above the rate limit");
    assert_eq!(decide(inputs.clone(), 1, 0.0, 0.0).desired, 0);
    assert_eq!(decide(Inputs { max_scale_up_rate: 10.0, ..inputs }, 1, 91.0, 1.0).desired, 10);
}

#[test]
fn panic_holds_the_maximum_for_a_stable_window() {
    let mut decider = Decider::new(inputs(), NOW, 0);
    let mut at = |second: i64, ready, stable, panic| {
        let desired = decider.decide(NOW + second, ready, Observed { stable, panic }).desired;
        (desired, decider.is_panicking())
    };
    assert_eq!(at(0, 1, 10.0, 10.0), (1, false));
    assert_eq!(at(2, 1, 15.0, 40.0), (4, true), "four times the ready pods: the short window decides");
    assert_eq!(at(4, 1, 15.0, 100.0), (10, true));
    assert_eq!(at(6, 10, 15.0, 20.0), (10, true), "never down while panicking");
    assert_eq!(at(8, 10, 120.0, 20.0), (12, true), "the stable window may still raise");
    assert_eq!(at(64, 12, 10.0, 10.0), (12, true));
    assert_eq!(at(65, 12, 50.0, 10.0), (5, false), "a whole stable window since second 4");
}

#[test]
fn panic_is_extended_while_over_the_threshold() {
    let mut decider = Decider::new(inputs(), NOW, 0);
    decider.decide(NOW, 1, Observed { stable: 0.0, panic: 30.0 });
    decider.decide(NOW + 50, 1, Observed { stable: 0.0, panic: 30.0 });
    decider.decide(NOW + 70, 3, Observed { stable: 0.0, panic: 3.0 });
    assert!(decider.is_panicking());
    decider.decide(NOW + 111, 3, Observed { stable: 0.0, panic: 3.0 });
    assert!(!decider.is_panicking());
}

#[test]
fn a_restart_keeps_the_scale_it_finds() {
    let mut decider = Decider::new(inputs(), NOW, 5);
    assert!(decider.is_panicking());
    assert_eq!(decider.decide(NOW + 2, 5, Observed { stable: 1.0, panic: 1.0 }).desired, 5);
    assert!(!Decider::new(inputs(), NOW, 1).is_panicking());
}

#[test]
fn scale_down_is_delayed_by_the_window_maximum() {
    let delayed = Inputs { scale_down_delay: Duration::from_secs(10), ..inputs() };
    let mut decider = Decider::new(delayed.clone(), NOW, 0);
    let observed = |load: f64| Observed { stable: load, panic: load };
    assert_eq!(decider.decide(NOW, 4, observed(40.0)).desired, 4);
    assert_eq!(decider.decide(NOW + 2, 4, observed(10.0)).desired, 4);
    assert_eq!(decider.decide(NOW + 8, 4, observed(10.0)).desired, 4);
    assert_eq!(decider.decide(NOW + 10, 4, observed(10.0)).desired, 1);
    decider.decide(NOW + 12, 4, observed(40.0));
    decider.update(Inputs { reachable: false, ..delayed });
    assert_eq!(decider.decide(NOW + 14, 4, observed(10.0)).desired, 1, "no delay for what nobody can reach");
}

#[test]
fn excess_burst_capacity() {
    assert_eq!(decide(inputs(), 3, 40.0, 40.5).excess_burst, 159); // 300 - 100 - 40.5
    assert_eq!(decide(Inputs { burst_capacity: 0.0, ..inputs() }, 3, 40.0, 40.0).excess_burst, 0);
    assert_eq!(decide(Inputs { burst_capacity: -1.0, ..inputs() }, 3, 40.0, 40.0).excess_burst, -1);
    assert_eq!(decide(inputs(), 0, 0.0, 0.0).excess_burst, -100);
    assert_eq!(inputs().initial_decision(), Decision { desired: -1, excess_burst: 0 });
    assert_eq!(Inputs { burst_capacity: 211.0, ..inputs() }.initial_decision().excess_burst, -111);
    assert_eq!(Inputs { burst_capacity: -1.0, ..inputs() }.initial_decision().excess_burst, -1);
}

#[test]
fn only_a_change_of_sign_of_the_excess_matters() {
    let decision = Decision { desired: 1, excess_burst: 5 };
    assert!(!decision.differs(&Decision { desired: 1, excess_burst: 0 }));
    assert!(decision.differs(&Decision { desired: 1, excess_burst: -1 }));
    assert!(decision.differs(&Decision { desired: 2, excess_burst: 5 }));
}
