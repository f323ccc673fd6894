//! The sidecar of every revision's pod: counts, limits and reports requests.

use std::process::ExitCode;

use queue_proxy::{Config, Environment};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("queue-proxy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let env: Environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let config = Config::parse(&env)?;
    queue_proxy::init_logging(&config.log_level, &format!("{}/{}", config.namespace, config.revision), &config.pod);
    runtime(config.threads)?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let handle = queue_proxy::start(config).await?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::select! {
            () = handle.terminate() => Ok(()),
            _ = terminate.recv() => anyhow::bail!("a second signal cut the drain short"),
            _ = interrupt.recv() => anyhow::bail!("a second signal cut the drain short"),
        }
    })
}

/// One thread unless more are asked for: a sidecar's work is a fraction of its program's.
fn runtime(threads: usize) -> std::io::Result<Runtime> {
    if threads > 1 {
        return Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    }
    Builder::new_current_thread().enable_all().build()
}
