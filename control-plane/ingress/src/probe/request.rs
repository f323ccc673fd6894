//! One probe: the handshake of Knative's data plane, through a gateway.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http_body_util::Empty;
use hyper::{Request, StatusCode, body::Bytes, header::HOST};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::Target;

/// What an answer means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The gateway has it, or answers in a way that no repetition would change.
    Done,
    Again(String),
}

const PATH: &str = "/healthz";
const AGENT: &str = "Knative-Ingress-Probe";
const HASH: &str = "k-network-hash";
const TIMEOUT: Duration = Duration::from_secs(1);

/// Asks one gateway.
pub(super) async fn probe(pod: IpAddr, target: &Target, hash: &str) -> Verdict {
    match tokio::time::timeout(TIMEOUT, ask(pod, target, hash)).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(error)) => Verdict::Again(error),
        Err(_) => Verdict::Again(format!("no answer within {TIMEOUT:?}")),
    }
}

async fn ask(pod: IpAddr, target: &Target, hash: &str) -> Result<Verdict, String> {
    let address = SocketAddr::from((pod, target.port));
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    if target.tls {
        let name = ServerName::try_from(target.host.clone()).unwrap_or_else(|_| ServerName::IpAddress(pod.into()));
        let connector = TlsConnector::from(controller::probe_tls());
        send(connector.connect(name, stream).await.map_err(|error| error.to_string())?, target, hash).await
    } else {
        send(stream, target, hash).await
    }
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    target: &Target,
    hash: &str,
) -> Result<Verdict, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let request = Request::get(PATH)
        .header(HOST, &target.host)
        .header("user-agent", AGENT)
        .header("k-network-probe", "probe")
        .header("k-network-hash", "override")
        .header("connection", "close")
        .body(Empty::<Bytes>::new());
    // A host that cannot be written into a request is one that nobody can ask for.
    let Ok(request) = request else { return Ok(Verdict::Done) };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
    let mut exchange = std::pin::pin!(sender.send_request(request));
    let response = tokio::select! {
        response = &mut exchange => response,
        // The answer may have come with the end of the connection.
        _ = connection => exchange.await,
    };
    let response = response.map_err(|error| text(&error))?;
    let answered = response.headers().get(HASH).map(|value| value.as_bytes().to_owned());
    Ok(verdict(response.status(), answered.as_deref(), hash))
}

fn verdict(status: StatusCode, answered: Option<&[u8]>, hash: &str) -> Verdict {
    match (status, answered) {
        (StatusCode::OK, Some(other)) if other != hash.as_bytes() => {
            Verdict::Again("it still has an older state".to_owned())
        }
        (StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE, _) => Verdict::Again(format!("it answers {status}")),
        // Whoever answered does not know the handshake.
        _ => Verdict::Done,
    }
}
