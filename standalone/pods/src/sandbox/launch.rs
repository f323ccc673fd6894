//! Starting one process: the program is looked up inside the container's root, then fork and exec.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::child::Child;
use super::{Inside, Root, isolate};
use crate::groups::Group;

/// Where programs are looked for if the container's environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One process to start.
#[derive(Debug, Default)]
pub(crate) struct Launch {
    /// Program and arguments; never empty.
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) working_dir: PathBuf,
    /// Used when `working_dir` does not exist and was not asked for by the user.
    pub(crate) working_dir_required: bool,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) no_new_privileges: bool,
    /// The container's file system; `None` runs in the host's.
    pub(crate) root: Option<Root>,
    /// Which the process is in from its first instruction.
    pub(crate) group: Option<Arc<Group>>,
}

/// A started process and what is needed to look after it.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) child: Child,
    /// The container's mount namespace, to run probes and hooks in.
    pub(crate) mounts: Option<OwnedFd>,
}

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The program is not there or cannot be executed: the user's mistake.
    #[error("{0}")]
    Program(String),
    /// The surroundings could not be made.
    #[error("cannot make the container's file system: {0}")]
    Root(String),
}

// === impl Launch ===

impl Launch {
    fn doors(&self) -> Result<Vec<OwnedFd>, StartError> {
        let opened = self.group.as_ref().map(|group| group.doors()).transpose();
        opened.map(Option::unwrap_or_default).map_err(|error| StartError::Root(format!("control group: {error}")))
    }
}

// === impl Inside ===

impl Inside {
    /// Starts a process in this thread's namespaces, in a root of its own if it has one.
    pub(crate) fn launch(&mut self, launch: &Launch) -> Result<Launched, StartError> {
        // The container sees its group elsewhere.
        let doors = launch.doors()?;
        let Some(root) = &launch.root else { return self.spawn(launch, &doors, None) };
        let started = self.own_mounts().map_err(|error| StartError::Root(error.to_string())).and_then(|()| {
            root.build().map_err(StartError::Root)?;
            let mounts = std::fs::File::open("/proc/thread-self/ns/mnt").map_err(in_root)?;
            self.spawn(launch, &doors, Some(mounts.into()))
        });
        self.return_to_host();
        started
    }

    /// Starts a process in the root of a running container.
    pub(crate) fn launch_in(&mut self, mounts: Option<&OwnedFd>, launch: &Launch) -> Result<Launched, StartError> {
        let doors = launch.doors()?;
        let Some(mounts) = mounts else { return self.spawn(launch, &doors, None) };
        move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))
            .map_err(|error| StartError::Root(error.to_string()))?;
        let started = self.spawn(launch, &doors, None);
        self.return_to_host();
        started
    }

    fn own_mounts(&self) -> io::Result<()> {
        isolate::copy_mounts()
    }

    fn return_to_host(&self) {
        let Some(host) = &self.host_mounts else { return };
        let moved = move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Mount));
        if let Err(error) = moved {
            tracing::error!(%error, "a pod's thread cannot return to the host's file system");
        }
    }

    fn spawn(&self, launch: &Launch, doors: &[OwnedFd], mounts: Option<OwnedFd>) -> Result<Launched, StartError> {
        let name = launch.argv.first().map(String::as_str).unwrap_or_default();
        let working_dir = match launch.working_dir.is_dir() {
            true => launch.working_dir.as_path(),
            false if !launch.working_dir_required => Path::new("/"),
            false => {
                let dir = launch.working_dir.display();
                return Err(StartError::Program(format!("working directory {dir} does not exist")));
            }
        };
        let path = launch.env.iter().rev().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
        let program = find_program(name, path, working_dir)?;
        let child = self.start(launch, doors, program, working_dir);
        let child = child.map_err(|error| StartError::Program(format!("exec: {name:?}: {error}")))?;
        Ok(Launched { child, mounts })
    }

    fn start(&self, launch: &Launch, doors: &[OwnedFd], program: PathBuf, working_dir: &Path) -> io::Result<Child> {
        let null = std::fs::File::open("/dev/null")?;
        let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let argv = launch.argv.iter().map(|word| CString::new(word.as_bytes())).collect::<Result<Vec<_>, _>>()?;
        let env = launch.env.iter().map(|(name, value)| CString::new(format!("{name}={value}")));
        let env = env.collect::<Result<Vec<_>, _>>()?;
        let doors: Vec<_> = doors.iter().map(AsFd::as_fd).collect();
        let _runtime = self.runtime.enter();
        let pid = isolate::start(&isolate::Prepared {
            program: &CString::new(program.into_os_string().into_vec())?,
            argv: &argv,
            env: &env,
            working_dir: &CString::new(working_dir.as_os_str().as_encoded_bytes())?,
            doors: &doors,
            stdio: [null.as_fd(), child_stdout.as_fd(), child_stderr.as_fd()],
            uid: launch.uid,
            gid: launch.gid,
            no_new_privileges: launch.no_new_privileges,
        })?;
        Child::new(pid, stdout, stderr)
    }
}

fn in_root(error: io::Error) -> StartError {
    StartError::Root(error.to_string())
}

/// The file that `name` means: itself if it has a slash, otherwise the first executable of that name in `path`.
fn find_program(name: &str, path: &str, working_dir: &Path) -> Result<PathBuf, StartError> {
    if name.contains('/') {
        let file = working_dir.join(name);
        return match file.metadata() {
            Ok(meta) if meta.is_dir() => Err(StartError::Program(format!("exec: {name:?}: is a directory"))),
            Ok(meta) if meta.permissions().mode() & 0o111 == 0 => {
                Err(StartError::Program(format!("exec: {name:?}: permission denied")))
            }
            Ok(_) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StartError::Program(format!("exec: {name:?}: stat {name}: no such file or directory")))
            }
            Err(error) => Err(StartError::Program(format!("exec: {name:?}: {error}"))),
        };
    }
    let executable =
        |file: &PathBuf| file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    path.split(':')
        .filter(|dir| !dir.is_empty())
        .map(|dir| working_dir.join(dir).join(name))
        .find(executable)
        .ok_or_else(|| StartError::Program(format!("exec: {name:?}: executable file not found in $PATH")))
}
