//! The PodAutoscaler controller for class `kpa.autoscaling.knative.dev`.
//!
//! ```text
//! PodAutoscaler --> decider (in memory) --> scale of the target (one patch, sent first)
//!               \-> Metric              \-> ServerlessService: mode and number of activators
//! ```
//!
//! Waking up is the hot path: everything it needs is in caches, and the patch of the scale is the first thing written.

mod children;
mod probe;
mod scale;
mod status;
mod target;

use std::sync::Arc;
use std::time::Duration;

use api::Conditioned;
use api::autoscaling::v1alpha1::{Metric, PodAutoscaler};
use api::config;
use api::keys::autoscaling as keys;
use api::networking::v1alpha1::ServerlessService;
use controller::{Cache, Config, Error, ObjectKey, Queue, Reconcile};
use jiff::Timestamp;
use kube::ResourceExt;

use crate::clock::Clock;
use crate::multiscaler::MultiScaler;
use crate::pods::{Counts, Pods};
use crate::settings::Settings;
pub use probe::{Prober, ServiceLookup};
use scale::{Active, Outcome, Situation, Step};
use status::Observation;
pub use target::{Targets, replicas};

/// Activators for a revision about which nothing is known yet, and the least for any.
const MIN_ACTIVATORS: i32 = 2;
const SERVE: &str = "Serve";
const PROXY: &str = "Proxy";
const UNREACHABLE_REQUEUE: Duration = Duration::from_secs(1);

pub struct Kpa {
    pub client: kube::Client,
    pub clock: Clock,
    pub queue: Queue,
    pub services: Cache<ServerlessService>,
    pub metrics: Cache<Metric>,
    pub pods: Pods,
    pub targets: Targets,
    pub autoscaler_config: Config<config::Autoscaler>,
    pub deployment_config: Config<config::Deployment>,
    pub scaler: MultiScaler,
    pub prober: Arc<Prober>,
}

/// Whether this controller is responsible.
pub fn is_kpa<K: ResourceExt>(object: &K) -> bool {
    object.annotations().get(keys::CLASS).is_some_and(|class| class == keys::KPA)
}

// === impl Kpa ===

impl Reconcile for Kpa {
    type Kind = PodAutoscaler;
    const NAME: &'static str = "podautoscaler-controller";
    const QUEUE: &'static str = "knative.dev.serving.pkg.reconciler.autoscaling.kpa.Reconciler";

    fn selects(&self, autoscaler: &PodAutoscaler) -> bool {
        is_kpa(autoscaler)
    }

    fn prepare(&self, autoscaler: &mut PodAutoscaler) {
        autoscaler.mark().init();
    }

    async fn reconcile(&self, autoscaler: &mut PodAutoscaler) -> Result<(), Error> {
        let key = ObjectKey::of(autoscaler);
        let config = self.autoscaler_config.load();
        let service = self.services.get_key(&key).filter(|sks| !private_service(sks).is_empty());
        let Some(service) = service else {
            let created = self.ensure_service(autoscaler, PROXY, MIN_ACTIVATORS).await;
            created.map_err(|failure| children::failed(autoscaler, failure))?;
            autoscaler.mark().mark_unknown("SKSReady", "NotReady", "No Private Service Name");
            let nothing = Observation { ready: 0, want: -1 };
            status::update(autoscaler, &config, nothing);
            return Ok(());
        };
        autoscaler.status_mut().metrics_service_name = private_service(&service).to_owned();

        let inputs = Settings::of(autoscaler, &config)
            .inputs(&autoscaler.name_any())
            .map_err(|error| Error::Permanent(error.to_string()))?;
        let decision = self.scaler.ensure(&key, inputs.clone());
        let want = self.scale(autoscaler, &config, &service, decision.desired).await?;

        let counts = self.pods.counts(&key);
        let mode = if want > 0 && decision.excess_burst >= 0 { SERVE } else { PROXY };
        let activators = activators(counts, inputs.total, inputs.burst_capacity, inputs.activator_capacity);
        let (service, metric) =
            tokio::join!(self.ensure_service(autoscaler, mode, activators), self.ensure_metric(&*autoscaler, &config),);
        let service = service.map_err(|failure| children::failed(autoscaler, failure))?;
        metric.map_err(|failure| children::failed(autoscaler, failure))?;

        autoscaler.status_mut().service_name =
            service.status.as_ref().map(|status| status.service_name.clone()).unwrap_or_default();
        status::mirror_service(autoscaler, &service);
        status::update(autoscaler, &config, Observation { ready: counts.ready, want });
        Ok(())
    }

    fn deleted(&self, key: &ObjectKey) {
        self.scaler.remove(key);
    }
}

impl Kpa {
    /// Brings the target to the wanted scale, as far as bounds and the way to zero allow; returns what is wanted now, -1 if unknown.
    async fn scale(
        &self,
        autoscaler: &PodAutoscaler,
        config: &config::Autoscaler,
        service: &ServerlessService,
        desired: i32,
    ) -> Result<i32, Error> {
        let key = ObjectKey::of(autoscaler);
        let now = self.clock.now();
        let settings = Settings::of(autoscaler, config);
        let situation = Situation {
            desired,
            min: settings.min_scale(),
            max: settings.max_scale(),
            initial: settings.initial_scale(),
            initialized: autoscaler.condition("ScaleTargetInitialized").is_some_and(|c| c.is_true()),
            unreachable: settings.unreachable(),
            to_zero_enabled: config.enable_scale_to_zero,
            active: active(autoscaler, now),
            activation_timeout: settings.progress_deadline(&self.deployment_config.load()) + scale::ACTIVATION_BUFFER,
            stable_window: settings.stable_window(),
            grace: config.scale_to_zero_grace_period,
            retention: settings.pod_retention(),
            proxy_mode: service.spec.mode == PROXY,
            proxied_for: proxied_for(service, now),
            always_proxied: settings.burst_capacity() == -1.0,
        };
        let outcome = match situation.step() {
            Step::Done(outcome) => outcome,
            // Nothing would be applied: no need to ask the activator.
            Step::ConfirmActivator if self.targets.replicas(autoscaler) == Some(0) => {
                Outcome { want: 0, apply: false, again: None }
            }
            Step::ConfirmActivator => self.confirm_activator(autoscaler, &situation).await,
        };
        if let Some(again) = outcome.again {
            self.queue.add_after(key, again);
        }
        if outcome.apply {
            self.targets.apply(autoscaler, outcome.want).await?;
        }
        Ok(outcome.want)
    }

    /// The last pod goes only once requests are known to reach the activator.
    async fn confirm_activator(&self, autoscaler: &PodAutoscaler, situation: &Situation) -> Outcome {
        let service = autoscaler.status.as_ref().map(|status| status.service_name.as_str()).unwrap_or_default();
        let namespace = autoscaler.namespace().unwrap_or_default();
        if service.is_empty() {
            return Outcome { want: 0, apply: false, again: Some(UNREACHABLE_REQUEUE) };
        }
        if self.prober.confirm(&namespace, service, &autoscaler.spec.protocol_type).await {
            return situation.confirmed();
        }
        let (queue, key) = (self.queue.clone(), ObjectKey::of(autoscaler));
        self.prober.clone().follow(&namespace, service, &autoscaler.spec.protocol_type, move || {
            queue.add_after(key, UNREACHABLE_REQUEUE);
        });
        Outcome { want: 0, apply: false, again: None }
    }
}

fn private_service(service: &ServerlessService) -> &str {
    service.status.as_ref().map_or("", |status| &status.private_service_name)
}

fn active(autoscaler: &PodAutoscaler, now: Timestamp) -> Active {
    let Some(condition) = autoscaler.condition("Active") else { return Active::Unknown(Duration::ZERO) };
    let lasted = condition.last_transition_time.as_ref().map_or(Duration::ZERO, |since| elapsed(since.0, now));
    match condition {
        active if active.is_true() => Active::True(lasted),
        inactive if inactive.is_false() => Active::False(lasted),
        _ => Active::Unknown(lasted),
    }
}

/// How long all requests have gone through the activator.
fn proxied_for(service: &ServerlessService, now: Timestamp) -> Duration {
    let proxied = service.condition("ActivatorEndpointsPopulated").filter(|condition| condition.is_true());
    proxied.and_then(|condition| condition.last_transition_time.as_ref()).map_or(Duration::ZERO, |t| elapsed(t.0, now))
}

fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    now.duration_since(since).try_into().unwrap_or_default()
}

fn activators(counts: Counts, total: f64, burst_capacity: f64, activator_capacity: f64) -> i32 {
    if burst_capacity == 0.0 {
        return MIN_ACTIVATORS;
    }
    let load = f64::from(counts.ready) * total + burst_capacity.max(0.0);
    ((load / activator_capacity).ceil() as i32).max(MIN_ACTIVATORS)
}

#[cfg(test)]
mod tests {
    use super::{Counts, activators};

    #[test]
    fn enough_activators_for_load_and_burst() {
        let activators =
            |ready, total, burst, capacity| activators(Counts { ready, ..Counts::default() }, total, burst, capacity);
        assert_eq!(activators(0, 100.0, 200.0, 100.0), 2);
        assert_eq!(activators(1, 100.0, 200.0, 100.0), 3);
        assert_eq!(activators(100, 100.0, 0.0, 100.0), 2);
        assert_eq!(activators(5, 100.0, -1.0, 100.0), 5);
    }
}
