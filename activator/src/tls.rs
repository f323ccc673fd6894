//! Encryption between the parts of an installation (`system-internal-tls`): the certificate of the TLS port, and how
//! pods are recognised.
//!
//! Both come from one Secret of the system namespace, and the authorities also from its ConfigMaps that are marked as
//! trust bundles. All of them are watched: a new certificate serves the next handshake, new authorities judge the next
//! connection. A pod's certificate has to be valid for the data plane's name *and* for its namespace's, so that no
//! tenant's pod passes for another's.

mod encrypted;
mod verifier;

use std::{collections::HashMap, fmt, io, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};
use controller::{Cache, Context};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use net::{Connections, Http, Stay, Workers};
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::CryptoProvider, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use telemetry::tls::TlsSettings;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use self::encrypted::Encrypted;
use crate::handler::Handler;

const SECRET: &str = "routing-serving-certs";
const TRUST_BUNDLE: &str = api::keys::networking::TRUST_BUNDLE;
/// What every data plane certificate is valid for.
const DATA_PLANE: &str = "data-plane.knative.dev";
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The port of a pod that is encrypted, and that of its Service.
pub(crate) const POD_PORT: u16 = 8112;
pub(crate) const SERVICE_PORT: u16 = 443;

/// Why there can be no encryption.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("Secret {0}/{SECRET} is missing; system-internal-tls needs it: let the controller make it and start again")]
    Missing(String),
    #[error("Secret {0}/{SECRET}: {1}; correct it and start again")]
    Invalid(String, String),
}

pub(crate) struct Tls {
    settings: TlsSettings,
    secrets: Cache<Secret>,
    bundles: Cache<ConfigMap>,
    server: ArcSwapOption<ServerConfig>,
    roots: ArcSwap<RootCertStore>,
    /// By namespace.
    clients: Mutex<HashMap<String, Client>>,
}

/// What judges the pods of a namespace, and the authorities that it was made of.
type Client = (Arc<RootCertStore>, Arc<ClientConfig>);

/// Encrypts connections to the pods of one namespace.
pub(crate) struct Connector {
    tls: Arc<Tls>,
    namespace: String,
}

// === impl Tls ===

impl Tls {
    /// Starts to watch; the certificate must be there.
    ///
    /// # Errors
    /// What is missing or cannot be used.
    pub(crate) async fn watch(ctx: &Context, settings: TlsSettings) -> Result<Arc<Self>, Error> {
        let namespace = &ctx.system_namespace;
        let secrets =
            Cache::builder().namespace(namespace).field_selector(&format!("metadata.name={SECRET}")).start(ctx);
        let bundles = Cache::builder().namespace(namespace).label_selector(TRUST_BUNDLE).start(ctx);
        let tls = Arc::new(Self {
            settings,
            secrets,
            bundles,
            server: ArcSwapOption::empty(),
            roots: ArcSwap::from_pointee(RootCertStore::empty()),
            clients: Mutex::default(),
        });
        tls.secrets.synced().await;
        tls.bundles.synced().await;
        let secret = tls.secrets.get(namespace, SECRET).ok_or_else(|| Error::Missing(namespace.clone()))?;
        let server = tls.server_config(&secret).map_err(|error| Error::Invalid(namespace.clone(), error))?;
        tls.server.store(Some(server));
        tls.trust();

        let weak = Arc::downgrade(&tls);
        tls.secrets.on_event(move |change| {
            if let Some(tls) = weak.upgrade().filter(|_| !change.is_deleted()) {
                match tls.server_config(change.object()) {
                    Ok(config) => tls.server.store(Some(config)),
                    Err(error) => tracing::error!("Secret {SECRET}: {error}; the old certificate stays in use"),
                }
                tls.trust();
            }
        });
        let weak = Arc::downgrade(&tls);
        tls.bundles.on_event(move |_| {
            if let Some(tls) = weak.upgrade() {
                tls.trust();
            }
        });
        Ok(tls)
    }

    /// For connections to the pods of `namespace`.
    pub(crate) fn connector(self: &Arc<Self>, namespace: &str) -> Arc<dyn net::Wrap> {
        Arc::new(Connector { tls: self.clone(), namespace: namespace.to_lowercase() })
    }

    /// Serves the TLS port until `connections` are told to close.
    ///
    /// # Errors
    /// If the listener cannot be given to a worker.
    pub(crate) fn serve(
        self: Arc<Self>,
        workers: &Workers,
        listener: TcpListener,
        connections: Connections,
        handler: Arc<Handler>,
    ) -> io::Result<impl Future<Output = ()> + use<>> {
        let http = Http::new();
        workers.accept(listener, connections.clone(), Stay::Settled, move |stream, peer, seat| {
            let acceptor = self.server.load_full().map(TlsAcceptor::from);
            let (http, connections, handler) = (http.clone(), connections.clone(), handler.clone());
            async move {
                let _seat = seat;
                let Some(acceptor) = acceptor else { return };
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        let handle = move |request, peer| handler.clone().handle(request, peer, true);
                        http.serve(stream, peer, &connections, handle).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                    Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
                }
            }
        })
    }

    fn server_config(&self, secret: &Secret) -> Result<Arc<ServerConfig>, String> {
        let chain = CertificateDer::pem_slice_iter(data(secret, "tls.crt")?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("tls.crt is not a certificate in PEM form: {error}"))?;
        let key = PrivateKeyDer::from_pem_slice(data(secret, "tls.key")?)
            .map_err(|error| format!("tls.key is not a private key in PEM form: {error}"))?;
        let mut config = ServerConfig::builder_with_provider(self.settings.provider())
            .with_protocol_versions(self.settings.versions())
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| format!("the certificate cannot be served: {error}"))?;
        // A gateway negotiates; an activator before another one would speak HTTP/2 without being asked.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Takes over the authorities there are now.
    fn trust(&self) {
        let mut roots = RootCertStore::empty();
        for secret in self.secrets.list() {
            if let Ok(pem) = data(&secret, "ca.crt") {
                add(&mut roots, pem, SECRET);
            }
        }
        for bundle in self.bundles.list() {
            let name = bundle.metadata.name.as_deref().unwrap_or_default();
            bundle.data.iter().flat_map(|data| data.values()).for_each(|pem| add(&mut roots, pem.as_bytes(), name));
        }
        self.roots.store(Arc::new(roots));
    }

    fn client(&self, namespace: &str) -> io::Result<Arc<ClientConfig>> {
        let roots = self.roots.load_full();
        let mut clients = self.clients.lock();
        if let Some((_, config)) = clients.get(namespace).filter(|(made_of, _)| Arc::ptr_eq(made_of, &roots)) {
            return Ok(config.clone());
        }
        let verifier = verifier::Pods::new(roots.clone(), provider(), namespace)?;
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        let config = Arc::new(config);
        clients.insert(namespace.to_owned(), (roots, config.clone()));
        Ok(config)
    }
}

fn data<'a>(secret: &'a Secret, key: &str) -> Result<&'a [u8], String> {
    let found = secret.data.as_ref().and_then(|data| data.get(key));
    found.map(|value| value.0.as_slice()).ok_or_else(|| format!("{key} is missing"))
}

/// What is no certificate is left out.
fn add(roots: &mut RootCertStore, pem: &[u8], name: &str) {
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let added = certificate
            .map_err(|error| error.to_string())
            .and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
        if let Err(error) = added {
            tracing::warn!(name, error, "an authority is left out");
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

// === impl Connector ===

impl net::Wrap for Connector {
    fn wrap(&self, stream: TcpStream) -> BoxFuture<'static, io::Result<Box<dyn net::Wrapped>>> {
        let config = self.tls.client(&self.namespace);
        Box::pin(async move {
            let name = ServerName::try_from(DATA_PLANE).map_err(io::Error::other)?;
            let stream = TlsConnector::from(config?).connect(name, stream);
            match tokio::time::timeout(HANDSHAKE, stream).await {
                Ok(stream) => Ok(Box::new(Encrypted::new(stream?)) as Box<dyn net::Wrapped>),
                Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "TLS handshake timeout")),
            }
        })
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connector({})", self.namespace)
    }
}
