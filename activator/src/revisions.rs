//! The revisions there are, kept up to date by watches: Revisions, the Endpoints of their private services (the pods),
//! and those of their public services (which tell the activators that share a revision).
//!
//! The watches run side by side. Each one's cache shows a change before its handler runs, and a revision's backends
//! are always computed from what the cache shows then, one computation at a time: whichever handler comes last sees
//! everything, and no order between them is needed.

mod table;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use api::{
    keys::{networking, serving},
    serving::v1,
};
use controller::{Cache, Change, Context, ObjectKey};
use k8s_openapi::api::core::v1::Endpoints;
use kube::ResourceExt;
use net::{IdleLimits, Limits};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    backends::{Addresses, Backends, Peers, Prober, Reach, ServiceRef, Treatment, port_name},
    options::LoadBalancing,
    stats::Activity,
    throttler::{Link, Policy, QueueLimit, Throttler},
    tls::{self, Tls},
};

use self::table::Table;

const BY_REVISION: &str = "revision";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);
const TIMEOUT_MESSAGE: &str = "activator request timeout";
pub(crate) const DEFAULT_LIMITS: Limits =
    Limits { total: DEFAULT_TIMEOUT, response_start: None, idle: None, message: TIMEOUT_MESSAGE };

/// One revision.
pub(crate) struct Revision {
    /// Its own in this process.
    pub(crate) id: u64,
    pub(crate) key: ObjectKey,
    uid: String,
    /// What it belongs to, for metrics.
    pub(crate) configuration: Box<str>,
    pub(crate) service: Box<str>,
    protocol: &'static str,
    pub(crate) limits: Limits,
    pub(crate) throttler: Throttler,
    pub(crate) backends: Arc<Backends>,
    /// Held while the backends are computed.
    refreshing: Mutex<()>,
    /// Its statistics while it is in use.
    pub(crate) activity: Mutex<Option<Activity>>,
}

/// All of them.
pub(crate) struct Revisions {
    table: Table,
    created: Notify,
    limit: Arc<QueueLimit>,
    prober: Arc<dyn Prober>,
    manner: Manner,
}

/// How all revisions are treated.
pub(crate) struct Manner {
    /// This activator's address, as the public Endpoints list it.
    pub(crate) own: Option<IpAddr>,
    pub(crate) reach: Reach,
    /// Address pods by their Service's name, as a mesh wants it.
    pub(crate) passthrough: bool,
    pub(crate) load_balancing: LoadBalancing,
    pub(crate) tls: Option<Arc<Tls>>,
    /// Idle connections to keep.
    pub(crate) idle: Arc<IdleLimits>,
}

/// The watches that keep a table up to date.
#[derive(Clone)]
pub(crate) struct Watches {
    revisions: Cache<v1::Revision>,
    private: Cache<Endpoints>,
    public: Cache<Endpoints>,
}

// === impl Revisions ===

impl Revisions {
    pub(crate) fn new(limit: Arc<QueueLimit>, prober: Arc<dyn Prober>, manner: Manner) -> Arc<Self> {
        Arc::new(Self { table: Table::new(), created: Notify::new(), limit, prober, manner })
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<Revision>> {
        self.table.get(namespace, name)
    }

    /// The revision, if it is or becomes known within `grace`.
    pub(crate) async fn wait_for(&self, namespace: &str, name: &str, grace: Duration) -> Option<Arc<Revision>> {
        let found = async {
            loop {
                let mut created = std::pin::pin!(self.created.notified());
                created.as_mut().enable();
                if let Some(revision) = self.get(namespace, name) {
                    return revision;
                }
                created.await;
            }
        };
        tokio::time::timeout(grace, found).await.ok()
    }

    /// Nobody waits for any revision any more.
    pub(crate) fn close(&self) {
        for revision in self.table.all() {
            revision.throttler.close();
        }
    }

    fn apply(&self, object: &v1::Revision, private: &Cache<Endpoints>, public: &Cache<Endpoints>) {
        let key = ObjectKey::of(object);
        let uid = object.uid().unwrap_or_default();
        let revision = match self.table.get(&key.namespace, &key.name) {
            // A revision's spec never changes.
            Some(revision) if revision.uid == uid => return,
            Some(revision) => {
                revision.throttler.close();
                self.create(key, uid, object)
            }
            None => self.create(key, uid, object),
        };
        self.table.insert(revision.clone());
        revision.refresh(private);
        revision.place(public, self.manner.own);
        self.created.notify_waiters();
    }

    fn delete(&self, object: &v1::Revision) {
        let key = ObjectKey::of(object);
        if let Some(revision) = self.table.remove(&key.namespace, &key.name) {
            revision.backends.update(&Addresses::default());
            revision.throttler.close();
        }
    }

    fn create(&self, key: ObjectKey, uid: String, object: &v1::Revision) -> Arc<Revision> {
        let spec = &object.spec;
        let seconds = |value: Option<i64>| {
            value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0).map(Duration::from_secs)
        };
        let label = |name: &str| object.labels().get(name).map_or_else(Box::default, |text| text.as_str().into());
        let concurrency = spec.container_concurrency.and_then(|value| usize::try_from(value).ok()).unwrap_or(0);
        let policy = match self.manner.load_balancing {
            LoadBalancing::AsUpstream => Policy::upstream(concurrency),
            LoadBalancing::Always(policy) => policy,
        };
        let throttler = Throttler::new(self.limit.clone(), policy);
        let protocol = spec.pod.protocol();
        let treatment = Treatment {
            concurrency,
            probe_early: probe_early(spec),
            reach: self.manner.reach,
            link: self.manner.link(&key),
            service: ServiceRef { key: private(&key), port: port_name(protocol) },
        };
        Arc::new(Revision {
            id: next_id(),
            key,
            uid,
            configuration: label(serving::CONFIGURATION),
            service: label(serving::SERVICE),
            protocol,
            limits: Limits {
                total: seconds(spec.timeout_seconds).unwrap_or(DEFAULT_TIMEOUT),
                response_start: seconds(spec.response_start_timeout_seconds),
                idle: seconds(spec.idle_timeout_seconds),
                message: TIMEOUT_MESSAGE,
            },
            backends: Backends::new(throttler.clone(), treatment, self.prober.clone()),
            throttler,
            refreshing: Mutex::new(()),
            activity: Mutex::new(None),
        })
    }

    /// Starts to watch.
    pub(crate) fn watch(self: &Arc<Self>, ctx: &Context) -> Watches {
        let services = |kind| {
            let kind = format!("{}={kind}", networking::SERVICE_TYPE);
            Cache::<Endpoints>::builder()
                .label_selector(&format!("{kind},{}", serving::REVISION))
                .index(BY_REVISION, |endpoints| revision_of(endpoints).into_iter().collect())
                .start(ctx)
        };
        let private = services(networking::SERVICE_TYPE_PRIVATE);
        let public = services(networking::SERVICE_TYPE_PUBLIC);
        let revisions = Cache::<v1::Revision>::builder()
            .transform(|revision| {
                revision.status = None;
                revision.metadata.annotations = None;
            })
            .start(ctx);

        let (table, caches) = (self.clone(), (private.clone(), public.clone()));
        revisions.on_event(move |change| match change {
            Change::Applied { new, .. } => table.apply(new, &caches.0, &caches.1),
            Change::Deleted(revision) => table.delete(revision),
        });
        let (table, cache) = (self.clone(), private.clone());
        private.on_event(move |change| {
            if let Some(revision) = table.of(change.object()) {
                revision.refresh(&cache);
            }
        });
        let (table, cache) = (self.clone(), public.clone());
        public.on_event(move |change| {
            if let Some(revision) = table.of(change.object()) {
                revision.place(&cache, table.manner.own);
            }
        });
        Watches { revisions, private, public }
    }

    fn of(&self, endpoints: &Endpoints) -> Option<Arc<Revision>> {
        self.table.get(endpoints.metadata.namespace.as_deref()?, endpoints.labels().get(serving::REVISION)?)
    }
}

// === impl Manner ===

impl Manner {
    fn link(&self, revision: &ObjectKey) -> Link {
        let host = || {
            let private = private(revision);
            Arc::from(format!("{}.{}", private.name, private.namespace))
        };
        let wrap = self.tls.as_ref().map(|tls| (tls.connector(&revision.namespace), tls::POD_PORT));
        Link { passthrough: self.passthrough.then(host), wrap, idle: self.idle.clone() }
    }
}

fn next_id() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Relaxed)
}

/// The Service of a revision that its pods are behind.
fn private(revision: &ObjectKey) -> ObjectKey {
    ObjectKey::new(revision.namespace.clone(), api::child_name(&revision.name, "-private"))
}

// === impl Revision ===

impl Revision {
    /// One outside of any table.
    #[cfg(test)]
    pub(crate) fn alone(name: &str, throttler: Throttler, backends: Arc<Backends>) -> Arc<Self> {
        Arc::new(Self {
            id: next_id(),
            key: ObjectKey { namespace: "default".to_owned(), name: name.to_owned() },
            uid: String::new(),
            configuration: Box::default(),
            service: Box::default(),
            protocol: "http1",
            limits: DEFAULT_LIMITS,
            backends,
            throttler,
            refreshing: Mutex::new(()),
            activity: Mutex::new(None),
        })
    }

    /// Requests here, waiting or under way.
    pub(crate) fn concurrency(&self) -> u64 {
        self.activity.lock().as_ref().map_or(0, Activity::concurrency)
    }

    fn refresh(&self, endpoints: &Cache<Endpoints>) {
        let _one_at_a_time = self.refreshing.lock();
        let mut addresses = Addresses::default();
        for endpoints in endpoints.by_index(BY_REVISION, &self.key.to_string()) {
            addresses.add(&endpoints, self.protocol);
        }
        self.backends.update(&addresses);
    }

    fn place(&self, public: &Cache<Endpoints>, own: Option<IpAddr>) {
        let _one_at_a_time = self.refreshing.lock();
        let Some(own) = own.filter(|_| self.backends.are_divided()) else { return };
        let listed = public.by_index(BY_REVISION, &self.key.to_string());
        if let Some(peers) = listed.iter().find_map(|endpoints| Peers::find(endpoints, own, self.protocol)) {
            self.backends.set_peers(peers);
        }
    }
}

// === impl Watches ===

impl Watches {
    pub(crate) async fn synced(&self) {
        self.revisions.synced().await;
        self.private.synced().await;
        self.public.synced().await;
    }
}

/// The key of the revision that a service's Endpoints belong to.
fn revision_of(endpoints: &Endpoints) -> Option<String> {
    let name = endpoints.labels().get(serving::REVISION)?;
    Some(format!("{}/{name}", endpoints.namespace()?))
}

/// A pod may be used before the kubelet finds it ready, unless only the kubelet can tell: an exec readiness probe of
/// the serving container, or a startup probe of any.
fn probe_early(spec: &v1::RevisionSpec) -> bool {
    let exec = spec.pod.serving_container().is_some_and(|container| !container["readinessProbe"]["exec"].is_null());
    !exec && spec.pod.containers().iter().all(|container| container["startupProbe"].is_null())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> v1::RevisionSpec {
        serde_json::from_value(json).expect("valid")
    }

    #[test]
    fn early_use_depends_on_the_probes() {
        assert!(probe_early(&spec(serde_json::json!({"containers": [{"image": "a"}]}))));
        let exec = serde_json::json!({"containers": [{"image": "a", "readinessProbe": {"exec": {"command": ["x"]}}}]});
        assert!(!probe_early(&spec(exec)));
        let startup = serde_json::json!({"containers": [{"image": "a"}, {"startupProbe": {"tcpSocket": {}}}]});
        assert!(!probe_early(&spec(startup)));
    }
}
