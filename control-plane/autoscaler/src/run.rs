//! Assembly: caches, queues, deciders and the stat server of one autoscaler.

use futures::future::BoxFuture;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use api::autoscaling::v1alpha1::{Metric, PodAutoscaler};
use api::config;
use api::keys::serving;
use api::networking::v1alpha1::ServerlessService;
use controller::{Cache, Change, Config, Context, Error, ObjectKey, Queue, Recorder};
use kube::ResourceExt;

use crate::clock::Clock;
use crate::collector::Collector;
use crate::kpa::{Kpa, Prober, ServiceLookup, Targets, is_kpa};
use crate::metric::{self, Metrics};
use crate::multiscaler::{Callbacks, MultiScaler, SCRAPE_PERIOD, Setup};
use crate::pods::{self, Pods, State};
use crate::stat_server;

/// How an autoscaler runs. The defaults are those of the upstream container.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where activators report.
    pub listen: SocketAddr,
    /// This replica, for leases and forwarding between replicas (`POD_NAME`).
    pub pod_name: String,
    /// Address of this replica (`POD_IP`).
    pub pod_ip: String,
    /// Port of the queue-proxies' figures.
    pub metrics_port: u16,
    pub service_lookup: ServiceLookup,
    /// Concurrent reconciles. They mostly wait for the API; this many revisions can wake up side by side.
    pub workers: usize,
}

/// A running autoscaler; it stops with the context's tasks.
#[derive(Clone)]
pub struct Handle {
    /// Where the stat server listens.
    pub address: SocketAddr,
    scaler: MultiScaler,
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Options {
            listen: (Ipv4Addr::UNSPECIFIED, 8080).into(),
            pod_name: String::new(),
            pod_ip: String::new(),
            metrics_port: api::keys::ports::AUTOSCALING_METRICS,
            service_lookup: ServiceLookup::default(),
            workers: 16,
        }
    }
}

// === impl Handle ===

impl Handle {
    /// How many revisions cost wake-ups at the moment.
    pub fn awake(&self) -> usize {
        self.scaler.awake()
    }
}

/// Starts the autoscaler; returns once its caches are filled and the stat server listens.
///
/// Boxed, so that the code behind it is compiled with this crate and not again in every program that starts it.
pub fn run(ctx: Context, options: Options) -> BoxFuture<'static, Result<Handle, Error>> {
    Box::pin(start_all(ctx, options))
}

async fn start_all(ctx: Context, options: Options) -> Result<Handle, Error> {
    let autoscaler_config = Config::watch(&ctx, "config-autoscaler", config::Autoscaler::parse).await?;
    let deployment_config = Config::watch(&ctx, "config-deployment", config::Deployment::parse).await?;

    let autoscalers = Cache::<PodAutoscaler>::builder().start(&ctx);
    let services = Cache::<ServerlessService>::builder().start(&ctx);
    let metrics = Cache::<Metric>::builder().start(&ctx);
    let pods = Pods::watch(&ctx);
    let targets = Targets::watch(&ctx);
    tokio::join!(
        autoscalers.synced(),
        services.synced(),
        metrics.synced(),
        pods.cache().synced(),
        targets.deployments().synced(),
    );

    let clock = Clock::default();
    let collector = Arc::new(Collector::default());
    metric::follow(&metrics, collector.clone(), clock.clone());

    let (queue, metric_queue) = (Queue::new(), Queue::new());
    let (decided, scraped) = (queue.clone(), metric_queue.clone());
    let callbacks = Callbacks {
        decision_changed: Box::new(move |key| decided.add(key.clone())),
        scrapes_changed: Box::new(move |key| scraped.add(key.clone())),
    };
    let scaler = MultiScaler::new(Setup {
        tasks: ctx.tasks.clone(),
        clock: clock.clone(),
        collector: collector.clone(),
        pods: pods.clone(),
        metrics_port: options.metrics_port,
        period: SCRAPE_PERIOD,
        callbacks,
    });

    let kpa = Kpa {
        client: ctx.client.clone(),
        clock,
        queue: queue.clone(),
        services: services.clone(),
        metrics: metrics.clone(),
        pods: pods.clone(),
        targets: targets.clone(),
        autoscaler_config: autoscaler_config.clone(),
        deployment_config: deployment_config.clone(),
        scaler: scaler.clone(),
        prober: Prober::new(ctx.client.clone(), ctx.tasks.clone(), ctx.cluster_domain.clone(), options.service_lookup),
    };
    feed(&queue, &autoscalers, &services, &metrics, &pods, &targets, &scaler);
    let resync = {
        let (autoscalers, queue) = (autoscalers.clone(), queue.clone());
        move || controller::reconcile::resync(&autoscalers, &queue)
    };
    autoscaler_config.on_change(resync.clone());
    deployment_config.on_change(resync);
    controller::reconcile::enqueue_all(&metrics, &metric_queue);

    let recorder = Recorder::new(&ctx, "podautoscaler-controller");
    controller::drive(&ctx, &autoscalers, &queue, Arc::new(kpa), &recorder, options.workers);
    let recorder = recorder.named("metric-controller");
    controller::drive(&ctx, &metrics, &metric_queue, Arc::new(Metrics { collector }), &recorder, 2);

    let reports = scaler.clone();
    let address =
        stat_server::start(&ctx.tasks, options.listen, Arc::new(move |key, stat| reports.report(&key, &stat)))
            .await
            .map_err(|error| {
                let listen = options.listen;
                Error::Permanent(format!(
                    "autoscaler: cannot listen on {listen}: {error}; free the port or choose another"
                ))
            })?;
    tracing::info!(%address, pod = options.pod_name, ip = options.pod_ip, "autoscaler started");
    Ok(Handle { address, scaler })
}

/// Which events lead to which reconciles.
fn feed(
    queue: &Queue,
    autoscalers: &Cache<PodAutoscaler>,
    services: &Cache<ServerlessService>,
    metrics: &Cache<Metric>,
    pods: &Pods,
    targets: &Targets,
    scaler: &MultiScaler,
) {
    let add = queue.clone();
    autoscalers.on_event(move |change| {
        if is_kpa(&**change.object()) {
            add.add(ObjectKey::of(&**change.object()));
        }
    });

    let add = queue.clone();
    services.on_event(move |change| {
        let unchanged = matches!(change, Change::Applied { old: Some(old), new } if old.spec == new.spec && old.status == new.status);
        if !unchanged
            && is_kpa(&**change.object())
            && let Some(key) = ObjectKey::controller_of::<_, PodAutoscaler>(&**change.object())
        {
            add.add(key);
        }
    });

    // The status of a Metric is of no consequence here.
    let add = queue.clone();
    metrics.on_event(move |change| {
        let unchanged = matches!(change, Change::Applied { old, new } if old.is_none_or(|old| old.spec == new.spec));
        if !unchanged
            && is_kpa(&**change.object())
            && let Some(key) = ObjectKey::controller_of::<_, PodAutoscaler>(&**change.object())
        {
            add.add(key);
        }
    });

    let (add, scaler) = (queue.clone(), scaler.clone());
    pods.cache().on_event(move |change| {
        let Some(key) = pods::revision_of(change.object()) else { return };
        let unchanged = matches!(change, Change::Applied { old: Some(old), new } if State::of(old) == State::of(new));
        if !unchanged {
            scaler.pod_changed(&key);
            add.add(key);
        }
    });

    // A scale that somebody else set is put right, and a patch of ours that crossed another is seen.
    let add = queue.clone();
    targets.deployments().on_event(move |change| {
        let Change::Applied { old: Some(old), new } = change else { return };
        if let Some(revision) = new.labels().get(serving::REVISION)
            && crate::kpa::replicas(old) != crate::kpa::replicas(new)
        {
            add.add(ObjectKey::new(new.namespace().unwrap_or_default(), revision));
        }
    });
}
