//! Finalizer and status of an Ingress.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use api::{
    Conditioned,
    keys::networking::INGRESS_FINALIZER,
    networking::v1alpha1::{Ingress, LoadBalancerIngress, LoadBalancerStatus},
};
use controller::{Context, Error, Leadership, ObjectKey, Reconcile};
use parking_lot::Mutex;
use xds::Xds;

use super::Shared;
use crate::{
    options::Options,
    world::{Pending, is_ours},
};

pub(super) struct Reconciler {
    world: Shared,
    xds: Xds,
    waiting: Waiting,
    leadership: Leadership,
    public: LoadBalancerStatus,
    private: LoadBalancerStatus,
}

/// Ingresses whose status waits for gateways, by revision.
#[derive(Clone, Default)]
pub(super) struct Waiting(Arc<Mutex<BTreeMap<u64, BTreeSet<ObjectKey>>>>);

const NETWORK_CONFIGURED: &str = "NetworkConfigured";
const LOAD_BALANCER_READY: &str = "LoadBalancerReady";
const READY: &str = "Ready";

/// Gateways answer within milliseconds: waiting that long saves writing a status that says "not yet".
const PATIENCE: Duration = Duration::from_millis(50);

// === impl Waiting ===

impl Waiting {
    fn add(&self, revision: u64, key: ObjectKey) {
        self.0.lock().entry(revision).or_default().insert(key);
    }

    pub(super) fn up_to(&self, revision: u64) -> BTreeSet<ObjectKey> {
        let mut waiting = self.0.lock();
        let later = waiting.split_off(&(revision + 1));
        std::mem::replace(&mut *waiting, later).into_values().flatten().collect()
    }
}

// === impl Reconciler ===

impl Reconciler {
    pub(super) fn new(
        world: Shared,
        xds: Xds,
        waiting: Waiting,
        leadership: Leadership,
        ctx: &Context,
        options: &Options,
    ) -> Self {
        let address = |service: &str| LoadBalancerStatus {
            ingress: vec![LoadBalancerIngress {
                domain_internal: format!("{service}.{}.svc.{}", options.gateway_namespace, ctx.cluster_domain),
                ..Default::default()
            }],
        };
        let (public, private) = (address(&options.external_service), address(&options.internal_service));
        Reconciler { world, xds, waiting, leadership, public, private }
    }

    async fn pending(&self, key: &ObjectKey, generation: i64) -> Pending {
        let mut settled = self.xds.settled();
        let now = *settled.borrow_and_update();
        let pending = self.world.lock().pending(key, generation, now);
        let Pending::Gateways { revision } = pending else { return pending };
        // Registered before the last look, so that no acknowledgement falls between.
        self.waiting.add(revision, key.clone());
        let there = |settled: &xds::Settled| settled.gateways > 0 && settled.revision >= revision;
        if now.gateways > 0 {
            let _ = tokio::time::timeout(PATIENCE, settled.wait_for(there)).await;
        }
        let now = *settled.borrow();
        self.world.lock().pending(key, generation, now)
    }
}

impl Reconcile for Reconciler {
    type Kind = Ingress;

    const NAME: &'static str = "ingress-controller";
    const FINALIZER: Option<&'static str> = Some(INGRESS_FINALIZER);

    fn selects(&self, ingress: &Ingress) -> bool {
        is_ours(ingress) && self.leadership.leads(&ObjectKey::of(ingress))
    }

    fn prepare(&self, ingress: &mut Ingress) {
        ingress.mark().init();
    }

    async fn reconcile(&self, ingress: &mut Ingress) -> Result<(), Error> {
        let key = ObjectKey::of(ingress);
        let generation = ingress.metadata.generation.unwrap_or_default();
        let pending = self.pending(&key, generation).await;
        let was_ready =
            ingress.condition(LOAD_BALANCER_READY).is_some_and(|condition| condition.is_true()) && ingress.observed();
        match pending {
            Pending::Nothing => {
                ingress.mark().mark_true(NETWORK_CONFIGURED);
                ingress.mark().mark_true(LOAD_BALANCER_READY);
                let status = ingress.status_mut();
                status.public_load_balancer = Some(self.public.clone());
                status.private_load_balancer = Some(self.private.clone());
                Ok(())
            }
            // Once ready, an Ingress stays so until its spec changes: losing addresses is answered by the gateway.
            Pending::Gateways { .. } | Pending::Services(_) => {
                ingress.mark().mark_true(NETWORK_CONFIGURED);
                if !was_ready {
                    let message = "Waiting for load balancer to be ready";
                    ingress.mark().mark_unknown(LOAD_BALANCER_READY, "Uninitialized", message);
                }
                Ok(())
            }
            Pending::Conflict => {
                let message = "Ingress rejected: ingress has a conflicting domain with another ingress";
                ingress.mark().mark_false(LOAD_BALANCER_READY, "DomainConflict", message);
                Ok(())
            }
            Pending::Invalid(message) | Pending::Refused(message) => {
                ingress.mark().set(READY, "Unknown", "ReconcileIngressFailed", &message);
                Err(Error::Permanent(format!("failed to update ingress: {message}")))
            }
            Pending::Unseen => Err(Error::RequeueAfter(Duration::from_millis(10))),
        }
    }
}
