//! The sidecar of every revision's pod: counts, limits and reports requests.

use std::process::ExitCode;

fn main() -> ExitCode {
    net::raise_open_files();
    match queue_proxy::run(&queue_proxy::environment()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("queue-proxy: {error}");
            ExitCode::FAILURE
        }
    }
}
