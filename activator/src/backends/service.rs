//! A revision's pods behind the address of their Service, where a mesh does not let anyone reach them otherwise.

use std::{net::SocketAddr, sync::Arc};

use tokio_util::sync::DropGuard;

use super::{Backends, Reach, State};
use crate::{
    throttler::{Endpoint, Pod},
    tls,
};

/// The Service as a backend.
#[derive(Default)]
pub(super) struct Service {
    pod: Option<Arc<Pod>>,
    healthy: bool,
    probe: Option<DropGuard>,
}

// === impl Service ===

impl Service {
    /// What there is to send requests to, with the capacity of `ready` pods that `activators` share.
    pub(super) fn pods(&self, concurrency: usize, ready: usize, activators: usize) -> Vec<Arc<Pod>> {
        let Some(pod) = self.pod.as_ref().filter(|_| self.healthy && ready > 0) else { return Vec::new() };
        if concurrency > 0 {
            pod.set_capacity((concurrency * ready / activators.max(1)).max(1));
        }
        vec![pod.clone()]
    }

    #[cfg(test)]
    pub(super) fn is_asked(&self) -> bool {
        self.probe.is_some()
    }

    /// If `pod` is this one, it is not used until it has answered again.
    pub(super) fn failed(&mut self, pod: &Arc<Pod>) -> bool {
        let is_this = self.is(pod);
        if is_this {
            self.healthy = false;
        }
        is_this
    }

    pub(super) fn is(&self, pod: &Arc<Pod>) -> bool {
        self.pod.as_ref().is_some_and(|own| Arc::ptr_eq(own, pod))
    }
}

// === impl Backends ===

impl Backends {
    /// A probe of `pod` got an answer that a mesh may have given. If the kubelet has found the pod ready, the Service
    /// is asked as well.
    pub(crate) fn suspected(&self, pod: &Arc<Pod>) {
        let mut state = self.state.lock();
        let is_ready = state.known(pod).is_some_and(|(known, _)| known.ready);
        if is_ready && state.reach == Reach::Either && state.service.probe.is_none() {
            state.service.probe = Some(self.prober.start_service(&self.treatment.service, self.this.clone()));
        }
    }

    /// A pod answered behind the Service's address: from now on that is the way.
    pub(crate) fn service_answered(&self, address: SocketAddr) {
        let mut state = self.state.lock();
        if state.reach == Reach::Pods || state.ready == 0 {
            state.service.probe = None;
            return;
        }
        state.reach = Reach::Service;
        for known in state.pods.values_mut() {
            (known.healthy, known.probe) = (false, None);
        }
        let service = &mut state.service;
        if service.pod.as_ref().is_none_or(|pod| pod.address() != address) {
            let endpoint = Endpoint::from(address);
            let link = self.treatment.link.with_port(tls::SERVICE_PORT);
            service.pod = Some(Pod::new(endpoint, self.treatment.concurrency, &link));
        }
        (service.healthy, service.probe) = (true, None);
        self.publish_all(&mut state);
    }

    /// Sees to it that the Service is asked while it is needed and does not answer. Without ready pods nobody could
    /// answer there, and what it said before says nothing about the pods that come next.
    pub(super) fn look_after_service(&self, state: &mut State) {
        if state.reach != Reach::Service {
            return;
        }
        let service = &mut state.service;
        if state.ready == 0 {
            (service.healthy, service.probe) = (false, None);
        } else if !service.healthy && service.probe.is_none() {
            service.probe = Some(self.prober.start_service(&self.treatment.service, self.this.clone()));
        }
    }
}
