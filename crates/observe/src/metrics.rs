//! A table of metrics, rendered in the Prometheus text format.
//!
//! Moving a metric is an atomic operation on a handle that was looked up before; the table's lock is for creating
//! series and for rendering. The number of series of a family is bounded: beyond it, new label sets share one series
//! whose labels say `overflow`.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;

/// Bounds of latency histograms, everywhere.
pub const LATENCY_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

const MAX_SERIES: usize = 10_000;

/// All metrics of a process. Clones are the same table.
#[derive(Clone, Default)]
pub struct Registry {
    families: Arc<Mutex<BTreeMap<&'static str, Family>>>,
    collectors: Arc<Mutex<Vec<Collector>>>,
}

type Collector = Arc<dyn Fn(&Registry) + Send + Sync>;

struct Family {
    help: &'static str,
    kind: Kind,
    /// By rendered labels.
    series: BTreeMap<String, Series>,
}

/// What a family's series are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// What all series of a name have in common.
#[derive(Debug, Clone, Copy)]
pub struct Described {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
}

/// What a series says at the moment.
#[derive(Debug, PartialEq)]
pub enum Value<'a> {
    Counter(u64),
    Gauge(f64),
    /// How many were observed between the bounds, and beyond the last.
    Histogram {
        bounds: &'a [f64],
        counts: Vec<u64>,
        sum: f64,
    },
}

enum Series {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

/// Only goes up.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

/// Goes up and down; holds a float.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

/// Counts observations by size.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Buckets>);

#[derive(Debug)]
struct Buckets {
    bounds: &'static [f64],
    counts: Vec<AtomicU64>,
    sum: AtomicU64,
}

// === impl Registry ===

impl Registry {
    pub fn new() -> Self {
        Self::default()
    }

    /// The counter `name` (ends in `_total`) with these labels.
    pub fn counter(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Counter {
        match self.series(name, help, Kind::Counter, labels, || Series::Counter(Counter::default())) {
            Some(Series::Counter(counter)) => counter,
            _ => Counter::default(),
        }
    }

    /// A counter (`name` ends in `_total`) whose value comes from elsewhere and has a fraction.
    pub fn total(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Gauge {
        match self.series(name, help, Kind::Counter, labels, || Series::Gauge(Gauge::default())) {
            Some(Series::Gauge(gauge)) => gauge,
            _ => Gauge::default(),
        }
    }

    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Gauge {
        match self.series(name, help, Kind::Gauge, labels, || Series::Gauge(Gauge::default())) {
            Some(Series::Gauge(gauge)) => gauge,
            _ => Gauge::default(),
        }
    }

    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        bounds: &'static [f64],
        labels: &[(&str, &str)],
    ) -> Histogram {
        match self.series(name, help, Kind::Histogram, labels, || Series::Histogram(Histogram::new(bounds))) {
            Some(Series::Histogram(histogram)) => histogram,
            _ => Histogram::new(bounds),
        }
    }

    /// Shows a histogram that somebody else keeps.
    pub fn show(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)], histogram: &Histogram) {
        self.series(name, help, Kind::Histogram, labels, || Series::Histogram(histogram.clone()));
    }

    /// Runs `collect` before every rendering, for values that are cheaper to look up than to keep.
    pub fn on_render(&self, collect: impl Fn(&Registry) + Send + Sync + 'static) {
        self.collectors.lock().push(Arc::new(collect));
    }

    /// Forgets all series of a family, before a collector sets those there are.
    pub fn clear(&self, name: &'static str) {
        if let Some(family) = self.families.lock().get_mut(name) {
            family.series.clear();
        }
    }

    /// Forgets a series, of a revision that was deleted for instance.
    pub fn remove(&self, name: &'static str, labels: &[(&str, &str)]) {
        if let Some(family) = self.families.lock().get_mut(name) {
            family.series.remove(&render(labels));
        }
    }

    /// The Prometheus text format, in the order of names and labels.
    pub fn render(&self) -> String {
        self.collect();
        let mut out = String::new();
        for (name, family) in &*self.families.lock() {
            let _ = writeln!(out, "# HELP {name} {}\n# TYPE {name} {}", family.help, family.kind.text());
            for (labels, series) in &family.series {
                series.render(&mut out, name, labels);
            }
        }
        out
    }

    /// Shows every series with its labels, in the order of names and labels.
    pub fn visit(&self, mut show: impl FnMut(Described, &[(String, String)], &Value<'_>)) {
        self.collect();
        for (name, family) in &*self.families.lock() {
            let described = Described { name, help: family.help, kind: family.kind };
            for (labels, series) in &family.series {
                show(described, &read(labels), &series.value());
            }
        }
    }

    fn collect(&self) {
        let collectors = self.collectors.lock().clone();
        for collect in collectors {
            collect(self);
        }
    }

    fn series(
        &self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        labels: &[(&str, &str)],
        make: impl FnOnce() -> Series,
    ) -> Option<Series> {
        let mut families = self.families.lock();
        let family = families.entry(name).or_insert_with(|| Family { help, kind, series: BTreeMap::new() });
        debug_assert_eq!(family.kind, kind, "metric {name} is declared with two types");
        let mut key = render(labels);
        if family.series.len() >= MAX_SERIES && !family.series.contains_key(&key) {
            let overflow: Vec<_> = labels.iter().map(|(label, _)| (*label, "overflow")).collect();
            key = render(&overflow);
        }
        Some(family.series.entry(key).or_insert_with(make).handle())
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registry({} families)", self.families.lock().len())
    }
}

// === impl Kind ===

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

// === impl Series ===

impl Series {
    fn value(&self) -> Value<'_> {
        match self {
            Self::Counter(counter) => Value::Counter(counter.get()),
            Self::Gauge(gauge) => Value::Gauge(gauge.get()),
            Self::Histogram(Histogram(buckets)) => Value::Histogram {
                bounds: buckets.bounds,
                counts: buckets.counts.iter().map(|count| count.load(Relaxed)).collect(),
                sum: f64::from_bits(buckets.sum.load(Relaxed)),
            },
        }
    }

    fn handle(&self) -> Self {
        match self {
            Self::Counter(counter) => Self::Counter(counter.clone()),
            Self::Gauge(gauge) => Self::Gauge(gauge.clone()),
            Self::Histogram(histogram) => Self::Histogram(histogram.clone()),
        }
    }

    fn render(&self, out: &mut String, name: &str, labels: &str) {
        let all = |extra: &str| match (labels.is_empty(), extra.is_empty()) {
            (true, true) => String::new(),
            (false, false) => format!("{{{labels},{extra}}}"),
            _ => format!("{{{labels}{extra}}}"),
        };
        match self {
            Self::Counter(counter) => {
                let _ = writeln!(out, "{name}{} {}", all(""), counter.get());
            }
            Self::Gauge(gauge) => {
                let _ = writeln!(out, "{name}{} {}", all(""), gauge.get());
            }
            Self::Histogram(histogram) => {
                let buckets = &*histogram.0;
                let mut total = 0;
                for (index, count) in buckets.counts.iter().enumerate() {
                    total += count.load(Relaxed);
                    let bound = buckets.bounds.get(index).map_or_else(|| "+Inf".to_owned(), f64::to_string);
                    let _ = writeln!(out, "{name}_bucket{} {total}", all(&format!("le=\"{bound}\"")));
                }
                let sum = f64::from_bits(buckets.sum.load(Relaxed));
                let _ = writeln!(out, "{name}_sum{} {sum}\n{name}_count{} {total}", all(""), all(""));
            }
        }
    }
}

// === impl Counter ===

impl Counter {
    pub fn increment(&self) {
        self.add(1);
    }

    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

// === impl Gauge ===

impl Gauge {
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }

    pub fn add(&self, delta: f64) {
        add(&self.0, delta);
    }

    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }
}

// === impl Histogram ===

impl Histogram {
    /// One that is in no table yet, see [`Registry::show`].
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Buckets { bounds, counts, sum: AtomicU64::new(0) }))
    }

    pub fn observe(&self, value: f64) {
        let bucket = self.0.bounds.partition_point(|bound| *bound < value);
        self.0.counts[bucket].fetch_add(1, Relaxed);
        add(&self.0.sum, value);
    }

    /// How many were observed.
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Of all that were observed.
    pub fn sum(&self) -> f64 {
        f64::from_bits(self.0.sum.load(Relaxed))
    }
}

fn add(sum: &AtomicU64, delta: f64) {
    let _ = sum.fetch_update(Relaxed, Relaxed, |bits| Some((f64::from_bits(bits) + delta).to_bits()));
}

fn render(labels: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (name, value) in labels {
        if !out.is_empty() {
            out.push(',');
        }
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(out, "{name}=\"{value}\"");
    }
    out
}

/// The labels that were rendered.
fn read(mut text: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    while let Some((name, rest)) = text.split_once("=\"") {
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let mut end = rest.len();
        while let Some((index, character)) = characters.next() {
            match character {
                '"' => {
                    end = index + 1;
                    break;
                }
                '\\' => value.extend(characters.next().map(|(_, escaped)| if escaped == 'n' { '\n' } else { escaped })),
                other => value.push(other),
            }
        }
        labels.push((name.to_owned(), value));
        text = rest[end..].trim_start_matches(',');
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_the_text_format() {
        let registry = Registry::new();
        registry.counter("a_total", "things", &[("k", "v\"w")]).add(3);
        registry.gauge("b", "level", &[]).set(1.5);
        let histogram = registry.histogram("c_seconds", "times", &[0.1, 1.0], &[("code", "200")]);
        histogram.observe(0.1);
        histogram.observe(5.0);
        assert_eq!(
            registry.render(),
            "# HELP a_total things\n# TYPE a_total counter\na_total{k=\"v\\\"w\"} 3\n\
             # HELP b level\n# TYPE b gauge\nb 1.5\n\
             # HELP c_seconds times\n# TYPE c_seconds histogram\n\
             c_seconds_bucket{code=\"200\",le=\"0.1\"} 1\nc_seconds_bucket{code=\"200\",le=\"1\"} 1\n\
             c_seconds_bucket{code=\"200\",le=\"+Inf\"} 2\nc_seconds_sum{code=\"200\"} 5.1\n\
             c_seconds_count{code=\"200\"} 2\n"
        );
    }

    #[test]
    fn collectors_run_when_somebody_looks() {
        let registry = Registry::new();
        registry.on_render(|registry| {
            registry.clear("b");
            registry.gauge("b", "level", &[("k", "now")]).set(2.0);
        });
        registry.gauge("b", "level", &[("k", "before")]).set(1.0);
        assert_eq!(registry.render(), "# HELP b level\n# TYPE b gauge\nb{k=\"now\"} 2\n");
    }

    #[test]
    fn the_same_labels_are_the_same_series() {
        let registry = Registry::new();
        registry.counter("a_total", "things", &[("k", "v")]).increment();
        assert_eq!(registry.counter("a_total", "things", &[("k", "v")]).get(), 1);
        registry.remove("a_total", &[("k", "v")]);
        assert_eq!(registry.counter("a_total", "things", &[("k", "v")]).get(), 0);
    }

    #[test]
    fn labels_are_read_as_they_were_written() {
        let labels = [("a", "plain"), ("b", "\"quoted\\\n,c=\"d\""), ("c", "")];
        let read: Vec<_> = read(&render(&labels));
        assert_eq!(read.iter().map(|(name, value)| (&**name, &**value)).collect::<Vec<_>>(), labels);
    }
}
