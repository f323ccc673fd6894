//! An ordered, revisioned object store: memory as the truth, redb as its durable image.
//!
//! Objects are JSON values in ordered maps, one map per resource, under one global revision. A commit and its event happen under one lock, so that
//! the order of commits, of revisions and of events is the same for everybody. Watchers get shared events through bounded channels: one that does
//! not keep up is dropped and resumes from its last revision. A writer thread carries commits to disk in groups; a caller that needs more than the
//! memory commit waits with [`Store::durable`].

mod disk;
mod event;
mod object;
mod state;
mod store;
mod watch;

pub use disk::DiskError;
pub use event::{Event, EventKind};
pub use object::{Key, Object};
pub use store::{Change, CommitError, Expected, Options, Snapshot, Store};
pub use watch::{TooOld, Watch};
