use super::{Average, Window};

const T0: i64 = 1_700_000_000;

fn linear(window: &Window, now: i64) -> f64 {
    Average::Linear.of(window, now)
}

#[test]
fn values_of_one_second_add_up() {
    let mut w = Window::new(6);
    assert!(w.is_empty(T0));
    assert_eq!(linear(&w, T0), 0.0);
    w.record(T0, 2.0);
    w.record(T0, 3.0);
    assert_eq!(linear(&w, T0), 5.0);
    w.record(T0 + 1, 1.0);
    assert_eq!(linear(&w, T0 + 1), 3.0);
}

#[test]
fn inner_gaps_are_zero_and_a_missing_tail_does_not_count() {
    let mut w = Window::new(5);
    w.record(T0, 10.0);
    w.record(T0 + 3, 2.0);
    assert_eq!(linear(&w, T0 + 3), 3.0); // 12 over 4 seconds
    // One second later: slots T0..T0+3 remain, and the window may hold 4 reported ones.
    assert_eq!(linear(&w, T0 + 4), 3.0);
    // Two seconds later T0 left: 2 over min(4, 3).
    assert_eq!(linear(&w, T0 + 5), (2.0_f64 / 3.0 * 1e6).round() / 1e6);
    assert_eq!(linear(&w, T0 + 7), 2.0);
    assert_eq!(linear(&w, T0 + 8), 0.0);
}

#[test]
fn emptiness_lasts_from_one_window_after_the_last_report() {
    let mut w = Window::new(5);
    w.record(T0, 1.0);
    assert!(!w.is_empty(T0 + 5));
    assert!(w.is_empty(T0 + 6));
}

#[test]
fn late_data_lands_in_its_second_and_too_old_data_is_dropped() {
    let mut w = Window::new(5);
    w.record(T0 + 4, 5.0);
    w.record(T0 + 2, 1.0);
    assert_eq!(linear(&w, T0 + 4), 2.0); // first write moved back: 6 over 3
    w.record(T0 - 1, 100.0);
    assert_eq!(linear(&w, T0 + 4), 2.0);
}

#[test]
fn a_gap_of_a_whole_window_starts_afresh() {
    let mut w = Window::new(5);
    w.record(T0, 100.0);
    w.record(T0 + 5, 4.0);
    assert_eq!(linear(&w, T0 + 5), 4.0);
    w.record(T0 + 9, 6.0);
    w.record(T0 + 10, 5.0); // overwrites the slot of T0 + 5
    assert_eq!(linear(&w, T0 + 10), 2.2);
}

#[test]
fn a_full_window_divides_by_its_length() {
    let mut w = Window::new(3);
    for second in 0..10 {
        w.record(T0 + second, second as f64);
    }
    assert_eq!(linear(&w, T0 + 9), 8.0);
}

#[test]
fn resizing_keeps_the_newest() {
    let mut w = Window::new(5);
    for second in 0..5 {
        w.record(T0 + second, (second + 1) as f64);
    }
    let mut smaller = w.clone();
    smaller.resize(2, T0 + 4);
    assert_eq!(linear(&smaller, T0 + 4), 4.5);
    let mut larger = w.clone();
    larger.resize(10, T0 + 4);
    assert_eq!(linear(&larger, T0 + 4), 3.0);
    larger.record(T0 + 5, 9.0);
    assert_eq!(linear(&larger, T0 + 5), 4.0);
    w.resize(10, T0 + 60);
    assert!(w.is_empty(T0 + 60), "data older than the old window is forgotten");
}

#[test]
fn weighted_average_decays() {
    let mut w = Window::new(6);
    let average = |w: &Window, now| Average::WeightedExponential.of(w, now);
    assert_eq!(average(&w, T0), 0.0);
    for second in 0..6 {
        w.record(T0 + second, 10.0);
    }
    // The weights of all six slots add up to 0.9999.
    assert!((average(&w, T0 + 5) - 9.999).abs() < 1e-9);
    let alpha = 1.0 - (1.0_f64 - 0.9999).powf(1.0 / 6.0);
    let expected: f64 = (0..5).map(|i| 10.0 * alpha * (1.0 - alpha).powi(i + 1)).sum();
    assert!((average(&w, T0 + 6) - expected).abs() < 1e-9);
    assert_eq!(average(&w, T0 + 12), 0.0);
}

#[test]
fn unknown_algorithms_are_linear() {
    assert_eq!(Average::parse(None), Average::Linear);
    assert_eq!(Average::parse(Some("median")), Average::Linear);
    assert_eq!(Average::parse(Some("weightedExponential")), Average::WeightedExponential);
}
