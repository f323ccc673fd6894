//! The largest value of the last few two-second intervals: what delays a scale-down.

use std::collections::VecDeque;

use super::Seconds;

/// One decision interval; decisions within one interval count as one.
const GRANULARITY: i64 = 2;

/// A monotonic deque: front is the maximum, values fall towards the back.
#[derive(Debug, Clone)]
pub struct SlidingMax {
    intervals: i64,
    candidates: VecDeque<(i64, i32)>,
}

// === impl SlidingMax ===

impl SlidingMax {
    /// The maximum over `seconds` seconds, rounded up to whole intervals.
    pub fn new(seconds: u32) -> Self {
        SlidingMax { intervals: i64::from(seconds.div_ceil(GRANULARITY as u32).max(1)), candidates: VecDeque::new() }
    }

    /// Records `value` and returns the maximum of the window that ends now.
    pub fn record(&mut self, now: Seconds, value: i32) -> i32 {
        let index = now.div_euclid(GRANULARITY);
        while self.candidates.front().is_some_and(|(at, _)| index - at >= self.intervals) {
            self.candidates.pop_front();
        }
        while self.candidates.back().is_some_and(|(_, smaller)| *smaller <= value) {
            self.candidates.pop_back();
        }
        self.candidates.push_back((index, value));
        self.candidates[0].1
    }
}

#[cfg(test)]
mod tests {
    use super::SlidingMax;

    #[test]
    fn keeps_the_maximum_for_its_window() {
        let mut max = SlidingMax::new(5); // three intervals
        assert_eq!(max.record(0, 8), 8);
        assert_eq!(max.record(1, 6), 8, "the larger of one interval wins");
        assert_eq!(max.record(2, 6), 8);
        assert_eq!(max.record(4, 5), 8);
        assert_eq!(max.record(6, 2), 6, "the 8 left the window");
        assert_eq!(max.record(8, 2), 5);
        assert_eq!(max.record(10, 9), 9);
        assert_eq!(max.record(60, 0), 0);
    }
}
