//! The metrics as Prometheus reads them, named as OpenTelemetry's exporter for it names them.

use std::fmt::Write;

use super::{DEPTH, DEPTH_HELP, Family, Metrics, OWN, Scope};

// === impl Metrics ===

impl Metrics {
    pub(crate) fn render(&self) -> String {
        let mut out = String::new();
        let state = self.state.lock();
        for (family, series) in state.families.values() {
            let name = name(family);
            let _ = writeln!(out, "# HELP {name} {}\n# TYPE {name} histogram", family.help);
            for (labels, series) in series {
                let pairs = labels.iter().map(|(name, value)| (*name, &**value));
                let labels = rendered(pairs.chain(scope(family.scope)));
                let mut total = 0;
                for (index, count) in series.counts.iter().enumerate() {
                    total += count;
                    let bound = family.bounds.get(index).map_or_else(|| "+Inf".to_owned(), f64::to_string);
                    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
                }
                let _ = writeln!(out, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {total}", series.sum);
            }
        }
        if let Some(depth) = state.queue_depth {
            let (name, labels) = (DEPTH.replace('.', "_"), rendered(scope(&OWN).into_iter()));
            let _ = writeln!(out, "# HELP {name} {DEPTH_HELP}\n# TYPE {name} gauge\n{name}{{{labels}}} {depth}");
        }
        drop(state);
        process(&mut out);
        let resource = rendered(self.resource.iter().map(|(name, value)| (&**name, &**value)));
        let _ =
            writeln!(out, "# HELP target_info Target metadata\n# TYPE target_info gauge\ntarget_info{{{resource}}} 1");
        out
    }
}

fn name(family: &Family) -> String {
    let unit = match family.unit {
        "s" => "_seconds",
        "By" => "_bytes",
        _ => "",
    };
    format!("{}{unit}", family.name.replace('.', "_"))
}

fn scope(scope: &Scope) -> [(&'static str, &'static str); 3] {
    [("otel_scope_name", scope.name), ("otel_scope_schema_url", ""), ("otel_scope_version", scope.version)]
}

/// `name="value",...`, sorted by name.
fn rendered<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let clean = |name: &str| name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '_', "_");
    let mut pairs: Vec<_> = pairs.map(|(name, value)| (clean(name), value)).collect();
    pairs.sort();
    let mut out = String::new();
    for (name, value) in pairs {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let comma = if out.is_empty() { "" } else { "," };
        let _ = write!(out, "{comma}{name}=\"{value}\"");
    }
    out
}

/// What the kernel knows of the process.
fn process(out: &mut String) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let stat = read("/proc/self/stat");
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let field = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    for (name, kind, help, value) in [
        (
            "process_cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            (field(11) + field(12)) / 100.0,
        ),
        ("process_open_fds", "gauge", "Number of open file descriptors.", open as f64),
        ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", field(21) * 4096.0),
        ("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", field(20)),
    ] {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
}
