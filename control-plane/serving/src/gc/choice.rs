//! Which Revisions go.

use std::sync::Arc;
use std::time::Duration;

use api::config::Gc;
use api::keys::serving::{NO_GC, ROUTING_RESERVE, ROUTING_STATE, ROUTING_STATE_MODIFIED};
use api::serving::v1::{Configuration, Revision};
use jiff::Timestamp;
use kube::ResourceExt;

#[derive(Debug, Default)]
pub(super) struct Choice {
    pub(super) delete: Vec<Arc<Revision>>,
    /// Until the next one becomes stale.
    pub(super) next: Option<Duration>,
}

/// Stale ones first, oldest use first, but never below the minimum; then what is beyond the maximum.
pub(super) fn choose(
    settings: &Gc,
    configuration: &Configuration,
    revisions: &[Arc<Revision>],
    now: Timestamp,
) -> Choice {
    let mut choice = Choice::default();
    let since_create = settings.retain_since_create_time;
    let since_active = settings.retain_since_last_active_time;
    let max = settings.max_non_active_revisions;
    if since_create.is_none() && since_active.is_none() && max.is_none() {
        return choice;
    }
    let min = usize::try_from(settings.min_non_active_revisions).unwrap_or(0);
    if revisions.len() <= min {
        return choice;
    }
    let latest = configuration.status.as_ref().map(|s| s.latest_ready_revision_name.as_str()).unwrap_or_default();
    let mut idle: Vec<&Arc<Revision>> = revisions.iter().filter(|revision| !is_active(revision, latest)).collect();
    if idle.len() <= min {
        return choice;
    }
    idle.sort_by_key(|revision| (last_active(revision), revision.name_any()));

    let deletable = idle.len() - min;
    let mut kept = Vec::new();
    for revision in idle {
        if choice.delete.len() == deletable {
            return choice;
        }
        match stale_in(revision, since_create, since_active, now) {
            Some(left) if left.is_zero() => choice.delete.push(revision.clone()),
            left => {
                choice.next = [choice.next, left].into_iter().flatten().min();
                kept.push(revision);
            }
        }
    }
    if let Some(max) = max {
        let surplus = kept.len().saturating_sub(usize::try_from(max).unwrap_or(0));
        choice.delete.extend(kept.into_iter().take(surplus).cloned());
    }
    choice
}

fn is_active(revision: &Revision, latest_ready: &str) -> bool {
    revision.metadata.name.as_deref() == Some(latest_ready)
        || revision.annotations().get(NO_GC).is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || revision.labels().get(ROUTING_STATE).is_none_or(|state| state != ROUTING_RESERVE)
}

fn last_active(revision: &Revision) -> Timestamp {
    let modified = revision.annotations().get(ROUTING_STATE_MODIFIED).and_then(|at| at.parse().ok());
    modified.unwrap_or_else(|| created(revision))
}

fn created(revision: &Revision) -> Timestamp {
    revision.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |at| at.0)
}

/// How long until the Revision is stale by both measures; never if both are disabled.
fn stale_in(
    revision: &Revision,
    since_create: Option<Duration>,
    since_active: Option<Duration>,
    now: Timestamp,
) -> Option<Duration> {
    let left = |from: Timestamp, retention: Duration| {
        let age = Duration::try_from(now.duration_since(from)).unwrap_or(Duration::ZERO);
        retention.saturating_sub(age)
    };
    let by_create = since_create.map(|retention| left(created(revision), retention));
    let by_active = since_active.map(|retention| left(last_active(revision), retention));
    by_create.into_iter().chain(by_active).max()
}
