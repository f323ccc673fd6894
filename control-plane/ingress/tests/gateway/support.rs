//! A gateway, a control plane and backends on free ports of this machine.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use api::networking::v1alpha1::Ingress;
use controller::ObjectKey;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ingress::{
    Admin, Bootstrap, Options, Settings,
    world::{Objects, Pending, World},
};
use k8s_openapi::{
    ByteString,
    api::{
        core::v1::{Secret, Service},
        discovery::v1::EndpointSlice,
    },
};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    process::Child,
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use xds::{Server, Xds};

pub(crate) struct Rig {
    pub(crate) external: SocketAddr,
    pub(crate) internal: SocketAddr,
    pub(crate) probe: SocketAddr,
    pub(crate) external_tls: SocketAddr,
    pub(crate) internal_tls: SocketAddr,
    pub(crate) probe_tls: SocketAddr,
    admin: SocketAddr,
    objects: Store,
    options: Options,
    control: Mutex<Control>,
    // In this order: the gateway ends before its files go.
    _envoy: Child,
    _files: tempfile::TempDir,
}

struct Control {
    xds: Xds,
    world: World<Store>,
    events: tokio::sync::mpsc::UnboundedReceiver<xds::Event>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    server: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct Store(Arc<Mutex<Stored>>);

#[derive(Default)]
struct Stored {
    services: HashMap<ObjectKey, Arc<Service>>,
    slices: HashMap<ObjectKey, Arc<EndpointSlice>>,
    ingresses: HashMap<ObjectKey, Ingress>,
    secrets: HashMap<ObjectKey, Arc<Secret>>,
    bundles: BTreeMap<String, String>,
}

pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

/// For some names, with its key, as PEM.
pub(crate) struct Certificate {
    pub(crate) chain: String,
    pub(crate) key: String,
}

/// Signs certificates.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

#[derive(Clone)]
pub(crate) struct Request<'a> {
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) headers: Vec<(&'a str, &'a str)>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Of the response; what the backend got is in the body.
    pub(crate) headers: hyper::HeaderMap,
    body: Value,
}

pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<Vec<String>>>,
}

const DEADLINE: Duration = Duration::from_secs(20);

// === impl Rig ===

impl Rig {
    /// `None`, with a message, when there is no Envoy on this machine.
    pub(crate) async fn start(state_of_the_world: bool) -> Option<Self> {
        let Some(program) = envoy() else {
            eprintln!("skipped: no Envoy; name one in ENVOY or put it on PATH");
            return None;
        };
        let [xds, external, internal, probe, admin, external_tls, internal_tls, probe_tls] = free_ports().await;
        let options = Options {
            xds_listen: xds,
            external_listen: vec![external],
            internal_listen: vec![internal],
            probe_listen: vec![probe],
            external_tls_listen: vec![external_tls],
            internal_tls_listen: vec![internal_tls],
            probe_tls_listen: vec![probe_tls],
            ..Options::default()
        };
        let mut options = options;
        options.settings.access_log = false;
        let objects = Store::default();
        let control = Control::start(&objects, &options).await;
        let bootstrap = Bootstrap { state_of_the_world, concurrency: 1, ..Bootstrap::new(xds, Admin::Tcp(admin)) };
        let (envoy, files) = spawn(&program, &bootstrap);
        let control = Mutex::new(control);
        let rig = Rig {
            external,
            internal,
            probe,
            external_tls,
            internal_tls,
            probe_tls,
            admin,
            objects,
            options,
            control,
            _envoy: envoy,
            _files: files,
        };
        rig.settle().await;
        let ready = Request { path: "/ready", ..Request::to("internalkourier") };
        rig.until("the gateway", async || rig.try_send(rig.internal, &ready).await.is_ok_and(|a| a.status == 200))
            .await;
        Some(rig)
    }

    pub(crate) fn xds(&self) -> Xds {
        self.control.lock().xds.clone()
    }

    /// Creates or replaces a Service with these ready addresses, and tells the control plane.
    pub(crate) fn service(&self, name: &str, port_name: &str, addresses: &[SocketAddr]) {
        let key = ObjectKey::new("default", name);
        let service = json!({"metadata": {"name": name, "namespace": "default"},
            "spec": {"ports": [{"name": port_name, "port": 80, "targetPort": "web"}]}});
        let port = addresses.first().map_or(1, |address| address.port());
        let endpoints: Vec<Value> =
            addresses.iter().map(|address| json!({"addresses": [address.ip().to_string()]})).collect();
        let slice = json!({"metadata": {"name": name, "namespace": "default"}, "addressType": "IPv4",
            "ports": [{"name": port_name, "port": port}], "endpoints": endpoints});
        {
            let mut stored = self.objects.0.lock();
            stored.services.insert(key.clone(), Arc::new(serde_json::from_value(service).unwrap()));
            stored.slices.insert(key.clone(), Arc::new(serde_json::from_value(slice).unwrap()));
        }
        self.refresh(&key);
    }

    pub(crate) fn remove_service(&self, name: &str) {
        let key = ObjectKey::new("default", name);
        {
            let mut stored = self.objects.0.lock();
            stored.services.remove(&key);
            stored.slices.remove(&key);
        }
        self.refresh(&key);
    }

    fn refresh(&self, service: &ObjectKey) {
        let mut control = self.control.lock();
        let again = control.world.refresh(service);
        self.apply_again(&mut control, again);
    }

    /// Other settings than those the rig started with.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.options.settings.clone();
        change(&mut settings);
        let mut control = self.control.lock();
        let again = control.world.configure(settings);
        self.apply_again(&mut control, again);
    }

    /// Creates or replaces a Secret.
    pub(crate) fn secret(&self, namespace: &str, name: &str, data: &[(&str, &str)]) {
        let key = ObjectKey::new(namespace, name);
        let data = data.iter().map(|(name, value)| ((*name).to_owned(), ByteString(value.as_bytes().to_vec())));
        let secret = Secret { data: Some(data.collect()), ..Default::default() };
        self.objects.0.lock().secrets.insert(key.clone(), Arc::new(secret));
        let mut control = self.control.lock();
        let again = control.world.secret(&key);
        self.apply_again(&mut control, again);
    }

    pub(crate) fn trust_bundle(&self, name: &str, pem: &str) {
        self.objects.0.lock().bundles.insert(name.to_owned(), pem.to_owned());
        let mut control = self.control.lock();
        let again = control.world.trust_bundles();
        self.apply_again(&mut control, again);
    }

    /// Until everything is acknowledged; the Ingress is then Ready.
    pub(crate) async fn ready(&self, name: &str) {
        self.settle().await;
        let ready = async || {
            let pending = self.pending(name);
            assert!(matches!(pending, Pending::Nothing | Pending::Gateways { .. }), "{name} is not Ready: {pending:?}");
            pending == Pending::Nothing
        };
        self.until("an Ingress to be Ready", ready).await;
    }

    /// What the status of an Ingress would say.
    pub(crate) fn pending(&self, name: &str) -> Pending {
        let key = ObjectKey::new("default", name);
        let generation = self.objects.0.lock().ingresses[&key].metadata.generation.unwrap();
        let control = self.control.lock();
        let settled = *control.xds.settled().borrow();
        control.world.pending(&key, generation, settled)
    }

    pub(crate) fn remove_ingress(&self, name: &str) {
        let key = ObjectKey::new("default", name);
        self.objects.0.lock().ingresses.remove(&key);
        let mut control = self.control.lock();
        let again = control.world.remove(&key);
        self.apply_again(&mut control, again);
    }

    /// Creates or replaces a Service that is another name for an address elsewhere.
    pub(crate) fn external_name(&self, name: &str, host: &str, port: u16) {
        let key = ObjectKey::new("default", name);
        let service = json!({"metadata": {"name": name, "namespace": "default"},
            "spec": {"type": "ExternalName", "externalName": host, "ports": [{"name": "http2", "port": port}]}});
        self.objects.0.lock().services.insert(key.clone(), Arc::new(serde_json::from_value(service).unwrap()));
        self.refresh(&key);
    }

    pub(crate) fn ingress(&self, name: &str, spec: Value) {
        self.ingress_with(name, json!({}), spec);
    }

    /// With labels and annotations.
    pub(crate) fn ingress_with(&self, name: &str, metadata: Value, spec: Value) {
        let mut ingress: Ingress = serde_json::from_value(json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
            "metadata": {"name": name, "namespace": "default"}, "spec": spec,
        }))
        .unwrap();
        let text = |field: &str| serde_json::from_value(metadata[field].clone()).unwrap();
        ingress.metadata.labels = text("labels");
        ingress.metadata.annotations = text("annotations");
        let key = ObjectKey::of(&ingress);
        let mut stored = self.objects.0.lock();
        let generation = stored.ingresses.get(&key).and_then(|old| old.metadata.generation).unwrap_or_default() + 1;
        ingress.metadata.generation = Some(generation);
        stored.ingresses.insert(key, ingress.clone());
        drop(stored);
        let mut control = self.control.lock();
        let again = control.world.apply(&ingress);
        self.apply_again(&mut control, again);
    }

    fn apply_again(&self, control: &mut Control, mut keys: BTreeSet<ObjectKey>) {
        while let Some(key) = keys.pop_first() {
            let ingress = self.objects.0.lock().ingresses[&key].clone();
            keys.extend(control.world.apply(&ingress));
        }
    }

    /// Until every gateway has acknowledged or refused everything.
    pub(crate) async fn settle(&self) {
        let xds = self.xds();
        let revision = xds.publish(Default::default());
        let mut settled = xds.settled();
        let done = settled.wait_for(|settled| settled.gateways > 0 && settled.revision >= revision);
        if tokio::time::timeout(DEADLINE, done).await.is_err() {
            panic!("revision {revision} is not acknowledged: {:?} {:#?}", xds.settled().borrow(), xds.describe());
        }
        let mut control = self.control.lock();
        while let Ok(event) = control.events.try_recv() {
            control.world.note(&event);
        }
    }

    /// How many resources the gateway refused, as far as it is known.
    pub(crate) fn refused_resources(&self) -> usize {
        let mut control = self.control.lock();
        while let Ok(event) = control.events.try_recv() {
            control.world.note(&event);
        }
        control.world.figures().1
    }

    /// What the status of an Ingress would say about a refusal.
    pub(crate) fn refused(&self, name: &str) -> String {
        match self.pending(name) {
            Pending::Refused(message) => message,
            Pending::Nothing => String::new(),
            other => panic!("{name}: {other:?}"),
        }
    }

    /// The control plane ends and starts with nothing but the objects.
    pub(crate) async fn restart_control_plane(&mut self) {
        let control = self.control.get_mut();
        drop(control.stop.take());
        (&mut control.server).await.unwrap();
        *control = Control::start(&self.objects, &self.options).await;
    }

    pub(crate) async fn get(&self, host: &str) -> Answer {
        self.send(&Request::to(host)).await
    }

    pub(crate) async fn send(&self, request: &Request<'_>) -> Answer {
        self.try_send(self.external, request).await.unwrap()
    }

    pub(crate) async fn internal(&self, request: &Request<'_>) -> Answer {
        self.try_send(self.internal, request).await.unwrap()
    }

    pub(crate) async fn try_send(&self, to: SocketAddr, request: &Request<'_>) -> Result<Answer, String> {
        send(to, request).await
    }

    pub(crate) async fn admin(&self, path: &str) -> String {
        let answer = send(self.admin, &Request { path, ..Request::to("admin") }).await.unwrap();
        answer.body.as_str().unwrap_or_default().to_owned()
    }

    /// The same for answers that are JSON.
    pub(crate) async fn admin_raw(&self, path: &str) -> String {
        send(self.admin, &Request { path, ..Request::to("admin") }).await.unwrap().body.to_string()
    }

    /// How often Envoy took a cluster, listener or route update.
    pub(crate) async fn updates(&self) -> [u64; 3] {
        let stats = self.admin("/stats").await;
        let sum = |part: &str, end: &str| -> u64 {
            let lines = stats.lines().filter_map(|line| line.split_once(": "));
            lines
                .filter(|(name, _)| name.contains(part) && name.ends_with(end))
                .filter_map(|(_, n)| n.parse::<u64>().ok())
                .sum()
        };
        [
            sum("cluster_manager.cds.", "update_success"),
            sum("listener_manager.lds.", "update_success"),
            sum(".rds.", "update_success"),
        ]
    }

    /// Bytes that Envoy read from its control plane.
    pub(crate) async fn received(&self) -> u64 {
        let stats = self.admin("/stats?filter=xds_cluster.upstream_cx_rx_bytes_total").await;
        stats.trim().rsplit_once(": ").and_then(|(_, bytes)| bytes.parse().ok()).expect("Envoy counts them")
    }

    /// How often Envoy refused an update.
    pub(crate) async fn rejections(&self) -> u64 {
        let stats = self.admin("/stats?filter=update_rejected").await;
        stats.lines().filter_map(|line| line.split_once(": ")?.1.parse::<u64>().ok()).sum()
    }

    pub(crate) async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let wait = async {
            while !condition().await {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
    }

    /// Requests without pause, until stopped.
    pub(crate) fn traffic(&self, host: &'static str) -> Traffic {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let worker = || {
            let (stop, answered, to) = (stop.clone(), answered.clone(), self.external);
            tokio::spawn(async move {
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match send(to, &Request::to(host)).await {
                        Ok(answer) if answer.status == 200 => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Ok(answer) => failed.push(format!("{answer:?}")),
                        Err(error) => failed.push(error),
                    }
                }
                failed
            })
        };
        Traffic { tasks: vec![worker(), worker()], stop, answered }
    }
}

impl Traffic {
    pub(crate) async fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        for task in self.tasks {
            failed.extend(task.await.unwrap());
        }
        (self.answered.load(Ordering::Relaxed), failed)
    }
}

impl Control {
    async fn start(objects: &Store, options: &Options) -> Self {
        let (xds, events) = Xds::new();
        let mut world = World::new(objects.clone(), xds.clone(), options);
        let ingresses: Vec<Ingress> = objects.0.lock().ingresses.values().cloned().collect();
        for ingress in &ingresses {
            world.apply(ingress);
        }
        let server = Server::bind(options.xds_listen).await.unwrap();
        let serving = xds.clone();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let server = tokio::spawn(async move {
            server.run(serving, async move { drop::<Result<(), _>>(stopped.await) }).await.unwrap();
        });
        Control { xds, world, events, stop: Some(stop), server }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Objects for Store {
    fn service(&self, key: &ObjectKey) -> Option<Arc<Service>> {
        self.0.lock().services.get(key).cloned()
    }

    fn slices(&self, service: &ObjectKey) -> Vec<Arc<EndpointSlice>> {
        self.0.lock().slices.get(service).cloned().into_iter().collect()
    }

    fn secret(&self, key: &ObjectKey) -> Option<Arc<Secret>> {
        self.0.lock().secrets.get(key).cloned()
    }

    fn trust_bundles(&self) -> BTreeMap<String, String> {
        self.0.lock().bundles.clone()
    }
}

// === impl Backend ===

impl Backend {
    /// Speaks HTTP/1 and h2c and tells who it is and what it got.
    pub(crate) async fn start(name: &'static str) -> Self {
        Self::serve(name, None).await
    }

    /// The same over TLS.
    pub(crate) async fn start_tls(name: &'static str, certificate: &Certificate) -> Self {
        Self::serve(name, Some(certificate.acceptor())).await
    }

    /// Whatever `handle` does with a connection.
    pub(crate) async fn connections<F: Future<Output = ()> + Send + 'static>(
        handle: impl Fn(tokio::net::TcpStream) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(handle(stream));
            }
        });
        Backend { address, task }
    }

    async fn serve(name: &'static str, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| async move {
                    let mut headers: HashMap<String, String> = HashMap::new();
                    for (name, value) in request.headers() {
                        headers.insert(name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned());
                    }
                    if let Some(authority) = request.uri().authority() {
                        headers.insert("host".to_owned(), authority.to_string());
                    }
                    let hash = headers.get("k-network-hash").cloned();
                    let body = json!({"backend": name, "version": format!("{:?}", request.version()),
                        "path": request.uri().path(), "headers": headers});
                    let mut response = hyper::Response::new(Full::new(Bytes::from(body.to_string())));
                    // The probe handshake of Knative's data plane.
                    if let Some(hash) = hash {
                        response.headers_mut().insert("k-network-hash", hash.parse().unwrap());
                    }
                    Ok::<_, Infallible>(response)
                });
                let tls = tls.clone();
                tokio::spawn(async move {
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    match tls {
                        None => drop(builder.serve_connection(TokioIo::new(stream), service).await),
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            drop(builder.serve_connection(TokioIo::new(stream), service).await);
                        }
                    }
                });
            }
        });
        Backend { address, task }
    }
}

// === impl Authority ===

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn issue(&self, names: &[&str]) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        Certificate { chain: certificate.pem(), key: key.serialize_pem() }
    }
}

// === impl Certificate ===

impl Certificate {
    /// Signed by itself.
    pub(crate) fn new(names: &[&str]) -> Self {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        Certificate { chain: certificate.pem(), key: key.serialize_pem() }
    }

    pub(crate) fn data(&self) -> [(&str, &str); 2] {
        [("tls.crt", &self.chain), ("tls.key", &self.key)]
    }

    fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.chain.as_bytes()).unwrap()
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.der()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// A client that believes this certificate and no other.
    pub(crate) fn connector(&self, alpn: &[&str]) -> TlsConnector {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<'a> Request<'a> {
    pub(crate) fn to(host: &'a str) -> Self {
        Request { host, path: "/", headers: Vec::new() }
    }
}

impl Answer {
    /// The whole body, as JSON.
    pub(crate) fn raw(&self) -> String {
        self.body.to_string()
    }

    /// The whole body, where it is no JSON.
    pub(crate) fn body(&self) -> &str {
        self.body.as_str().unwrap_or_default()
    }

    pub(crate) fn text(&self, field: &str) -> &str {
        self.body[field].as_str().unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.body["headers"][name].as_str().unwrap_or_default()
    }
}

/// Starts a gateway. It ends when the process handle is dropped.
pub(crate) fn spawn(program: &Path, bootstrap: &Bootstrap) -> (Child, tempfile::TempDir) {
    spawn_text(program, bootstrap, &bootstrap.render())
}

/// With another text than the bootstrap's own.
pub(crate) fn spawn_text(program: &Path, bootstrap: &Bootstrap, text: &str) -> (Child, tempfile::TempDir) {
    let files = tempfile::tempdir().unwrap();
    let config = files.path().join("envoy.yaml");
    std::fs::write(&config, text).unwrap();
    let envoy = tokio::process::Command::new(program)
        .args(bootstrap.arguments(&config))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(files.path().join("envoy.log")).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    (envoy, files)
}

/// One request on a connection of its own.
pub(crate) async fn send(to: SocketAddr, request: &Request<'_>) -> Result<Answer, String> {
    let stream = tokio::net::TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    send_on(stream, request).await
}

/// One request over TLS, for the server name of its host; the certificate must be this one.
pub(crate) async fn send_tls(
    to: SocketAddr,
    certificate: &Certificate,
    request: &Request<'_>,
) -> Result<Answer, String> {
    let stream = tokio::net::TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    let name = ServerName::try_from(request.host.to_owned()).map_err(|e| e.to_string())?;
    let stream = certificate.connector(&["http/1.1"]).connect(name, stream).await.map_err(|e| e.to_string())?;
    send_on(stream, request).await
}

/// One request on this connection.
pub(crate) async fn send_on(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: &Request<'_>,
) -> Result<Answer, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| text(&e))?;
    let connection = tokio::spawn(connection);
    let mut builder = hyper::Request::get(request.path).header("host", request.host);
    for (name, value) in &request.headers {
        builder = builder.header(*name, *value);
    }
    let request = builder.body(Full::<Bytes>::default()).map_err(|e| text(&e))?;
    let response = sender.send_request(request).await.map_err(|e| text(&e))?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.into_body().collect().await.map_err(|e| text(&e))?.to_bytes();
    connection.abort();
    let plain = || Value::String(String::from_utf8_lossy(&body).into_owned());
    Ok(Answer { status, headers, body: serde_json::from_slice(&body).unwrap_or_else(|_| plain()) })
}

/// Ports for others to bind later. They lie below the range from which the kernel takes ports for outgoing connections,
/// so that no connection of another test takes one in between, and each is given out once.
pub(crate) async fn free_ports<const N: usize>() -> [SocketAddr; N] {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let first = 20_000 + std::process::id() as usize * 97 % 10_000;
    let mut free = Vec::new();
    while free.len() < N {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(20_000 + (first + offset - 20_000) % 12_000).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).await.is_ok() {
            free.push(address);
        }
    }
    std::array::from_fn(|i| free[i])
}

pub(crate) fn envoy() -> Option<PathBuf> {
    let named = std::env::var_os("ENVOY").map(PathBuf::from);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/envoy");
    let on_path = std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join("envoy")).collect::<Vec<_>>();
    named.into_iter().chain(on_path).chain([root]).find(|path| path.is_file())
}
