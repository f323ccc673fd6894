//! Logs to standard error: readable on a terminal, JSON lines otherwise, as log collectors expect them.

use std::{io::IsTerminal, sync::Arc};

use tracing_subscriber::EnvFilter;

/// Changes what is logged while the process runs.
#[derive(Clone, Default)]
pub struct LogLevel(Option<Arc<dyn Fn(EnvFilter) + Send + Sync>>);

/// Installs the process's logger, once; later calls do nothing. `RUST_LOG` overrides `level`.
pub fn logging(component: &'static str, level: &str) -> LogLevel {
    let filter = match is_named() {
        true => EnvFilter::try_from_default_env().ok(),
        false => EnvFilter::try_new(level).ok().filter(|_| !level.is_empty()),
    };
    let filter = filter.unwrap_or_else(|| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let (installed, change) = if std::io::stderr().is_terminal() {
        let builder = builder.compact().with_filter_reloading();
        let handle = builder.reload_handle();
        (builder.try_init(), LogLevel::new(move |filter| drop(handle.reload(filter))))
    } else {
        let builder = builder.json().flatten_event(true).with_current_span(false).with_span_list(false);
        let builder = builder.with_filter_reloading();
        let handle = builder.reload_handle();
        (builder.try_init(), LogLevel::new(move |filter| drop(handle.reload(filter))))
    };
    if installed.is_err() {
        return LogLevel::default();
    }
    tracing::debug!(component, "logging");
    change
}

// === impl LogLevel ===

impl LogLevel {
    fn new(change: impl Fn(EnvFilter) + Send + Sync + 'static) -> Self {
        LogLevel(Some(Arc::new(change)))
    }

    /// `level` as in `RUST_LOG`, which still overrides it.
    pub fn set(&self, level: &str) {
        if let (Some(change), false, Ok(filter)) = (&self.0, is_named(), EnvFilter::try_new(level)) {
            change(filter);
        }
    }
}

/// Whether somebody asked for a level in the environment.
fn is_named() -> bool {
    std::env::var_os(EnvFilter::DEFAULT_ENV).is_some_and(|filter| !filter.is_empty())
}

impl std::fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogLevel")
    }
}
