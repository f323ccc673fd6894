//! Envoy as a process, and ports for it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
};

use ingress::Bootstrap;
use tokio::{net::TcpListener, process::Child};

/// Starts a gateway. It ends when the process handle is dropped.
pub(crate) fn spawn(program: &Path, bootstrap: &Bootstrap) -> (Child, tempfile::TempDir) {
    spawn_text(program, bootstrap, &bootstrap.render())
}

/// With another text than the bootstrap's own.
pub(crate) fn spawn_text(program: &Path, bootstrap: &Bootstrap, text: &str) -> (Child, tempfile::TempDir) {
    let files = tempfile::tempdir().unwrap();
    let config = files.path().join("envoy.yaml");
    std::fs::write(&config, text).unwrap();
    let envoy = tokio::process::Command::new(program)
        .args(bootstrap.arguments(&config))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(files.path().join("envoy.log")).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    (envoy, files)
}

/// Ports for others to bind later. They lie below the range from which the kernel takes ports for outgoing connections,
/// so that no connection of another test takes one in between, and each is given out once.
pub(crate) async fn free_ports<const N: usize>() -> [SocketAddr; N] {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let first = 20_000 + std::process::id() as usize * 97 % 10_000;
    let mut free = Vec::new();
    while free.len() < N {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(20_000 + (first + offset - 20_000) % 12_000).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).await.is_ok() {
            free.push(address);
        }
    }
    std::array::from_fn(|i| free[i])
}

pub(crate) fn envoy() -> Option<PathBuf> {
    let named = std::env::var_os("ENVOY").map(PathBuf::from);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/envoy");
    let on_path = std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join("envoy")).collect::<Vec<_>>();
    named.into_iter().chain(on_path).chain([root]).find(|path| path.is_file())
}
