//! Statuses on their way: a key may be handled again before the watch shows what was just written for it, and must not
//! be written once more over the version that it no longer has.

use std::collections::VecDeque;

use parking_lot::Mutex;
use serde_json::Value;

use crate::ObjectKey;

/// The newest status written for some keys. It forgets: then a write is a conflict, and the API is asked.
#[derive(Default)]
pub(super) struct Written(Mutex<VecDeque<Note>>);

struct Note {
    key: ObjectKey,
    /// The version that it was written over.
    over: String,
    status: Value,
}

const LIMIT: usize = 64;

// === impl Written ===

impl Written {
    pub(super) fn note(&self, key: ObjectKey, over: Option<String>, status: Value) {
        let Some(over) = over else { return };
        let mut notes = self.0.lock();
        notes.retain(|note| note.key != key);
        if notes.len() == LIMIT {
            notes.pop_front();
        }
        notes.push_back(Note { key, over, status });
    }

    /// What was written over this version of an object.
    pub(super) fn over(&self, key: &ObjectKey, version: Option<&str>) -> Option<Value> {
        let notes = self.0.lock();
        let note = notes.iter().find(|note| note.key == *key && Some(&*note.over) == version)?;
        Some(note.status.clone())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_status_over_a_version_is_known_until_the_version_changes() {
        let written = Written::default();
        let key = |n: usize| ObjectKey::new("default", n.to_string());
        written.note(key(1), Some("7".to_owned()), json!({"a": 1}));
        written.note(key(1), Some("7".to_owned()), json!({"a": 2}));
        assert_eq!(written.over(&key(1), Some("7")), Some(json!({"a": 2})));
        assert_eq!(written.over(&key(1), Some("8")), None);
        assert_eq!(written.over(&key(2), Some("7")), None);
        written.note(key(1), Some("8".to_owned()), json!({}));
        assert_eq!(written.over(&key(1), Some("7")), None);
        for n in 2..LIMIT + 2 {
            written.note(key(n), Some("1".to_owned()), json!({}));
        }
        assert_eq!(written.0.lock().len(), LIMIT);
        assert_eq!(written.over(&key(1), Some("8")), None);
    }
}
