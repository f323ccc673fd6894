//! Probes of gateways over the network, as upstream: for those whose acknowledgements this replica does not see.
//!
//! With several replicas a gateway's stream leads to one of them, and the one that writes statuses may be another. It
//! then asks the gateway itself: a request to every host of the Ingress must come back with the Ingress's hash. Gateways
//! that acknowledge here are never probed.
//!
//! Work for all Ingresses waits in one timeline; at most [`AT_ONCE`] requests are out, and repetitions are paced, so that
//! ten thousand Ingresses that wait cost as much per second as a few.

mod request;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use api::networking::v1alpha1::IngressSpec;
use controller::ObjectKey;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::Instant,
};

pub use self::request::Verdict;
use crate::{fleets::Part, translate::is_covered};

/// The gateways' ports for probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    pub external: u16,
    pub external_tls: u16,
    pub local: u16,
    pub local_tls: u16,
}

/// What is asked of each gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    pub host: String,
    pub port: u16,
    pub tls: bool,
}

/// Cheap to clone; clones are the same prober.
#[derive(Clone)]
pub struct Prober(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    wake: Notify,
    longest_pause: Duration,
}

#[derive(Default)]
struct State {
    rounds: HashMap<ObjectKey, Round>,
    timeline: BTreeMap<(Instant, u64), Item>,
    sequence: u64,
    /// When the next repetition may be, if all since then had been spread evenly.
    pace: Option<Instant>,
}

/// What is still unanswered for one state of an Ingress.
struct Round {
    hash: Arc<str>,
    waiting: BTreeMap<IpAddr, BTreeSet<Arc<Target>>>,
    /// Gateways that were asked, also those that are done.
    pods: BTreeSet<IpAddr>,
}

#[derive(Clone)]
struct Item {
    key: ObjectKey,
    hash: Arc<str>,
    pod: IpAddr,
    target: Arc<Target>,
    failures: u32,
}

enum Next {
    Now(Item),
    At(Instant),
    Nothing,
}

const AT_ONCE: usize = 15;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Repetitions of everything together: 50 per second, after the first 100.
const SPACING: Duration = Duration::from_millis(20);
const BURST: u32 = 100;

/// One target for every host of the rules that the gateways carry.
pub fn targets(spec: &IngressSpec, part: Part, ports: Ports) -> Vec<Target> {
    let rules = || spec.rules.iter().filter(|rule| part.has(rule));
    let secured = |local: bool| rules().any(|rule| Part::Local.has(rule) == local && is_covered(spec, rule));
    let (external_tls, local_tls) = (secured(false), secured(true));
    let all: BTreeSet<Target> = rules()
        .flat_map(|rule| {
            let (port, tls) = match (Part::Local.has(rule), external_tls, local_tls) {
                (false, true, _) => (ports.external_tls, true),
                (false, false, _) => (ports.external, false),
                (true, _, true) => (ports.local_tls, true),
                (true, _, false) => (ports.local, false),
            };
            rule.hosts.iter().map(move |host| Target { host: host.clone(), port, tls })
        })
        .collect();
    all.into_iter().collect()
}

// === impl Prober ===

impl Prober {
    /// `longest_pause` between two attempts (`PROBE_MAX_RETRY_DELAY_SECONDS`).
    pub fn new(longest_pause: Duration) -> Self {
        Prober(Arc::new(Shared { state: Mutex::default(), wake: Notify::new(), longest_pause }))
    }

    /// Whether all these gateways have this state of an Ingress. If not, they are asked until they have, and whoever
    /// runs the prober hears about it. Gateways that are not named any more need not answer.
    pub fn check(&self, key: &ObjectKey, hash: &str, targets: &[Target], pods: &BTreeSet<IpAddr>) -> bool {
        let mut state = self.0.state.lock();
        let State { rounds, timeline, sequence, .. } = &mut *state;
        let round = rounds.entry(key.clone()).or_insert_with(|| Round::new(hash));
        if *round.hash != *hash {
            *round = Round::new(hash);
        }
        round.waiting.retain(|pod, _| pods.contains(pod));
        let now = Instant::now();
        for pod in pods.iter().filter(|pod| round.pods.insert(**pod)) {
            let targets: BTreeSet<Arc<Target>> = targets.iter().cloned().map(Arc::new).collect();
            for target in &targets {
                *sequence += 1;
                let (hash, target) = (round.hash.clone(), target.clone());
                let item = Item { key: key.clone(), hash, pod: *pod, target, failures: 0 };
                timeline.insert((now, *sequence), item);
            }
            if !targets.is_empty() {
                round.waiting.insert(*pod, targets);
            }
        }
        let done = round.waiting.is_empty();
        drop(state);
        self.0.wake.notify_one();
        done
    }

    /// The Ingress is gone, or its answer is written down.
    pub fn forget(&self, key: &ObjectKey) {
        self.0.state.lock().rounds.remove(key);
    }

    /// Sends the requests until dropped; `answered` is called for an Ingress whose gateways are all done.
    pub async fn run(self, answered: impl Fn(ObjectKey)) {
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        let mut out: JoinSet<(Item, Verdict)> = JoinSet::new();
        loop {
            let next = self.0.state.lock().next(Instant::now());
            let until = match next {
                Next::Now(item) => {
                    let Ok(slot) = slots.clone().acquire_owned().await else { return };
                    out.spawn(async move {
                        let verdict = request::probe(item.pod, &item.target, &item.hash).await;
                        drop(slot);
                        (item, verdict)
                    });
                    // A slot may be free because something is done.
                    while let Some(Ok((item, verdict))) = out.try_join_next() {
                        self.note(item, verdict, &answered);
                    }
                    continue;
                }
                Next::At(at) => Some(at),
                Next::Nothing => None,
            };
            let due = async {
                match until {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.0.wake.notified() => {}
                Some(Ok((item, verdict))) = out.join_next() => self.note(item, verdict, &answered),
            }
        }
    }

    fn note(&self, item: Item, verdict: Verdict, answered: &impl Fn(ObjectKey)) {
        let mut state = self.0.state.lock();
        let Some(round) = state.rounds.get_mut(&item.key).filter(|round| round.hash == item.hash) else { return };
        match verdict {
            Verdict::Done => {
                if let Some(targets) = round.waiting.get_mut(&item.pod) {
                    targets.remove(&item.target);
                    if targets.is_empty() {
                        round.waiting.remove(&item.pod);
                    }
                    if round.waiting.is_empty() {
                        drop(state);
                        answered(item.key);
                    }
                }
            }
            Verdict::Again(reason) => {
                let (host, port) = (&item.target.host, item.target.port);
                tracing::debug!(ingress = %item.key, gateway = %item.pod, host, port, reason, "not there yet");
                state.again(item, self.0.longest_pause);
            }
        }
    }
}

// === impl State ===

impl State {
    fn next(&mut self, now: Instant) -> Next {
        while let Some(first) = self.timeline.first_entry() {
            let at = first.key().0;
            let item = first.get();
            let round = self.rounds.get(&item.key).filter(|round| round.hash == item.hash);
            if !round.is_some_and(|round| round.waiting.contains_key(&item.pod)) {
                first.remove();
                continue;
            }
            return if at > now { Next::At(at) } else { Next::Now(first.remove()) };
        }
        Next::Nothing
    }

    fn again(&mut self, mut item: Item, longest: Duration) {
        let now = Instant::now();
        let pause = FIRST_PAUSE.saturating_mul(1 << item.failures.min(20)).min(longest);
        item.failures += 1;
        let pace = self.pace.map_or(now, |pace| pace.max(now)) + SPACING;
        self.pace = Some(pace);
        let spread = pace.checked_sub(SPACING * BURST).unwrap_or(now);
        self.sequence += 1;
        self.timeline.insert(((now + pause).max(spread), self.sequence), item);
    }
}

// === impl Round ===

impl Round {
    fn new(hash: &str) -> Self {
        Round { hash: hash.into(), waiting: BTreeMap::new(), pods: BTreeSet::new() }
    }
}
