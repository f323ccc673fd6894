//! What a killed agent left. Namespaces have no names, so they end with their last process: an interface that is still
//! there means that a process is, too (a grandchild that nobody told to die). It is found by the namespace's inode,
//! recorded when the interface was made; the namespace lives, so the number cannot have been given to another.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::netlink::Netlink;
use crate::Error;

/// Removes the interfaces of all cells with this tag, after killing who lives in them.
pub(super) async fn remove(host: &Netlink, tag: &str, records: &Path) -> Result<(), Error> {
    let node = super::node_interface(tag);
    for link in host.named(&format!("pr{tag}-")).await? {
        if link.name == node || link.name == format!("{node}p") {
            continue;
        }
        let netns = fs::read_to_string(records.join(&link.name)).ok().and_then(|inode| inode.trim().parse().ok());
        if let Some(netns) = netns {
            let killed = kill_namespace(netns).await;
            if killed > 0 {
                tracing::warn!(interface = link.name, killed, "killed processes left by an earlier run");
            }
        }
        if let Err(error) = host.delete(link.index).await {
            tracing::debug!(interface = link.name, %error, "interface went by itself");
        }
    }
    for record in fs::read_dir(records).into_iter().flatten().flatten() {
        let _ = fs::remove_file(record.path());
    }
    Ok(())
}

/// Kills every process in the network namespace until none is found; says how many there were.
pub(crate) async fn kill_namespace(netns: u64) -> usize {
    let own = fs::metadata("/proc/self/ns/net").map(|meta| meta.ino()).unwrap_or_default();
    if netns == own {
        return 0;
    }
    let mut killed = 0;
    for _ in 0..100 {
        // Looking at every process takes milliseconds: not on a thread that others wait for.
        let found = tokio::task::spawn_blocking(move || processes_in(netns)).await.unwrap_or_default();
        if found.is_empty() {
            break;
        }
        killed = killed.max(found.len());
        for pid in found {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    killed
}

fn processes_in(netns: u64) -> Vec<Pid> {
    let own = std::process::id().cast_signed();
    let pid_of = |entry: fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let inode = fs::metadata(entry.path().join("ns/net")).ok()?.ino();
        (pid != own && inode == netns).then(|| Pid::from_raw(pid)).flatten()
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(pid_of).collect()
}
