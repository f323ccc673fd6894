//! Where metrics go: over OTLP, or to who asks for `/metrics`, over TLS if `METRICS_PROMETHEUS_TLS_*` names a certificate.

use std::sync::Arc;

use api::config::Exporter;
use controller::Tasks;
use http::Request;
use net::{Connections, Http, Incoming};
use observe::Registry;
use telemetry::otlp::{
    Otel,
    registry::{Export, Instrument, Wanted},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const HEAD: std::time::Duration = std::time::Duration::from_secs(10);

/// Exports to a collector if that is how `config-observability` wants metrics; what is left at the end has to be sent.
pub(crate) fn export(
    settings: &Exporter,
    instruments: &'static [Instrument],
    resource: &[(&str, &str)],
    registry: &Registry,
    tasks: &Tasks,
) -> Option<Arc<Export>> {
    let wanted = Wanted { protocol: &settings.protocol, endpoint: &settings.endpoint, interval: settings.interval };
    let resource = resource.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let export = Export::new(registry, instruments, wanted, &Otel::of(std::env::vars()), resource)?;
    tasks.spawn("metrics", export.clone().run());
    Some(export)
}

/// Serves the table until the tasks end.
pub(crate) fn serve(listener: TcpListener, acceptor: TlsAcceptor, registry: &Registry, tasks: &Tasks) {
    let (http, connections, registry) = (Http::with_head_time(HEAD), Connections::new(), registry.clone());
    let accepting = net::accept(listener, connections.clone(), move |stream, peer| {
        let (acceptor, http, connections) = (acceptor.clone(), http.clone(), connections.clone());
        let registry = registry.clone();
        async move {
            let answer = move |request: Request<Incoming>, _| {
                std::future::ready(net::exposition::<_, ()>(&request, || registry.render()))
            };
            if let Some(stream) = telemetry::tls::handshake(acceptor, stream, peer).await {
                http.serve(stream, peer, &connections, answer).await;
            }
        }
    });
    tasks.spawn("metrics", accepting);
}

#[cfg(test)]
mod tests {
    use std::{fs, net::Ipv4Addr, sync::Arc};

    use rustls::{ClientConfig, RootCertStore};
    use rustls_pki_types::{PrivateKeyDer, ServerName};
    use telemetry::tls::{ClientAuth, Fixed, Paths, TlsSettings};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsConnector;

    use super::*;

    #[tokio::test]
    async fn metrics_are_given_to_clients_with_a_certificate_only() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let path = |name: &str| folder.path().join(name);
        let files = Paths { certificate: path("tls.crt"), key: path("tls.key") };
        fs::write(&files.certificate, made.cert.pem()).unwrap();
        fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        let auth = ClientAuth { authorities: files.certificate.clone(), required: true };
        let acceptor = Fixed { files, settings: TlsSettings::default(), auth: Some(auth) }.acceptor().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (registry, tasks) = (Registry::new(), Tasks::new());
        registry.gauge("colours", "How many.", &[]).set(3.0);
        serve(listener, acceptor, &registry, &tasks);

        let ask = async |identity: bool| {
            let mut roots = RootCertStore::empty();
            roots.add(made.cert.der().clone()).unwrap();
            let client = ClientConfig::builder().with_root_certificates(roots);
            let client = match identity {
                true => {
                    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
                    client.with_client_auth_cert(vec![made.cert.der().clone()], key).unwrap()
                }
                false => client.with_no_client_auth(),
            };
            let stream = tokio::net::TcpStream::connect(address).await?;
            let name = ServerName::try_from("localhost").unwrap();
            let mut stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            std::io::Result::Ok(text)
        };
        let text = ask(true).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("colours 3"), "{text}");
        assert!(ask(false).await.is_err());
        tasks.shutdown().await;
    }
}
