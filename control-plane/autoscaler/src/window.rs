//! Metric windows: what arrived in each second, and its average over the last N seconds.
//!
//! A window is a ring of one-second slots. Values that fall in the same second add up: the scraper and every activator report
//! parts of one figure. Seconds nobody reported in the middle count as zero; a missing tail (nobody has reported *yet*) does not
//! count at all, so that the average is not diluted by reports still under way.
//!
//! Time is whole Unix seconds and always passed in.

mod average;
mod max;

pub use average::Average;
pub use max::SlidingMax;

/// Whole seconds since the Unix epoch.
pub type Seconds = i64;

/// A ring of one-second slots over the last `seconds` seconds. The slots exist only while there is data, so that a sleeping
/// revision costs no memory.
#[derive(Debug, Clone)]
pub struct Window {
    seconds: u32,
    slots: Box<[f64]>,
    total: f64,
    /// `None` until the first record.
    span: Option<Span>,
}

/// The first and last second written that the window still accounts for.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: Seconds,
    last: Seconds,
}

// === impl Window ===

impl Window {
    /// A window over `seconds` seconds (at least one).
    pub fn new(seconds: u32) -> Self {
        Window { seconds: seconds.max(1), slots: Box::default(), total: 0.0, span: None }
    }

    /// Forgets everything, and gives the memory back.
    pub fn clear(&mut self) {
        *self = Window::new(self.seconds);
    }

    fn len(&self) -> i64 {
        i64::from(self.seconds)
    }

    fn allocate(&mut self) {
        if self.slots.is_empty() {
            self.slots = vec![0.0; self.seconds as usize].into_boxed_slice();
        }
    }

    fn index(&self, at: Seconds) -> usize {
        at.rem_euclid(self.len()) as usize
    }

    fn slot(&self, at: Seconds) -> f64 {
        self.slots[self.index(at)]
    }

    /// Adds `value` to the slot of `at`. Data older than the window is dropped; late data within it goes to its own slot.
    pub fn record(&mut self, at: Seconds, value: f64) {
        let len = self.len();
        self.allocate();
        match &mut self.span {
            None => self.span = Some(Span { first: at, last: at }),
            Some(span) if at + len <= span.last => return,
            Some(span) if at > span.last => {
                let gap = at - span.last;
                let last = span.last;
                span.last = at;
                if gap >= len {
                    span.first = at;
                    self.slots.fill(0.0);
                    self.total = 0.0;
                } else {
                    for second in last + 1..=at {
                        let index = self.index(second);
                        self.total -= self.slots[index];
                        self.slots[index] = 0.0;
                    }
                }
            }
            Some(span) => span.first = span.first.min(at),
        }
        let index = self.index(at);
        self.slots[index] += value;
        self.total += value;
    }

    /// True if nothing was recorded within the window before `now`.
    pub fn is_empty(&self, now: Seconds) -> bool {
        self.span.is_none_or(|span| now - span.last > self.len())
    }

    /// Changes the length, keeping the newest slots that fit.
    pub fn resize(&mut self, seconds: u32, now: Seconds) {
        let new_len = i64::from(seconds.max(1));
        if new_len == self.len() {
            return;
        }
        let mut resized = Window::new(seconds);
        if let Some(span) = self.span.filter(|_| !self.is_empty(now)) {
            resized.allocate();
            for second in span.last - new_len.min(self.len()) + 1..=span.last {
                let index = resized.index(second);
                resized.slots[index] = self.slot(second);
                resized.total += self.slot(second);
            }
            // Slots before the old window are unknown, not zero.
            resized.span = Some(Span { first: span.first.max(span.last - self.len() + 1), last: span.last });
        }
        *self = resized;
    }
}

#[cfg(test)]
mod tests;
