//! Encoded messages in parts, so that what many messages have in common is in memory once.

use std::sync::Arc;

/// An encoded message: its parts, one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body(Parts);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Parts {
    /// The usual case, without a list.
    One(Arc<[u8]>),
    Many(Box<[Arc<[u8]>]>),
}

// === impl Body ===

impl Body {
    pub fn parts(&self) -> &[Arc<[u8]>] {
        match &self.0 {
            Parts::One(part) => std::slice::from_ref(part),
            Parts::Many(parts) => parts,
        }
    }

    #[expect(clippy::len_without_is_empty, reason = "an empty message is a message like any other")]
    pub fn len(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }

    pub fn to_vec(&self) -> Vec<u8> {
        self.parts().concat()
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Body(Parts::One(bytes.into()))
    }
}

impl FromIterator<Arc<[u8]>> for Body {
    fn from_iter<T: IntoIterator<Item = Arc<[u8]>>>(parts: T) -> Self {
        let mut parts: Vec<Arc<[u8]>> = parts.into_iter().collect();
        match parts.pop() {
            Some(only) if parts.is_empty() => Body(Parts::One(only)),
            Some(last) => {
                parts.push(last);
                Body(Parts::Many(parts.into()))
            }
            None => Body(Parts::Many(Box::default())),
        }
    }
}
