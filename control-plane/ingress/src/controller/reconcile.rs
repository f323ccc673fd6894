//! Finalizer and status of an Ingress.

use std::time::Duration;

use api::{
    Conditioned,
    keys::networking::INGRESS_FINALIZER,
    networking::v1alpha1::{Ingress, IngressStatus, LoadBalancerStatus},
};
use controller::{Context, Error, Leadership, ObjectKey, Reconcile};
use kube::ResourceExt;

use super::{
    view::{View, Views},
    written::Written,
};
use crate::{fleets::Part, hash::ingress_hash, probe, translate::defaulted, world::Pending};

pub(super) struct Reconciler {
    views: Views,
    leadership: Leadership,
    cluster_domain: String,
    written: Written,
}

/// How far the gateways are with an Ingress.
enum Progress {
    Ready,
    Waiting,
    NoGateway,
    Stopped(Pending),
    /// No fleet carries it.
    Nowhere,
}

pub(super) const QUEUE: &str = "knative.dev.net-kourier.pkg.reconciler.ingress.Reconciler";

const NETWORK_CONFIGURED: &str = "NetworkConfigured";
const LOAD_BALANCER_READY: &str = "LoadBalancerReady";
const READY: &str = "Ready";

/// Gateways answer within milliseconds: waiting that long saves writing a status that says "not yet".
const PATIENCE: Duration = Duration::from_millis(50);

// === impl Reconciler ===

impl Reconciler {
    pub(super) fn new(views: Views, leadership: Leadership, written: Written, ctx: &Context) -> Self {
        Reconciler { views, leadership, cluster_domain: ctx.cluster_domain.clone(), written }
    }

    /// What the fleets that carry it say together: the worst.
    async fn progress(&self, ingress: &Ingress, was_ready: bool) -> Progress {
        let key = ObjectKey::of(ingress);
        let generation = ingress.metadata.generation.unwrap_or_default();
        let carrying = self.views.carrying(ingress);
        if carrying.is_empty() {
            return Progress::Nowhere;
        }
        let (mut waiting, mut gateways) = (false, true);
        for (view, part) in carrying {
            match pending(view, &key, generation).await {
                // What all share is refused: those that were served are served still.
                Pending::Nothing | Pending::Gateways { .. } | Pending::Shared(_) if was_ready => {}
                Pending::Nothing => waiting |= !unseen_have(view, part, ingress),
                // Nobody is connected here: all there are must be asked.
                Pending::Gateways { revision } if view.xds.settled().borrow().gateways == 0 => {
                    view.wait(revision, key.clone());
                    match &view.prober {
                        Some(_) if view.unseen().is_empty() => gateways = false,
                        Some(_) => waiting |= !unseen_have(view, part, ingress),
                        None => waiting = true,
                    }
                }
                Pending::Gateways { .. } | Pending::Services(_) => waiting = true,
                stopped => return Progress::Stopped(stopped),
            }
        }
        match (waiting, gateways) {
            (_, false) => Progress::NoGateway,
            (true, true) => Progress::Waiting,
            (false, true) => Progress::Ready,
        }
    }

    fn forget_probes(&self, key: &ObjectKey) {
        for prober in self.views.iter().filter_map(|view| view.prober.as_ref()) {
            prober.forget(key);
        }
    }

    /// The addresses under which it can be reached, from outside and from inside.
    fn addresses(&self, ingress: &Ingress) -> (LoadBalancerStatus, LoadBalancerStatus) {
        let carrying = self.views.carrying(ingress);
        let of = |wanted: Part| {
            let fitting = carrying.iter().filter(|(_, part)| *part == Part::All || *part == wanted);
            let views: Vec<&View> = fitting.map(|(view, _)| *view).collect();
            // Who reads the status expects both, also of an Ingress that has hosts of one kind only.
            if views.is_empty() { carrying.iter().map(|(view, _)| *view).collect() } else { views }
        };
        let public = of(Part::External).into_iter().map(|view| view.public_address(&self.cluster_domain));
        let private = of(Part::Local).into_iter().map(|view| view.private_address(&self.cluster_domain));
        (LoadBalancerStatus { ingress: public.collect() }, LoadBalancerStatus { ingress: private.collect() })
    }
}

async fn pending(view: &View, key: &ObjectKey, generation: i64) -> Pending {
    let mut settled = view.xds.settled();
    let now = *settled.borrow_and_update();
    let pending = view.world.lock().pending(key, generation, now);
    let Pending::Gateways { revision } = pending else { return pending };
    let there = |settled: &xds::Settled| settled.gateways > 0 && settled.revision >= revision;
    if now.gateways > 0 {
        let _ = tokio::time::timeout(PATIENCE, settled.wait_for(there)).await;
    }
    if !there(&settled.borrow()) {
        // Registered before the last look, so that no acknowledgement falls between.
        view.wait(revision, key.clone());
    }
    let now = *settled.borrow();
    view.world.lock().pending(key, generation, now)
}

/// Whether the gateways that are connected elsewhere have it.
fn unseen_have(view: &View, part: Part, ingress: &Ingress) -> bool {
    let Some(prober) = &view.prober else { return true };
    if view.unseen().is_empty() {
        return true;
    }
    // Registered before the look that counts: gateways that leave answer no probe.
    view.wait(u64::MAX, ObjectKey::of(ingress));
    let unseen = view.unseen();
    let spec = defaulted(&ingress.spec);
    let hash = ingress_hash(&spec, &ingress.namespace().unwrap_or_default(), &ingress.name_any());
    prober.check(&ObjectKey::of(ingress), &hash, &probe::targets(&spec, part, view.ports), &unseen)
}

impl Reconcile for Reconciler {
    type Kind = Ingress;

    const NAME: &'static str = "ingress-controller";
    const QUEUE: &'static str = QUEUE;
    const FINALIZER: Option<&'static str> = Some(INGRESS_FINALIZER);

    fn selects(&self, ingress: &Ingress) -> bool {
        self.views.fleets().serve(ingress) && self.leadership.leads(&ObjectKey::of(ingress))
    }

    fn prepare(&self, ingress: &mut Ingress) {
        ingress.mark().init();
    }

    fn deleted(&self, key: &ObjectKey) {
        self.forget_probes(key);
    }

    fn writes(&self, key: &ObjectKey, status: &IngressStatus) {
        self.written.note(key, status);
    }

    async fn reconcile(&self, ingress: &mut Ingress) -> Result<(), Error> {
        let (public, private) = self.addresses(ingress);
        let there = ingress.status.as_ref().is_some_and(|status| {
            status.public_load_balancer.as_ref() == Some(&public)
                && status.private_load_balancer.as_ref() == Some(&private)
        });
        let was_ready = there
            && ingress.observed()
            && ingress.condition(LOAD_BALANCER_READY).is_some_and(|condition| condition.is_true());
        let progress = self.progress(ingress, was_ready).await;
        if was_ready || matches!(progress, Progress::Ready) {
            self.forget_probes(&ObjectKey::of(ingress));
        }
        let wait = |ingress: &mut Ingress| {
            ingress.mark().mark_true(NETWORK_CONFIGURED);
            // Once ready, an Ingress stays so until its spec changes: losing addresses is answered by the gateway.
            if !was_ready {
                let message = "Waiting for load balancer to be ready";
                ingress.mark().mark_unknown(LOAD_BALANCER_READY, "Uninitialized", message);
            }
        };
        match progress {
            Progress::Ready => {
                ingress.mark().mark_true(NETWORK_CONFIGURED);
                ingress.mark().mark_true(LOAD_BALANCER_READY);
                let status = ingress.status_mut();
                status.public_load_balancer = Some(public);
                status.private_load_balancer = Some(private);
                Ok(())
            }
            Progress::Waiting => {
                wait(ingress);
                Ok(())
            }
            // A gateway that comes up wakes it.
            Progress::NoGateway => {
                wait(ingress);
                Err(Error::Permanent("failed to probe Ingress: no gateway pods available".to_owned()))
            }
            Progress::Nowhere => {
                let message = "no gateways of KOURIER_GATEWAYS carry an Ingress of this class, labels and namespace";
                ingress.mark().mark_false(LOAD_BALANCER_READY, "NoGateways", message);
                Ok(())
            }
            Progress::Stopped(Pending::Conflict) => {
                let message = "Ingress rejected: ingress has a conflicting domain with another ingress";
                ingress.mark().mark_false(LOAD_BALANCER_READY, "DomainConflict", message);
                Ok(())
            }
            Progress::Stopped(Pending::Invalid(message) | Pending::Refused(message) | Pending::Shared(message)) => {
                ingress.mark().set(READY, "Unknown", "ReconcileIngressFailed", &message);
                Err(Error::Permanent(format!("failed to update ingress: {message}")))
            }
            Progress::Stopped(_) => Err(Error::RequeueAfter(Duration::from_millis(10))),
        }
    }
}
