//! The server: opened once, reached in process or over the network.

use std::convert::Infallible;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Request, Response};
use parking_lot::Mutex;
use serde_json::Value;
use store::{Key, Store};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::body::{self, Body};
use crate::boot::{self, ApiAddress};
use crate::core::{Call, Core, FieldValidation, Identity};
use crate::errors::Status;
use crate::handler::Origin;
use crate::kinds;
use crate::logs::{LogHolder, LogSource};
use crate::metadata;
use crate::openapi::OpenApi;
use crate::registry::{Kind, Kinds, Registry};

/// Who the in-process clients are unless they say otherwise: the controllers of Serving.
const IN_PROCESS: &str = "system:serviceaccount:knative-serving:controller";

pub struct Options {
    /// The directory of the database. None: in memory, gone with the process.
    pub data: Option<PathBuf>,
    /// In order; see [`Admission`].
    pub admission: Vec<Arc<dyn Admission>>,
    /// Where pod logs come from; may also be given later with [`Server::set_logs`].
    pub logs: Option<Arc<dyn LogSource>>,
    /// What `/version` says.
    pub version: String,
    /// Where clusterIPs are taken from.
    pub service_cidr: String,
    /// Further kinds, beside the built-in ones.
    pub kinds: Vec<Kind>,
    /// PEM; ConfigMap `kube-root-ca.crt` of every namespace.
    pub root_certificate: Option<String>,
    /// Where pods reach the API: what Service `default/kubernetes` leads to.
    pub api: Option<ApiAddress>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot create the data directory {path}: {source}")]
    Directory { path: String, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] store::DiskError),
    #[error("the service range is unusable: {0}")]
    ServiceRange(String),
    #[error("cannot read the manifest: {0}")]
    Manifest(String),
    #[error("cannot apply {what}: {status}")]
    Apply { what: String, status: Box<Status> },
}

/// Cheap to clone; all clones are one server.
#[derive(Clone)]
pub struct Server {
    pub(crate) core: Arc<Core>,
    pub(crate) listeners: Arc<Mutex<JoinSet<()>>>,
}

/// The API as a tower service with a fixed identity, for clients in this process.
#[derive(Clone)]
pub struct Service {
    core: Arc<Core>,
    origin: Origin,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            data: None,
            admission: Vec::new(),
            logs: None,
            version: "v1.34.1".to_owned(),
            service_cidr: "10.96.0.0/16".to_owned(),
            kinds: Vec::new(),
            root_certificate: None,
            api: None,
        }
    }
}

// === impl Server ===

impl Server {
    /// Opens the store, registers the kinds of the stored custom resource definitions, and makes the boot objects that are missing.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let path = match &options.data {
            Some(directory) => {
                std::fs::create_dir_all(directory)
                    .map_err(|source| Error::Directory { path: directory.display().to_string(), source })?;
                Some(directory.join("objects.redb"))
            }
            None => None,
        };
        let store = Store::open(store::Options { path })?;
        let rules = options.kinds()?;
        let mut table = kinds::builtin(&rules);
        table.extend(options.kinds);
        table.push(crate::crd::kind());
        let core = Arc::new(Core {
            store,
            kinds: Kinds::new(Registry::new(table)),
            openapi: OpenApi::default(),
            admission: options.admission,
            logs: ArcSwapOption::empty(),
            tokens: crate::auth::Tokens::default(),
            version: options.version,
            root_certificate: rules.root_certificate.clone(),
            stop: CancellationToken::new(),
        });
        core.register_stored();
        core.observe_stored();
        crate::expiry::start(&core);
        let server = Self { core, listeners: Arc::default() };
        server.boot(&rules)?;
        if let Some(logs) = options.logs {
            server.set_logs(logs);
        }
        Ok(server)
    }

    /// What must be there. Addresses and certificates may be others than last time.
    fn boot(&self, rules: &kinds::Options) -> Result<(), Error> {
        for object in boot::objects(rules) {
            self.apply(&object)?;
        }
        for namespace in self.core.store.list("namespaces", None).objects {
            if !metadata::deleting(&namespace.value) {
                let name = &namespace.key.name;
                let what = format!("what belongs into namespace {name}");
                self.core.furnish(name).map_err(|status| Error::Apply { what, status: Box::new(status) })?;
            }
        }
        Ok(())
    }

    /// Who answers `/log` of pods.
    pub fn set_logs(&self, logs: Arc<dyn LogSource>) {
        self.core.logs.store(Some(Arc::new(LogHolder(logs))));
    }

    /// A client without sockets, as the controllers of Serving. Writes are acknowledged after the memory commit.
    pub fn client(&self) -> kube::Client {
        self.client_as(Identity::new(IN_PROCESS, &["system:serviceaccounts", "system:masters", "system:authenticated"]))
    }

    pub fn client_as(&self, identity: Identity) -> kube::Client {
        kube::Client::new(self.service_as(identity), "default")
    }

    pub fn service(&self) -> Service {
        self.service_as(Identity::new(IN_PROCESS, &["system:masters", "system:authenticated"]))
    }

    pub fn service_as(&self, identity: Identity) -> Service {
        Service { core: Arc::clone(&self.core), origin: Origin { identity: Arc::new(identity), durable: false } }
    }

    /// Creates the objects of a manifest (YAML documents, Lists included) or updates them, as an administrator would; definitions of custom
    /// resources are served when it returns.
    pub fn apply_manifest(&self, yaml: &str) -> Result<(), Error> {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(yaml).map_err(|error| Error::Manifest(error.to_string()))?;
        for document in documents {
            self.apply_document(document)?;
        }
        Ok(())
    }

    fn apply_document(&self, document: Value) -> Result<(), Error> {
        match document {
            Value::Null => Ok(()),
            Value::Object(mut list) if list.get("kind").and_then(Value::as_str).is_some_and(|kind| kind == "List") => {
                let items = list.remove("items").unwrap_or_default();
                items.as_array().into_iter().flatten().try_for_each(|item| self.apply_document(item.clone()))
            }
            object => self.apply(&object),
        }
    }

    /// Creates an object, or merges it over the present one.
    pub fn apply(&self, object: &Value) -> Result<(), Error> {
        let what = format!("{} {}", metadata::text(object, "/kind"), metadata::name(object));
        self.core.apply(object).map_err(|status| Error::Apply { what, status: Box::new(status) })
    }

    /// Creates an object unless it is there.
    pub fn ensure(&self, object: &Value) -> Result<(), Error> {
        let what = format!("{} {}", metadata::text(object, "/kind"), metadata::name(object));
        self.core.ensure(object).map_err(|status| Error::Apply { what, status: Box::new(status) })
    }

    /// Ends watches and listeners and waits until everything is on disk.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.core.stop.cancel();
        let listeners = std::mem::take(&mut *self.listeners.lock());
        listeners.join_all().await;
        Ok(self.core.store.durable(self.core.store.revision()).await?)
    }
}

impl Options {
    /// What the built-in kinds need to know.
    fn kinds(&self) -> Result<kinds::Options, Error> {
        let service_range = self.service_cidr.parse().map_err(Error::ServiceRange)?;
        let root_certificate = self.root_certificate.clone();
        Ok(kinds::Options { service_range, root_certificate, api: self.api, ..kinds::Options::default() })
    }
}

// === impl Core ===

impl Core {
    /// Tells the strategies what was on disk.
    fn observe_stored(&self) {
        for kind in self.kinds.load().kinds().iter().filter(|kind| kind.convert.is_none()) {
            for object in self.store.list(&kind.storage, None).objects {
                kind.strategy.observe(None, Some(&object.value));
            }
        }
    }

    pub(crate) fn administrator_call(&self, kind: &Arc<Kind>, namespace: &str, name: &str) -> Call {
        Call {
            kind: Arc::clone(kind),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subresource: String::new(),
            identity: Arc::new(Identity::new("system:apiserver", &["system:masters"])),
            dry_run: false,
            fields: FieldValidation::Ignore,
            now: jiff::Timestamp::now(),
        }
    }

    /// The kind of an object and where it belongs.
    fn place<'a>(&self, object: &'a Value) -> Result<(Arc<Kind>, &'a str), Status> {
        let (api_version, kind_name) = (metadata::text(object, "/apiVersion"), metadata::text(object, "/kind"));
        let registry = self.kinds.load();
        let Some(kind) = registry.by_kind(api_version, kind_name) else {
            return Err(Status::bad_request(format!(
                "no kind {kind_name:?} is registered for version {api_version:?}"
            )));
        };
        let namespace = match (kind.namespaced(), metadata::namespace(object)) {
            (false, _) => "",
            (true, "") => "default",
            (true, namespace) => namespace,
        };
        Ok((Arc::clone(kind), namespace))
    }

    /// Puts into a new namespace what every namespace has.
    pub(crate) fn furnish(&self, namespace: &str) -> Result<(), Status> {
        self.ensure(&boot::default_service_account(namespace))?;
        match &self.root_certificate {
            Some(certificate) => self.apply(&boot::root_certificate(namespace, certificate)),
            None => Ok(()),
        }
    }

    fn ensure(&self, object: &Value) -> Result<(), Status> {
        let (kind, namespace) = self.place(object)?;
        if self.store.get(&kind.storage, &Key::new(namespace, metadata::name(object))).is_some() {
            return Ok(());
        }
        let call = self.administrator_call(&kind, namespace, "");
        self.post(&call, body::Decoded { value: object.clone(), duplicates: Vec::new() }).map(drop)
    }

    fn apply(&self, object: &Value) -> Result<(), Status> {
        let (kind, namespace) = self.place(object)?;
        let call = self.administrator_call(&kind, namespace, "");
        match self.post(&call, body::Decoded { value: object.clone(), duplicates: Vec::new() }) {
            Err(status) if status.reason == "AlreadyExists" => {
                let call = self.administrator_call(&kind, namespace, metadata::name(object));
                let mut patch = object.clone();
                patch.as_object_mut().map(|fields| fields.remove("status"));
                let merge = |current: &Value| {
                    let mut next = current.clone();
                    json_patch::merge(&mut next, &patch);
                    Ok(next)
                };
                let written = self.modify(&call, &merge, crate::pipeline::Source::Patch { body: b"" })?;
                self.after_write(&call, &written);
                Ok(())
            }
            outcome => outcome.map(drop),
        }
    }
}

// === impl Service ===

impl<B> tower::Service<Request<B>> for Service
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (core, origin) = (Arc::clone(&self.core), self.origin.clone());
        Box::pin(async move { Ok(core.respond(request, origin).await) })
    }
}
