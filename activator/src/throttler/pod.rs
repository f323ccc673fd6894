//! One pod as the throttler sees it: an address, its connections, and how much it does at the moment.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

use net::{IdleLimits, Pool, Wrap};

use super::Pods;
use crate::preempt::point;

/// What identifies a pod: its address, and its uid as far as known, since addresses are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) uid: Uid,
}

/// Of an object in the API, or a hash of what somebody else calls one; 0 if it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Uid(u128);

/// Which of several pods gets a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// The one with fewer requests of two chosen at random.
    #[default]
    LeastOfTwo,
    /// The first by address.
    FirstAvailable,
    /// The next by address.
    RoundRobin,
    Random,
}

/// How a revision's pods are spoken to.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    /// The host by which a mesh knows them, instead of each pod's address.
    pub(crate) passthrough: Option<Arc<str>>,
    /// Encrypts, and on which port.
    pub(crate) wrap: Option<(Arc<dyn Wrap>, u16)>,
    /// Idle connections to keep.
    pub(crate) idle: Arc<IdleLimits>,
}

#[derive(Debug)]
pub(crate) struct Pod {
    endpoint: Endpoint,
    pool: Pool,
    /// For probes, which are never encrypted.
    plain: Pool,
    passthrough: Option<Arc<str>>,
    /// Connections of the short way.
    direct: Arc<wire::Backend>,
    /// The end of a head of the short way: the host, and the empty line.
    end_of_head: Box<str>,
    in_flight: AtomicUsize,
    /// Requests at once; `usize::MAX` without containerConcurrency.
    capacity: AtomicUsize,
    /// The last change of the pods in use that made it one of them, or all; 0 while it is not in use.
    generation: AtomicU64,
    /// Where it is among the pods in use, for who changes them.
    place: AtomicUsize,
}

// === impl Uid ===

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        const UUID: usize = 36;
        let is_uuid = text.len() == UUID && text.bytes().filter(|byte| *byte == b'-').count() == 4;
        let digit = |number: u128, digit: char| Some(number << 4 | u128::from(digit.to_digit(16)?));
        if let Some(number) = is_uuid.then(|| text.chars().filter(|c| *c != '-').try_fold(0, digit)).flatten() {
            return Self(number);
        }
        // FNV-1a of 128 bits; of nothing it is nothing.
        let hash = |hash: u128, byte: u8| (hash ^ u128::from(byte)).wrapping_mul((1 << 88) + 0x13b);
        match text {
            "" => Self::default(),
            _ => Self(text.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, hash)),
        }
    }
}

// === impl Endpoint ===

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self { address, uid: Uid::default() }
    }
}

// === impl Pod ===

impl Pod {
    /// A pod that takes `concurrency` requests at once, 0 for any number.
    pub(crate) fn new(endpoint: Endpoint, concurrency: usize, link: &Link) -> Arc<Self> {
        let capacity = if concurrency == 0 { usize::MAX } else { concurrency };
        let plain = Pool::limited(endpoint.address, &link.idle, None);
        let pool = match &link.wrap {
            None => plain.clone(),
            Some((wrap, port)) => {
                Pool::limited(SocketAddr::new(endpoint.address.ip(), *port), &link.idle, Some(wrap.clone()))
            }
        };
        let end_of_head = match &link.passthrough {
            None => format!("Host: {}\r\n\r\n", endpoint.address),
            Some(host) => format!("K-Passthrough-Lb: true\r\nHost: {host}\r\n\r\n"),
        };
        Arc::new(Self {
            pool,
            plain,
            passthrough: link.passthrough.clone(),
            direct: wire::Backend::sidecar(endpoint.address, &link.idle),
            end_of_head: end_of_head.into(),
            in_flight: AtomicUsize::new(0),
            capacity: AtomicUsize::new(capacity),
            generation: AtomicU64::new(0),
            place: AtomicUsize::new(0),
            endpoint,
        })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint.address
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Whether requests go there over TLS.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.pool.address() != self.plain.address()
    }

    /// For probes.
    pub(crate) fn plain(&self) -> &Pool {
        &self.plain
    }

    /// The host by which a mesh knows it.
    pub(crate) fn passthrough(&self) -> Option<&str> {
        self.passthrough.as_deref()
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.capacity.load(SeqCst)
    }

    /// Takes effect for requests that come from now on; those that wait are looked at when pods are published.
    pub(crate) fn set_capacity(&self, capacity: usize) {
        self.capacity.store(capacity, SeqCst);
    }

    pub(crate) fn direct(&self) -> &Arc<wire::Backend> {
        &self.direct
    }

    pub(crate) fn end_of_head(&self) -> &[u8] {
        self.end_of_head.as_bytes()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(SeqCst)
    }

    /// False while the pod may get no request.
    pub(crate) fn is_open(&self) -> bool {
        self.generation.load(SeqCst) != 0
    }

    pub(super) fn open(&self, generation: u64) {
        point();
        self.generation.store(generation, SeqCst);
    }

    pub(super) fn close_before(&self, generation: u64) {
        point();
        if self.generation.load(SeqCst) != generation {
            self.generation.store(0, SeqCst);
        }
    }

    pub(super) fn place(&self) -> usize {
        self.place.load(Relaxed)
    }

    pub(super) fn set_place(&self, place: usize) {
        self.place.store(place, Relaxed);
    }

    pub(super) fn release(&self) {
        point();
        self.in_flight.fetch_sub(1, SeqCst);
    }

    /// Takes a slot if one is free.
    pub(super) fn reserve(&self) -> bool {
        point();
        let capacity = self.capacity.load(SeqCst);
        if capacity == usize::MAX {
            self.in_flight.fetch_add(1, SeqCst);
            return true;
        }
        self.in_flight.fetch_update(SeqCst, SeqCst, |current| (current < capacity).then_some(current + 1)).is_ok()
    }
}

// === impl Link ===

impl Link {
    /// As it is unless something else is said.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        let idle = IdleLimits::new(100, 1000, std::time::Duration::from_secs(90), 0);
        Self { passthrough: None, wrap: None, idle }
    }

    /// The same to another encrypted port.
    pub(crate) fn with_port(&self, port: u16) -> Self {
        let wrap = self.wrap.as_ref().map(|(wrap, _)| (wrap.clone(), port));
        Self { wrap, ..self.clone() }
    }
}

// === impl Policy ===

impl Policy {
    /// Upstream's choice for a revision with this containerConcurrency.
    pub(crate) fn upstream(concurrency: usize) -> Self {
        match concurrency {
            0 => Self::LeastOfTwo,
            1..=3 => Self::FirstAvailable,
            _ => Self::RoundRobin,
        }
    }

    /// A slot of the pod that the policy prefers, or of the next that has one. `cursor` is where the last round ended.
    pub(super) fn choose(self, pods: &Pods, cursor: &AtomicUsize) -> Option<Arc<Pod>> {
        let count = pods.len();
        let first = match (self, count) {
            (_, 0) => return None,
            (_, 1) | (Self::FirstAvailable, _) => 0,
            (Self::Random, _) => fastrand::usize(..count),
            (Self::RoundRobin, _) => cursor.load(SeqCst) % count,
            (Self::LeastOfTwo, _) => {
                let one = fastrand::usize(..count);
                let other = (one + 1 + fastrand::usize(..count - 1)) % count;
                if pods.get(other).in_flight() < pods.get(one).in_flight() { other } else { one }
            }
        };
        let index = (0..count).map(|step| (first + step) % count).find(|index| pods.get(*index).reserve())?;
        if self == Self::RoundRobin {
            cursor.store(index + 1, SeqCst);
        }
        Some(pods.get(index).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_told_apart_whatever_they_look_like() {
        let uuid = Uid::from("6ba7b810-9dad-11d1-80b4-00c04fd430c8");
        assert_eq!(uuid, Uid(0x6ba7_b810_9dad_11d1_80b4_00c0_4fd4_30c8));
        let others = ["", "6ba7b810-9dad-11d1-80b4-00c04fd430c9", "a", "b", "------------------------------------"];
        let all: std::collections::BTreeSet<_> = others.map(Uid::from).into_iter().chain([uuid]).collect();
        assert_eq!(all.len(), others.len() + 1);
        assert_eq!(Uid::from(""), Uid::default());
    }

    #[test]
    fn policies_prefer_what_they_say() {
        let pods: Vec<_> =
            (1..=3).map(|port| Pod::new(SocketAddr::from(([127, 0, 0, 1], port)).into(), 2, &Link::plain())).collect();
        let pods = Pods::from(pods);
        let chosen =
            |policy: Policy, cursor: &AtomicUsize| policy.choose(&pods, cursor).map(|pod| pod.address().port());
        let cursor = AtomicUsize::new(0);
        let round: Vec<_> = (0..3).map(|_| chosen(Policy::RoundRobin, &cursor).expect("free")).collect();
        assert_eq!(round, [1, 2, 3]);
        assert_eq!(chosen(Policy::FirstAvailable, &cursor), Some(1));
        assert_eq!(chosen(Policy::FirstAvailable, &cursor), Some(2));
        // Only the last has a slot left, whoever chooses.
        assert_eq!(chosen(Policy::LeastOfTwo, &cursor), Some(3));
        assert_eq!(chosen(Policy::Random, &cursor), None);
        pods.get(1).release();
        assert_eq!(chosen(Policy::Random, &cursor), Some(2));
        assert_eq!([0, 3, 4].map(Policy::upstream), [Policy::LeastOfTwo, Policy::FirstAvailable, Policy::RoundRobin]);
    }
}
