//! Addresses for pods, without CNI, bridge or firewall rules.
//!
//! With privilege, every pod has a network namespace of its own, joined to the host by a pair of virtual interfaces:
//! one /32 address in the pod, a default route over the link-local 169.254.1.1, whose hardware address is a permanent
//! neighbour entry, and one host route per pod. Forwarding is switched on per interface, so no setting of the host
//! changes. Interface names start with a tag of the installation, which is how the next start finds what a killed
//! agent left. The node's own address and the local route of the service network sit on one more pair: deleting
//! the interfaces removes every trace.
//!
//! Making a namespace costs milliseconds, so a few [`Cell`]s are kept ready. Without privilege, pods share the host's
//! network and get an address of 127.0.0.0/8 and a port of their own each.

mod addresses;
mod cell;
mod leftovers;
mod netlink;

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

pub(crate) use cell::Cell;
pub(crate) use leftovers::kill_namespace;
use netlink::{Link, Netlink};

use crate::options::{Cidr, fnv};
use crate::sandbox::Isolation;
use crate::{Error, NetworkMode, Options};
use addresses::{Addresses, Ports};

/// How long the kernel may take to remove an interface after its namespace.
const VANISHES_IN: Duration = Duration::from_millis(700);

/// More cells than this are never kept ready.
const LARGEST_POOL: usize = 64;
/// The pool is filled again after this long without a taker.
const REFILL_AFTER: Duration = Duration::from_millis(250);

/// The host's side of the pod network. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tag: String,
    node_ip: Ipv4Addr,
    cells_dir: PathBuf,
    host: Option<Netlink>,
    addresses: Mutex<Addresses>,
    ports: Mutex<Ports>,
    pool: Mutex<Vec<Cell>>,
    pool_size: usize,
    /// Cells given out now, and the most there ever were.
    in_use: Mutex<(usize, usize)>,
    taken: Notify,
}

/// Makes the host ready: afterwards the node address and every service address can be bound. Removes what an agent of
/// the same installation left when it was killed. Can be called again.
pub async fn prepare(options: &Options) -> Result<Network, Error> {
    let namespaces = match options.network {
        NetworkMode::Loopback => false,
        NetworkMode::Namespaces => {
            cell::try_namespace().await?;
            true
        }
        NetworkMode::Auto => match cell::try_namespace().await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(
                    %error,
                    "pods share this machine's network: each gets a 127.x address and a port of its own, and only \
                     programs that listen on $PORT work; start as root for a network per pod"
                );
                false
            }
        },
    };
    let tag = options.tag();
    let cells_dir = options.data_dir.join("cells");
    std::fs::create_dir_all(&cells_dir).map_err(Error::file(&cells_dir))?;
    let (node_ip, pod_cidr, host) = if namespaces {
        let host = Netlink::new().map_err(Error::Privilege)?;
        leftovers::remove(&host, &tag, &cells_dir).await?;
        host.ensure_node(&node_interface(&tag), options.node_ip, options.service_cidr).await?;
        (options.node_ip, options.pod_cidr, Some(host))
    } else {
        let second = 16 + u8::try_from(fnv(options.instance.as_bytes()) % 200).unwrap_or(0);
        let cidr = Cidr { address: Ipv4Addr::new(127, second, 0, 0), prefix: 16 };
        (Ipv4Addr::LOCALHOST, cidr, None)
    };
    Ok(Network {
        inner: Arc::new(Inner {
            tag,
            node_ip,
            cells_dir,
            host,
            addresses: Mutex::new(Addresses::new(pod_cidr, node_ip)),
            ports: Mutex::default(),
            pool: Mutex::default(),
            pool_size: options.pool,
            in_use: Mutex::default(),
            taken: Notify::new(),
        }),
    })
}

/// Removes every interface, and with them address and route, of an installation that is not running any more.
pub async fn cleanup(options: &Options) -> Result<(), Error> {
    if options.network == NetworkMode::Loopback || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let host = Netlink::new().map_err(Error::Privilege)?;
    let tag = options.tag();
    leftovers::remove(&host, &tag, &options.data_dir.join("cells")).await?;
    host.delete_named(&node_interface(&tag)).await
}

fn node_interface(tag: &str) -> String {
    format!("pr{tag}-n")
}

// === impl Network ===

impl Network {
    /// Whether every pod has a network namespace of its own.
    pub fn has_namespaces(&self) -> bool {
        self.inner.host.is_some()
    }

    /// The host's address as pods see it.
    pub fn node_ip(&self) -> Ipv4Addr {
        self.inner.node_ip
    }

    /// A ready cell if there is one, otherwise a new one.
    pub(crate) async fn take(&self) -> Result<Cell, Error> {
        let ready = self.inner.pool.lock().pop();
        {
            let mut in_use = self.inner.in_use.lock();
            in_use.0 += 1;
            in_use.1 = in_use.1.max(in_use.0);
        }
        self.inner.taken.notify_one();
        match ready {
            Some(cell) => Ok(cell),
            None => self.make().await,
        }
    }

    /// A cell in the host's own network.
    pub(crate) async fn take_host(&self) -> Result<Cell, Error> {
        let isolation = if self.has_namespaces() { Isolation::HostNetwork } else { Isolation::None };
        Cell::shared(self.node_ip(), isolation).await
    }

    /// A port that no other pod was given and nobody listens on: for pods that share the host's network.
    pub(crate) fn take_port(&self) -> Option<u16> {
        self.inner.ports.lock().take()
    }

    pub(crate) fn release_port(&self, port: u16) {
        self.inner.ports.lock().release(port);
    }

    /// Ends the cell and gives its address back. Its processes must have ended.
    ///
    /// The namespace is gone with its thread, and the kernel removes namespaces and their interfaces in batches;
    /// deleting each interface would hold up those who make one for tens of milliseconds.
    pub(crate) async fn release(&self, cell: Cell) {
        let (ip, link) = (cell.ip, cell.link.clone());
        drop(cell);
        if let (Some(link), Some(host)) = (link, &self.inner.host) {
            {
                let mut in_use = self.inner.in_use.lock();
                in_use.0 = in_use.0.saturating_sub(1);
            }
            self.vanish(host, &link).await;
            let _ = std::fs::remove_file(self.inner.cells_dir.join(&link.name));
        }
        if ip != self.inner.node_ip {
            self.inner.addresses.lock().release(ip);
        }
    }

    /// Waits until the interface has gone with its namespace; deletes it if that takes long.
    async fn vanish(&self, host: &Netlink, link: &Link) {
        let mut wait = Duration::from_millis(5);
        while wait < VANISHES_IN {
            tokio::time::sleep(wait).await;
            if !matches!(host.find(&link.name).await, Ok(Some(_))) {
                return;
            }
            wait *= 2;
        }
        if let Err(error) = host.delete(link.index).await {
            tracing::debug!(link = link.name, %error, "interface not deleted");
        }
    }

    /// How many cells are kept ready: as many as there once were pods, so that all of them can wake at once.
    fn wanted(&self) -> usize {
        let most = self.inner.in_use.lock().1;
        if self.inner.pool_size == 0 {
            0
        } else {
            most.clamp(self.inner.pool_size, LARGEST_POOL.max(self.inner.pool_size))
        }
    }

    /// Keeps the pool filled until cancelled.
    pub(crate) async fn keep_pool(self) {
        loop {
            while self.inner.pool.lock().len() < self.wanted() {
                match self.make().await {
                    Ok(cell) => self.inner.pool.lock().push(cell),
                    Err(error) => {
                        tracing::warn!(%error, "no pod network can be made ahead");
                        break;
                    }
                }
            }
            self.inner.taken.notified().await;
            // Pods that are starting come first: the pool is filled again when no more do.
            while tokio::time::timeout(REFILL_AFTER, self.inner.taken.notified()).await.is_ok() {}
        }
    }

    /// Removes everything this network put on the host. All pods must have ended.
    pub async fn remove(&self) {
        let pool = std::mem::take(&mut *self.inner.pool.lock());
        futures::future::join_all(pool.into_iter().map(|cell| self.release(cell))).await;
        let Some(host) = &self.inner.host else { return };
        let rest = leftovers::remove(host, &self.inner.tag, &self.inner.cells_dir).await;
        let node = host.delete_named(&node_interface(&self.inner.tag)).await;
        for error in rest.err().into_iter().chain(node.err()) {
            tracing::warn!(%error, "part of the pod network is left");
        }
    }

    /// Names of interfaces on the host that belong to this installation, for checks that nothing is left.
    pub async fn interfaces(&self) -> Result<HashSet<String>, Error> {
        match &self.inner.host {
            Some(host) => {
                Ok(host.named(&format!("pr{}-", self.inner.tag)).await?.into_iter().map(|l| l.name).collect())
            }
            None => Ok(HashSet::new()),
        }
    }

    async fn make(&self) -> Result<Cell, Error> {
        let ip = self.inner.addresses.lock().take()?;
        let made = match &self.inner.host {
            None => Cell::shared(ip, Isolation::None).await,
            Some(host) => {
                let name = format!("pr{}-{:05x}", self.inner.tag, u32::from(ip) & 0xf_ffff);
                Cell::isolated(host, name, ip, self.inner.node_ip, &self.inner.cells_dir).await
            }
        };
        if made.is_err() {
            self.inner.addresses.lock().release(ip);
        }
        made
    }
}
