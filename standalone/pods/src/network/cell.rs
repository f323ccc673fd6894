//! One pod's place in the network: an address and the thread that lives there.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::netlink::{GATEWAY, Link, Netlink};
use crate::Error;
use crate::sandbox::{Isolation, Sandbox};

#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) ip: Ipv4Addr,
    pub(crate) sandbox: Sandbox,
    /// The host's end of the pod's interface pair, if the pod has a network of its own.
    pub(crate) link: Option<Link>,
    /// Inode of the network namespace: how processes of the pod are recognised.
    pub(crate) netns: Option<u64>,
}

/// Whether this process may make the namespaces a pod needs.
pub(super) async fn try_namespace() -> Result<(), Error> {
    Sandbox::start(Isolation::Pod, |_| Ok(())).await.map(drop)
}

// === impl Cell ===

impl Cell {
    /// In the host's network, under an address of its own or the host's.
    pub(super) async fn shared(ip: Ipv4Addr, isolation: Isolation) -> Result<Self, Error> {
        let (sandbox, ()) = Sandbox::start(isolation, |_| Ok(())).await?;
        Ok(Self { ip, sandbox, link: None, netns: None })
    }

    /// In a network namespace of its own, reachable from the host under `ip` when this returns.
    pub(super) async fn isolated(
        host: &Netlink,
        name: String,
        ip: Ipv4Addr,
        node_ip: Ipv4Addr,
        records: &Path,
    ) -> Result<Self, Error> {
        let (sandbox, (inside, netns)) = Sandbox::start(Isolation::Pod, |inside| {
            let _runtime = inside.runtime.enter();
            Ok((Netlink::new()?, File::open("/proc/thread-self/ns/net")?))
        })
        .await?;
        let inode = netns.metadata().map_err(Error::file("/proc/thread-self/ns/net"))?.ino();
        let record = records.join(&name);
        // Written before the interface exists: whoever finds the interface can find the namespace.
        std::fs::write(&record, inode.to_string()).map_err(Error::file(record))?;

        let (host_hardware, pod_hardware) = (hardware(0x0e, ip), hardware(0x0a, ip));
        let link = host.add_pair(&name, host_hardware, netns.as_raw_fd(), pod_hardware).await?;
        let joined = async {
            if let Some(lo) = inside.find("lo").await? {
                inside.up(lo.index).await?;
            }
            if let Some(eth0) = inside.find("eth0").await? {
                inside.add_address(eth0.index, ip).await?;
                inside.up(eth0.index).await?;
                inside.add_neighbour(eth0.index, GATEWAY, host_hardware).await?;
                inside.default_route(eth0.index).await?;
            }
            host.up(link.index).await?;
            host.add_neighbour(link.index, ip, pod_hardware).await?;
            host.route_to(link.index, ip, node_ip).await?;
            let forwarding = format!("/proc/sys/net/ipv4/conf/{name}/forwarding");
            // Without it pods cannot reach each other, but the host still reaches them.
            if let Err(error) = std::fs::write(&forwarding, "1") {
                tracing::warn!(%error, forwarding, "pods cannot reach each other");
            }
            Ok(())
        };
        match joined.await {
            Ok(()) => Ok(Self { ip, sandbox, link: Some(link), netns: Some(inode) }),
            Err(error) => {
                let _ = host.delete(link.index).await;
                Err(error)
            }
        }
    }
}

/// A locally administered hardware address made from `ip`.
fn hardware(first: u8, ip: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [first, 0x58, a, b, c, d]
}
