//! What the kernel knows of this process, under the names that every Prometheus client gives it.

use std::fs;

use crate::Registry;

/// Of `/proc/PID/stat`, fixed on Linux.
const TICKS_PER_SECOND: f64 = 100.0;
const PAGE: f64 = 4096.0;

impl Registry {
    /// Looks at the process whenever somebody scrapes.
    pub fn describe_process(&self) {
        self.on_render(|registry| {
            let gauge = |name, help, value: Option<f64>| {
                if let Some(value) = value {
                    registry.gauge(name, help, &[]).set(value);
                }
            };
            let stat = Stat::read();
            let of = |number: fn(&Stat) -> f64| stat.as_ref().map(number);
            if let Some(seconds) = of(|stat| stat.cpu) {
                let help = "Total user and system CPU time spent in seconds.";
                registry.total("process_cpu_seconds_total", help, &[]).set(seconds);
            }
            gauge("process_resident_memory_bytes", "Resident memory size in bytes.", of(|stat| stat.resident));
            gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", of(|stat| stat.virtual_size));
            let help = "Start time of the process since unix epoch in seconds.";
            gauge("process_start_time_seconds", help, of(|stat| stat.started));
            let open = fs::read_dir("/proc/self/fd").ok().map(|list| list.count() as f64);
            gauge("process_open_fds", "Number of open file descriptors.", open);
            gauge("process_max_fds", "Maximum number of open file descriptors.", most_files());
        });
    }
}

struct Stat {
    cpu: f64,
    started: f64,
    virtual_size: f64,
    resident: f64,
}

// === impl Stat ===

impl Stat {
    fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        // The name before may contain anything.
        let fields: Vec<f64> = text.rsplit(") ").next()?.split(' ').map(|field| field.parse().unwrap_or(0.0)).collect();
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Self {
            cpu: (field(14)? + field(15)?) / TICKS_PER_SECOND,
            started: booted()? + field(22)? / TICKS_PER_SECOND,
            virtual_size: field(23)?,
            resident: field(24)? * PAGE,
        })
    }
}

/// When the machine was started.
fn booted() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

fn most_files() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_process_is_described() {
        let registry = Registry::new();
        registry.describe_process();
        let text = registry.render();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            line.trim().parse().expect("a number")
        };
        assert!(value("process_open_fds ") >= 3.0);
        assert!(value("process_resident_memory_bytes ") > 100_000.0);
        assert!(value("process_virtual_memory_bytes ") >= value("process_resident_memory_bytes "));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after it").as_secs_f64();
        let started = value("process_start_time_seconds ");
        assert!(started <= now + 2.0 && started > now - 86_400.0, "{started} {now}");
        assert!(text.contains("# TYPE process_cpu_seconds_total counter\n"), "{text}");
    }
}
