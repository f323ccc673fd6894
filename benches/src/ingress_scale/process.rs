//! CPU time and memory of other processes, from the kernel.

use anyhow::{Context, Result};

/// CPU time of all threads and of the first one, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    pub(crate) all: f64,
    pub(crate) main: f64,
}

pub(crate) fn cpu(pid: u32) -> Result<Cpu> {
    let mut cpu = Cpu { all: 0.0, main: 0.0 };
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).context("the process ended")? {
        let thread = thread?;
        let Ok(text) = std::fs::read_to_string(thread.path().join("schedstat")) else { continue };
        let nanos: f64 = text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_default();
        cpu.all += nanos / 1e6;
        if thread.file_name().to_string_lossy() == pid.to_string() {
            cpu.main += nanos / 1e6;
        }
    }
    Ok(cpu)
}

/// Resident memory now and at its highest, in MiB.
pub(crate) fn memory(pid: u32) -> (f64, f64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1024.0
    };
    (field("VmRSS:"), field("VmHWM:"))
}
