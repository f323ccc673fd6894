//! Processes of earlier runs and of containers that ended: found by session, and killed without hitting others.
//!
//! Every container's main process leads a session, which its descendants belong to unless they leave it. The kernel
//! gives a process number to nobody else while it still names a session, so a session whose leader is dead can be
//! killed by its number; one whose leader lives is ours only if the leader's start time is the recorded one.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal};

/// What `/proc/PID/stat` says that we need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    session: i32,
    started: u64,
    zombie: bool,
}

/// Notes a started process, so that the next run finds it if this one is killed.
pub(crate) fn record(dir: &Path, pid: i32) {
    let Some(stat) = stat(pid) else { return };
    if let Err(error) = fs::write(dir.join(pid.to_string()), stat.started.to_string()) {
        tracing::debug!(%error, pid, "process not recorded");
    }
}

pub(crate) fn forget(dir: &Path, pid: i32) {
    let _ = fs::remove_file(dir.join(pid.to_string()));
}

/// Kills what an earlier run recorded and left.
pub(crate) fn kill_recorded(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let pid: Option<i32> = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let started: Option<u64> = fs::read_to_string(entry.path()).ok().and_then(|text| text.trim().parse().ok());
        if let (Some(pid), Some(started)) = (pid, started) {
            let another = stat(pid).is_some_and(|stat| stat.started != started);
            if !another && kill_session(pid) > 0 {
                tracing::warn!(pid, "killed a process left by an earlier run");
            }
        }
        let _ = fs::remove_file(entry.path());
    }
}

/// Kills every process of the session that `leader` leads or led; says how many.
pub(crate) fn kill_session(leader: i32) -> usize {
    let member = |pid: &i32| stat(*pid).is_some_and(|stat| stat.session == leader && !stat.zombie);
    let members: Vec<i32> = all().filter(member).collect();
    for pid in &members {
        if let Some(pid) = Pid::from_raw(*pid) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    members.len()
}

fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn stat(pid: i32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(text: &str) -> Option<Stat> {
    // The name in parentheses may contain anything.
    let fields: Vec<&str> = text.get(text.rfind(')')? + 2..)?.split(' ').collect();
    Some(Stat {
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
        zombie: *fields.first()? == "Z",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_is_no_trouble() {
        let text = "7 (a) b) S 1 7 5 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        assert_eq!(parse(text), Some(Stat { session: 5, started: 4242, zombie: false }));
        assert!(stat(std::process::id().cast_signed()).is_some());
    }
}
