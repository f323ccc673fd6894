//! What goes when something else goes.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, PostParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use crate::harness::{World, of, until};

fn owned(name: &str, owner: &str, uid: &str, blocks: bool) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "ownerReferences": [{
            "apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": uid, "blockOwnerDeletion": blocks,
        }]},
    })
}

fn gone<K>(object: Option<&K>) -> bool {
    object.is_none()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dependents_follow_their_owner_in_every_way() {
    let world = World::start().await;
    let plain = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});

    let owner: ConfigMap = world.create(plain("back")).await;
    let child: ConfigMap = world.create(owned("back-1", "back", &owner.uid().unwrap(), true)).await;
    world.create::<ConfigMap>(owned("back-2", "back-1", &child.uid().unwrap(), true)).await;
    world.api::<ConfigMap>().delete("back", &DeleteParams::background()).await.unwrap();
    world.until("back-1", gone::<ConfigMap>).await;
    world.until("back-2", gone::<ConfigMap>).await;

    let owner: ConfigMap = world.create(plain("front")).await;
    let mut blocker = owned("front-1", "front", &owner.uid().unwrap(), true);
    blocker["metadata"]["finalizers"] = json!(["example.com/hold"]);
    world.create::<ConfigMap>(blocker).await;
    world.api::<ConfigMap>().delete("front", &DeleteParams::foreground()).await.unwrap();
    let deleting = |map: Option<&ConfigMap>| map.is_some_and(|map| map.metadata.deletion_timestamp.is_some());
    world.until("front-1", deleting).await;
    assert!(world.api::<ConfigMap>().get_opt("front").await.unwrap().is_some(), "it waits for its dependent");
    world.patch::<ConfigMap>("front-1", json!({"metadata": {"finalizers": null}})).await;
    world.until("front", gone::<ConfigMap>).await;

    let owner: ConfigMap = world.create(plain("aside")).await;
    world.create::<ConfigMap>(owned("aside-1", "aside", &owner.uid().unwrap(), true)).await;
    world.api::<ConfigMap>().delete("aside", &DeleteParams::orphan()).await.unwrap();
    world.until("aside", gone::<ConfigMap>).await;
    world.until("aside-1", |map: Option<&ConfigMap>| map.is_some_and(|map| map.owner_references().is_empty())).await;

    world.create::<ConfigMap>(owned("stray", "never", "00000000-0000-0000-0000-000000000000", false)).await;
    world.until("stray", gone::<ConfigMap>).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_resources_own_and_are_owned() {
    let world = World::start().await;
    define(&world, "Thing", "v1").await;
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "Thing"));
    let things: Api<DynamicObject> = Api::namespaced_with(world.client.clone(), "default", &kind);
    let thing = of(json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "one"}}));
    let thing = things.create(&PostParams::default(), &thing).await.unwrap();
    let reference = json!([{"apiVersion": "example.com/v1", "kind": "Thing", "name": "one", "uid": thing.uid()}]);
    world
        .create::<Secret>(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "of-one", "ownerReferences": reference},
        }))
        .await;
    let below = of(json!({
        "apiVersion": "example.com/v1", "kind": "Thing",
        "metadata": {"name": "two", "ownerReferences": reference},
    }));
    things.create(&PostParams::default(), &below).await.unwrap();
    things.delete("one", &DeleteParams::default()).await.unwrap();
    world.until("of-one", gone::<Secret>).await;
    let two = kube::runtime::wait::await_condition(things, "two", |thing: Option<&DynamicObject>| thing.is_none());
    tokio::time::timeout(std::time::Duration::from_secs(60), two).await.unwrap().unwrap();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_the_preferred_version_of_its_group_does_not_have_owns_as_well() {
    let world = World::start().await;
    define(&world, "Thing", "v1").await;
    define(&world, "Draft", "v1beta1").await;
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1beta1", "Draft"));
    let drafts: Api<DynamicObject> = Api::namespaced_with(world.client.clone(), "default", &kind);
    let draft = of(json!({"apiVersion": "example.com/v1beta1", "kind": "Draft", "metadata": {"name": "one"}}));
    let draft = drafts.create(&PostParams::default(), &draft).await.unwrap();
    let reference = json!([{"apiVersion": "example.com/v1beta1", "kind": "Draft", "name": "one", "uid": draft.uid()}]);
    world
        .create::<Secret>(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "of-one", "ownerReferences": reference},
        }))
        .await;
    drafts.delete("one", &DeleteParams::default()).await.unwrap();
    world.until("of-one", gone::<Secret>).await;
    world.stop().await;
}

/// A kind of group example.com, and waits until it is served.
async fn define(world: &World, kind: &str, version: &str) {
    let (singular, plural) = (kind.to_lowercase(), format!("{}s", kind.to_lowercase()));
    let name = format!("{plural}.example.com");
    let crd: CustomResourceDefinition = of(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": singular},
            "versions": [{"name": version, "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true,
            }}}],
        },
    }));
    let crds: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    crds.create(&PostParams::default(), &crd).await.unwrap();
    until(crds, &name, |crd: Option<&CustomResourceDefinition>| {
        let conditions = crd.and_then(|crd| crd.status.as_ref()?.conditions.as_ref());
        conditions.into_iter().flatten().any(|c| c.type_ == "Established" && c.status == "True")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_with_everything_in_it() {
    let world = World::start().await;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let namespace = of(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shortly"}}));
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "shortly");
    let pod = of(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }));
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let bound = |pod: Option<&Pod>| pod.is_some_and(|pod| pod.spec.as_ref().unwrap().node_name.is_some());
    until(pods, "p", bound).await;
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "shortly");
    let held = of(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "finalizers": ["example.com/hold"]},
    }));
    maps.create(&PostParams::default(), &held).await.unwrap();
    namespaces.delete("shortly", &DeleteParams::default()).await.unwrap();
    until(namespaces.clone(), "shortly", |namespace: Option<&Namespace>| {
        let conditions = namespace.and_then(|n| n.status.as_ref()?.conditions.as_ref());
        conditions.into_iter().flatten().any(|c| {
            c.type_ == "NamespaceContentRemaining"
                && c.message.as_deref() == Some("Some resources are remaining: configmaps has 1 resource instances")
        })
    })
    .await;
    let release = kube::api::Patch::Merge(json!({"metadata": {"finalizers": null}}));
    maps.patch("m", &kube::api::PatchParams::default(), &release).await.unwrap();
    until(namespaces, "shortly", gone::<Namespace>).await;
    world.stop().await;
}
