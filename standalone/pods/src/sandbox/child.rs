//! A started process: its output and its end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe::Receiver;

use super::isolate;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
}

/// A process of ours. Dropping it leaves the process running, and takes its status when it ends.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) stdout: Option<Receiver>,
    pub(crate) stderr: Option<Receiver>,
    handle: Option<AsyncFd<OwnedFd>>,
    exit: Option<Exit>,
}

// === impl Exit ===

impl Exit {
    /// The code a shell would report: 128 + signal for a process that was killed.
    pub(crate) fn code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        }
    }
}

// === impl Child ===

impl Child {
    /// Needs a runtime.
    pub(super) fn new(pid: Pid, stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Self> {
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self {
            pid: pid.as_raw_nonzero().get(),
            stdout: Some(Receiver::from_owned_fd(stdout)?),
            stderr: Some(Receiver::from_owned_fd(stderr)?),
            handle: Some(isolate::watch(handle)?),
            exit: None,
        })
    }

    /// Waits for the end. Can be dropped and called again.
    pub(crate) async fn wait(&mut self) -> Exit {
        if let Some(exit) = self.exit {
            return exit;
        }
        let exit = match &self.handle {
            Some(handle) => ended(handle).await,
            None => Exit::Signal(9),
        };
        self.exit = Some(exit);
        exit
    }
}

async fn ended(handle: &AsyncFd<OwnedFd>) -> Exit {
    loop {
        let Ok(mut ready) = handle.readable().await else { return Exit::Signal(9) };
        match waitid(WaitId::PidFd(handle.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(status)) => {
                return match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Exit::Code(code),
                    (None, signal) => Exit::Signal(signal.unwrap_or(9)),
                };
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => ready.clear_ready(),
            // Somebody else took the status.
            Err(_) => return Exit::Signal(9),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Otherwise the process would stay as a zombie.
        if let (None, Some(handle)) = (self.exit, self.handle.take())
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { ended(&handle).await });
        }
    }
}
