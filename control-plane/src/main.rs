//! `control-plane`: any of the control-plane roles in one process, against a Kubernetes API.

use std::process::ExitCode;

use clap::Parser;
use control_plane::{Options, Role};

/// Many small allocations on many threads, and memory given back when they are gone.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A change is one thread's work: others would be woken at every step of it, and are more memory.
const INGRESS_WORKERS: usize = 1;

fn main() -> ExitCode {
    let options = Options::parse_from(control_plane::arguments(std::env::args_os()));
    let level = observe::logging("control-plane", &options.log);
    // More than one dependency could race for the default provider.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider is installed already");
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if options.roles == [Role::Ingress] && std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        runtime.worker_threads(INGRESS_WORKERS);
    }
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("control-plane: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(control_plane::run(options, level)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("control-plane: {error:#}");
            ExitCode::FAILURE
        }
    }
}
