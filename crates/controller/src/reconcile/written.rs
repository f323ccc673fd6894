//! Statuses on their way: a key may be handled again before the watch shows what was just written for it, and must not
//! be written once more over the version that it no longer has.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::ObjectKey;

/// The newest status written for some keys. It forgets: then a write is a conflict, and the API is asked.
pub(super) struct Written<S>(Mutex<VecDeque<Note<S>>>);

struct Note<S> {
    key: ObjectKey,
    /// The version that it was written over.
    over: String,
    status: S,
}

const LIMIT: usize = 64;

// === impl Written ===

impl<S> Default for Written<S> {
    fn default() -> Self {
        Written(Mutex::default())
    }
}

impl<S: Clone> Written<S> {
    pub(super) fn note(&self, key: ObjectKey, over: Option<String>, status: S) {
        let Some(over) = over else { return };
        let mut notes = self.0.lock();
        notes.retain(|note| note.key != key);
        if notes.len() == LIMIT {
            notes.pop_front();
        }
        notes.push_back(Note { key, over, status });
    }

    /// What was written over this version of an object.
    pub(super) fn over(&self, key: &ObjectKey, version: Option<&str>) -> Option<S> {
        let notes = self.0.lock();
        let note = notes.iter().find(|note| note.key == *key && Some(&*note.over) == version)?;
        Some(note.status.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_status_over_a_version_is_known_until_the_version_changes() {
        let written = Written::default();
        let key = |n: usize| ObjectKey::new("default", n.to_string());
        written.note(key(1), Some("7".to_owned()), 1);
        written.note(key(1), Some("7".to_owned()), 2);
        assert_eq!(written.over(&key(1), Some("7")), Some(2));
        assert_eq!(written.over(&key(1), Some("8")), None);
        assert_eq!(written.over(&key(2), Some("7")), None);
        written.note(key(1), Some("8".to_owned()), 0);
        assert_eq!(written.over(&key(1), Some("7")), None);
        for n in 2..LIMIT + 2 {
            written.note(key(n), Some("1".to_owned()), 0);
        }
        assert_eq!(written.0.lock().len(), LIMIT);
        assert_eq!(written.over(&key(1), Some("8")), None);
    }
}
