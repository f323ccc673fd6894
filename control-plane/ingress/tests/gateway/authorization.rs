//! External authorization with authorizers of every protocol.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::service::auth::v3::{
        CheckRequest, CheckResponse, OkHttpResponse,
        authorization_server::{Authorization as Authorizer, AuthorizationServer},
        check_response::HttpResponse,
    },
    google::rpc,
};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use ingress::{Authorization, AuthorizationProtocol};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Response, Status, transport::Server};

use crate::{
    settings::{asking, start},
    support::{Authority, Backend, Certificate, Request, Rig, free_ports},
};

/// Lets in what asks for `/success`, and remembers what it was asked.
#[derive(Clone, Default)]
struct Judge(Arc<Mutex<Vec<(CheckRequest, String)>>>);

#[tonic::async_trait]
impl Authorizer for Judge {
    async fn check(&self, request: tonic::Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let client = request.metadata().get("client").and_then(|client| client.to_str().ok()).unwrap_or_default();
        let client = client.to_owned();
        let request = request.into_inner();
        let http = request.attributes.clone().and_then(|all| all.request?.http).unwrap_or_default();
        self.0.lock().push((request, client));
        let (code, http_response) = match http.path.as_str() {
            "/success" => (0, Some(HttpResponse::OkResponse(OkHttpResponse::default()))),
            _ => (7, None),
        };
        let status = Some(rpc::Status { code, ..Default::default() });
        Ok(Response::new(CheckResponse { status, http_response, ..Default::default() }))
    }
}

async fn status(rig: &Rig, path: &str) -> u16 {
    let request = Request { path, ..Request::to("app.example.com") };
    rig.try_send(rig.external, &request).await.map_or(0, |answer| answer.status)
}

/// A POST with bytes that are no text; the status line of the answer.
async fn post(to: SocketAddr, path: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: app.example.com\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_grpc_with_the_words_of_the_ingress_and_bodies_as_bytes() {
    for state_of_the_world in [false, true] {
        let Some((rig, _backend)) = start(state_of_the_world).await else { return };
        let [address, nobody] = free_ports().await;
        let judge = Judge::default();
        let service = AuthorizationServer::new(judge.clone());
        tokio::spawn(Server::builder().add_service(service).serve(address));
        let ask = |address, failure_mode_allow| {
            rig.configure(|settings| {
                settings.authorization = Some(Authorization {
                    protocol: AuthorizationProtocol::Grpc,
                    pack_as_bytes: true,
                    timeout: Duration::from_secs(10),
                    failure_mode_allow,
                    ..asking(address)
                });
            });
        };
        ask(address, false);
        rig.ready("app").await;
        rig.until("permission", async || status(&rig, "/success").await == 200).await;
        assert_eq!(status(&rig, "/").await, 403);
        assert_eq!(post(rig.external, "/success", &[0, 159, 146, 150]).await, "HTTP/1.1 200 OK");
        let (request, client) = judge.0.lock().last().cloned().unwrap();
        let attributes = request.attributes.unwrap();
        let word = |name: &str| attributes.context_extensions.get(name).map(String::as_str);
        assert_eq!((word("client"), word("visibility")), (Some("kourier"), Some("ExternalIP")));
        assert_eq!((word("team"), client.as_str()), (Some("blue"), "kourier"));
        let http = attributes.request.unwrap().http.unwrap();
        assert_eq!(http.raw_body, [0, 159, 146, 150]);
        assert!(http.headers.keys().all(|name| !name.starts_with("x-postrider")), "{:?}", http.headers);
        // Nobody to ask: closed, unless it may be open.
        ask(nobody, false);
        rig.until("refusals", async || status(&rig, "/success").await == 403).await;
        ask(nobody, true);
        rig.until("indifference", async || status(&rig, "/").await == 200).await;
        assert_eq!(rig.rejections().await, 0);
    }
}

/// Over TLS with this certificate.
async fn secured(certificate: &Certificate) -> Backend {
    let acceptor = certificate.acceptor();
    Backend::connections(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| async move {
                let status = if request.uri().path() == "/verify/success" { 200 } else { 403 };
                let response = hyper::Response::builder().status(status).body(Full::<Bytes>::default()).unwrap();
                Ok::<_, Infallible>(response)
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_https_only_an_authorizer_that_proves_its_name_is_believed() {
    for state_of_the_world in [false, true] {
        let Some((rig, _backend)) = start(state_of_the_world).await else { return };
        let authority = Authority::new("bundled");
        let good = secured(&authority.issue(&["127.0.0.1"])).await;
        let misnamed = secured(&authority.issue(&["authorizer.example.com"])).await;
        let unknown = secured(&Certificate::new(&["127.0.0.1"])).await;
        let ask = |authorizer: &Backend| {
            let authorization = asking(authorizer.address);
            rig.configure(|settings| {
                settings.authorization =
                    Some(Authorization { protocol: AuthorizationProtocol::Https, ..authorization });
            });
        };
        // Nobody's system believes a test.
        ask(&good);
        rig.until("refusals", async || status(&rig, "/success").await == 403).await;
        rig.trust_bundle("bundle", &authority.pem);
        rig.ready("app").await;
        rig.until("permission", async || status(&rig, "/success").await == 200).await;
        assert_eq!(status(&rig, "/").await, 403);
        for other in [&misnamed, &unknown] {
            ask(other);
            rig.until("refusals", async || status(&rig, "/success").await == 403).await;
            ask(&good);
            rig.until("permission", async || status(&rig, "/success").await == 200).await;
        }
    }
}
