//! The time, which a simulation may set.

use std::time::Instant;

#[cfg(test)]
thread_local! {
    static VIRTUAL: std::cell::Cell<Option<Instant>> = const { std::cell::Cell::new(None) };
}

#[cfg(not(test))]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
pub(crate) fn now() -> Instant {
    VIRTUAL.get().unwrap_or_else(Instant::now)
}

/// Sets the time of this thread.
#[cfg(test)]
pub(crate) fn set(time: Instant) {
    VIRTUAL.set(Some(time));
}
