//! Labels and annotations that a Revision hands to its children.

use std::collections::BTreeMap;

use api::keys::{autoscaling, serving};
use api::serving::v1::Revision;
use kube::ResourceExt;

type Map = BTreeMap<String, String>;

/// Bookkeeping between controllers that is no business of pods.
const BOOKKEEPING: [&str; 4] = [serving::LAST_PINNED, serving::NO_GC, serving::ROUTING_STATE_MODIFIED, serving::ROUTES];

/// The revision's labels without its routing, and those that find its children.
pub fn labels(revision: &Revision) -> Map {
    let mut labels = revision.labels().clone();
    labels.remove(serving::ROUTE);
    labels.remove(serving::ROUTING_STATE);
    labels.insert(serving::REVISION.to_owned(), revision.name_any());
    labels.insert(serving::REVISION_UID.to_owned(), revision.uid().unwrap_or_default());
    labels.entry(serving::APP.to_owned()).or_insert_with(|| revision.name_any());
    labels
}

/// For the PodAutoscaler: everything but bookkeeping.
pub fn annotations(revision: &Revision) -> Map {
    let mut annotations = revision.annotations().clone();
    annotations.retain(|key, _| !BOOKKEEPING.contains(&key.as_str()));
    annotations
}

/// For the Deployment, its pods and the Images: also without autoscaling settings, which may change without a new pod.
pub fn pod_annotations(revision: &Revision) -> Map {
    let mut annotations = annotations(revision);
    annotations.retain(|key, _| !key.starts_with(autoscaling::GROUP));
    annotations
}

/// The value of an annotation that is a Go duration, in seconds.
pub fn seconds(revision: &Revision, annotation: &str) -> Option<i64> {
    let nanos = api::go::parse_duration(revision.annotations().get(annotation)?).ok()?;
    Some(nanos / 1_000_000_000)
}
