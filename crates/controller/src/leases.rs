//! Leader election as `knative.dev/pkg` does it: one Lease per bucket of keys, so that several replicas share the
//! writing, taken over when its holder has not renewed it for the lease's duration as seen on our own clock.
//!
//! The clocks of replicas are never compared: a Lease counts as renewed whenever its content changes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::config::LeaderElection;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;

use crate::{Config, Context, ObjectKey};

/// One of several processes that do the same.
#[derive(Debug, Clone)]
pub struct Replica {
    /// Upstream's name of the process, with which the names of its Leases begin: `controller`.
    pub component: &'static str,
    /// Different from all others; a holder's name in the Lease.
    pub identity: String,
    pub config: LeaderElection,
}

/// Which buckets this replica leads now. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Leadership {
    /// By the names of their Leases. Empty: everything, without any Lease.
    buckets: Arc<[(String, watch::Receiver<bool>)]>,
}

/// One candidate for one Lease.
struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    config: LeaderElection,
    observed: Observed,
}

/// The Lease as last seen, and when it last changed here.
#[derive(Debug, Default)]
struct Observed {
    content: Option<(Option<String>, Option<MicroTime>)>,
    at: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Create,
    /// It is ours, or nobody's any more.
    Take {
        transitions: i32,
        acquired: bool,
    },
    Wait,
}

/// Starts the election for the objects of one controller, whose queue has this name; leadership comes and goes until
/// the context's tasks end, which gives it back.
pub fn elect(ctx: &Context, replica: &Replica, queue: &str) -> Leadership {
    let count = replica.config.buckets.max(1);
    let prefix = prefix(replica, queue);
    let buckets = (0..count).map(|bucket| {
        let name = lease_name(&prefix, bucket, count);
        let (sender, receiver) = watch::channel(false);
        let candidate = Candidate {
            api: Api::namespaced(ctx.client.clone(), &ctx.system_namespace),
            name: name.clone(),
            identity: replica.identity.clone(),
            config: replica.config.clone(),
            observed: Observed::default(),
        };
        let token = ctx.tasks.token().clone();
        ctx.tasks.spawn_graceful("leases", candidate.run(sender, async move { token.cancelled().await }));
        (name, receiver)
    });
    Leadership { buckets: buckets.collect() }
}

/// `controller.knative.dev.serving.pkg.reconciler.route.Reconciler`, or what `config-leader-election` says instead.
fn prefix(replica: &Replica, queue: &str) -> String {
    let prefix = format!("{}.{queue}", replica.component);
    let other = replica.config.lease_name_prefixes.get(&prefix).filter(|other| !other.is_empty());
    other.cloned().unwrap_or(prefix)
}

/// `<prefix>.<NN>-of-<MM>`, lower case.
fn lease_name(prefix: &str, bucket: u32, of: u32) -> String {
    format!("{prefix}.{bucket:02}-of-{of:02}").to_lowercase()
}

// === impl Replica ===

impl Replica {
    /// One with the times of the installation, which are the defaults if there is no ConfigMap for them.
    pub async fn new(ctx: &Context, component: &'static str, identity: String) -> Self {
        let config = match Config::watch(ctx, ctx.leader_election, LeaderElection::parse).await {
            Ok(config) => LeaderElection::clone(&config.load()),
            Err(error) => {
                tracing::info!(%error, "the defaults hold");
                LeaderElection::default()
            }
        };
        Self { component, identity, config }
    }
}

// === impl Leadership ===

impl Leadership {
    /// The only replica there is.
    pub fn alone() -> Self {
        Self { buckets: Arc::new([]) }
    }

    /// Whether this replica writes for `key`. Upstream's replicas agree whose it is.
    pub fn leads(&self, key: &ObjectKey) -> bool {
        match &*self.buckets {
            [] => true,
            [(_, leads)] => *leads.borrow(),
            buckets => {
                let names: BTreeSet<String> = buckets.iter().map(|(name, _)| name.clone()).collect();
                let owner = api::subset::choose(&names, &key.to_string(), 1);
                buckets.iter().any(|(name, leads)| owner.contains(name) && *leads.borrow())
            }
        }
    }

    /// Calls `promoted` whenever this replica gets a bucket: what it leads now must be reconciled again.
    pub fn on_promotion(&self, ctx: &Context, promoted: impl Fn() + Clone + Send + Sync + 'static) {
        for (_, bucket) in self.buckets.iter() {
            let (mut bucket, promoted) = (bucket.clone(), promoted.clone());
            ctx.tasks.spawn("promotion", async move {
                while bucket.wait_for(|leads| *leads).await.is_ok() {
                    promoted();
                    if bucket.wait_for(|leads| !*leads).await.is_err() {
                        break;
                    }
                }
            });
        }
    }
}

// === impl Candidate ===

impl Candidate {
    async fn run(mut self, leads: watch::Sender<bool>, stopped: impl Future<Output = ()> + Send) {
        let mut stopped = std::pin::pin!(stopped);
        let mut renewed = Instant::now();
        loop {
            let attempt = tokio::time::timeout(self.config.renew_deadline, self.attempt());
            let leading = tokio::select! {
                result = attempt => match result {
                    Ok(Ok(leading)) => {
                        renewed = Instant::now();
                        leading
                    }
                    outcome => {
                        if let Ok(Err(error)) = outcome {
                            tracing::warn!(lease = %self.name, %error, "cannot renew; trying again");
                        }
                        // Nobody else takes over before the lease ends, which is later than this.
                        *leads.borrow() && renewed.elapsed() < self.config.renew_deadline
                    }
                },
                () = &mut stopped => break,
            };
            if leads.send_replace(leading) != leading {
                tracing::info!(lease = %self.name, leading, "leadership changed");
            }
            tokio::select! {
                () = tokio::time::sleep(self.config.retry_period) => {}
                () = &mut stopped => break,
            }
        }
        if leads.send_replace(false) {
            self.release().await;
        }
    }

    /// One look at the Lease; whether it is ours afterwards.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let lease = self.api.get_opt(&self.name).await?;
        let now = Instant::now();
        let step = self.observed.decide(lease.as_ref(), &self.identity, self.config.lease_duration, now);
        let written = match step {
            Step::Wait => return Ok(false),
            Step::Create => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(self.spec(None, 0, true)) };
                self.api.create(&PostParams::default(), &lease).await
            }
            Step::Take { transitions, acquired } => {
                let mut lease = lease.expect("only an existing Lease is taken");
                lease.spec = Some(self.spec(lease.spec.take(), transitions, acquired));
                self.api.replace(&self.name, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(lease) => {
                self.observed.see(&lease, now);
                Ok(true)
            }
            // Another replica was faster.
            Err(error) if crate::error::is_conflict(&error) => Ok(false),
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn spec(&self, old: Option<LeaseSpec>, transitions: i32, acquired: bool) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let old = old.unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.config.lease_duration.as_secs()).ok(),
            acquire_time: if acquired { Some(now.clone()) } else { old.acquire_time.clone() },
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..old
        }
    }

    /// So that another replica need not wait for the lease to end.
    async fn release(&self) {
        let give_back = async {
            let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
            let Some(spec) = lease.spec.as_mut().filter(|s| s.holder_identity.as_deref() == Some(&*self.identity))
            else {
                return Ok(());
            };
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            self.api.replace(&self.name, &PostParams::default(), &lease).await.map(drop)
        };
        match tokio::time::timeout(Duration::from_secs(2), give_back).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(lease = %self.name, %error, "not given back; it ends by itself"),
            Err(_) => tracing::warn!(lease = %self.name, "not given back in time; it ends by itself"),
        }
    }
}

// === impl Observed ===

impl Observed {
    fn see(&mut self, lease: &Lease, now: Instant) {
        let spec = lease.spec.as_ref();
        let content =
            (spec.and_then(|spec| spec.holder_identity.clone()), spec.and_then(|spec| spec.renew_time.clone()));
        if self.content.as_ref() != Some(&content) {
            self.content = Some(content);
            self.at = Some(now);
        }
    }

    fn decide(&mut self, lease: Option<&Lease>, me: &str, duration: Duration, now: Instant) -> Step {
        let Some(lease) = lease else { return Step::Create };
        self.see(lease, now);
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        let transitions = spec.and_then(|spec| spec.lease_transitions).unwrap_or_default();
        if holder == me {
            return Step::Take { transitions, acquired: false };
        }
        let fresh = self.at.is_some_and(|at| now.duration_since(at) < duration);
        match holder.is_empty() || !fresh {
            true => Step::Take { transitions: transitions.saturating_add(1), acquired: true },
            false => Step::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DURATION: Duration = Duration::from_secs(60);

    fn lease(holder: &str, renewed: i64) -> Lease {
        let spec = LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        };
        Lease { spec: Some(spec), ..Lease::default() }
    }

    #[test]
    fn a_lease_is_taken_over_only_after_it_was_seen_unchanged_for_its_duration() {
        let mut observed = Observed::default();
        let start = Instant::now();
        let mut at = |seconds: u64, lease: Option<&Lease>| {
            observed.decide(lease, "me", DURATION, start + Duration::from_secs(seconds))
        };
        assert_eq!(at(0, None), Step::Create);
        // However old its own times say it is.
        assert_eq!(at(10, Some(&lease("other", 1))), Step::Wait);
        assert_eq!(at(60, Some(&lease("other", 1))), Step::Wait);
        assert_eq!(at(65, Some(&lease("other", 2))), Step::Wait, "renewed");
        assert_eq!(at(124, Some(&lease("other", 2))), Step::Wait);
        assert_eq!(at(126, Some(&lease("other", 2))), Step::Take { transitions: 4, acquired: true });
        assert_eq!(at(127, Some(&lease("me", 3))), Step::Take { transitions: 3, acquired: false });
        assert_eq!(at(128, Some(&lease("other", 4))), Step::Wait, "lost");
        assert_eq!(at(129, Some(&lease("", 4))), Step::Take { transitions: 4, acquired: true }, "released");
    }

    #[test]
    fn a_lease_has_upstreams_name() {
        let config = LeaderElection::default();
        let mut replica = Replica { component: "controller", identity: "me".to_owned(), config };
        let queue = "knative.dev.serving.pkg.reconciler.route.Reconciler";
        let name = |replica: &Replica| lease_name(&prefix(replica, queue), 3, 10);
        assert_eq!(name(&replica), "controller.knative.dev.serving.pkg.reconciler.route.reconciler.03-of-10");
        let renamed = (format!("controller.{queue}"), "Mine".to_owned());
        replica.config.lease_name_prefixes.extend([renamed]);
        assert_eq!(name(&replica), "mine.03-of-10");
    }

    #[test]
    fn a_key_belongs_to_the_bucket_that_upstream_gives_it_to() {
        let key = |name| ObjectKey::new("default", name);
        assert!(Leadership::alone().leads(&key("hello")));
        let led = |bucket: u32| {
            let buckets = (0..3).map(|i| {
                let name = lease_name("controller.knative.dev.serving.pkg.reconciler.route.reconciler", i, 3);
                (name, watch::channel(i == bucket).1)
            });
            Leadership { buckets: buckets.collect() }
        };
        assert!(led(1).leads(&key("hello")) && led(1).leads(&key("world")));
        assert!(!led(0).leads(&key("hello")) && led(0).leads(&ObjectKey::new("prod", "api-00001")));
    }
}
