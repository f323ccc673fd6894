//! Service addresses without kube-proxy: one listener per TCP port of each cluster address, in this process.
//!
//! It works wherever the addresses are local (`ip route add local CIDR dev lo`), needs no packet filter and no
//! privilege beyond that; the pod sees this machine as its client. A connection is given to an endpoint that is ready
//! when it arrives, and to the next one if that one does not take it. Where the addresses are not local, nothing is
//! served and [`Vips::problem`] says so.

mod balance;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use controller::{Context, Error, ObjectKey, Queue};
use k8s_openapi::api::core::v1::Service;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::caches::{Caches, SERVICE};

/// Connections at a time; more wait in the listeners' backlogs.
const MAX_CONNECTIONS: usize = 4096;
/// Endpoints to try for one connection.
const ATTEMPTS: usize = 3;
const CONNECT: Duration = Duration::from_secs(2);
const BUFFER: usize = 16 * 1024;

pub(crate) struct Vips {
    ctx: Context,
    caches: Caches,
    /// Served by somebody else here.
    reserved: Vec<SocketAddr>,
    listeners: Mutex<HashMap<ObjectKey, HashMap<Port, CancellationToken>>>,
    connections: Arc<Semaphore>,
    next: AtomicUsize,
    problem: Mutex<Option<String>>,
}

/// One port of a Service's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Port {
    address: SocketAddr,
    name: String,
}

pub(crate) fn start(ctx: &Context, caches: &Caches, reserved: Vec<SocketAddr>) -> Arc<Vips> {
    let vips = Arc::new(Vips {
        ctx: ctx.clone(),
        caches: caches.clone(),
        reserved,
        listeners: Mutex::default(),
        connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        next: AtomicUsize::new(0),
        problem: Mutex::default(),
    });
    let queue: Queue = Queue::new();
    let changed = queue.clone();
    caches.services.on_event(move |change| changed.add(ObjectKey::of(&**change.object())));
    let worker = vips.clone();
    queue.run(&ctx.tasks, "vips", 1, move |key| {
        let vips = worker.clone();
        async move { vips.sync(&key) }
    });
    vips
}

/// The TCP ports of the Service's cluster addresses.
fn ports(service: &Service) -> Vec<Port> {
    let Some(spec) = &service.spec else { return Vec::new() };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let addresses = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.as_ref());
    let mut addresses: Vec<IpAddr> = addresses.filter_map(|address| address.parse().ok()).collect();
    addresses.sort();
    addresses.dedup();
    let tcp = spec.ports.iter().flatten().filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    let tcp: Vec<_> = tcp.filter_map(|port| Some((u16::try_from(port.port).ok()?, port.name.clone()))).collect();
    let all = addresses.iter().flat_map(|address| {
        tcp.iter().map(|(port, name)| Port {
            address: SocketAddr::new(*address, *port),
            name: name.clone().unwrap_or_default(),
        })
    });
    all.collect()
}

// === impl Vips ===

impl Vips {
    /// Why service addresses are not served, if they are not.
    pub(crate) fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }

    fn sync(self: &Arc<Self>, key: &ObjectKey) -> Result<(), Error> {
        let wanted = self.caches.services.get_key(key).map(|service| ports(&service)).unwrap_or_default();
        let mut listeners = self.listeners.lock();
        let current = listeners.entry(key.clone()).or_default();
        current.retain(|port, token| {
            let stays = wanted.contains(port);
            if !stays {
                token.cancel();
            }
            stays
        });
        let mut again = false;
        for port in wanted {
            if current.contains_key(&port) || self.reserved.contains(&port.address) {
                continue;
            }
            match self.listen(key, &port) {
                Ok(token) => {
                    current.insert(port, token);
                }
                Err(error) => again |= self.report(key, port.address, &error),
            }
        }
        if current.is_empty() {
            listeners.remove(key);
        }
        // Most likely its last owner is about to let go of the address, or descriptors are short for now.
        if again { Err(Error::Conflict(format!("an address of Service {key} is not served"))) } else { Ok(()) }
    }

    /// Whether trying again can help.
    fn report(&self, key: &ObjectKey, address: SocketAddr, error: &std::io::Error) -> bool {
        if !matches!(error.kind(), ErrorKind::AddrNotAvailable | ErrorKind::PermissionDenied) {
            tracing::warn!(service = %key, %address, %error, "a service address is not served yet; it is tried again");
            return true;
        }
        let mut problem = self.problem.lock();
        if problem.is_none() {
            let text = format!(
                "service addresses are not served ({address}: {error}); programs reach services only where the \
                 addresses are local to this machine: start as root, or run `ip route add local CIDR dev lo` once"
            );
            tracing::warn!("{text}");
            *problem = Some(text);
        }
        false
    }

    fn listen(self: &Arc<Self>, key: &ObjectKey, port: &Port) -> std::io::Result<CancellationToken> {
        let domain = socket2::Domain::for_address(port.address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&port.address.into())?;
        socket.listen(1024)?;
        let listener = TcpListener::from_std(socket.into())?;
        let token = self.ctx.tasks.token().child_token();
        let (vips, key, port, until) = (self.clone(), key.clone(), port.clone(), token.clone());
        self.ctx.tasks.spawn("vip", async move {
            tokio::select! {
                () = until.cancelled() => {}
                () = vips.accept(&listener, &key, &port) => {}
            }
        });
        Ok(token)
    }

    async fn accept(self: &Arc<Self>, listener: &TcpListener, key: &ObjectKey, port: &Port) {
        loop {
            let Ok(permit) = self.connections.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(service = %key, %error, "cannot accept; tried again in a moment");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (vips, key, port) = (self.clone(), key.clone(), port.clone());
            self.ctx.tasks.spawn("vip-connection", async move {
                vips.carry(stream, &key, &port).await;
                drop(permit);
            });
        }
    }

    async fn carry(&self, mut client: TcpStream, key: &ObjectKey, port: &Port) {
        let slices = self.caches.slices.by_index(SERVICE, &key.to_string());
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        for endpoint in balance::candidates(&slices, &port.name, start).into_iter().take(ATTEMPTS) {
            let Ok(Ok(mut server)) = tokio::time::timeout(CONNECT, TcpStream::connect(endpoint)).await else {
                tracing::debug!(service = %key, %endpoint, "endpoint does not take connections");
                continue;
            };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let _ = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await;
            return;
        }
        // Nobody there: the client is told at once, as by a closed port.
        let _ = socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_ports_of_a_cluster_address() {
        let service: Service = serde_json::from_value(json!({"spec": {
            "clusterIP": "127.0.0.1", "clusterIPs": ["127.0.0.1"],
            "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        }}))
        .unwrap();
        assert_eq!(ports(&service), [Port { address: "127.0.0.1:80".parse().unwrap(), name: "http".into() }]);
        for spec in [json!({"clusterIP": "None", "ports": [{"port": 80}]}), json!({"type": "ExternalName"})] {
            let service: Service = serde_json::from_value(json!({"spec": spec})).unwrap();
            assert_eq!(ports(&service), []);
        }
    }
}
