//! Logging without a logging framework: one JSON line per event, in the form upstream's sidecar writes.
//!
//! A subscriber with filters and formats would weigh more than the rest of the sidecar together.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// Writes events at or above its level to standard error.
struct JsonLines {
    level: Level,
    /// Fields of every line, already rendered.
    constant: String,
}

struct Fields<'a> {
    message: String,
    rest: &'a mut String,
}

/// Installs the process's logger. `level` is zap's: `debug`, `info` (default), `warn`, `error`.
pub fn init(level: &str, revision: &str, pod: &str) {
    let level = match level.to_ascii_lowercase().as_str() {
        "debug" => Level::DEBUG,
        "warn" | "warning" => Level::WARN,
        "error" | "dpanic" | "panic" | "fatal" => Level::ERROR,
        _ => Level::INFO,
    };
    let mut constant = String::new();
    push(&mut constant, "knative.dev/key", revision);
    push(&mut constant, "knative.dev/pod", pod);
    // A second call, in tests, keeps the first logger.
    let _ = tracing::subscriber::set_global_default(JsonLines { level, constant });
}

fn push(out: &mut String, key: &str, value: &str) {
    let _ = write!(out, ",{}:{}", serde_json::Value::from(key), serde_json::Value::from(value));
}

// === impl JsonLines ===

impl Subscriber for JsonLines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(self.level.into())
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let severity = match *metadata.level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARNING",
            Level::INFO => "INFO",
            _ => "DEBUG",
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let mut rest = String::new();
        let mut fields = Fields { message: String::new(), rest: &mut rest };
        event.record(&mut fields);
        let message = serde_json::Value::from(fields.message);
        let line = format!(
            "{{\"severity\":\"{severity}\",\"timestamp\":{now:.6},\"logger\":\"queueproxy\",\"message\":{message}{}{rest}}}\n",
            self.constant
        );
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

// === impl Fields ===

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            push(self.rest, field.name(), &text);
        }
    }
}
