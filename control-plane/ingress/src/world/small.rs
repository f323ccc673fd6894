//! Collections that mostly have one to five members: a tree of one member takes the memory of eleven.

use std::borrow::Borrow;

use xds::{Name, Version};

/// A sorted list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Set<T>(Vec<T>);

/// Published names with their versions, sorted by name.
#[derive(Debug, Default)]
pub(super) struct Versions(Vec<(Name, Version)>);

// === impl Set ===

impl<T> Default for Set<T> {
    fn default() -> Self {
        Set(Vec::new())
    }
}

impl<T: Ord> Set<T> {
    pub(super) fn contains<Q: Ord + ?Sized>(&self, member: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.get(member).is_some()
    }

    pub(super) fn get<Q: Ord + ?Sized>(&self, member: &Q) -> Option<&T>
    where
        T: Borrow<Q>,
    {
        let at = self.0.binary_search_by(|one| one.borrow().cmp(member)).ok()?;
        self.0.get(at)
    }

    pub(super) fn insert(&mut self, member: T) {
        if let Err(at) = self.0.binary_search(&member) {
            if self.0.len() < 8 {
                self.0.reserve_exact(1);
            }
            self.0.insert(at, member);
        }
    }

    pub(super) fn remove<Q: Ord + ?Sized>(&mut self, member: &Q)
    where
        T: Borrow<Q>,
    {
        if let Ok(at) = self.0.binary_search_by(|one| one.borrow().cmp(member)) {
            self.0.remove(at);
        }
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Ord> FromIterator<T> for Set<T> {
    fn from_iter<I: IntoIterator<Item = T>>(members: I) -> Self {
        let mut members: Vec<T> = members.into_iter().collect();
        members.sort_unstable();
        members.dedup();
        members.shrink_to_fit();
        Set(members)
    }
}

// === impl Versions ===

impl Versions {
    pub(super) fn get(&self, name: &str) -> Option<&(Name, Version)> {
        let at = self.0.binary_search_by(|(one, _)| (**one).cmp(name)).ok()?;
        self.0.get(at)
    }

    pub(super) fn version(&self, name: &str) -> Option<Version> {
        self.get(name).map(|(_, version)| *version)
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Name> {
        self.0.iter().map(|(name, _)| name)
    }

    /// Whether there is a name that begins with this.
    pub(super) fn has_prefix(&self, prefix: &str) -> bool {
        let at = self.0.partition_point(|(name, _)| **name < *prefix);
        self.0.get(at).is_some_and(|(name, _)| name.starts_with(prefix))
    }
}

impl FromIterator<(Name, Version)> for Versions {
    fn from_iter<I: IntoIterator<Item = (Name, Version)>>(members: I) -> Self {
        let mut members: Vec<(Name, Version)> = members.into_iter().collect();
        members.sort_unstable();
        members.dedup_by(|a, b| a.0 == b.0);
        members.shrink_to_fit();
        Versions(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_sorted_and_has_each_member_once() {
        let mut set: Set<&str> = ["c", "a", "c"].into_iter().collect();
        set.insert("b");
        set.insert("b");
        assert_eq!(set.iter().copied().collect::<String>(), "abc");
        set.remove("a");
        set.remove("x");
        assert!(set.contains("b") && !set.contains("a") && !set.is_empty());
    }

    #[test]
    fn versions_are_found_by_name_and_by_prefix() {
        let version = Version::of(&1);
        let versions: Versions = ["t/b", "s/a", "t0"].into_iter().map(|name| (name.into(), version)).collect();
        assert_eq!((versions.version("t/b"), versions.version("t/a")), (Some(version), None));
        assert!(versions.has_prefix("t/") && versions.has_prefix("s/") && !versions.has_prefix("r/"));
        assert!(!versions.has_prefix("u"));
    }
}
