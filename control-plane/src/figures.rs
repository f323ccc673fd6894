//! What the process tells about itself, under upstream's names.

use std::time::SystemTime;

use controller::Context;
use observe::{API_CALLS, Counter, Registry};
use telemetry::otlp::registry::Instrument;

const DEPTH: &str = "kn_workqueue_depth";
const UNFINISHED: &str = "kn_workqueue_unfinished_work_seconds";
const LONGEST: &str = "kn_workqueue_longest_running_processor_seconds";
const ADDS: &str = "kn_workqueue_adds_total";
const RETRIES: &str = "kn_workqueue_retries_total";
const WAITS: &str = "kn_workqueue_queue_duration_seconds";
const HANDLINGS: &str = "kn_workqueue_process_duration_seconds";

/// What OTLP says of them besides.
pub(crate) const INSTRUMENTS: &[Instrument] = &[
    Instrument { name: API_CALLS, unit: "{item}", additive: false },
    Instrument { name: DEPTH, unit: "{item}", additive: true },
    Instrument { name: ADDS, unit: "{item}", additive: false },
    Instrument { name: RETRIES, unit: "{item}", additive: false },
];

/// Who measured, as upstream's exporter says it with every series.
const SCOPE: [(&str, &str); 3] = [
    ("otel_scope_name", "knative.dev/pkg/observability/metrics/k8s"),
    ("otel_scope_schema_url", ""),
    ("otel_scope_version", ""),
];

/// What every process tells about itself, looked up when somebody asks.
pub(crate) fn describe_process(registry: &Registry, target: &[(&str, &str)]) {
    registry.gauge("target_info", "Target metadata", target).set(1.0);
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
    registry.gauge("process_start_time_seconds", "Start of the process, since the epoch.", &[]).set(started);
    registry.on_render(|registry| {
        let Some(process) = Process::read() else { return };
        let set = |name, help, value| registry.gauge(name, help, &[]).set(value);
        set("process_cpu_seconds_total", "Processor time used.", process.cpu_seconds);
        set("process_resident_memory_bytes", "Memory in use.", process.resident);
        set("process_virtual_memory_bytes", "Address space in use.", process.virtual_);
        set("process_open_fds", "Open files and sockets.", process.files);
    });
}

/// Every work queue, as client-go measures them.
pub(crate) fn describe_queues(registry: &Registry, ctx: &Context) {
    let queues = ctx.queues.clone();
    registry.on_render(move |registry| {
        for (name, figures) in queues.figures() {
            let labels = &[("name", name), SCOPE[0], SCOPE[1], SCOPE[2]];
            let set = |family, help, value| registry.gauge(family, help, labels).set(value);
            set(DEPTH, "Current depth of workqueue.", figures.depth as f64);
            let help =
                "How many seconds of work has been done that is in progress and hasn't been observed by work_duration.";
            set(UNFINISHED, help, figures.unfinished.as_secs_f64());
            let help = "How many seconds has the longest running processor for workqueue been running.";
            set(LONGEST, help, figures.longest.as_secs_f64());
            let raise = |family, help, counter: &Counter| {
                let shown = registry.counter(family, help, labels);
                shown.add(counter.get().saturating_sub(shown.get()));
            };
            raise(ADDS, "Total number of adds handled by workqueue.", &figures.adds);
            raise(RETRIES, "Total number of retries handled by workqueue.", &figures.retries);
            registry.show(WAITS, "How long an item stays in workqueue before being requested.", labels, &figures.waits);
            registry.show(HANDLINGS, "How long processing an item from workqueue takes.", labels, &figures.handlings);
        }
    });
}

/// What the gateways of each fleet have in force.
pub(crate) fn describe_gateways(registry: &Registry, handle: ingress::Handle) {
    registry.on_render(move |registry| {
        for fleet in handle.fleets() {
            let labels: &[(&str, &str)] = &[("fleet", fleet.name)];
            let set = |family, help, value: u64| registry.gauge(family, help, labels).set(value as f64);
            set("kourier_gateways", "Gateways connected to this replica.", fleet.gateways);
            set("kourier_ingresses", "Ingresses that the fleet carries.", fleet.ingresses);
            set("kourier_refused_resources", "Resources of which a gateway refused the newest version.", fleet.refused);
        }
    });
}

struct Process {
    cpu_seconds: f64,
    resident: f64,
    virtual_: f64,
    files: f64,
}

impl Process {
    fn read() -> Option<Self> {
        /// Linux counts in hundredths of a second for programs.
        const TICKS: f64 = 100.0;
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is a name in brackets, which may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? * 1024.0)
        };
        let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        Some(Process {
            cpu_seconds: (ticks(11)? + ticks(12)?) / TICKS,
            virtual_: bytes("VmSize")?,
            resident: bytes("VmRSS")?,
            files: files as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_its_size() {
        let process = Process::read().unwrap();
        assert!(process.resident > 1e6 && process.files > 2.0);
    }
}
