//! What a container may use of the machine: its limits, kept by control groups of the kernel.
//!
//! A container with limits has a group of its own, and sees it read-only where programs look for it. One without has
//! none: to enter a group is to wait for the kernel, milliseconds that a cold start would pay for nothing. A machine
//! without usable groups (an ordinary user, a container without the right to make them) runs containers without limits
//! and says so once.

mod hierarchy;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Container;

use crate::quantity;
use hierarchy::{Hierarchy, Version};

/// The period that a CPU limit is a share of, in microseconds.
const PERIOD: u64 = 100_000;
/// The smallest share that the kernel takes, in microseconds.
const SMALLEST_QUOTA: u64 = 1000;

/// Where the groups of this installation are.
#[derive(Debug)]
pub(crate) struct Groups {
    hierarchies: Vec<Hierarchy>,
}

/// One group, in each hierarchy of the machine. Removed when the last one who needs it lets go, and its processes are
/// gone.
#[derive(Debug)]
pub(crate) struct Group {
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    dir: PathBuf,
    /// Where programs expect to find their group's files.
    shown_at: PathBuf,
    version: Version,
    memory: bool,
}

/// What a container is limited to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Limits {
    /// Bytes.
    pub(crate) memory: Option<u64>,
    /// Thousandths of a CPU.
    pub(crate) cpu: Option<u64>,
    /// What it gets of a busy machine, in thousandths of a CPU.
    pub(crate) share: Option<u64>,
}

// === impl Limits ===

impl Limits {
    pub(crate) fn of(container: &Container) -> Self {
        let resources = container.resources.as_ref();
        let amount = |list: Option<&std::collections::BTreeMap<_, quantity::Quantity>>, name: &str, unit: i128| {
            let nano = quantity::nano(&list?.get(name)?.0)?;
            // Part of a unit is one more.
            u64::try_from((nano + unit - 1) / unit).ok().filter(|amount| *amount > 0)
        };
        let limits = resources.and_then(|resources| resources.limits.as_ref());
        let requests = resources.and_then(|resources| resources.requests.as_ref());
        let cpu = amount(limits, "cpu", quantity::NANO / 1000);
        Self {
            memory: amount(limits, "memory", quantity::NANO),
            cpu,
            share: amount(requests, "cpu", quantity::NANO / 1000).or(cpu),
        }
    }

    fn is_limited(&self) -> bool {
        self.memory.is_some() || self.cpu.is_some()
    }

    /// Files and what to write into them.
    fn settings(&self, version: Version, controllers: &[String]) -> Vec<(&'static str, String)> {
        let has = |controller: &str| controllers.iter().any(|known| known == controller);
        let quota = self.cpu.map(|cpu| (cpu * PERIOD / 1000).max(SMALLEST_QUOTA));
        let shares = self.share.map(|share| (share * 1024 / 1000).clamp(2, 262_144));
        let mut settings = Vec::new();
        match version {
            Version::Unified => {
                settings.extend(self.memory.map(|bytes| ("memory.max", bytes.to_string())));
                // One process killed and the others left is no container any more.
                settings.extend(self.memory.map(|_| ("memory.oom.group", "1".to_owned())));
                settings.extend(quota.map(|quota| ("cpu.max", format!("{quota} {PERIOD}"))));
                let weight = shares.map(|shares| 1 + (shares - 2) * 9999 / 262_142);
                settings.extend(weight.map(|weight| ("cpu.weight", weight.to_string())));
            }
            Version::Split => {
                settings.extend(self.memory.map(|bytes| ("memory.limit_in_bytes", bytes.to_string())));
                settings.extend(quota.map(|_| ("cpu.cfs_period_us", PERIOD.to_string())));
                settings.extend(quota.map(|quota| ("cpu.cfs_quota_us", quota.to_string())));
                settings.extend(shares.map(|shares| ("cpu.shares", shares.to_string())));
            }
        }
        settings.retain(|(file, _)| file.split('.').next().is_some_and(has));
        settings
    }
}

// === impl Groups ===

impl Groups {
    /// Finds the machine's hierarchies, makes this installation's directory in each and removes what an earlier run
    /// left there.
    pub(crate) fn prepare(tag: &str, wanted: bool) -> Self {
        let found = if wanted { hierarchy::find(&format!("postrider-{tag}")) } else { Ok(Vec::new()) };
        let hierarchies = found.unwrap_or_else(|error| {
            tracing::warn!(%error, "no control groups here: limits of containers are not kept");
            Vec::new()
        });
        for hierarchy in &hierarchies {
            hierarchy.sweep();
        }
        Self { hierarchies }
    }

    /// The group for a container: `name` is unique among those that run.
    pub(crate) fn group(&self, name: &str, limits: &Limits) -> Result<Option<Arc<Group>>, String> {
        if !limits.is_limited() || self.hierarchies.is_empty() {
            return Ok(None);
        }
        let made = self.make(name, limits);
        made.map(|group| Some(Arc::new(group))).map_err(|error| format!("cannot limit the container: {error}"))
    }

    fn make(&self, name: &str, limits: &Limits) -> io::Result<Group> {
        let mut group = Group { places: Vec::new() };
        for hierarchy in &self.hierarchies {
            let dir = hierarchy.dir.join(name);
            match fs::create_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(&dir, error)),
                _ => {}
            }
            group.places.push(Place {
                dir: dir.clone(),
                shown_at: hierarchy.mounted_at.clone(),
                version: hierarchy.version,
                memory: hierarchy.controllers.iter().any(|controller| controller == "memory"),
            });
            for (file, value) in limits.settings(hierarchy.version, &hierarchy.controllers) {
                fs::write(dir.join(file), value).map_err(|error| at(&dir.join(file), error))?;
            }
        }
        Ok(group)
    }

    /// Removes the installation's directories.
    pub(crate) fn remove(&self) {
        for hierarchy in &self.hierarchies {
            hierarchy.sweep();
            let _ = fs::remove_dir(&hierarchy.dir);
        }
    }
}

// === impl Group ===

impl Group {
    /// What a process of the group writes `0` into before it becomes its program.
    pub(crate) fn doors(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |place: &Place| fs::OpenOptions::new().write(true).open(place.dir.join("cgroup.procs"));
        self.places.iter().map(|place| open(place).map(OwnedFd::from)).collect()
    }

    /// Directories of the group and where a container sees them.
    pub(crate) fn views(&self) -> impl Iterator<Item = (&Path, &Path)> {
        self.places.iter().map(|place| (place.dir.as_path(), place.shown_at.as_path()))
    }

    /// How many processes of the group were killed for want of memory.
    pub(crate) fn killed(&self) -> u64 {
        let count = |place: &Place| {
            let file = match place.version {
                Version::Unified => "memory.events",
                Version::Split => "memory.oom_control",
            };
            let text = fs::read_to_string(place.dir.join(file)).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok())
        };
        self.places.iter().filter(|place| place.memory).filter_map(count).sum()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for place in &self.places {
            // Fails while a process is ending; the next sweep takes it.
            let _ = fs::remove_dir(&place.dir);
        }
    }
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(resources: serde_json::Value) -> Limits {
        Limits::of(&serde_json::from_value(serde_json::json!({"name": "c", "resources": resources})).unwrap())
    }

    #[test]
    fn limits_become_settings_of_both_kinds_of_groups() {
        let limits = limits(serde_json::json!({
            "limits": {"cpu": "1", "memory": "128Mi"}, "requests": {"cpu": "125m"}
        }));
        let all = ["cpu".to_owned(), "memory".to_owned()];
        let unified = limits.settings(Version::Unified, &all);
        let value = |list: &[(&str, String)], file: &str| {
            list.iter().find(|(name, _)| *name == file).map(|(_, value)| value.clone())
        };
        assert_eq!(value(&unified, "memory.max").unwrap(), "134217728");
        assert_eq!(value(&unified, "cpu.max").unwrap(), "100000 100000");
        assert_eq!(value(&unified, "cpu.weight").unwrap(), "5");
        let split = limits.settings(Version::Split, &all);
        assert_eq!(value(&split, "memory.limit_in_bytes").unwrap(), "134217728");
        assert_eq!(value(&split, "cpu.cfs_quota_us").unwrap(), "100000");
        assert_eq!(value(&split, "cpu.shares").unwrap(), "128");
        let memory_only = limits.settings(Version::Split, &all[1..]);
        assert_eq!(memory_only.len(), 1, "each hierarchy gets its own: {memory_only:?}");
    }

    #[test]
    fn a_request_alone_is_no_limit() {
        assert!(!limits(serde_json::json!({"requests": {"cpu": "25m", "memory": "1Gi"}})).is_limited());
        assert!(limits(serde_json::json!({"limits": {"memory": "1Gi"}})).is_limited());
        assert_eq!(limits(serde_json::json!({"limits": {"cpu": "0.5m"}})).cpu, Some(1));
    }
}
