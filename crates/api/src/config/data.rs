//! Reading keys of one ConfigMap. Keys are given in the order they are read: a later one overrides an earlier one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::go::{self, Nanos};

pub(super) struct Data<'a>(pub(super) &'a BTreeMap<String, String>);

pub(super) const SECOND: Nanos = 1_000_000_000;

// === impl Data ===

impl Data<'_> {
    /// The text of `key`, if present.
    pub(super) fn raw(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The trimmed text of the last key present.
    pub(super) fn text(&self, keys: &[&str]) -> Option<&str> {
        keys.iter().rev().find_map(|key| self.raw(key)).map(str::trim)
    }

    pub(super) fn string(&self, keys: &[&str], into: &mut String) {
        if let Some(text) = self.text(keys) {
            text.clone_into(into);
        }
    }

    pub(super) fn parse<T, E: std::fmt::Display>(
        &self,
        keys: &[&str],
        into: &mut T,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<(), String> {
        for key in keys {
            if let Some(text) = self.raw(key) {
                *into = parse(text).map_err(|error| format!("failed to parse {}: {error}", go::quote(key)))?;
            }
        }
        Ok(())
    }

    pub(super) fn i64(&self, keys: &[&str], into: &mut i64) -> Result<(), String> {
        self.parse(keys, into, go::parse_i64)
    }

    pub(super) fn i32(&self, keys: &[&str], into: &mut i32) -> Result<(), String> {
        self.parse(keys, into, go::parse_i32)
    }

    pub(super) fn u32(&self, keys: &[&str], into: &mut u32) -> Result<(), String> {
        self.parse(keys, into, go::parse_u32)
    }

    pub(super) fn f64(&self, keys: &[&str], into: &mut f64) -> Result<(), String> {
        self.parse(keys, into, go::parse_f64)
    }

    /// Only what `ParseBool` calls true; anything it refuses is an error.
    pub(super) fn bool(&self, keys: &[&str], into: &mut bool) -> Result<(), String> {
        self.parse(keys, into, go::parse_bool)
    }

    pub(super) fn nanos(&self, keys: &[&str], into: &mut Nanos) -> Result<(), String> {
        self.parse(keys, into, go::parse_duration)
    }

    /// Kept as text, as Kubernetes does; an empty value is an error.
    pub(super) fn quantity(&self, keys: &[&str], into: &mut Option<String>) -> Result<(), String> {
        self.parse(keys, into, |text| go::parse_quantity(text).map(|_| Some(text.to_owned())))
    }

    /// Comma separated, each item trimmed.
    pub(super) fn set(&self, keys: &[&str], into: &mut BTreeSet<String>) {
        if let Some(text) = self.text(keys) {
            *into = text.split(',').map(|item| item.trim().to_owned()).collect();
        }
    }
}

pub(super) fn whole_seconds(nanos: Nanos) -> bool {
    nanos % SECOND == 0
}

/// A duration checked to be non-negative.
pub(super) fn duration(nanos: Nanos) -> Duration {
    Duration::from_nanos(nanos.try_into().unwrap_or(0))
}
