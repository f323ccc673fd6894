//! Buffers that connections borrow while they move bytes. An idle connection has none.

use std::{
    cell::{Cell, RefCell},
    ops::{Deref, DerefMut},
};

/// Bytes of one buffer: what Go's proxy copies with.
pub(crate) const SIZE: usize = 32 << 10;
/// How many are kept when nobody uses them.
const SPARE: usize = 4;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static HEAD: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A buffer of `SIZE` bytes, with whatever was in it before.
pub(crate) struct Buffer(Box<[u8]>);

/// An empty vector, with the room of one that was kept.
pub(crate) fn spare_head() -> Vec<u8> {
    HEAD.take()
}

/// Keeps the room of a vector, unless it is much.
pub(crate) fn keep_head(mut head: Vec<u8>) {
    if (1..=SIZE).contains(&head.capacity()) {
        head.clear();
        HEAD.set(head);
    }
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
