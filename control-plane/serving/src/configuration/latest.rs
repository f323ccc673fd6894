//! Which Revision is the latest ready one.

use std::cmp::Reverse;
use std::sync::Arc;

use api::serving::v1::{Configuration, Revision};
use api::{Conditioned, keys};
use kube::ResourceExt;

/// The name of the newest ready candidate. Candidates are the generations from that of the present latest ready
/// revision up to the Configuration's; with a pinned name also the revision just looked up. If the present one is
/// gone, every revision is a candidate.
pub(super) fn ready(configuration: &Configuration, created: &Revision, revisions: &[Arc<Revision>]) -> Option<String> {
    let newest = configuration.metadata.generation.unwrap_or_default();
    let pinned = !configuration.spec.template.metadata.name.is_empty();
    let current = configuration.status.as_ref().map_or("", |s| s.latest_ready_revision_name.as_str());
    let from = revisions
        .iter()
        .find(|revision| !current.is_empty() && revision.name_any() == current)
        .map(|revision| generation(revision).unwrap_or(newest));
    let is_candidate = |revision: &&Arc<Revision>| match (from, generation(revision)) {
        (None, _) => true,
        (Some(from), Some(g)) => (from..=newest).contains(&g) || (pinned && generation(created) == Some(g)),
        (Some(_), None) => false,
    };
    let mut candidates: Vec<_> = revisions.iter().filter(is_candidate).collect();
    candidates.sort_by_key(|revision| {
        let is_pinned = pinned && revision.name_any() == configuration.spec.template.metadata.name;
        (!is_pinned, Reverse(generation(revision)))
    });
    candidates.into_iter().find(|revision| revision.is_ready()).map(|revision| revision.name_any())
}

fn generation(revision: &Revision) -> Option<i64> {
    revision.labels().get(keys::serving::CONFIGURATION_GENERATION)?.parse().ok()
}
