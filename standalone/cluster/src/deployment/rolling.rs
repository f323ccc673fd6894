//! The arithmetic of a rolling update: how large each ReplicaSet should be now.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::MAX;

/// What the strategy allows, resolved against the wanted number of replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) replicas: i32,
    pub(crate) max_surge: i32,
    pub(crate) max_unavailable: i32,
}

/// A ReplicaSet's numbers, old ones first in age order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) replicas: i32,
    pub(crate) available: i32,
}

// === impl Bounds ===

impl Bounds {
    pub(crate) fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.as_ref();
        let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let strategy = spec.and_then(|spec| spec.strategy.as_ref());
        if strategy.is_some_and(|s| s.type_.as_deref() == Some("Recreate")) {
            return Self { replicas, max_surge: 0, max_unavailable: replicas };
        }
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let max_surge = scaled(rolling.and_then(|r| r.max_surge.as_ref()), replicas, true);
        let mut max_unavailable = scaled(rolling.and_then(|r| r.max_unavailable.as_ref()), replicas, false);
        if max_surge == 0 && max_unavailable == 0 {
            max_unavailable = 1;
        }
        Self { replicas, max_surge, max_unavailable: max_unavailable.min(replicas) }
    }

    /// How large the new ReplicaSet should be.
    pub(crate) fn grow_new(&self, new: Size, total: i32) -> i32 {
        if new.replicas >= self.replicas {
            return self.replicas;
        }
        let room = (self.replicas + self.max_surge - total).max(0);
        new.replicas + room.min(self.replicas - new.replicas)
    }

    /// How large each old ReplicaSet should be: first without the pods that are not available anyway, then as far
    /// down as the available ones allow.
    pub(crate) fn shrink_old(&self, old: &[Size], new: Size) -> Vec<i32> {
        let mut sizes: Vec<i32> = old.iter().map(|size| size.replicas).collect();
        let total = sizes.iter().sum::<i32>() + new.replicas;
        let min_available = self.replicas - self.max_unavailable;
        let new_unavailable = new.replicas - new.available;
        let removable = total - min_available - new_unavailable;
        if removable <= 0 {
            return sizes;
        }
        let mut removed = 0;
        for (size, old) in sizes.iter_mut().zip(old) {
            let unhealthy = (*size - old.available).max(0).min(removable - removed);
            *size -= unhealthy;
            removed += unhealthy;
        }
        let available = old.iter().map(|size| size.available).sum::<i32>() + new.available;
        let mut spare = (available - min_available).max(0);
        for size in &mut sizes {
            let down = (*size).min(spare);
            *size -= down;
            spare -= down;
        }
        sizes
    }
}

/// An absolute number, or a percentage of `total`; the API's default is 25%.
fn scaled(value: Option<&IntOrString>, total: i32, up: bool) -> i32 {
    let percent = |percent: i64| {
        let product = i64::from(total) * percent;
        let share = if up { (product + 99) / 100 } else { product / 100 };
        i32::try_from(share).unwrap_or(i32::MAX)
    };
    match value {
        None => percent(25),
        Some(IntOrString::Int(n)) => (*n).max(0),
        Some(IntOrString::String(text)) => {
            text.trim_end_matches('%').parse::<i64>().map_or_else(|_| percent(25), |p| percent(p.clamp(0, 100_000)))
        }
    }
}

/// New sizes when the wanted number changed in the middle of a rollout: each active ReplicaSet in proportion.
/// `active` is sorted so that the one that takes the rounding leftover is first.
pub(crate) fn proportional(deployment: &Deployment, bounds: &Bounds, active: &[&ReplicaSet]) -> Vec<i32> {
    let sizes: Vec<i32> = active.iter().map(|set| replicas(set)).collect();
    let allowed = if bounds.replicas > 0 { bounds.replicas + bounds.max_surge } else { 0 };
    let to_add = allowed - sizes.iter().sum::<i32>();
    if to_add == 0 {
        return sizes;
    }
    let mut added = 0;
    let mut result = Vec::with_capacity(sizes.len());
    for (set, size) in active.iter().zip(&sizes) {
        let left = to_add - added;
        let share = if *size == 0 || left == 0 {
            0
        } else if to_add > 0 {
            fraction(deployment, bounds, set).min(left)
        } else {
            fraction(deployment, bounds, set).max(left)
        };
        added += share;
        result.push(size + share);
    }
    if let Some(first) = result.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    result
}

fn fraction(deployment: &Deployment, bounds: &Bounds, set: &ReplicaSet) -> i32 {
    if bounds.replicas == 0 {
        return -replicas(set);
    }
    let annotated = set.annotations().get(MAX).and_then(|max| max.parse::<i32>().ok());
    let before = annotated.or_else(|| deployment.status.as_ref()?.replicas).unwrap_or(0);
    if before == 0 {
        return 0;
    }
    let size = f64::from(replicas(set)) * f64::from(bounds.replicas + bounds.max_surge) / f64::from(before);
    // In range: both factors are replica counts.
    #[allow(clippy::cast_possible_truncation)]
    let size = size.round() as i32;
    size - replicas(set)
}

pub(crate) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(replicas: i32, available: i32) -> Size {
        Size { replicas, available }
    }

    #[test]
    fn percentages_round_surge_up_and_unavailable_down() {
        let quarter = IntOrString::String("25%".into());
        assert_eq!((scaled(Some(&quarter), 5, true), scaled(Some(&quarter), 5, false)), (2, 1));
        assert_eq!((scaled(None, 1, true), scaled(None, 1, false)), (1, 0));
    }

    #[test]
    fn nothing_available_is_given_up_before_the_new_is_available() {
        let bounds = Bounds { replicas: 4, max_surge: 1, max_unavailable: 0 };
        assert_eq!(bounds.grow_new(size(0, 0), 4), 1);
        assert_eq!(bounds.shrink_old(&[size(4, 4)], size(1, 0)), [4]);
        assert_eq!(bounds.shrink_old(&[size(4, 4)], size(1, 1)), [3]);
    }

    #[test]
    fn pods_that_never_came_up_go_first() {
        let bounds = Bounds { replicas: 4, max_surge: 1, max_unavailable: 0 };
        assert_eq!(bounds.shrink_old(&[size(1, 0), size(3, 3)], size(1, 1)), [0, 3]);
    }

    #[test]
    fn the_new_set_shrinks_to_what_is_wanted() {
        let bounds = Bounds { replicas: 2, max_surge: 1, max_unavailable: 0 };
        assert_eq!(bounds.grow_new(size(5, 5), 5), 2);
    }
}
