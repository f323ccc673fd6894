//! The gRPC services by path: `Stream*` is state of the world, `Delta*` is delta; the single-type services are ADS with
//! the type given by the service.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use envoy_types::pb::{
    envoy::{
        config::core::v3 as envoy_core,
        service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    },
    google::protobuf::value,
};
use futures::{Stream, stream};
use tonic::{
    Request, Status, Streaming,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::{Grpc, NamedService, StreamingService, UnaryService},
};

use super::{
    Connection, Door, Node,
    codec::{Discovery, Raw},
};
use crate::{
    core::{DeltaRequest, Protocol, Response, WorldRequest},
    resource::Kind,
};

/// Node metadata of a gateway that takes routes by scope.
pub const ROUTES: &str = "routes";
pub const SCOPES: &str = "scopes";

/// Registers one gRPC service per name; all are the same code.
macro_rules! services {
    ($($service:ident = $name:literal, $kind:expr;)*) => {
        $(
            #[derive(Clone)]
            struct $service(Door);

            impl NamedService for $service {
                const NAME: &'static str = $name;
            }

            impl Service<http::Request<Body>> for $service {
                type Response = http::Response<Body>;
                type Error = Infallible;
                type Future = BoxFuture<Self::Response, Infallible>;

                fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                    Poll::Ready(Ok(()))
                }

                fn call(&mut self, request: http::Request<Body>) -> Self::Future {
                    { let serving = serve(self.0.clone(), $kind, request); Box::pin(async move { Ok(serving.await) }) }
                }
            }
        )*

        pub(super) fn register(mut server: tonic::transport::Server, door: &Door) -> tonic::transport::server::Router {
            server.add_service(Health)$(.add_service($service(door.clone())))*
        }
    };
}

services! {
    Aggregated = "envoy.service.discovery.v3.AggregatedDiscoveryService", None;
    Clusters = "envoy.service.cluster.v3.ClusterDiscoveryService", Some(Kind::Cluster);
    Endpoints = "envoy.service.endpoint.v3.EndpointDiscoveryService", Some(Kind::Endpoints);
    Scopes = "envoy.service.route.v3.ScopedRoutesDiscoveryService", Some(Kind::Scope);
    Listeners = "envoy.service.listener.v3.ListenerDiscoveryService", Some(Kind::Listener);
    Routes = "envoy.service.route.v3.RouteDiscoveryService", Some(Kind::Route);
    Secrets = "envoy.service.secret.v3.SecretDiscoveryService", Some(Kind::Secret);
}

type Responses = Pin<Box<dyn Stream<Item = Result<Response, Status>> + Send>>;

async fn serve(door: Door, kind: Option<Kind>, request: http::Request<Body>) -> http::Response<Body> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default();
    if method.starts_with("Delta") {
        Grpc::new(Discovery::<DeltaDiscoveryRequest>::default()).streaming(Handler { door, kind }, request).await
    } else if method.starts_with("Stream") {
        Grpc::new(Discovery::<DiscoveryRequest>::default()).streaming(Handler { door, kind }, request).await
    } else {
        Status::unimplemented("only streams are served").into_http()
    }
}

struct Handler {
    door: Door,
    kind: Option<Kind>,
}

/// One stream, before and after its first message has said whose it is.
struct Session<R> {
    door: Door,
    peer: Option<SocketAddr>,
    connection: Option<Connection>,
    requests: Streaming<R>,
    kind: Option<Kind>,
}

trait Incoming: Send + 'static {
    const PROTOCOL: Protocol;
    fn node(&self) -> Option<&envoy_core::Node>;
    fn apply(self, connection: &Connection, kind: Option<Kind>) -> Result<(), Status>;
}

impl<R: Incoming> StreamingService<R> for Handler {
    type Response = Response;
    type ResponseStream = Responses;
    type Future = Ready<Result<tonic::Response<Responses>, Status>>;

    fn call(&mut self, request: Request<Streaming<R>>) -> Self::Future {
        let peer = request.remote_addr();
        let session = Session {
            door: self.door.clone(),
            peer,
            connection: None,
            requests: request.into_inner(),
            kind: self.kind,
        };
        let responses = stream::try_unfold(session, |mut session| async move {
            let response = session.next().await?;
            Ok(response.map(|response| (response, session)))
        });
        ready(Ok(tonic::Response::new(Box::pin(responses))))
    }
}

// === impl Session ===

impl<R: Incoming> Session<R> {
    /// The next response; `None` when the client has ended the stream or we must.
    async fn next(&mut self) -> Result<Option<Response>, Status> {
        loop {
            if self.connection.as_ref().is_some_and(Connection::is_abandoned) {
                return Err(Status::deadline_exceeded("no answer to a response for too long; connect again"));
            }
            if let Some(connection) = &self.connection
                && let Some(response) = connection.next()
            {
                tracing::trace!(stream = connection.id, kind = %response.kind, nonce = response.nonce,
                    resources = response.resources.len(), removed = response.removed.len(), "xDS response");
                return Ok(Some(response));
            }
            let work = async {
                match &self.connection {
                    Some(connection) => connection.link.wake.notified().await,
                    None => std::future::pending().await,
                }
            };
            let request = tokio::select! {
                request = self.requests.message() => request?,
                () = work => continue,
                _ = self.door.closing.wait_for(|closing| *closing) => None,
            };
            let Some(request) = request else { return Ok(None) };
            let (door, peer) = (&self.door, self.peer);
            let connection = self.connection.get_or_insert_with(|| {
                let node = request.node().map(node).unwrap_or_default();
                let connection = door.views.view(&node).connect(R::PROTOCOL, peer);
                tracing::debug!(stream = connection.id, ?peer, protocol = ?R::PROTOCOL, node = node.id, "xDS stream");
                connection
            });
            request.apply(connection, self.kind)?;
        }
    }
}

fn node(node: &envoy_core::Node) -> Node {
    let fields = node.metadata.iter().flat_map(|metadata| &metadata.fields);
    let texts = fields.filter_map(|(name, value)| match &value.kind {
        Some(value::Kind::StringValue(text)) => Some((name.clone(), text.clone())),
        _ => None,
    });
    Node { id: node.id.clone(), cluster: node.cluster.clone(), metadata: texts.collect() }
}

fn kind_of(url: &str, implied: Option<Kind>) -> Result<Option<Kind>, Status> {
    match (Kind::from_type_url(url), implied) {
        (None, Some(kind)) if url.is_empty() => Ok(Some(kind)),
        (Some(kind), Some(implied)) if kind != implied => {
            Err(Status::invalid_argument(format!("{url} is not served here; ask for it over ADS")))
        }
        (kind, _) => {
            if kind.is_none() {
                tracing::debug!(url, "a gateway asks for a type that is not served");
            }
            Ok(kind)
        }
    }
}

/// Our bootstrap says so; a gateway of which nothing is known gets tables.
fn takes_scopes(from: &envoy_core::Node) -> bool {
    node(from).metadata.get(ROUTES).is_some_and(|routes| routes == SCOPES)
}

impl Incoming for DeltaDiscoveryRequest {
    const PROTOCOL: Protocol = Protocol::Delta;

    fn node(&self) -> Option<&envoy_core::Node> {
        self.node.as_ref()
    }

    fn apply(self, connection: &Connection, implied: Option<Kind>) -> Result<(), Status> {
        let Some(kind) = kind_of(&self.type_url, implied)? else { return Ok(()) };
        let request = DeltaRequest {
            kind,
            subscribe: self.resource_names_subscribe,
            unsubscribe: self.resource_names_unsubscribe,
            initial: self.initial_resource_versions.into_iter().collect(),
            nonce: self.response_nonce,
            error: self.error_detail.map(|status| status.message),
        };
        connection.xds.with(|core| {
            if let Some(node) = self.node {
                core.set_node(connection.id, &connection.name(&node.id));
                if takes_scopes(&node) {
                    core.set_scoped(connection.id);
                }
            }
            core.delta(connection.id, request);
        });
        Ok(())
    }
}

impl Incoming for DiscoveryRequest {
    const PROTOCOL: Protocol = Protocol::World;

    fn node(&self) -> Option<&envoy_core::Node> {
        self.node.as_ref()
    }

    fn apply(self, connection: &Connection, implied: Option<Kind>) -> Result<(), Status> {
        let Some(kind) = kind_of(&self.type_url, implied)? else { return Ok(()) };
        let error = self.error_detail.map(|status| status.message);
        let request = WorldRequest { kind, names: self.resource_names, nonce: self.response_nonce, error };
        connection.xds.with(|core| {
            if let Some(node) = self.node {
                core.set_node(connection.id, &connection.name(&node.id));
            }
            core.world(connection.id, request);
        });
        Ok(())
    }
}

/// `grpc.health.v1.Health/Check`: the port is only open while it serves.
#[derive(Clone)]
struct Health;

impl NamedService for Health {
    const NAME: &'static str = "grpc.health.v1.Health";
}

impl Service<http::Request<Body>> for Health {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            if request.uri().path().ends_with("/Check") {
                Ok(Grpc::new(Raw).unary(Serving, request).await)
            } else {
                Ok(Status::unimplemented("only Check is served").into_http())
            }
        })
    }
}

struct Serving;

impl UnaryService<()> for Serving {
    type Response = &'static [u8];
    type Future = Ready<Result<tonic::Response<Self::Response>, Status>>;

    fn call(&mut self, _: Request<()>) -> Self::Future {
        // HealthCheckResponse { status: SERVING }
        ready(Ok(tonic::Response::new(&[0x08, 0x01])))
    }
}
