//! The only unsafe code of the crate: leaving the host's namespaces, and what a child does between fork and exec.
#![allow(unsafe_code, reason = "unshare and pre_exec have no safe form")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::Signal;
use rustix::thread::UnshareFlags;

/// Gives this thread network, host name and IPC namespaces of its own (`network`), and a mount namespace.
pub(super) fn leave_host(network: bool) -> io::Result<()> {
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::FS;
    if network {
        flags |= UnshareFlags::NEWNET | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    }
    // SAFETY: the dangerous flag is FILES, which would leave other threads with file descriptors this one cannot see;
    // it is not among them.
    unsafe { rustix::thread::unshare_unsafe(flags) }?;
    Ok(())
}

/// Gives this thread a fresh copy of the mount namespace it is in.
pub(super) fn copy_mounts() -> io::Result<()> {
    // SAFETY: as above.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?;
    Ok(())
}

/// The child leads its own session (so that it and its descendants can be found and killed together) and dies with
/// the thread that starts it.
pub(super) fn tie_to_this_thread(command: &mut Command, no_new_privileges: bool) {
    let prepare = move || {
        rustix::process::setsid()?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if no_new_privileges {
            rustix::thread::set_no_new_privs(true)?;
        }
        Ok(())
    };
    // SAFETY: only system calls, no allocation and no locks, between fork and exec.
    unsafe { command.pre_exec(prepare) };
}
