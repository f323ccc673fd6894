//! Many clients, slow ones and dead ones, over real sockets; and those that never answer, with time that passes by itself.

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Endpoint};

use super::*;
use crate::{
    core::DeltaRequest,
    resource::{Name, Version},
};

const DEADLINE: Duration = Duration::from_secs(60);

struct Gateway {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

struct Running {
    xds: Xds,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn start(keepalive: Keepalive) -> Running {
    let (xds, _events) = Xds::new();
    let mut server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    server.keepalive = keepalive;
    let (address, views) = (server.address(), xds.clone());
    let task = tokio::spawn(async move { server.run(views, std::future::pending()).await.unwrap() });
    Running { xds, address, task }
}

/// Names with much content, all of one version.
fn content(names: usize, version: u64) -> Change {
    let resource = |n: usize| Resource {
        kind: Kind::Cluster,
        name: format!("c{n}").into(),
        version: Version::of(&version),
        body: vec![0; 64 * 1024].into(),
        requires: Default::default(),
        scoped: None,
    };
    Change { set: (0..names).map(resource).collect(), remove: Vec::new() }
}

impl Gateway {
    async fn connect(address: SocketAddr) -> Self {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(usize::MAX);
        let (requests, outgoing) = mpsc::channel(16);
        // The server answers once it has heard something.
        for kind in [Kind::Cluster, Kind::Listener] {
            let request = DeltaDiscoveryRequest { type_url: kind.type_url().to_owned(), ..Default::default() };
            requests.send(request).await.unwrap();
        }
        let responses = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        Gateway { requests, responses }
    }

    async fn acknowledge(&self, response: &DeltaDiscoveryResponse) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// Until all names have this version.
    async fn until(&mut self, names: usize, version: u64) {
        let version = Version::of(&version).to_string();
        let mut there = BTreeSet::new();
        while there.len() < names {
            let response = self.responses.message().await.unwrap().expect("the server goes on");
            let new = response.resources.iter().filter(|resource| resource.version == version);
            there.extend(new.map(|resource| resource.name.clone()));
            self.acknowledge(&response).await;
        }
    }
}

async fn settled(xds: &Xds, what: &str, condition: impl FnMut(&Settled) -> bool) {
    let mut settled = xds.settled();
    let waited = tokio::time::timeout(DEADLINE, settled.wait_for(condition)).await;
    assert!(waited.is_ok(), "waited in vain for {what}: {:?} {:#?}", xds.settled().borrow(), xds.describe());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_gateways_are_told_everything_beside_one_that_stopped_reading() {
    const GATEWAYS: usize = 200;
    let running = start(KEEPALIVE).await;
    let (xds, address) = (&running.xds, running.address);
    // More than fits into the buffers of a connection.
    xds.publish(content(50, 0));
    let stopped = Gateway::connect(address).await;
    let mut others = JoinSet::new();
    for _ in 0..GATEWAYS {
        others.spawn(async move {
            let mut gateway = Gateway::connect(address).await;
            gateway.until(50, 0).await;
            gateway
        });
    }
    let mut gateways = others.join_all().await;
    for version in 1..=3 {
        xds.publish(content(2, version));
        let tasks = gateways.into_iter().map(|mut gateway| async move {
            gateway.until(2, version).await;
            gateway
        });
        gateways = tasks.collect::<JoinSet<_>>().join_all().await;
    }
    settled(xds, "all", |settled| settled.gateways == GATEWAYS + 1).await;
    let published = xds.publish(Change::default());
    assert!(xds.settled().borrow().revision < published, "one has answered nothing");
    drop(stopped);
    settled(xds, "the others", |settled| *settled == Settled { gateways: GATEWAYS, revision: published }).await;
    drop(gateways);
    settled(xds, "the end", |settled| settled.gateways == 0).await;
    assert_eq!(xds.describe(), Vec::<String>::new(), "nothing is left of them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_shows_no_sign_of_life_is_disconnected() {
    let keepalive = Keepalive { interval: Duration::from_millis(50), timeout: Duration::from_millis(200) };
    let running = start(keepalive).await;
    // A client's preface and empty settings: then silence, as from a machine that lost its power.
    let mut silent = TcpStream::connect(running.address).await.unwrap();
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut heard = Vec::new();
    let end = tokio::time::timeout(DEADLINE, silent.read_to_end(&mut heard)).await.expect("it is disconnected");
    assert!(end.is_err() || !heard.is_empty(), "it was greeted before");
}

fn ask(xds: &Xds, connection: &Connection, kind: Kind, nonce: u64) {
    let request = DeltaRequest {
        kind,
        subscribe: Vec::new(),
        unsubscribe: Vec::new(),
        initial: BTreeMap::new(),
        nonce: nonce.to_string(),
        error: None,
    };
    xds.with(|core| core.delta(connection.id, request));
}

#[tokio::test(start_paused = true)]
async fn who_never_answers_is_not_waited_for_and_who_answers_late_is() {
    let (xds, _events) = Xds::new();
    let [late, never] = [(); 2].map(|()| xds.connect(Protocol::Delta, None));
    let names: Vec<Name> = vec!["c0".into(), "c1".into()];
    for connection in [&late, &never] {
        ask(&xds, connection, Kind::Listener, 0);
        ask(&xds, connection, Kind::Cluster, 0);
    }
    let published = xds.publish(content(names.len(), 1));
    // Greeted with clusters; there are no listeners.
    let [first, _] = [&late, &never].map(|connection| connection.next().unwrap());
    assert_eq!((first.kind, first.resources.len()), (Kind::Cluster, names.len()));
    tokio::time::sleep(patience::PATIENCE / 2).await;
    ask(&xds, &late, Kind::Cluster, first.nonce);
    assert_eq!(xds.settled().borrow().gateways, 2);
    assert!(xds.settled().borrow().revision < published);
    tokio::time::sleep(patience::PATIENCE).await;
    settled(&xds, "the one that answers", |settled| *settled == Settled { gateways: 1, revision: published }).await;
    assert!(never.is_abandoned() && !late.is_abandoned());
    assert!(never.next().is_none(), "its stream ends");

    // Each response has its own time.
    for version in 2..6 {
        xds.publish(content(1, version));
        while let Some(response) = late.next() {
            tokio::time::sleep(patience::PATIENCE / 2).await;
            ask(&xds, &late, response.kind, response.nonce);
        }
    }
    assert!(!late.is_abandoned());
    drop(late);
    assert_eq!(xds.settled().borrow().gateways, 0);
}
