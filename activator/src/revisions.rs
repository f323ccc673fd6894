//! The revisions there are, kept up to date by watches: Revisions, what lists the pods of their private services (see
//! `watches`), and the Endpoints of their public services (which tell the activators that share a revision).
//!
//! The watches run side by side. Each one's cache shows a change before its handler runs, and a revision's backends
//! are always computed from what the cache shows then, one computation at a time: whichever handler comes last sees
//! everything, and no order between them is needed.

mod private;
mod table;
mod watches;

use std::{
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use api::{keys::serving, serving::v1};
use controller::ObjectKey;
use kube::ResourceExt;
use net::{IdleLimits, Limits};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    backends::{Backends, Prober, Reach, ServiceRef, Treatment, port_name},
    options::LoadBalancing,
    preempt::lock,
    stats::Activity,
    throttler::{Link, Policy, QueueLimit, Throttler},
    tls::{self, Tls},
};

use self::table::Table;
pub(crate) use self::watches::Watches;

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
    /// The same for the request log, once it has a line.
    pub(crate) logged: OnceLock<Box<telemetry::Revision>>,
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

    /// The revision, if it is a new one.
    fn apply(&self, object: &v1::Revision) -> Option<Arc<Revision>> {
        let key = ObjectKey::of(object);
        let uid = object.uid().unwrap_or_default();
        if let Some(known) = self.table.get(&key.namespace, &key.name) {
            // A revision's spec never changes.
            if known.uid == uid {
                return None;
            }
            known.throttler.close();
        }
        let revision = self.create(key, uid, object);
        self.table.insert(revision.clone());
        Some(revision)
    }

    fn delete(&self, object: &v1::Revision) {
        let key = ObjectKey::of(object);
        if let Some(revision) = self.table.remove(&key.namespace, &key.name) {
            revision.backends.clear();
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
            logged: OnceLock::new(),
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
            logged: OnceLock::new(),
            protocol: "http1",
            limits: DEFAULT_LIMITS,
            backends,
            throttler,
            refreshing: Mutex::new(()),
            activity: Mutex::new(None),
        })
    }

    /// One that nobody asks for pods.
    #[cfg(test)]
    pub(crate) fn idle(name: &str) -> Arc<Self> {
        let bound = crate::throttler::Bound { each: 1, total: 1 };
        let throttler = Throttler::new(QueueLimit::new(bound, bound), Policy::default());
        let backends = Backends::new(throttler.clone(), Treatment::of(name), Arc::new(crate::backends::NoProbes));
        Self::alone(name, throttler, backends)
    }

    /// Requests here, waiting or under way.
    pub(crate) fn concurrency(&self) -> u64 {
        lock(&self.activity).as_ref().map_or(0, Activity::concurrency)
    }
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
