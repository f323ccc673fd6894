//! Logs to standard error: readable on a terminal, JSON lines otherwise, as log collectors expect them.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Installs the process's logger, once; later calls do nothing. `RUST_LOG` overrides `level`.
pub fn logging(component: &'static str, level: &str) {
    let filter = EnvFilter::try_from_default_env().or_else(|_| EnvFilter::try_new(level));
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = if std::io::stderr().is_terminal() {
        builder.compact().try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    };
    if installed.is_ok() {
        tracing::debug!(component, "logging");
    }
}
