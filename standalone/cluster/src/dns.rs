//! Cluster DNS: Services by name, everything else forwarded to the host's resolvers.
//!
//! Answers come straight from the caches when they are asked for; there is no zone to rebuild. `ClusterIP` Services
//! are A records, headless ones the addresses of their ready endpoints, `ExternalName` ones CNAMEs whose chain is
//! followed, inside the cluster and out of it.

mod forward;
mod names;
mod server;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;

use controller::Context;

use crate::Error;
use crate::caches::Caches;
use forward::Forwarder;
use names::{Names, Zone};

pub(crate) use forward::host_resolvers;

/// Binds UDP and TCP and serves; returns the address (the port is chosen when 0 is asked for).
pub(crate) async fn start(
    ctx: &Context,
    caches: &Caches,
    address: SocketAddr,
    resolvers: Vec<SocketAddr>,
) -> Result<SocketAddr, Error> {
    let resolvers = resolvers.into_iter().filter(|resolver| *resolver != address).collect();
    let zone = Zone::new(caches.clone(), &ctx.cluster_domain);
    let resolver = Arc::new(Names::new(zone, Forwarder::new(resolvers)));
    server::start(ctx, address, resolver).await.map_err(|source| Error::Dns { address, source })
}
