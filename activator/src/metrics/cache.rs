//! The series that requests move, found without the table's lock.
//!
//! Looking a series up by its labels means writing them down, under a lock that everyone takes. A request's labels are
//! mostly those of many before it, so each thread that serves keeps what it found, under a key that costs nothing.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
};

use parking_lot::Mutex;

/// How many keys a thread keeps. Clients choose hosts; with more than this it begins again.
const MOST: usize = 1024;

pub(super) struct Cache<K, H> {
    /// By thread, so that nobody waits for the lock.
    parts: Box<[Mutex<HashMap<K, H>>]>,
    hasher: RandomState,
}

// === impl Cache ===

impl<K: Eq + Hash, H> Cache<K, H> {
    /// For so many workers (see `net::Workers`), and whoever else there is.
    pub(super) fn new(workers: usize) -> Self {
        Self { parts: (0..=workers).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    /// Uses what belongs to `key`, which is made if this thread has not seen it.
    pub(super) fn with(&self, key: K, make: impl FnOnce() -> H, use_it: impl FnOnce(&H)) {
        let part = self.parts.get(net::Workers::current()).unwrap_or(&self.parts[0]);
        let mut part = part.lock();
        if part.len() >= MOST && !part.contains_key(&key) {
            part.clear();
        }
        use_it(part.entry(key).or_insert_with(make));
    }

    /// Stands for a text in a key. That two texts share one does not happen: nobody can know the hasher's secret.
    pub(super) fn hash(&self, text: &str) -> u64 {
        self.hasher.hash_one(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_is_used_again_and_there_is_an_end_to_it() {
        let cache = Cache::new(0);
        let mut made = 0;
        for key in (0..MOST).chain(0..MOST) {
            cache.with(key, || made += 1, |()| {});
        }
        assert_eq!(made, MOST);
        cache.with(MOST, || made += 1, |()| {});
        assert_eq!((made, cache.parts[0].lock().len()), (MOST + 1, 1));
    }
}
