//! The machine's control groups: one unified hierarchy, or one per controller.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Controllers that limits need.
const CONTROLLERS: [&str; 2] = ["cpu", "memory"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// Version 2.
    Unified,
    /// Version 1.
    Split,
}

#[derive(Debug)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    pub(super) controllers: Vec<String>,
    pub(super) mounted_at: PathBuf,
    /// The installation's own.
    pub(super) dir: PathBuf,
}

// === impl Hierarchy ===

impl Hierarchy {
    /// Removes groups in which nobody is any more.
    pub(super) fn sweep(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

/// Those with the controllers that limits need, each with a directory called `name`.
pub(super) fn find(name: &str) -> io::Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut found = parse(&mounts, |point| {
        let text = fs::read_to_string(point.join("cgroup.controllers")).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    });
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "neither cpu nor memory can be limited"));
    }
    for hierarchy in &mut found {
        hierarchy.dir = hierarchy.mounted_at.join(name);
        if hierarchy.version == Version::Unified {
            hand_down(&hierarchy.mounted_at, &hierarchy.controllers)?;
        }
        match fs::create_dir(&hierarchy.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if hierarchy.version == Version::Unified {
            hand_down(&hierarchy.dir, &hierarchy.controllers)?;
        }
    }
    Ok(found)
}

/// Lets the groups below `dir` use the controllers.
fn hand_down(dir: &Path, controllers: &[String]) -> io::Result<()> {
    let file = dir.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&file)?;
    let missing = |controller: &&String| !enabled.split_whitespace().any(|known| known == *controller);
    let wanted: Vec<String> = controllers.iter().filter(missing).map(|controller| format!("+{controller}")).collect();
    if wanted.is_empty() { Ok(()) } else { fs::write(&file, wanted.join(" ")) }
}

fn parse(mountinfo: &str, unified: impl Fn(&Path) -> Vec<String>) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (mut left, mut right) = (left.split(' '), right.split(' '));
        let Some(mounted_at) = left.nth(4).map(PathBuf::from) else { continue };
        let (kind, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
        let (version, mut controllers) = match kind {
            "cgroup2" => (Version::Unified, unified(&mounted_at)),
            "cgroup" => (Version::Split, options.split(',').map(str::to_owned).collect()),
            _ => continue,
        };
        controllers.retain(|controller: &String| {
            CONTROLLERS.contains(&controller.as_str())
                && !found.iter().any(|known: &Hierarchy| known.controllers.contains(controller))
        });
        if !controllers.is_empty() {
            found.push(Hierarchy { version, controllers, mounted_at, dir: PathBuf::new() });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_controller_is_found_once() {
        let split = "1 0 0:1 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
            2 1 0:2 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 - cgroup cgroup rw,cpu,cpuacct\n\
            3 1 0:3 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            4 1 0:4 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
            5 1 0:5 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            6 1 0:3 / /elsewhere/memory rw - cgroup cgroup rw,memory\n";
        let found = parse(split, |_| Vec::new());
        let points: Vec<_> = found.iter().map(|hierarchy| hierarchy.mounted_at.display().to_string()).collect();
        assert_eq!(points, ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory"]);
        assert_eq!(found[0].controllers, ["cpu"]);

        let unified = "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = parse(unified, |_| ["cpuset", "cpu", "io", "memory"].map(str::to_owned).to_vec());
        assert_eq!((found.len(), found[0].version), (1, Version::Unified));
        assert_eq!(found[0].controllers, ["cpu", "memory"]);
    }
}
