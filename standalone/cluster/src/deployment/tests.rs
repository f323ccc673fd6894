//! Deployments walked through their life, the ReplicaSets' part played by hand.

use super::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(1_800_000_000 + second).unwrap())
}

fn deployment(replicas: i32) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "d", "namespace": "ns", "uid": "u", "generation": 1, "annotations": {"a": "b"}},
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": 120,
            "revisionHistoryLimit": 0,
            "selector": {"matchLabels": {"x": "y"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
            "template": {"metadata": {"labels": {"x": "y"}}, "spec": {"containers": [{"name": "c", "image": "one"}]}},
        },
    }))
    .unwrap()
}

/// The objects as the API has them, changed by plans.
struct World {
    deployment: Deployment,
    sets: Vec<Arc<ReplicaSet>>,
}

impl World {
    fn new(deployment: Deployment) -> Self {
        Self { deployment, sets: Vec::new() }
    }

    fn image(&mut self, image: &str) {
        let spec = self.deployment.spec.as_mut().unwrap();
        spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
        self.deployment.metadata.generation = self.deployment.metadata.generation.map(|g| g + 1);
    }

    fn step(&mut self, now: &Time) -> Plan {
        let made = plan(&self.deployment, &self.sets, now);
        self.deployment.status = Some(made.status.clone());
        if let Some(revision) = &made.revision {
            self.deployment.metadata.annotations.get_or_insert_default().insert(REVISION.into(), revision.clone());
        }
        for edit in &made.edits {
            let set = self.sets.iter_mut().find(|set| set.name_any() == edit.name).unwrap();
            let set = Arc::make_mut(set);
            if let Some(replicas) = edit.replicas {
                set.spec.as_mut().unwrap().replicas = Some(replicas);
            }
            set.metadata.annotations.get_or_insert_default().extend(edit.annotations.clone());
        }
        self.sets.retain(|set| !made.delete.iter().any(|(name, _)| *name == set.name_any()));
        if let Some(mut set) = made.create.clone() {
            let n = i64::try_from(self.sets.len()).unwrap();
            set.metadata.uid = Some(format!("rs{n}"));
            set.metadata.creation_timestamp = Some(at(n));
            self.sets.push(Arc::new(set));
        }
        made
    }

    /// Every ReplicaSet has the pods it should have; those of `image` become available if `up`.
    fn run_pods(&mut self, up: bool) {
        for set in &mut self.sets {
            let set = Arc::make_mut(set);
            let replicas = set.spec.as_ref().unwrap().replicas.unwrap();
            let available = set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0).min(replicas);
            let available = Some(if up { replicas } else { available });
            let status = set.status.get_or_insert_default();
            (status.replicas, status.ready_replicas, status.available_replicas) = (replicas, available, available);
        }
    }

    fn condition(&self, type_: &str) -> (String, String, String) {
        let conditions = self.deployment.status.as_ref().unwrap().conditions.as_ref().unwrap();
        let c = conditions.iter().find(|c| c.type_ == type_).unwrap();
        (c.status.clone(), c.reason.clone().unwrap(), c.message.clone().unwrap())
    }

    fn sizes(&self) -> Vec<i32> {
        self.sets.iter().map(|set| set.spec.as_ref().unwrap().replicas.unwrap()).collect()
    }
}

#[test]
fn a_new_deployment_makes_its_replica_set_and_completes() {
    let mut world = World::new(deployment(1));
    let made = world.step(&at(0));
    assert_eq!((made.edits.len(), made.revision.as_deref()), (0, Some("1")));
    let set = &world.sets[0];
    let hash = set.labels()[HASH_LABEL].clone();
    assert_eq!(set.name_any(), format!("d-{hash}"));
    assert_eq!(set.spec.as_ref().unwrap().selector.match_labels.as_ref().unwrap()[HASH_LABEL], hash);
    let annotations = [("a", "b"), (DESIRED, "1"), (MAX, "2"), (REVISION, "1")];
    let annotations = annotations.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    assert_eq!(set.metadata.annotations, Some(annotations));
    let created = format!("Created new replica set \"d-{hash}\"");
    assert_eq!(world.condition("Progressing"), ("True".into(), "NewReplicaSetCreated".into(), created));
    assert_eq!(world.condition("Available").1, "MinimumReplicasUnavailable");

    world.run_pods(false);
    assert_eq!(world.step(&at(1)).edits, []);
    assert_eq!(world.condition("Progressing").1, "ReplicaSetUpdated");
    world.run_pods(true);
    world.step(&at(2));
    let done = format!("ReplicaSet \"d-{hash}\" has successfully progressed.");
    assert_eq!(world.condition("Progressing"), ("True".into(), "NewReplicaSetAvailable".into(), done));
    assert_eq!(world.condition("Available").1, "MinimumReplicasAvailable");
    let before = world.deployment.status.clone();
    let again = world.step(&at(9));
    assert_eq!((again.edits.len(), again.create, again.revision, again.recheck), (0, None, None, None));
    assert_eq!(world.deployment.status, before, "nothing is written without a change");
}

#[test]
fn a_resize_is_one_edit_and_keeps_the_conditions() {
    let mut world = World::new(deployment(0));
    world.step(&at(0));
    world.run_pods(true);
    world.step(&at(1));
    assert_eq!(world.condition("Progressing").1, "NewReplicaSetAvailable");
    world.deployment.spec.as_mut().unwrap().replicas = Some(1);
    world.step(&at(2));
    assert_eq!(world.sizes(), [1]);
    world.run_pods(false);
    world.step(&at(500));
    assert_eq!(world.condition("Progressing").1, "NewReplicaSetAvailable");
}

#[test]
fn no_progress_within_the_deadline_is_told() {
    let mut world = World::new(deployment(1));
    world.step(&at(0));
    world.run_pods(false);
    let recheck = world.step(&at(10)).recheck;
    assert_eq!(recheck, Some(Duration::from_secs(121)));
    let recheck = world.step(&at(100)).recheck;
    assert_eq!(recheck, Some(Duration::from_secs(31)));
    assert_eq!(world.step(&at(131)).recheck, None);
    let name = world.sets[0].name_any();
    let late = format!("ReplicaSet \"{name}\" has timed out progressing.");
    assert_eq!(world.condition("Progressing"), ("False".into(), "ProgressDeadlineExceeded".into(), late));
    world.run_pods(true);
    world.step(&at(140));
    assert_eq!(world.condition("Progressing").1, "NewReplicaSetAvailable");
}

#[test]
fn a_new_template_rolls_without_losing_capacity_and_the_old_set_goes() {
    let mut world = World::new(deployment(4));
    world.step(&at(0));
    world.run_pods(true);
    world.step(&at(1));
    world.image("two");
    world.step(&at(2));
    assert_eq!(world.sizes(), [4, 1]);
    for now in 3..20 {
        world.run_pods(true);
        let available: i32 =
            world.sets.iter().map(|set| set.status.as_ref().unwrap().available_replicas.unwrap()).sum();
        assert!((4..=5).contains(&available), "{available}");
        world.step(&at(now));
    }
    assert_eq!(world.sizes(), [4]);
    assert_eq!(world.deployment.annotations()[REVISION], "2");
    assert_eq!(world.condition("Progressing").1, "NewReplicaSetAvailable");
}

#[test]
fn going_back_to_an_old_template_uses_its_replica_set() {
    let mut world = World::new(deployment(1));
    world.deployment.spec.as_mut().unwrap().revision_history_limit = Some(10);
    for image in ["one", "two", "one"] {
        world.image(image);
        for now in 0..8 {
            world.step(&at(now));
            world.run_pods(true);
        }
    }
    assert_eq!(world.sizes(), [1, 0]);
    assert_eq!(world.sets[0].annotations()[REVISION], "3");
    assert_eq!(world.sets[0].annotations()[REVISION_HISTORY], "1");
    assert_eq!(world.deployment.annotations()[REVISION], "3");
}

#[test]
fn trouble_of_the_replica_set_is_shown() {
    let mut world = World::new(deployment(1));
    world.step(&at(0));
    Arc::make_mut(&mut world.sets[0]).status = Some(
        serde_json::from_value(json!({"replicas": 0, "conditions": [{
            "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota",
        }]}))
        .unwrap(),
    );
    world.step(&at(1));
    assert_eq!(world.condition("ReplicaFailure"), ("True".into(), "FailedCreate".into(), "quota".into()));
}
