//! What a Route's targets resolve to, and why they do not.
//!
//! Every target counts into the default group; a tagged one also makes a group of its own tag. One bad target stops the
//! whole Route, so that routing stays as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::conditions::Condition;
use api::serving::v1::{Configuration, Revision, Route, TrafficTarget};
use api::{Conditioned, keys};
use controller::{Cache, ObjectKey};
use kube::ResourceExt;

/// Kinds of [`controller::Tracker`] references.
pub const CONFIGURATION: &str = "Configuration";
pub const REVISION: &str = "Revision";

/// A target with its revision found.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub tag: String,
    pub revision: String,
    /// Of the target, or of the revision's label.
    pub configuration: String,
    pub latest: bool,
    pub percent: i64,
    /// `http1` or `h2c`.
    pub protocol: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// As in status.traffic: in the order of the spec, equal ones merged.
    pub targets: Vec<Target>,
    /// Tag (`""` for the default group) to what it serves, percentages summing to 100.
    pub groups: BTreeMap<String, Vec<Target>>,
}

/// Why a target cannot be used: what to write into `AllTrafficAssigned`.
#[derive(Clone, Debug, PartialEq)]
pub struct BadTarget {
    /// False, not Unknown: waiting will not help.
    pub failed: bool,
    pub reason: String,
    pub message: String,
}

/// The outcome, with every object it depends on, existing or not.
#[derive(Debug)]
pub struct Resolution {
    pub traffic: Result<Traffic, BadTarget>,
    pub references: BTreeSet<(&'static str, ObjectKey)>,
}

/// Where Configurations and Revisions are looked up.
pub trait Lookup {
    fn configuration(&self, namespace: &str, name: &str) -> Option<Arc<Configuration>>;
    fn revision(&self, namespace: &str, name: &str) -> Option<Arc<Revision>>;
}

/// Tags in use, `""` first: known before anything resolves.
pub fn names(route: &Route) -> BTreeSet<String> {
    std::iter::once(String::new()).chain(route.spec.traffic.iter().map(|t| t.tag.clone())).collect()
}

pub fn resolve(route: &Route, lookup: &impl Lookup) -> Resolution {
    let mut resolver =
        Resolver { route, namespace: route.namespace().unwrap_or_default(), lookup, references: BTreeSet::new() };
    let mut targets = Vec::new();
    let mut bad: Option<BadTarget> = None;
    for target in &route.spec.traffic {
        match resolver.target(target) {
            Ok(target) => targets.push(target),
            // The first problem is told, but a failure rather than something that may still come.
            Err(error) if bad.is_none() || error.failed => bad = Some(error),
            Err(_) => {}
        }
    }
    let traffic = match bad {
        Some(bad) => Err(bad),
        None => Ok(Traffic::of(targets)),
    };
    Resolution { traffic, references: resolver.references }
}

struct Resolver<'a, L> {
    route: &'a Route,
    namespace: String,
    lookup: &'a L,
    references: BTreeSet<(&'static str, ObjectKey)>,
}

// === impl Resolver ===

impl<L: Lookup> Resolver<'_, L> {
    fn target(&mut self, target: &TrafficTarget) -> Result<Target, BadTarget> {
        if target.revision_name.is_empty() { self.configuration_target(target) } else { self.revision_target(target) }
    }

    fn configuration_target(&mut self, target: &TrafficTarget) -> Result<Target, BadTarget> {
        let name = &target.configuration_name;
        let configuration = self.configuration(name)?;
        let latest = configuration.status.as_ref().map_or("", |s| s.latest_ready_revision_name.as_str());
        if latest.is_empty() {
            return Err(unready_configuration(&configuration));
        }
        let revision = self.revision(latest)?;
        if !revision.is_ready() {
            return Err(unready_revision(&revision));
        }
        Ok(make(target, &revision, name.clone()))
    }

    fn revision_target(&mut self, target: &TrafficTarget) -> Result<Target, BadTarget> {
        let revision = self.revision(&target.revision_name)?;
        self.check_service(&revision)?;
        if !revision.is_ready() {
            return Err(unready_revision(&revision));
        }
        let configuration = revision.labels().get(keys::serving::CONFIGURATION).cloned().unwrap_or_default();
        if !configuration.is_empty() {
            self.configuration(&configuration)?;
        }
        Ok(make(target, &revision, configuration))
    }

    /// The Route of a Service only goes to that Service's revisions.
    fn check_service(&self, revision: &Revision) -> Result<(), BadTarget> {
        let Some(wanted) = self.route.labels().get(keys::serving::SERVICE) else { return Ok(()) };
        let name = revision.name_any();
        let message = match revision.labels().get(keys::serving::SERVICE) {
            Some(actual) if actual == wanted => return Ok(()),
            Some(actual) => format!("Revision {name:?} belongs to Service {actual:?}, not Service {wanted:?}."),
            None => format!("Revision {name:?} does not belong to Service {wanted:?}."),
        };
        Err(BadTarget { failed: true, reason: "RevisionNotOwned".to_owned(), message })
    }

    fn configuration(&mut self, name: &str) -> Result<Arc<Configuration>, BadTarget> {
        self.references.insert((CONFIGURATION, ObjectKey::new(&self.namespace, name)));
        self.lookup.configuration(&self.namespace, name).ok_or_else(|| missing(CONFIGURATION, name))
    }

    fn revision(&mut self, name: &str) -> Result<Arc<Revision>, BadTarget> {
        self.references.insert((REVISION, ObjectKey::new(&self.namespace, name)));
        self.lookup.revision(&self.namespace, name).ok_or_else(|| missing(REVISION, name))
    }
}

fn make(target: &TrafficTarget, revision: &Revision, configuration: String) -> Target {
    Target {
        tag: target.tag.clone(),
        revision: revision.name_any(),
        configuration,
        latest: target.latest_revision.unwrap_or(target.revision_name.is_empty()),
        percent: target.percent.unwrap_or_default(),
        protocol: revision.spec.pod.protocol(),
    }
}

fn missing(kind: &str, name: &str) -> BadTarget {
    BadTarget {
        failed: true,
        reason: format!("{kind}Missing"),
        message: format!("{kind} {name:?} referenced in traffic not found."),
    }
}

fn unready_configuration(configuration: &Configuration) -> BadTarget {
    let name = configuration.name_any();
    let failed = configuration.ready().is_some_and(Condition::is_false);
    let message = if failed {
        format!("Configuration {name:?} does not have any ready Revision.")
    } else {
        format!("Configuration {name:?} is waiting for a Revision to become ready.")
    };
    BadTarget { failed, reason: "RevisionMissing".to_owned(), message }
}

fn unready_revision(revision: &Revision) -> BadTarget {
    let name = revision.name_any();
    let failed = revision.ready().is_some_and(Condition::is_false);
    let message = if failed {
        format!("Revision {name:?} failed to become ready.")
    } else {
        format!("Revision {name:?} is not yet ready.")
    };
    BadTarget { failed, reason: "RevisionMissing".to_owned(), message }
}

// === impl Traffic ===

impl Traffic {
    fn of(all: Vec<Target>) -> Self {
        let mut groups: BTreeMap<String, Vec<Target>> = BTreeMap::new();
        let mut targets: Vec<Target> = Vec::new();
        for target in all {
            merge(groups.entry(String::new()).or_default(), &target, |a, b| a.revision == b.revision);
            if !target.tag.is_empty() {
                merge(groups.entry(target.tag.clone()).or_default(), &target, |a, b| a.revision == b.revision);
            }
            merge(&mut targets, &target, |a, b| a.tag == b.tag && a.revision == b.revision && a.latest == b.latest);
        }
        for group in groups.values_mut() {
            if let [only] = group.as_mut_slice() {
                only.percent = 100;
            }
        }
        Self { targets, groups }
    }
}

fn merge(list: &mut Vec<Target>, target: &Target, same: impl Fn(&Target, &Target) -> bool) {
    match list.iter_mut().find(|present| same(present, target)) {
        Some(present) => present.percent += target.percent,
        None => list.push(target.clone()),
    }
}

/// The caches as a [`Lookup`].
#[derive(Debug)]
pub struct Caches<'a> {
    pub configurations: &'a Cache<Configuration>,
    pub revisions: &'a Cache<Revision>,
}

// === impl Caches ===

impl Lookup for Caches<'_> {
    fn configuration(&self, namespace: &str, name: &str) -> Option<Arc<Configuration>> {
        self.configurations.get(namespace, name)
    }

    fn revision(&self, namespace: &str, name: &str) -> Option<Arc<Revision>> {
        self.revisions.get(namespace, name)
    }
}
