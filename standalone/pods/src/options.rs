//! What the node agent is told at its start, with defaults for one machine.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// How pods get their addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkMode {
    /// A namespace per pod if the process may make one, otherwise loopback addresses.
    #[default]
    Auto,
    /// A network and mount namespace per pod; starting fails without the privilege.
    Namespaces,
    /// An address of 127.0.0.0/8 per pod in the host's own network, with a port of its own in `PORT` and `USER_PORT`:
    /// for programs that honour `$PORT`.
    Loopback,
}

/// A program that an image name `dev.local/<alias>` stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    pub path: PathBuf,
    /// Put before the container's own arguments, such as the name of a subcommand.
    pub args: Vec<String>,
    /// Who it runs as if its container does not say; who runs the agent if not given.
    pub user: Option<u32>,
}

/// An IPv4 network, such as `10.244.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    pub address: Ipv4Addr,
    pub prefix: u8,
}

#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the Node object; pods with this `spec.nodeName` are ours.
    pub node_name: String,
    /// The host's address as pods see it. Unused in loopback mode, where it is 127.0.0.1.
    pub node_ip: Ipv4Addr,
    /// Where pod addresses come from. Unused in loopback mode, which takes a 127.x.0.0/16 derived from `instance`.
    pub pod_cidr: Cidr,
    /// Made local to the host, so that this process can listen on any service address.
    pub service_cidr: Cidr,
    pub dns_ip: Ipv4Addr,
    /// What `KUBERNETES_SERVICE_HOST` and `_PORT` say.
    pub kubernetes: (Ipv4Addr, u16),
    /// Everything of the agent on disk lives under this directory: `logs/`, `pods/`, `cells/`, and
    /// `run/`, which is kept in memory where that can be.
    pub data_dir: PathBuf,
    /// Directories of the host that containers do not see, besides `data_dir`: those with keys.
    pub hidden: Vec<PathBuf>,
    /// Aliases for `dev.local/<alias>` images.
    pub binaries: BTreeMap<String, Binary>,
    pub network: NetworkMode,
    /// Tells the interfaces of one installation from another's. Stable over restarts, so that what a killed agent left
    /// behind is found again.
    pub instance: String,
    pub cluster_domain: String,
    /// Working directory of `dev.local` programs whose container names none.
    pub working_dir: PathBuf,
    /// Network namespaces kept ready ahead of demand.
    pub pool: usize,
    /// What the Node offers the scheduler, in thousandths of a CPU; the machine's CPUs if not given.
    pub allocatable_millicpu: Option<u64>,
}

// === impl Options ===

impl Options {
    /// Defaults for one machine, with all state under `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let data_dir = std::path::absolute(data_dir.into()).unwrap_or_else(|_| PathBuf::from("/var/lib/postrider"));
        let node_name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
        Self {
            node_name: if node_name.is_empty() { "localhost".to_owned() } else { node_name },
            node_ip: Ipv4Addr::new(10, 244, 0, 1),
            pod_cidr: Cidr { address: Ipv4Addr::new(10, 244, 0, 0), prefix: 16 },
            service_cidr: Cidr { address: Ipv4Addr::new(10, 96, 0, 0), prefix: 16 },
            dns_ip: Ipv4Addr::new(10, 96, 0, 10),
            kubernetes: (Ipv4Addr::new(10, 96, 0, 1), 443),
            hidden: Vec::new(),
            binaries: BTreeMap::new(),
            network: NetworkMode::Auto,
            instance: data_dir.display().to_string(),
            cluster_domain: "cluster.local".to_owned(),
            working_dir: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            pool: 8,
            allocatable_millicpu: None,
            data_dir,
        }
    }

    /// Six hexadecimal digits that stand for `instance` in interface names.
    pub(crate) fn tag(&self) -> String {
        format!("{:06x}", fnv(self.instance.as_bytes()) & 0xff_ffff)
    }
}

/// FNV-1a: a hash that is the same in every build, unlike the standard library's.
pub(crate) fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

// === impl Binary ===

impl Binary {
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self { path: path.as_ref().to_owned(), args: Vec::new(), user: None }
    }
}

// === impl Cidr ===

impl Cidr {
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = self.mask();
        u32::from(address) & mask == u32::from(self.address) & mask
    }

    /// The lowest address that a host may have.
    pub fn first_host(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.hosts().0)
    }

    /// First and last address that a host may have.
    pub(crate) fn hosts(&self) -> (u32, u32) {
        let network = u32::from(self.address) & self.mask();
        (network + 1, (network | !self.mask()).saturating_sub(1))
    }

    fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(address, prefix)| {
            let prefix = prefix.parse().ok().filter(|prefix| (1..=30).contains(prefix))?;
            Some(Self { address: address.parse().ok()?, prefix })
        });
        parsed.ok_or_else(|| format!("{text:?} is not an IPv4 network such as 10.244.0.0/16"))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_knows_its_hosts() {
        let cidr: Cidr = "10.244.0.0/16".parse().unwrap();
        assert!(cidr.contains(Ipv4Addr::new(10, 244, 255, 1)) && !cidr.contains(Ipv4Addr::new(10, 245, 0, 1)));
        let (first, last) = cidr.hosts();
        assert_eq!(Ipv4Addr::from(first), Ipv4Addr::new(10, 244, 0, 1));
        assert_eq!(Ipv4Addr::from(last), Ipv4Addr::new(10, 244, 255, 254));
        assert!("10.244.0.0".parse::<Cidr>().is_err() && "10.244.0.0/33".parse::<Cidr>().is_err());
    }
}
