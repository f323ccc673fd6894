//! The only unsafe code of the crate: leaving the host's namespaces, and starting a process.
//!
//! The standard library starts a process that needs preparation by a real fork, which copies the page tables of the
//! whole program: 2 ms at 80 MiB, 12 ms at 160 MiB, twice per pod, paid by every cold start. [`start`] does what
//! `posix_spawn` does inside (a child that borrows the memory until it executes its program, 0.1 ms whatever the size),
//! and adds what `posix_spawn` cannot: a session of its own, another user, and death with the thread that made it.
#![allow(unsafe_code, reason = "unshare and a cheap start of prepared processes have no safe form")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::{Gid, Uid, UnshareFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What a process is started with. Everything is ready: between its start and its program it must not allocate.
pub(super) struct Prepared<'a> {
    pub(super) program: &'a CStr,
    pub(super) argv: &'a [CString],
    pub(super) env: &'a [CString],
    pub(super) working_dir: &'a CStr,
    pub(super) stdio: [BorrowedFd<'a>; 3],
    /// What it writes `0` into to enter its control group.
    pub(super) doors: &'a [BorrowedFd<'a>],
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) no_new_privileges: bool,
}

/// Bits for every signal there is.
type SignalSet = [u64; 16];

struct Child<'a> {
    prepared: &'a Prepared<'a>,
    argv: *const *const c_char,
    env: *const *const c_char,
    mask: SignalSet,
    /// Written by the child if it cannot become its program.
    error: i32,
}

const CLONE_VM: c_int = 0x100;
const CLONE_VFORK: c_int = 0x4000;
const SIGCHLD: c_int = 17;
const SIG_SETMASK: c_int = 2;
const SIG_DFL: usize = 0;
const SIGNALS: std::ops::RangeInclusive<c_int> = 1..=64;
const STACK: usize = 64 * 1024;

// Part of the C library that every Rust program of this target links.
unsafe extern "C" {
    fn clone(
        run: extern "C" fn(*mut c_void) -> c_int,
        stack: *mut c_void,
        flags: c_int,
        arg: *mut c_void,
        ...
    ) -> c_int;
    fn execve(path: *const c_char, argv: *const *const c_char, env: *const *const c_char) -> c_int;
    fn pthread_sigmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn signal(number: c_int, handler: usize) -> usize;
}

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

/// Starts the program. It leads its own session (so that it and its descendants can be found and killed together) and
/// dies with the calling thread. Returns when the program runs, or with the reason why it does not.
pub(super) fn start(prepared: &Prepared<'_>) -> io::Result<Pid> {
    let pointers =
        |list: &[CString]| list.iter().map(|item| item.as_ptr()).chain([ptr::null()]).collect::<Vec<*const c_char>>();
    let (argv, env) = (pointers(prepared.argv), pointers(prepared.env));
    let mut child = Child { prepared, argv: argv.as_ptr(), env: env.as_ptr(), mask: [0; 16], error: 0 };
    // Aligned as every ABI wants it.
    let mut stack = vec![0u128; STACK / size_of::<u128>()];
    let all: SignalSet = [u64::MAX; 16];
    // SAFETY: the child borrows this thread's memory and this thread sleeps until the child has executed or exited
    // (VFORK), so `child`, `argv`, `env` and `stack` outlive its use of them and nothing is used by both at once. It runs
    // on a stack of its own. Signals are blocked before, so that no handler of this program runs in the child; its
    // table of handlers and of file descriptors is a copy. In between it makes only system calls.
    let number = unsafe {
        pthread_sigmask(SIG_SETMASK, &raw const all, &raw mut child.mask);
        let top = stack.as_mut_ptr_range().end.cast::<c_void>();
        let number = clone(become_program, top, CLONE_VM | CLONE_VFORK | SIGCHLD, (&raw mut child).cast());
        let failed = io::Error::last_os_error();
        pthread_sigmask(SIG_SETMASK, &raw const child.mask, ptr::null_mut());
        if number < 0 {
            return Err(failed);
        }
        number
    };
    let pid = Pid::from_raw(number).expect("clone gives a process number");
    // SAFETY: `child` is valid; the volatile read keeps the compiler from assuming that nobody wrote it.
    let error = unsafe { ptr::read_volatile(&raw const child.error) };
    if error != 0 {
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
        return Err(io::Error::from_raw_os_error(error));
    }
    Ok(pid)
}

/// Tells the runtime to say when `handle` is readable: for a process, when it has ended.
pub(super) fn watch(handle: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor is the same open file for as long as the value lives.
    Ok(unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) }?)
}

extern "C" fn become_program(child: *mut c_void) -> c_int {
    // SAFETY: `start` passes a valid pointer and does not touch it while this runs.
    let child = unsafe { &mut *child.cast::<Child<'_>>() };
    let error = match prepare(child.prepared) {
        Ok(()) => {
            // SAFETY: the arrays end with null and the strings with NUL. Handlers are put back before signals are let
            // in, as they belong to the program whose memory this is.
            unsafe {
                for number in SIGNALS {
                    signal(number, SIG_DFL);
                }
                pthread_sigmask(SIG_SETMASK, &raw const child.mask, ptr::null_mut());
                execve(child.prepared.program.as_ptr(), child.argv, child.env);
            }
            io::Error::last_os_error().raw_os_error().unwrap_or(1)
        }
        Err(error) => error.raw_os_error(),
    };
    // SAFETY: as above.
    unsafe { ptr::write_volatile(&raw mut child.error, error) };
    127
}

fn prepare(prepared: &Prepared<'_>) -> Result<(), Errno> {
    for door in prepared.doors {
        rustix::io::write(door, b"0")?;
    }
    for (number, fd) in (0..).zip(prepared.stdio) {
        // SAFETY: not dropped, so nobody's descriptor is closed; the number is one of the standard ones, which the child
        // is about to give to its program.
        let mut target = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
        rustix::io::dup2(fd.as_fd(), &mut target)?;
    }
    rustix::process::chdir(prepared.working_dir)?;
    rustix::process::setsid()?;
    if let Some(gid) = prepared.gid {
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_gid(Gid::from_raw(gid))?;
    }
    if let Some(uid) = prepared.uid {
        if prepared.gid.is_none() {
            rustix::thread::set_thread_groups(&[])?;
        }
        rustix::thread::set_thread_uid(Uid::from_raw(uid))?;
    }
    if prepared.no_new_privileges {
        rustix::thread::set_no_new_privs(true)?;
    }
    // Last, as a change of user clears it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
}
