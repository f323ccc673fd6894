//! The file system a container sees: the host's, with the container's own files and volumes in it, and no way back.
//!
//! A tmpfs that only this mount namespace knows takes every write: an overlay with the host's root below and the tmpfs
//! above, one more overlay for each other file system mounted on the host, and one for `/dev`. Files the platform
//! provides (`resolv.conf`, `hosts`) are put into the upper layer before the overlay is mounted. Volumes are cloned
//! as detached mounts before the root changes and attached after it, so that a symbolic link on their path (such as
//! `/var/run`) resolves inside the container and can never lead to the host. When the container's last process ends,
//! the namespace, the tmpfs and all of it are gone without anyone cleaning up.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind_recursive,
    mount_change, mount_remount, move_mount, open_tree, unmount,
};

/// Bound of what a container may write outside its volumes.
const WRITABLE_LAYER: &str = "mode=0755,size=1g";
/// More file systems than this on the host are not shown to containers.
const MAX_HOST_MOUNTS: usize = 48;

/// One volume at its place.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    /// A file or directory of the host.
    pub(crate) source: PathBuf,
    /// A path below `source`, made if missing, that must not leave it.
    pub(crate) sub_path: Option<String>,
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
}

/// What a container's file system consists of.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    /// An empty directory of the host that the root is built over. Shared: each builds in its own namespace.
    pub(crate) scratch: PathBuf,
    pub(crate) host: Arc<HostMounts>,
    /// Files put into the root, by absolute path.
    pub(crate) files: Vec<(PathBuf, String)>,
    pub(crate) mounts: Vec<Mount>,
    /// Directories of the container's control group, and where it looks for them.
    pub(crate) groups: Vec<(PathBuf, PathBuf)>,
    pub(crate) read_only: bool,
}

/// The file systems of the host that containers see, besides the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostMounts {
    points: Vec<PathBuf>,
    /// `/sys` and what is mounted in it.
    kernel: Vec<PathBuf>,
    /// Hidden from containers: the agent's state with keys and secrets.
    hidden: Vec<PathBuf>,
}

// === impl HostMounts ===

impl HostMounts {
    pub(crate) fn read(hidden: &[PathBuf]) -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?, hidden))
    }

    /// Whether containers do not see this file of the host.
    pub(crate) fn hides(&self, file: &Path) -> bool {
        self.hidden.iter().any(|hidden| file.starts_with(hidden)) || special(file)
    }

    fn parse(mountinfo: &str, hidden: &[PathBuf]) -> Self {
        // A directory before those below it.
        let mut hidden = hidden.to_vec();
        hidden.sort();
        let is_hidden = |point: &Path| hidden.iter().any(|hidden| point.starts_with(hidden));
        let mounted = mountinfo.lines().filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let point = PathBuf::from(unescape(left.split(' ').nth(4)?));
            Some((point, right.split(' ').next()?))
        });
        let (mut points, mut kernel) = (Vec::new(), Vec::new());
        for (point, kind) in mounted {
            if point.starts_with("/sys") {
                kernel.push(point);
            } else if shown(kind) && !special(&point) && !is_hidden(&point) {
                points.push(point);
            }
        }
        kernel.sort();
        kernel.dedup();
        points.sort();
        points.dedup();
        if points.len() > MAX_HOST_MOUNTS {
            let left_out = points.len() - MAX_HOST_MOUNTS;
            tracing::warn!(left_out, "too many mounted file systems; containers do not see the last ones");
            points.truncate(MAX_HOST_MOUNTS);
        }
        Self { points, kernel, hidden }
    }
}

fn special(point: &Path) -> bool {
    point == Path::new("/") || ["/proc", "/sys", "/dev", "/run"].iter().any(|special| point.starts_with(special))
}

/// Kinds of file systems that hold files of people, not of the kernel.
fn shown(kind: &str) -> bool {
    const KINDS: [&str; 19] = [
        "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "overlay", "nfs", "nfs4", "cifs", "9p",
        "virtiofs", "vfat", "exfat", "squashfs", "erofs", "tmpfs",
    ];
    KINDS.contains(&kind) || kind.starts_with("fuse")
}

/// mountinfo writes space, tab, newline and backslash as octal.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

// === impl Root ===

impl Root {
    /// Builds the root in this thread's mount namespace, which must be its own, and makes it the thread's root. The
    /// error says which step failed.
    pub(super) fn build(&self) -> Result<(), String> {
        // Nothing done here may travel back to the host.
        step("private mounts", mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC))?;
        let volumes = self.mounts.iter().map(clone_volume).collect::<Result<Vec<_>, _>>()?;

        let scratch = self.scratch.as_path();
        let layer = CString::new(WRITABLE_LAYER).expect("no NUL in a literal");
        step("scratch", mount("tmpfs", scratch, "tmpfs", MountFlags::NODEV, layer.as_c_str()))?;
        let root = scratch.join("root");
        step("root", fs::create_dir(&root))?;
        let upper = Layer::new(scratch, "0")?;
        for (path, content) in &self.files {
            let file = upper.path().join(path.strip_prefix("/").unwrap_or(path));
            step("files", file.parent().map_or(Ok(()), fs::create_dir_all))?;
            step("files", fs::write(&file, content))?;
        }
        upper.mount(Path::new("/"), &root)?;
        for (n, point) in self.host.points.iter().enumerate() {
            let target = root.join(point.strip_prefix("/").unwrap_or(point));
            // A file system that cannot lie under an overlay, or a file: left out rather than shared writable.
            if point.is_dir() && target.is_dir() {
                let laid = Layer::new(scratch, &format!("m{n}")).and_then(|layer| layer.mount(point, &target));
                if let Err(error) = laid {
                    tracing::debug!(point = %point.display(), error, "not shown to containers");
                }
            }
        }
        for kernel in ["proc", "sys"] {
            step(kernel, mount_bind_recursive(Path::new("/").join(kernel), root.join(kernel)))?;
        }
        self.kernel(&root)?;
        self.devices(scratch, &root)?;

        change_root(&root)?;
        self.hide()?;
        for (volume, mount) in volumes.into_iter().zip(&self.mounts) {
            attach(volume, mount).map_err(|error| format!("mount at {}: {error}", mount.target.display()))?;
        }
        if self.read_only {
            step("read-only root", mount_remount("/", MountFlags::BIND | MountFlags::RDONLY, c""))?;
        }
        Ok(())
    }

    /// What the kernel can be told through files is not for containers; each sees its own control group.
    fn kernel(&self, root: &Path) -> Result<(), String> {
        let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
        for (dir, shown_at) in &self.groups {
            step("control group", mount_bind_recursive(dir, inside(shown_at)))?;
        }
        let settings = root.join("proc/sys");
        step("proc/sys", mount_bind_recursive(&settings, &settings))?;
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        step("proc/sys", mount_remount(&settings, flags, c""))?;
        let groups = self.groups.iter().map(|(_, shown_at)| shown_at);
        for point in self.host.kernel.iter().chain(groups) {
            step("sys", mount_remount(inside(point), flags, c""))?;
        }
        Ok(())
    }

    fn devices(&self, scratch: &Path, root: &Path) -> Result<(), String> {
        let dev = root.join("dev");
        Layer::new(scratch, "dev")?.mount(Path::new("/dev"), &dev)?;
        // The machine's console is not for containers without a terminal.
        let _ = fs::remove_file(dev.join("console"));
        if Path::new("/dev/pts").is_dir() {
            step("dev/pts", mount_bind_recursive("/dev/pts", dev.join("pts")))?;
        }
        let shm = dev.join("shm");
        step("dev/shm", fs::create_dir_all(&shm))?;
        let flags = MountFlags::NODEV | MountFlags::NOSUID;
        step("dev/shm", mount("tmpfs", &shm, "tmpfs", flags, c"mode=1777,size=64m"))
    }

    fn hide(&self) -> Result<(), String> {
        for hidden in self.host.hidden.iter().filter(|hidden| hidden.is_dir()) {
            step("hide state", mount("tmpfs", hidden, "tmpfs", MountFlags::NODEV, c"mode=0755,size=16k"))?;
        }
        Ok(())
    }
}

/// Upper and work directory of one overlay.
struct Layer {
    base: PathBuf,
    name: String,
}

impl Layer {
    fn new(scratch: &Path, name: &str) -> Result<Self, String> {
        let layer = Self { base: scratch.to_owned(), name: name.to_owned() };
        step("layer", fs::create_dir(layer.path()))?;
        step("layer", fs::create_dir(scratch.join(format!("w{name}"))))?;
        Ok(layer)
    }

    fn path(&self) -> PathBuf {
        self.base.join(format!("u{}", self.name))
    }

    fn mount(&self, lower: &Path, target: &Path) -> Result<(), String> {
        // The upper directory decides the merged directory's mode and owner.
        if let Ok(meta) = lower.metadata() {
            let _ = fs::set_permissions(self.path(), meta.permissions());
            let _ = std::os::unix::fs::chown(
                self.path(),
                Some(std::os::unix::fs::MetadataExt::uid(&meta)),
                Some(std::os::unix::fs::MetadataExt::gid(&meta)),
            );
        }
        let escape = |path: &Path| path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,");
        let work = self.base.join(format!("w{}", self.name));
        let data = format!("lowerdir={},upperdir={},workdir={}", escape(lower), escape(&self.path()), escape(&work));
        let data = CString::new(data).map_err(|error| error.to_string())?;
        mount("overlay", target, "overlay", MountFlags::empty(), data.as_c_str())
            .map_err(|error| format!("overlay of {}: {error}", lower.display()))
    }
}

/// Makes `root` the root of this namespace and drops the old one.
fn change_root(root: &Path) -> Result<(), String> {
    step("enter root", rustix::process::chdir(root))?;
    step("pivot", rustix::process::pivot_root(".", "."))?;
    step("leave host", unmount(".", UnmountFlags::DETACH))?;
    step("enter root", rustix::process::chdir("/"))
}

fn clone_volume(volume: &Mount) -> Result<OwnedFd, String> {
    let name = volume.source.display();
    let base = match &volume.sub_path {
        None => volume.source.clone(),
        Some(sub) => return clone_sub_path(&volume.source, sub).map_err(|error| format!("subPath {sub}: {error}")),
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, &base, flags).map_err(|error| format!("volume at {name}: {error}"))
}

/// The tree at `sub` below `base`, with links on the way resolved as if `base` were the root.
fn clone_sub_path(base: &Path, sub: &str) -> io::Result<OwnedFd> {
    let mut parts = Vec::new();
    for part in Path::new(sub).components() {
        match part {
            Component::Normal(part) => parts.push(part),
            Component::CurDir => {}
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "must be a relative path without '..'")),
        }
    }
    let open = |dir: &OwnedFd, path: &Path, flags: OFlags| {
        rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
    };
    let base = rustix::fs::open(base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut here = open(&base, Path::new("."), OFlags::PATH)?;
    let mut walked = PathBuf::new();
    for part in parts {
        walked.push(part);
        here = match open(&base, &walked, OFlags::PATH) {
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&here, part, Mode::from_raw_mode(0o750))?;
                open(&base, &walked, OFlags::PATH)?
            }
            opened => opened?,
        };
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(&here, "", flags | OpenTreeFlags::AT_RECURSIVE)?)
}

/// Attaches a cloned tree at its place in the new root, which is this thread's root already.
fn attach(volume: OwnedFd, mount: &Mount) -> io::Result<()> {
    let target = Path::new("/").join(&mount.target);
    let is_dir =
        rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&volume)?.st_mode) == rustix::fs::FileType::Directory;
    if is_dir {
        fs::create_dir_all(&target)?;
    } else if !target.exists() {
        target.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::File::create(&target)?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    move_mount(volume.as_fd(), "", CWD, &target, flags)?;
    if mount.read_only {
        mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY, c"")?;
    }
    Ok(())
}

fn step<E: std::fmt::Display>(what: &str, result: Result<(), E>) -> Result<(), String> {
    result.map_err(|error| format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_file_systems_of_people_are_shown() {
        let mountinfo = "1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 8:2 / /home rw shared:1 - xfs /dev/sdb rw\n\
            3 1 0:1 / /proc rw - proc proc rw\n4 1 0:2 / /sys/fs/cgroup rw - tmpfs t rw\n\
            5 1 8:3 / /data/my\\040disk rw - ext4 /dev/sdc rw\n6 1 8:3 / /var/lib/postrider/x rw - ext4 /dev/sdc rw\n\
            7 1 0:9 / /run/netns/a rw - nsfs nsfs rw\n";
        let mounts = HostMounts::parse(mountinfo, &["/var/lib/postrider".into()]);
        assert_eq!(mounts.points, [PathBuf::from("/data/my disk"), PathBuf::from("/home")]);
        assert_eq!(mounts.kernel, [PathBuf::from("/sys/fs/cgroup")], "made read-only");
    }
}
