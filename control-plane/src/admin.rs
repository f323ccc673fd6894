//! Where metrics and profiles of the process are served and, for roles whose pods Kubernetes asks over HTTP, health.
//!
//! As upstream, there is a port for metrics only when `config-observability` says `metrics-protocol: prometheus`.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, Result};
use api::config::{Level, Logging, Observability};
use controller::{Config, Context, Tasks};
use http::{Request, StatusCode};
use net::Incoming;
use observe::{AdminHandle, LogLevel, Registry};
use telemetry::environment::{Environment, METRICS_ENDPOINT, METRICS_PORT, Mistake, Scraped};

/// The name of a ConfigMap, which a variable may change.
pub(crate) fn map_name(get: impl Fn(&str) -> Option<String>, variable: &str, usual: &'static str) -> &'static str {
    // Once per process.
    get(variable).filter(|name| !name.is_empty()).map_or(usual, |name| Box::leak(name.into_boxed_str()))
}

/// What `config-observability` says; nothing without it.
pub(crate) async fn observability(
    ctx: &Context,
    get: impl Fn(&str) -> Option<String>,
) -> Option<Config<Observability>> {
    let name = map_name(get, "CONFIG_OBSERVABILITY_NAME", api::config::names::OBSERVABILITY);
    match Config::watch(ctx, name, Observability::parse).await {
        Ok(config) => Some(config),
        Err(error) => {
            tracing::info!("{error}; no metrics are served");
            None
        }
    }
}

/// Serves profiles as long as `runtime-profiling` says so, on port 8008 or `PROFILING_PORT`. The port is taken when it says
/// so for the first time.
///
/// # Errors
/// If `PROFILING_PORT` is no port.
pub(crate) fn profile(
    ctx: &Context,
    config: &Config<Observability>,
    get: impl Fn(&str) -> Option<String>,
) -> Result<()> {
    let port = match get("PROFILING_PORT").filter(|text| !text.is_empty()) {
        Some(text) => text.parse().with_context(|| format!("PROFILING_PORT is {text:?}, which is no port"))?,
        None => telemetry::profiling::PORT,
    };
    let (tasks, followed, started) = (ctx.tasks.clone(), config.clone(), AtomicBool::new(false));
    let start = move || {
        if followed.load().runtime_profiling && !started.swap(true, Ordering::Relaxed) {
            tasks.spawn("profiling", profiles(([0, 0, 0, 0], port).into(), followed.clone()));
        }
    };
    start();
    config.on_change(start);
    Ok(())
}

async fn profiles(address: SocketAddr, config: Config<Observability>) {
    let listener = match net::listen(address).await {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("no profiles are served: {error}"),
    };
    let answer = move |request: Request<Incoming>, _| {
        let on = config.load().runtime_profiling;
        async move {
            match on {
                true => telemetry::profiling::answer::<()>(request).await,
                false => net::http_error(StatusCode::NOT_FOUND, "404 page not found"),
            }
        }
    };
    net::serve(listener, net::Connections::new(), answer).await;
}

/// Where metrics are served, if anywhere, and how.
///
/// # Errors
/// If `METRICS_PROMETHEUS_*` or `metrics-endpoint` make no sense.
pub(crate) fn scraped(config: &Observability, env: &Environment) -> Result<Option<Scraped>, Mistake> {
    let wanted = config.metrics.protocol == "prometheus";
    wanted.then(|| Scraped::of(env, &config.metrics.endpoint, METRICS_ENDPOINT, METRICS_PORT)).transpose()
}

/// Serves `/metrics`, `/health` and `/readiness`; the last fails once the process is stopping.
pub(crate) async fn serve(address: SocketAddr, registry: &Registry, tasks: &Tasks) -> Result<AdminHandle> {
    let tasks = tasks.clone();
    let unready = move || tasks.is_cancelled().then(|| "stopping\n".to_owned());
    Ok(observe::serve_admin(address, registry.clone(), unready).await?)
}

/// Logs as much as `config-logging` says for the component, from now on.
pub(crate) async fn follow_level(
    ctx: &Context,
    get: impl Fn(&str) -> Option<String>,
    component: &'static str,
    level: LogLevel,
) {
    let name = map_name(get, "CONFIG_LOGGING_NAME", api::config::names::LOGGING);
    // Without it, what the command line says holds.
    let Ok(config) = Config::watch(ctx, name, Logging::parse).await else { return };
    let followed = config.clone();
    let apply = move || {
        if let Some(wanted) = followed.load().level(component) {
            level.set(filter(wanted));
            tracing::debug!(component, "the log level is that of the ConfigMap now");
        }
    };
    apply();
    config.on_change(apply);
}

fn filter(level: Level) -> &'static str {
    match level {
        Level::Debug => "debug,hyper=info,h2=info,tower=info,rustls=info,kube=info",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error | Level::DPanic | Level::Panic | Level::Fatal => "error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_served_only_when_asked_for() {
        let port = |data: &[(&str, &str)]| {
            let data = data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let config = Observability::parse(&data).unwrap();
            scraped(&config, &Environment::new()).unwrap().map(|scraped| scraped.port)
        };
        assert_eq!(port(&[]), None);
        let prometheus = ("metrics-protocol", "prometheus");
        assert_eq!(port(&[prometheus]), Some(9090));
        assert_eq!(port(&[prometheus, ("metrics-endpoint", ":9091")]), Some(9091));
    }
}
