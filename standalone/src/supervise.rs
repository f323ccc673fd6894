//! Children that never outlive this process, however it ends.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// A command that runs `program` so that the kernel kills it when the thread that starts it ends. Start it from the
/// main thread.
pub fn command(program: &OsStr) -> Result<tokio::process::Command> {
    let own: PathBuf = std::env::current_exe().context("cannot find my own executable")?;
    let mut command = tokio::process::Command::new(own);
    command.arg("supervised").arg("--").arg(program);
    Ok(command)
}

/// The child's side of [`command`]: ties its life to the parent's and becomes the program.
pub fn exec(command: &[OsString]) -> Result<()> {
    let Some((program, arguments)) = command.split_first() else { bail!("no program named") };
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot tie the child to its parent")?;
    if getppid().is_none_or(|parent| parent.is_init()) {
        bail!("the parent is gone already");
    }
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}
