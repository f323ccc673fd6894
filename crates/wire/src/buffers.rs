//! Buffers that connections borrow while they move bytes. An idle connection has none.

use std::{
    cell::{Cell, RefCell},
    ops::{Deref, DerefMut},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Bytes of one buffer: what Go's proxy copies with.
pub(crate) const SIZE: usize = 32 << 10;
/// How many are kept when nobody uses them.
const SPARE: usize = 4;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static HEAD: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static DATE: RefCell<(u64, [u8; 29])> = const { RefCell::new((0, [0; 29])) };
}

/// A buffer of `SIZE` bytes, with whatever was in it before.
pub(crate) struct Buffer(Box<[u8]>);

/// An empty vector, with the room of one that was kept.
pub(crate) fn spare_head() -> Vec<u8> {
    HEAD.take()
}

/// Keeps the room of a vector, unless it is much.
pub(crate) fn keep_head(mut head: Vec<u8>) {
    if head.capacity() <= SIZE {
        head.clear();
        HEAD.set(head);
    }
}

/// The date as HTTP writes it; made once a second.
pub fn with_date<R>(use_it: impl FnOnce(&[u8]) -> R) -> R {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    DATE.with_borrow_mut(|(made, text)| {
        if *made != now {
            (*made, *text) = (now, date(now));
        }
        use_it(text)
    })
}

/// `Fri, 20 Nov 2026 09:56:10 GMT`
fn date(seconds: u64) -> [u8; 29] {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years, whose years begin in March.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let in_month = day - (153 * month + 2) / 5 + 1;
    let calendar = (month + 2) % 12;
    let year = era * 400 + year + u64::from(calendar < 2);
    let text = format!(
        "{}, {in_month:02} {} {year:04} {:02}:{:02}:{:02} GMT",
        DAYS[(days % 7) as usize],
        MONTHS[calendar as usize],
        second / 3600,
        second / 60 % 60,
        second % 60
    );
    let mut fixed = [b' '; 29];
    fixed.copy_from_slice(&text.as_bytes()[..29]);
    fixed
}

// === impl Buffer ===

impl Buffer {
    pub(crate) fn take() -> Self {
        let free = FREE.with_borrow_mut(Vec::pop);
        Self(free.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice()))
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        // The thread may be ending, and then nobody needs it.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < SPARE {
                free.push(bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_795_168_570, "Fri, 20 Nov 2026 09:56:10 GMT"),
            (4_107_542_399, "Sun, 28 Feb 2100 23:59:59 GMT"),
        ] {
            assert_eq!(std::str::from_utf8(&date(seconds)), Ok(expected));
        }
    }
}
