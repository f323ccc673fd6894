//! From a Deployment to bound pods and back.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

use crate::harness::World;

pub(crate) fn deployment(name: &str, replicas: i32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": 60,
            "revisionHistoryLimit": 0,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{
                    "name": "c", "image": "dev.local/one", "ports": [{"name": "web", "containerPort": 7777}],
                    "resources": {"requests": {"cpu": "100m"}},
                }]},
            },
        },
    })
}

fn is_available(count: i32) -> impl Fn(Option<&Deployment>) -> bool {
    move |deployment| {
        let Some(deployment) = deployment else { return false };
        let status = deployment.status.clone().unwrap_or_default();
        let reason = |type_: &str| {
            let conditions = status.conditions.iter().flatten();
            conditions.filter(|c| c.type_ == type_).find_map(|c| c.reason.clone()).unwrap_or_default()
        };
        status.observed_generation == deployment.metadata.generation
            && status.replicas.unwrap_or(0) == count
            && status.updated_replicas.unwrap_or(0) == count
            && status.available_replicas.unwrap_or(0) == count
            && status.terminating_replicas.unwrap_or(0) == 0
            && reason("Available") == "MinimumReplicasAvailable"
            && reason("Progressing") == "NewReplicaSetAvailable"
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_scales_rolls_and_goes() {
    let world = World::start().await;
    let selector = ListParams::default().labels("app=web");
    world.create::<Deployment>(deployment("web", 0)).await;
    world.until("web", is_available(0)).await;

    world.patch::<Deployment>("web", json!({"spec": {"replicas": 3}})).await;
    world.until("web", is_available(3)).await;
    let pods = world.api::<Pod>().list(&selector).await.unwrap().items;
    assert_eq!(pods.len(), 3);
    assert!(pods.iter().all(|pod| pod.spec.as_ref().unwrap().node_name.as_deref() == Some("box")));

    let image = json!({"spec": {"template": {"spec": {"containers": [{
        "name": "c", "image": "dev.local/two", "resources": {"requests": {"cpu": "100m"}},
    }]}}}});
    world.patch::<Deployment>("web", image).await;
    world.until("web", is_available(3)).await;
    world
        .until("web", |d: Option<&Deployment>| {
            d.is_some_and(|d| d.annotations().get("deployment.kubernetes.io/revision").is_some_and(|r| r == "2"))
        })
        .await;
    let sets = world.api::<ReplicaSet>().list(&selector).await.unwrap().items;
    let sizes: Vec<_> = sets.iter().map(|set| set.spec.as_ref().unwrap().replicas.unwrap()).collect();
    assert!(sizes == [3] || sizes.iter().sum::<i32>() == 3, "{sizes:?}");

    world.patch::<Deployment>("web", json!({"spec": {"replicas": 0}})).await;
    world.until("web", is_available(0)).await;
    assert_eq!(world.api::<Pod>().list(&selector).await.unwrap().items.len(), 0);

    world.patch::<Deployment>("web", json!({"spec": {"replicas": 1}})).await;
    world.until("web", is_available(1)).await;
    let pod = world.api::<Pod>().list(&selector).await.unwrap().items.remove(0).name_any();
    let set = world.api::<ReplicaSet>().list(&selector).await.unwrap().items.remove(0).name_any();
    world.api::<Deployment>().delete("web", &DeleteParams::default()).await.unwrap();
    world.until(&pod, |pod: Option<&Pod>| pod.is_none()).await;
    world.until(&set, |set: Option<&ReplicaSet>| set.is_none()).await;
    world.stop().await;
}

/// Prints what a scale from zero costs here; fails only if it is out of proportion.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_scale_to_bound_pod_in_milliseconds() {
    let world = World::start().await;
    world.create::<Deployment>(deployment("quick", 0)).await;
    world.until("quick", is_available(0)).await;
    let mut times = Vec::new();
    let pods = controller::Cache::<Pod>::builder();
    let (seen, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let ctx = controller::Context::new(world.client.clone(), controller::Tasks::new());
    let pods = pods
        .on_event(move |change| {
            if let controller::Change::Applied { old: None, new } = change {
                let bound = new.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
                let _ = seen.send((Instant::now(), bound));
            }
        })
        .start(&ctx);
    pods.synced().await;
    for _ in 0..20 {
        let start = Instant::now();
        world.patch::<Deployment>("quick", json!({"spec": {"replicas": 1}})).await;
        let (at, bound) = arrivals.recv().await.unwrap();
        assert!(bound, "in one write");
        times.push(at - start);
        world.until("quick", is_available(1)).await;
        world.patch::<Deployment>("quick", json!({"spec": {"replicas": 0}})).await;
        world.until("quick", is_available(0)).await;
    }
    times.sort();
    println!("scale written to bound pod seen: median {:?}, worst {:?}", times[10], times[19]);
    assert!(times[10] < Duration::from_millis(500), "{times:?}");
    ctx.tasks.shutdown().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_does_not_fit_waits_until_it_does() {
    let world = World::start().await;
    let pod = |name: &str, cpu: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]},
        })
    };
    let bound = |pod: Option<&Pod>| pod.is_some_and(|pod| pod.spec.as_ref().unwrap().node_name.is_some());
    world.create::<Pod>(pod("first", "1500m")).await;
    world.until("first", bound).await;
    world.create::<Pod>(pod("second", "1")).await;
    world
        .until("second", |pod: Option<&Pod>| {
            let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
            conditions.into_iter().flatten().any(|condition| {
                condition.type_ == "PodScheduled"
                    && condition.reason.as_deref() == Some("Unschedulable")
                    && condition.message.as_deref() == Some("0/1 nodes are available: 1 Insufficient cpu.")
            })
        })
        .await;
    world.api::<Pod>().delete("first", &DeleteParams::default()).await.unwrap();
    world.until("second", bound).await;
    world.stop().await;
}
