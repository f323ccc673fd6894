//! The gRPC services by path: `Stream*` is state of the world, `Delta*` is delta; the single-type services are ADS with
//! the type given by the service.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    task::{Context, Poll},
};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use futures::{Stream, stream};
use tonic::{
    Request, Status, Streaming,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::{Grpc, NamedService, StreamingService, UnaryService},
};

use super::{
    Connection, Xds,
    codec::{Discovery, Raw},
};
use crate::{
    core::{DeltaRequest, Protocol, Response, WorldRequest},
    resource::Kind,
};

/// Registers one gRPC service per name; all are the same code.
macro_rules! services {
    ($($service:ident = $name:literal, $kind:expr;)*) => {
        $(
            #[derive(Clone)]
            struct $service(Xds);

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

        pub(super) fn register(mut server: tonic::transport::Server, xds: &Xds) -> tonic::transport::server::Router {
            server.add_service(Health)$(.add_service($service(xds.clone())))*
        }
    };
}

services! {
    Aggregated = "envoy.service.discovery.v3.AggregatedDiscoveryService", None;
    Clusters = "envoy.service.cluster.v3.ClusterDiscoveryService", Some(Kind::Cluster);
    Endpoints = "envoy.service.endpoint.v3.EndpointDiscoveryService", Some(Kind::Endpoints);
    Listeners = "envoy.service.listener.v3.ListenerDiscoveryService", Some(Kind::Listener);
    Routes = "envoy.service.route.v3.RouteDiscoveryService", Some(Kind::Route);
    Secrets = "envoy.service.secret.v3.SecretDiscoveryService", Some(Kind::Secret);
}

type Responses = Pin<Box<dyn Stream<Item = Result<Response, Status>> + Send>>;

async fn serve(xds: Xds, kind: Option<Kind>, request: http::Request<Body>) -> http::Response<Body> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default();
    if method.starts_with("Delta") {
        Grpc::new(Discovery::<DeltaDiscoveryRequest>::default()).streaming(Handler { xds, kind }, request).await
    } else if method.starts_with("Stream") {
        Grpc::new(Discovery::<DiscoveryRequest>::default()).streaming(Handler { xds, kind }, request).await
    } else {
        Status::unimplemented("only streams are served").into_http()
    }
}

struct Handler {
    xds: Xds,
    kind: Option<Kind>,
}

trait Incoming: Send + 'static {
    const PROTOCOL: Protocol;
    fn apply(self, connection: &Connection, kind: Option<Kind>) -> Result<(), Status>;
}

impl<R: Incoming> StreamingService<R> for Handler {
    type Response = Response;
    type ResponseStream = Responses;
    type Future = Ready<Result<tonic::Response<Responses>, Status>>;

    fn call(&mut self, request: Request<Streaming<R>>) -> Self::Future {
        let connection = self.xds.connect(R::PROTOCOL);
        tracing::debug!(stream = connection.id, peer = ?request.remote_addr(), protocol = ?R::PROTOCOL, "xDS stream");
        let state = (connection, request.into_inner(), self.kind, self.xds.0.closing.subscribe());
        let responses = stream::try_unfold(state, |(connection, mut requests, kind, mut closing)| async move {
            loop {
                if let Some(response) = connection.next() {
                    tracing::trace!(stream = connection.id, kind = %response.kind, nonce = response.nonce,
                        resources = response.resources.len(), removed = response.removed.len(), "xDS response");
                    return Ok(Some((response, (connection, requests, kind, closing))));
                }
                tokio::select! {
                    request = requests.message() => match request? {
                        Some(request) => R::apply(request, &connection, kind)?,
                        None => return Ok(None),
                    },
                    () = connection.notify.notified() => {}
                    Ok(()) = closing.changed() => return Ok(None),
                }
            }
        });
        ready(Ok(tonic::Response::new(Box::pin(responses))))
    }
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

impl Incoming for DeltaDiscoveryRequest {
    const PROTOCOL: Protocol = Protocol::Delta;

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
                core.set_node(connection.id, &node.id);
            }
            core.delta(connection.id, request);
        });
        Ok(())
    }
}

impl Incoming for DiscoveryRequest {
    const PROTOCOL: Protocol = Protocol::World;

    fn apply(self, connection: &Connection, implied: Option<Kind>) -> Result<(), Status> {
        let Some(kind) = kind_of(&self.type_url, implied)? else { return Ok(()) };
        let error = self.error_detail.map(|status| status.message);
        let request = WorldRequest { kind, names: self.resource_names, nonce: self.response_nonce, error };
        connection.xds.with(|core| {
            if let Some(node) = self.node {
                core.set_node(connection.id, &node.id);
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
