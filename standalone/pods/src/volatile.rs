//! Files that live no longer than the agent: content of volumes, termination messages, the list of processes.
//!
//! As the kubelet does with Secrets, they are kept in memory: on a tmpfs that is mounted at the start and taken away at
//! the end, so keys do not reach the disk and a pod's start waits for no file system journal. A killed agent leaves the
//! tmpfs with the list of its processes in it, which the next start reads before it takes the mount away. Who may not
//! mount gets a plain directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{Error, process};

/// Everyone may look in; the files carry the modes their volumes ask for.
const OPTIONS: &std::ffi::CStr = c"mode=0755";

#[derive(Debug)]
pub(crate) struct Volatile {
    path: PathBuf,
    mounted: bool,
}

// === impl Volatile ===

impl Volatile {
    /// Ends what an earlier agent left below `path` and starts afresh, on a tmpfs of its own if `may_mount`.
    pub(crate) fn prepare(path: PathBuf, may_mount: bool) -> Result<Self, Error> {
        process::kill_recorded(&path.join("processes"));
        if may_mount {
            take_away(&path);
        }
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::file(&path)(error)),
            _ => fs::create_dir_all(&path).map_err(Error::file(&path))?,
        }
        let mount = || mount("tmpfs", &path, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, OPTIONS);
        let mounted = may_mount
            && mount()
                .inspect_err(|error| tracing::warn!(%error, path = %path.display(), "no tmpfs for files of pods: they go to the disk"))
                .is_ok();
        let volatile = Self { path, mounted };
        fs::create_dir_all(volatile.processes()).map_err(Error::file(volatile.processes()))?;
        Ok(volatile)
    }

    pub(crate) fn processes(&self) -> PathBuf {
        self.path.join("processes")
    }

    pub(crate) fn pod(&self, uid: &str) -> PathBuf {
        self.path.join("pods").join(uid)
    }

    /// Kills what is still recorded and removes the mount. Calling it again does nothing.
    pub(crate) fn remove(&self) {
        process::kill_recorded(&self.processes());
        if self.mounted {
            take_away(&self.path);
        }
    }
}

/// Unmounts everything mounted there, also when some process still stands in it.
fn take_away(path: &Path) {
    while is_mount_point(path) && unmount(path, UnmountFlags::DETACH).is_ok() {}
}

/// Whether another file system begins at `path`.
fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev());
    match (device(path), path.parent().map(device)) {
        (Ok(own), Some(Ok(parent))) => own != parent,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounted(path: &Path) -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.lines().any(|line| line.split(' ').nth(4) == path.to_str())
    }

    #[test]
    fn what_a_killed_agent_left_is_replaced_and_the_end_leaves_nothing() {
        let may_mount = rustix::process::geteuid().is_root();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let killed = Volatile::prepare(path.clone(), may_mount).unwrap();
        fs::create_dir_all(killed.pod("u")).unwrap();
        fs::write(killed.pod("u").join("secret"), "x").unwrap();
        assert_eq!(mounted(&path), may_mount);
        let volatile = Volatile::prepare(path.clone(), may_mount).unwrap();
        assert!(!volatile.pod("u").exists(), "a new agent starts with nothing");
        assert!(volatile.processes().is_dir());
        volatile.remove();
        volatile.remove();
        assert!(!mounted(&path), "nothing is left mounted");
    }
}
