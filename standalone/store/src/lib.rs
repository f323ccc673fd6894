//! An ordered, revisioned object store: memory as the truth, redb as its durable image.
