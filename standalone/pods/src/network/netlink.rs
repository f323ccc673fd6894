//! The few netlink requests the pod network needs.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;
use std::sync::Arc;

use futures::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::task::AbortHandle;

use crate::Error;
use crate::options::Cidr;

/// The next hop every pod has; it exists on no interface.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The table whose destinations are this host.
const LOCAL_TABLE: u32 = 255;

/// A netlink socket of the namespace it was made in.
#[derive(Debug, Clone)]
pub(super) struct Netlink {
    handle: Handle,
    _connection: Arc<Connection>,
}

#[derive(Debug)]
struct Connection(AbortHandle);

/// An interface.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) index: u32,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

// === impl Netlink ===

impl Netlink {
    /// In the calling thread's network namespace, served by the current runtime.
    pub(super) fn new() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let task = tokio::spawn(connection);
        Ok(Self { handle, _connection: Arc::new(Connection(task.abort_handle())) })
    }

    pub(super) async fn find(&self, name: &str) -> Result<Option<Link>, Error> {
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
        match links.try_next().await {
            Ok(Some(link)) => Ok(Some(Link { name: name.to_owned(), index: link.header.index })),
            // The kernel says ENODEV.
            Ok(None) | Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
            Err(source) => Err(Error::Netlink { step: format!("look up {name}"), source }),
        }
    }

    /// Every interface whose name starts with `prefix`.
    pub(super) async fn named(&self, prefix: &str) -> Result<Vec<Link>, Error> {
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(Error::netlink("list interfaces"))?;
        let link = |message: LinkMessage| {
            let name = message.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })?;
            name.starts_with(prefix).then_some(Link { name, index: message.header.index })
        };
        Ok(links.into_iter().filter_map(link).collect())
    }

    pub(super) async fn delete(&self, index: u32) -> Result<(), Error> {
        self.handle.link().del(index).execute().await.map_err(Error::netlink("delete interface"))
    }

    pub(super) async fn delete_named(&self, name: &str) -> Result<(), Error> {
        match self.find(name).await? {
            Some(link) => self.delete(link.index).await,
            None => Ok(()),
        }
    }

    /// The pair that carries the node's address and the local route of the service network.
    pub(super) async fn ensure_node(&self, name: &str, ip: Ipv4Addr, services: Cidr) -> Result<(), Error> {
        self.refuse_taken(ip, name).await?;
        if self.find(name).await?.is_none() {
            let pair = LinkVeth::new(name, &format!("{name}p")).build();
            self.handle.link().add(pair).execute().await.map_err(Error::netlink("add the node's interface"))?;
            // Both ends must be up for the pair to have a carrier.
            for end in [name.to_owned(), format!("{name}p")] {
                if let Some(end) = self.find(&end).await? {
                    self.up(end.index).await?;
                }
            }
        }
        let Some(link) = self.find(name).await? else { return Ok(()) };
        let address = self.handle.address().add(link.index, IpAddr::V4(ip), 32).replace();
        address.execute().await.map_err(Error::netlink("add the node's address"))?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(services.address, services.prefix)
            .output_interface(link.index)
            .table_id(LOCAL_TABLE)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .build();
        let step = format!("make {services} local");
        self.handle.route().add(route).replace().execute().await.map_err(Error::netlink(step))
    }

    /// The host's end of a pod's pair, with the other end in the namespace `netns`; neither is up.
    pub(super) async fn add_pair(
        &self,
        name: &str,
        hardware: [u8; 6],
        netns: RawFd,
        pod_hardware: [u8; 6],
    ) -> Result<Link, Error> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name("eth0".to_owned())
            .address(pod_hardware.to_vec())
            .setns_by_fd(netns)
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name.to_owned())
            .address(hardware.to_vec())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.handle.link().add(pair).execute().await.map_err(Error::netlink(format!("add interface {name}")))?;
        self.find(name).await?.ok_or_else(|| Error::Netlink {
            step: format!("find interface {name}"),
            source: rtnetlink::Error::RequestFailed,
        })
    }

    pub(super) async fn up(&self, index: u32) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().change(message).execute().await.map_err(Error::netlink("set interface up"))
    }

    pub(super) async fn add_address(&self, index: u32, ip: Ipv4Addr) -> Result<(), Error> {
        let request = self.handle.address().add(index, IpAddr::V4(ip), 32);
        request.execute().await.map_err(Error::netlink(format!("add address {ip}")))
    }

    /// `ip` is reached over this interface, at this hardware address.
    pub(super) async fn add_neighbour(&self, index: u32, ip: Ipv4Addr, hardware: [u8; 6]) -> Result<(), Error> {
        let request = self.handle.neighbours().add(index, IpAddr::V4(ip)).link_layer_address(&hardware).replace();
        request.execute().await.map_err(Error::netlink(format!("add neighbour {ip}")))
    }

    pub(super) async fn route_to(&self, index: u32, ip: Ipv4Addr, from: Ipv4Addr) -> Result<(), Error> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(ip, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .pref_source(from)
            .build();
        self.handle.route().add(route).replace().execute().await.map_err(Error::netlink(format!("add route to {ip}")))
    }

    pub(super) async fn default_route(&self, index: u32) -> Result<(), Error> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(GATEWAY).output_interface(index).onlink().build();
        self.handle.route().add(route).execute().await.map_err(Error::netlink("add the default route"))
    }

    /// Fails if an interface other than `ours` has `ip`.
    async fn refuse_taken(&self, ip: Ipv4Addr, ours: &str) -> Result<(), Error> {
        let mut addresses = self.handle.address().get().set_address_filter(IpAddr::V4(ip)).execute();
        while let Some(address) = addresses.try_next().await.map_err(Error::netlink("list addresses"))? {
            let interface = address.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Label(label) => Some(label.clone()),
                _ => None,
            });
            if let Some(interface) = interface.filter(|interface| interface != ours) {
                return Err(Error::AddressTaken { address: ip, interface });
            }
        }
        Ok(())
    }
}
