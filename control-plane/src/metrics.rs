//! Where metrics go: over OTLP, or to who asks for `/metrics`, over TLS if `METRICS_PROMETHEUS_TLS_*` names a certificate.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use api::config::Exporter;
use controller::Tasks;
use http::Request;
use net::{Connections, Http, Incoming};
use observe::Registry;
use telemetry::{
    otlp::{
        Otel,
        registry::{Export, Instrument, Wanted},
    },
    tls::{ClientAuth, Paths, TlsSettings, Which},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const HEAD: std::time::Duration = std::time::Duration::from_secs(10);

/// In the order of `TlsSettings::parse`.
const SETTINGS: [&str; 4] = ["MIN_VERSION", "MAX_VERSION", "CIPHER_SUITES", "CURVE_PREFERENCES"];

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

/// Nothing, if metrics are served in plain text.
///
/// # Errors
/// Which variable or file is at fault.
pub(crate) fn acceptor(get: impl Fn(&str) -> Option<String>) -> Result<Option<TlsAcceptor>> {
    let variable = |name: &str| format!("METRICS_PROMETHEUS_TLS_{name}");
    let text = |name: &str| get(&variable(name)).filter(|text| !text.is_empty());
    let files = match (text("CERT"), text("KEY")) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => Paths { certificate: certificate.into(), key: key.into() },
        (Some(_), None) => bail!("{} is not set, but {} is", variable("KEY"), variable("CERT")),
        (None, Some(_)) => bail!("{} is not set, but {} is", variable("CERT"), variable("KEY")),
    };
    let auth = match text("CLIENT_AUTH").unwrap_or_default().as_str() {
        "" | "none" => None,
        asked @ ("optional" | "require") => {
            let authorities = text("CLIENT_CA_FILE").with_context(|| {
                format!("{} is {asked}, which needs {}", variable("CLIENT_AUTH"), variable("CLIENT_CA_FILE"))
            })?;
            Some(ClientAuth { authorities: authorities.into(), required: asked == "require" })
        }
        other => bail!("{} is {other:?}, not none, optional or require", variable("CLIENT_AUTH")),
    };
    let values = SETTINGS.map(|name| text(name).unwrap_or_default());
    let settings = TlsSettings::parse(&values[0], &values[1], &values[2], &values[3]).map_err(|mistake| {
        let at = match mistake.which {
            Which::Min => 0,
            Which::Max => 1,
            Which::Suites => 2,
            Which::Curves => 3,
        };
        anyhow::anyhow!("{} is {:?}, not {}", variable(SETTINGS[at]), values[at], mistake.expected)
    })?;
    let acceptor = telemetry::tls::fixed(&files, &settings, auth.as_ref());
    acceptor.map(Some).with_context(|| format!("metrics cannot be served over TLS; correct {}*", variable("")))
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
    use std::{collections::BTreeMap, fs, net::Ipv4Addr, sync::Arc};

    use rustls::{ClientConfig, RootCertStore};
    use rustls_pki_types::{PrivateKeyDer, ServerName};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsConnector;

    use super::*;

    fn with<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        let pairs: BTreeMap<String, &str> =
            pairs.iter().map(|(name, value)| (format!("METRICS_PROMETHEUS_TLS_{name}"), *value)).collect();
        move |name| pairs.get(name).map(|value| (*value).to_owned())
    }

    #[test]
    fn mistakes_name_their_variable() {
        assert!(acceptor(with(&[("MIN_VERSION", "1.3")])).unwrap().is_none());
        let files = [("CERT", "/no/such.crt"), ("KEY", "/no/such.key")];
        for (extra, expected) in [
            (&[][..], "/no/such"),
            (&[("CLIENT_AUTH", "maybe")], "METRICS_PROMETHEUS_TLS_CLIENT_AUTH is \"maybe\""),
            (&[("CLIENT_AUTH", "require")], "METRICS_PROMETHEUS_TLS_CLIENT_CA_FILE"),
            (&[("MIN_VERSION", "0.9")], "METRICS_PROMETHEUS_TLS_MIN_VERSION is \"0.9\""),
            (&[("CURVE_PREFERENCES", "x")], "METRICS_PROMETHEUS_TLS_CURVE_PREFERENCES"),
        ] {
            let all: Vec<(&str, &str)> = files.iter().chain(extra).copied().collect();
            let error = format!("{:#}", acceptor(with(&all)).err().unwrap());
            assert!(error.contains(expected), "{error}");
        }
        let error = acceptor(with(&files[..1])).err().unwrap().to_string();
        assert!(error.contains("METRICS_PROMETHEUS_TLS_KEY is not set"), "{error}");
    }

    #[tokio::test]
    async fn metrics_are_given_to_clients_with_a_certificate_only() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let (certificate, key) = (path("tls.crt"), path("tls.key"));
        fs::write(&certificate, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let variables = [
            ("CERT", certificate.as_str()),
            ("KEY", &key),
            ("CLIENT_AUTH", "require"),
            ("CLIENT_CA_FILE", &certificate),
        ];
        let acceptor = acceptor(with(&variables)).unwrap().unwrap();
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
