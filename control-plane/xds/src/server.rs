//! The gRPC binding: ADS, the single-type services and the health service on one plain-text port, as upstream.
//!
//! The services are written by hand rather than generated, because the generated ones would copy every resource for
//! every stream. Reading and writing share one task per stream; dropping it closes the stream in the core.

mod codec;
mod patience;
mod service;
#[cfg(test)]
mod tests;

pub use self::service::{ROUTES, SCOPES};

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::TcpListenerStream;

use crate::{
    core::{Change, Core, Event, Protocol, Response, Settled, StreamId},
    resource::{Kind, Resource},
};

/// Publishes resources and tells what the gateways have in force. Cheap to clone.
#[derive(Clone)]
pub struct Xds(Arc<Shared>);

struct Shared {
    core: Mutex<Core>,
    streams: Mutex<HashMap<StreamId, Client>>,
    settled: watch::Sender<Settled>,
    events: mpsc::UnboundedSender<Event>,
}

struct Client {
    link: Arc<Link>,
    peer: Option<IpAddr>,
}

/// Between the task of a stream and the others.
#[derive(Default)]
struct Link {
    /// There may be something to send.
    wake: Notify,
    /// Something was sent.
    sent: Notify,
    /// The client did not answer for too long.
    abandoned: AtomicBool,
}

/// Who asks: what a gateway says about itself in its first message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    pub id: String,
    pub cluster: String,
    /// The texts among its metadata.
    pub metadata: BTreeMap<String, String>,
}

/// Which view of the world a gateway gets. All streams of one [`Xds`] are told the same.
pub trait Views: Send + Sync + 'static {
    fn view(&self, node: &Node) -> Xds;
}

/// What the services share: the views, and the sign that streams must end.
#[derive(Clone)]
struct Door {
    views: Arc<dyn Views>,
    closing: watch::Receiver<bool>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen for gateways on {address}: {source}; stop the other process or choose another xDS address")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("the xDS server on {address} ended: {source}")]
    Serve { address: SocketAddr, source: tonic::transport::Error },
}

/// The bound port. Gateways are answered once [`Server::run`] is polled.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    keepalive: Keepalive,
}

/// A connection that is silent for so long is asked for a sign of life, and ended when none comes in time.
#[derive(Debug, Clone, Copy)]
struct Keepalive {
    interval: Duration,
    timeout: Duration,
}

/// Ends the stream in the core, whatever ends the task.
struct Connection {
    xds: Xds,
    id: StreamId,
    link: Arc<Link>,
    peer: Option<IpAddr>,
    /// Watches whether the client answers.
    patience: JoinHandle<()>,
}

/// As upstream: a gateway may ping this often, and one that does not answer is gone.
const KEEPALIVE: Keepalive = Keepalive { interval: Duration::from_secs(20), timeout: Duration::from_secs(10) };

// === impl Xds ===

impl Xds {
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let shared = Shared {
            core: Mutex::default(),
            streams: Mutex::default(),
            settled: watch::Sender::new(Settled::default()),
            events,
        };
        (Xds(Arc::new(shared)), receiver)
    }

    /// Makes a change known to all gateways and returns its revision, to be compared with [`Settled::revision`].
    pub fn publish(&self, change: Change) -> u64 {
        self.with(|core| core.publish(change))
    }

    /// What is published now.
    pub fn resource(&self, kind: Kind, name: &str) -> Option<Arc<Resource>> {
        self.0.core.lock().resource(kind, name)
    }

    pub fn settled(&self) -> watch::Receiver<Settled> {
        self.0.settled.subscribe()
    }

    /// One line per stream: what it holds and what it still has to be told.
    pub fn describe(&self) -> Vec<String> {
        self.0.core.lock().describe()
    }

    /// Runs something on the core, then wakes the streams it gave work to and tells what is settled now.
    fn with<T>(&self, action: impl FnOnce(&mut Core) -> T) -> T {
        let (result, ready, events) = {
            let mut core = self.0.core.lock();
            let result = action(&mut core);
            self.tell(&core);
            (result, core.ready().collect::<Vec<_>>(), core.take_events())
        };
        for event in events {
            // Nobody listens any more: the owner is shutting down.
            let _ = self.0.events.send(event);
        }
        let streams = self.0.streams.lock();
        for client in ready.iter().filter_map(|id| streams.get(id)) {
            client.link.wake.notify_one();
        }
        result
    }

    /// Under the lock of the core, so that nobody tells what was settled earlier after what is settled now.
    fn tell(&self, core: &Core) {
        let settled = core.settled();
        self.0.settled.send_if_modified(|now| std::mem::replace(now, settled) != settled);
    }

    /// The addresses of the gateways whose acknowledgements [`Xds::settled`] is made of.
    pub fn peers(&self) -> BTreeSet<IpAddr> {
        let gateways = self.0.core.lock().gateways();
        let streams = self.0.streams.lock();
        gateways.iter().filter_map(|id| streams.get(id)?.peer).collect()
    }

    fn connect(&self, protocol: Protocol, peer: Option<SocketAddr>) -> Connection {
        let id = self.0.core.lock().open(protocol);
        let link = Arc::new(Link::default());
        let peer = peer.map(|peer| peer.ip().to_canonical());
        self.0.streams.lock().insert(id, Client { link: link.clone(), peer });
        let patience = tokio::spawn(patience::watch(self.clone(), id, link.clone()));
        Connection { xds: self.clone(), id, link, peer, patience }
    }

    /// The stream counts no more; it is ended when its client takes notice.
    fn abandon(&self, id: StreamId) {
        let client = self.0.streams.lock().remove(&id);
        self.with(|core| core.close(id));
        if let Some(client) = client {
            client.link.abandoned.store(true, Ordering::Release);
            client.link.wake.notify_one();
        }
    }
}

impl fmt::Debug for Xds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Xds").field("settled", &*self.0.settled.borrow()).finish_non_exhaustive()
    }
}

impl Views for Xds {
    fn view(&self, _: &Node) -> Xds {
        self.clone()
    }
}

// === impl Server ===

impl Server {
    pub async fn bind(address: SocketAddr) -> Result<Self, Error> {
        let listener = TcpListener::bind(address).await.map_err(|source| Error::Bind { address, source })?;
        let address = listener.local_addr().map_err(|source| Error::Bind { address, source })?;
        Ok(Server { listener, address, keepalive: KEEPALIVE })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` resolves; open streams are then ended at once (gateways keep their configuration and
    /// reconnect). Dropping the future before leaves open connections to their tasks. An [`Xds`] is the view of every
    /// gateway.
    pub async fn run(self, views: impl Views, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let address = self.address;
        let server = tonic::transport::Server::builder()
            .max_concurrent_streams(1_000_000)
            .http2_keepalive_interval(Some(self.keepalive.interval))
            .http2_keepalive_timeout(Some(self.keepalive.timeout));
        let (close, closing) = watch::channel(false);
        let door = Door { views: Arc::new(views), closing };
        let closing = async {
            shutdown.await;
            close.send_replace(true);
        };
        // The builder's setting is for connections that it accepts itself. Without this, whatever takes more than one
        // segment waits 40 ms for the gateway's delayed acknowledgement.
        let incoming = TcpListenerStream::new(self.listener).map(|accepted| {
            let stream = accepted?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(stream)
        });
        service::register(server, &door)
            .serve_with_incoming_shutdown(incoming, closing)
            .await
            .map_err(|source| Error::Serve { address, source })
    }
}

// === impl Connection ===

impl Connection {
    /// Names the client where there may be many with the same node id.
    fn name(&self, node: &str) -> String {
        self.peer.map_or_else(|| node.to_owned(), |peer| format!("{node} at {peer}"))
    }

    /// Looking for something to send also finds out what needs no sending, which may settle a revision.
    fn next(&self) -> Option<Response> {
        let mut core = self.xds.0.core.lock();
        let response = core.next(self.id);
        self.xds.tell(&core);
        if response.is_some() {
            self.link.sent.notify_one();
        }
        response
    }

    fn is_abandoned(&self) -> bool {
        self.link.abandoned.load(Ordering::Acquire)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.patience.abort();
        self.xds.0.streams.lock().remove(&self.id);
        self.xds.with(|core| core.close(self.id));
        tracing::debug!(stream = self.id, "xDS stream closed");
    }
}
