//! `postrider`: the one-machine mode.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use standalone::{Options, supervise, up};

/// Many small allocations on many threads, and memory given back when they are gone.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(name = "postrider", version, about = "Knative Serving on one machine, without Kubernetes")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start everything in the foreground; Ctrl-C drains and stops it.
    Up(Box<Options>),
    /// Run a program that dies with its parent (how `up` starts Envoy).
    #[command(hide = true)]
    Supervised {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.command {
        Command::Up(options) => up::main(*options),
        Command::Supervised { command } => supervise::exec(&command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("postrider: {error:#}");
            ExitCode::FAILURE
        }
    }
}
