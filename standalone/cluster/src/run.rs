//! Starting all of it.

use futures::future::BoxFuture;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use controller::Context;

use crate::caches::Caches;
use crate::vips::Vips;
use crate::{Error, deployment, dns, endpoints, endpointslice, gc, mirroring, namespace, replicaset, scheduler, vips};

/// What [`run`] starts beside the controllers, and how broad.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where cluster DNS listens, over UDP and TCP; none for no DNS. The address must be local to the machine
    /// (`ip route add local CIDR dev lo`). Port 0 takes a free one. Default 10.96.0.10:53.
    pub dns: Option<SocketAddr>,
    /// Who answers for names outside of the cluster; by default the host's resolvers.
    pub resolvers: Vec<SocketAddr>,
    /// Whether the TCP ports of Services' cluster addresses are served. Where the addresses are not local this fails
    /// softly: see [`Handle::service_address_problem`]. Default true.
    pub service_addresses: bool,
    /// Objects handled at a time by each controller. Default 4.
    pub workers: usize,
}

/// What was started. It ends with the context's tasks.
#[derive(Clone)]
pub struct Handle {
    dns: Option<SocketAddr>,
    vips: Option<Arc<Vips>>,
}

/// Starts the controllers; returns once they have seen everything that exists and DNS is listening.
///
/// Boxed, so that the code behind it is compiled with this crate and not again in every program that starts it.
pub fn run(ctx: Context, options: Options) -> BoxFuture<'static, Result<Handle, Error>> {
    Box::pin(start_all(ctx, options))
}

async fn start_all(ctx: Context, options: Options) -> Result<Handle, Error> {
    let caches = Caches::start(&ctx).await;
    let workers = options.workers.max(1);

    let dns = match options.dns {
        Some(address) => Some(dns::start(&ctx, &caches, address, options.resolvers).await?),
        None => None,
    };
    let scheduler = scheduler::start(&ctx, &caches, workers);
    replicaset::start(&ctx, &caches, &scheduler, workers);
    deployment::start(&ctx, &caches, workers);
    endpoints::start(&ctx, &caches, workers);
    endpointslice::start(&ctx, &caches, workers);
    mirroring::start(&ctx, &caches, workers);
    let gc = gc::start(&ctx, &caches, workers);
    namespace::start(&ctx, &caches, &gc);
    let vips = options.service_addresses.then(|| vips::start(&ctx, &caches, dns.into_iter().collect()));
    Ok(Handle { dns, vips })
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self {
            dns: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 53)),
            resolvers: dns::host_resolvers(),
            service_addresses: true,
            workers: 4,
        }
    }
}

// === impl Handle ===

impl Handle {
    /// Where cluster DNS listens.
    pub fn dns(&self) -> Option<SocketAddr> {
        self.dns
    }

    /// Why programs cannot reach Services by their cluster addresses, if they cannot: one sentence with what to do.
    /// Known once the first Service was tried.
    pub fn service_address_problem(&self) -> Option<String> {
        self.vips.as_ref().and_then(|vips| vips.problem())
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("dns", &self.dns).finish_non_exhaustive()
    }
}
