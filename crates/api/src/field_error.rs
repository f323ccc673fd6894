//! Errors that name fields, rendered as kubectl users of Knative know them.
//!
//! Leaves with the same message and details are merged, their paths united and sorted, so that a text does not depend on the
//! order in which checks ran.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warning,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    pub message: String,
    pub paths: Vec<String>,
    pub details: String,
    pub level: Level,
}

/// Any number of errors; none means valid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldErrors(Vec<FieldError>);

// === impl FieldErrors ===

impl FieldErrors {
    pub fn none() -> Self {
        Self::default()
    }

    pub fn new(message: impl Into<String>, paths: &[&str]) -> Self {
        Self(vec![FieldError {
            message: message.into(),
            paths: paths.iter().map(|p| join(&[p])).collect(),
            details: String::new(),
            level: Level::Error,
        }])
    }

    pub fn missing(path: &str) -> Self {
        Self::new("missing field(s)", &[path])
    }

    pub fn disallowed(paths: &[&str]) -> Self {
        if paths.is_empty() { Self::none() } else { Self::new("must not set the field(s)", paths) }
    }

    pub fn invalid(value: impl fmt::Display, path: &str) -> Self {
        Self::new(format!("invalid value: {value}"), &[path])
    }

    pub fn neither(paths: &[&str]) -> Self {
        Self::new("expected exactly one, got neither", paths)
    }

    pub fn both(paths: &[&str]) -> Self {
        Self::new("expected exactly one, got both", paths)
    }

    pub fn bad_key(key: &str, path: &str) -> Self {
        Self::new(format!("invalid key name \"{key}\""), &[path])
    }

    pub fn out_of_range(value: impl fmt::Display, low: impl fmt::Display, high: impl fmt::Display, path: &str) -> Self {
        Self::new(format!("expected {low} <= {value} <= {high}"), &[path])
    }

    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        let details = details.into();
        for error in &mut self.0 {
            error.details.clone_from(&details);
        }
        self
    }

    pub fn as_warning(mut self) -> Self {
        for error in &mut self.0 {
            error.level = Level::Warning;
        }
        self
    }

    /// Put `field` before every path.
    pub fn via(mut self, field: &str) -> Self {
        for path in self.0.iter_mut().flat_map(|e| &mut e.paths) {
            *path = join(&[field, path]);
        }
        self
    }

    pub fn via_index(self, field: &str, index: usize) -> Self {
        self.via(&format!("[{index}]")).via(field)
    }

    pub fn via_key(self, field: &str, key: &str) -> Self {
        self.via(&format!("[{key}]")).via(field)
    }

    pub fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub fn and(mut self, other: Self) -> Self {
        self.add(other);
        self
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Only the leaves of one level.
    pub fn only(&self, level: Level) -> Self {
        Self(self.0.iter().filter(|e| e.level == level).cloned().collect())
    }
}

impl fmt::Display for FieldErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut merged: BTreeMap<(&str, &str, Level), BTreeSet<&str>> = BTreeMap::new();
        for error in &self.0 {
            let paths = merged.entry((&error.message, &error.details, error.level)).or_default();
            paths.extend(error.paths.iter().map(String::as_str));
        }
        for (i, ((message, details, _), paths)) in merged.into_iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n" };
            let paths: Vec<&str> = paths.into_iter().collect();
            write!(f, "{separator}{message}: {}", paths.join(", "))?;
            if !details.is_empty() {
                write!(f, "\n{details}")?;
            }
        }
        Ok(())
    }
}

/// Components joined by dots; an index is glued to what it indexes.
fn join(parts: &[&str]) -> String {
    let mut path = String::new();
    for part in parts.iter().flat_map(|p| p.split('.')).filter(|p| !p.is_empty()) {
        let index = part.starts_with('[') && part.ends_with(']');
        if !path.is_empty() && !index {
            path.push('.');
        }
        path.push_str(part);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_prefixed_merged_and_sorted() {
        let mut errors = FieldErrors::missing("image").via_index("containers", 1);
        errors.add(FieldErrors::missing("image").via_index("containers", 0));
        errors.add(FieldErrors::invalid(7, "percent").with_details("too many"));
        assert_eq!(
            errors.via("spec.template").to_string(),
            "invalid value: 7: spec.template.percent\ntoo many\nmissing field(s): spec.template.containers[0].image, spec.template.containers[1].image"
        );
    }

    #[test]
    fn keys_with_dots_are_not_glued() {
        let errors = FieldErrors::invalid("x", "").via_key("annotations", "a.b/c").via("metadata");
        assert_eq!(errors.to_string(), "invalid value: x: metadata.annotations.[a.b/c]");
        assert_eq!(FieldErrors::new("no path", &[]).via("spec").to_string(), "no path: ");
    }
}
