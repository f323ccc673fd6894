//! The sidecar as a process: environment, runtime, signals.

use std::io;

use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};

use crate::{Config, ConfigError, Environment, server};

/// Why the process ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Serve(#[from] server::Error),
    #[error("cannot set up the runtime: {0}")]
    Runtime(#[from] io::Error),
    #[error("a second signal cut the drain short")]
    Interrupted,
}

/// Runs a sidecar until it is told to stop (SIGTERM, SIGINT) and has drained. Blocks.
///
/// # Errors
/// An environment that makes no sense, a port that cannot be had, or a second signal.
pub fn run(env: &Environment) -> Result<(), RunError> {
    let config = Config::parse(env)?;
    crate::init_logging(&config.log_level, &format!("{}/{}", config.namespace, config.revision), &config.pod);
    runtime(config.threads)?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let handle = server::start(config).await?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::select! {
            () = handle.terminate() => Ok(()),
            _ = terminate.recv() => Err(RunError::Interrupted),
            _ = interrupt.recv() => Err(RunError::Interrupted),
        }
    })
}

/// The environment of this process. Arguments of the form `NAME=value` are added to it: whoever starts the program
/// without writing the pod's environment (a node agent) can set our own variables that way.
pub fn environment() -> Environment {
    let vars =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let arguments = std::env::args().skip(1);
    let added = arguments.filter_map(|argument| argument.split_once('=').map(|(a, b)| (a.to_owned(), b.to_owned())));
    vars.chain(added).collect()
}

/// One thread unless more are asked for: a sidecar's work is a fraction of its program's.
fn runtime(threads: usize) -> io::Result<Runtime> {
    if threads > 1 {
        return Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    }
    Builder::new_current_thread().enable_all().build()
}
