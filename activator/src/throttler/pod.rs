//! One pod as the throttler sees it: an address, its connections, and how much it does at the moment.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};

use net::{Pool, PoolOptions};

/// What identifies a pod: its address, and its uid as far as known, since addresses are used again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) uid: Box<str>,
}

#[derive(Debug)]
pub(crate) struct Pod {
    endpoint: Endpoint,
    pool: Pool,
    /// Connections of the short way.
    direct: Arc<wire::Backend>,
    /// The end of a head of the short way: the host, and the empty line.
    end_of_head: Box<str>,
    in_flight: AtomicUsize,
    /// Requests at once; `usize::MAX` without containerConcurrency.
    capacity: usize,
    /// The last change of the pods in use that included it; 0 while it is not in use.
    generation: AtomicU64,
}

// === impl Endpoint ===

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self { address, uid: Box::default() }
    }
}

// === impl Pod ===

impl Pod {
    /// A pod that takes `concurrency` requests at once, 0 for any number.
    pub(crate) fn new(endpoint: Endpoint, concurrency: usize) -> Arc<Self> {
        let capacity = if concurrency == 0 { usize::MAX } else { concurrency };
        let options = PoolOptions { max_idle: 100, ..PoolOptions::default() };
        Arc::new(Self {
            pool: Pool::new(endpoint.address, options),
            direct: wire::Backend::new(endpoint.address, options.max_idle),
            end_of_head: format!("Host: {}\r\n\r\n", endpoint.address).into(),
            in_flight: AtomicUsize::new(0),
            capacity,
            generation: AtomicU64::new(0),
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
        self.generation.store(generation, SeqCst);
    }

    pub(super) fn close_before(&self, generation: u64) {
        if self.generation.load(SeqCst) != generation {
            self.generation.store(0, SeqCst);
        }
    }

    pub(super) fn release(&self) {
        self.in_flight.fetch_sub(1, SeqCst);
    }

    /// Takes a slot if one is free.
    fn reserve(&self) -> bool {
        if self.capacity == usize::MAX {
            self.in_flight.fetch_add(1, SeqCst);
            return true;
        }
        self.in_flight.fetch_update(SeqCst, SeqCst, |current| (current < self.capacity).then_some(current + 1)).is_ok()
    }
}

/// A slot of the less busy of two pods chosen at random, or of any that has one.
pub(super) fn choose(pods: &[Arc<Pod>]) -> Option<Arc<Pod>> {
    let count = pods.len();
    let first = match count {
        0 => return None,
        1 => 0,
        _ => {
            let one = fastrand::usize(..count);
            let other = (one + 1 + fastrand::usize(..count - 1)) % count;
            if pods[other].in_flight() < pods[one].in_flight() { other } else { one }
        }
    };
    (0..count).map(|step| &pods[(first + step) % count]).find(|pod| pod.reserve()).cloned()
}
