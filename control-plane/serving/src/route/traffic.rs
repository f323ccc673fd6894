//! Which Revisions a Route's traffic means (controllers.md 7.2; upstream `pkg/reconciler/route/traffic`).

use std::collections::BTreeMap;
use std::sync::Arc;

use api::serving::v1::{Configuration, Revision, Route, TrafficTarget};
use api::{Conditioned, keys};
use kube::ResourceExt;

/// How objects of the Route's namespace are found by name.
pub struct Lookup<'a> {
    pub configuration: &'a dyn Fn(&str) -> Option<Arc<Configuration>>,
    pub revision: &'a dyn Fn(&str) -> Option<Arc<Revision>>,
}

/// One traffic entry with its Revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub tag: String,
    pub revision: String,
    /// Empty if the Revision has no Configuration.
    pub configuration: String,
    /// The entry follows the Configuration's latest ready Revision.
    pub latest: bool,
    pub percent: i64,
    /// `http1` or `h2c`.
    pub protocol: &'static str,
}

/// Why traffic cannot be assigned as asked, as the `AllTrafficAssigned` condition tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `False` rather than `Unknown`: waiting will not help.
    pub failed: bool,
    pub reason: String,
    pub message: String,
}

/// What a Route's traffic came to.
#[derive(Debug, Default)]
pub struct Traffic {
    /// For status: entries in order, equal ones merged.
    pub entries: Vec<Target>,
    /// By tag, `""` being the Route itself; within a group every Revision once.
    pub groups: BTreeMap<String, Vec<Target>>,
    pub problem: Option<Problem>,
    /// Everything named or followed, whether it exists or not.
    pub references: Vec<(&'static str, String)>,
}

// === impl Problem ===

impl Problem {
    fn new(failed: bool, reason: &str, message: String) -> Self {
        Self { failed, reason: reason.to_owned(), message }
    }
}

// === impl Traffic ===

impl Traffic {
    pub fn resolve(route: &Route, lookup: &Lookup<'_>) -> Self {
        let mut traffic = Self::default();
        for entry in &route.spec.traffic {
            let found = if entry.revision_name.is_empty() {
                traffic.follow_configuration(entry, lookup)
            } else {
                traffic.pin_revision(route, entry, lookup)
            };
            match found {
                Ok(target) => traffic.add(target),
                // The first problem is told, unless a later one is final.
                Err(problem) if traffic.problem.is_none() || problem.failed => traffic.problem = Some(problem),
                Err(_) => {}
            }
        }
        for group in traffic.groups.values_mut() {
            if let [only] = group.as_mut_slice() {
                only.percent = 100;
            }
        }
        traffic
    }

    fn pin_revision(&mut self, route: &Route, entry: &TrafficTarget, lookup: &Lookup<'_>) -> Result<Target, Problem> {
        let name = &entry.revision_name;
        self.references.push(("Revision", name.clone()));
        let revision = (lookup.revision)(name).ok_or_else(|| missing("Revision", name))?;
        if let Some(service) = route.labels().get(keys::serving::SERVICE) {
            let owner = revision.labels().get(keys::serving::SERVICE);
            if owner != Some(service) {
                let message = match owner {
                    Some(owner) => format!("Revision {name:?} belongs to Service {owner:?}, not Service {service:?}."),
                    None => format!("Revision {name:?} does not belong to Service {service:?}."),
                };
                return Err(Problem::new(true, "RevisionNotOwned", message));
            }
        }
        let configuration = revision.labels().get(keys::serving::CONFIGURATION).cloned().unwrap_or_default();
        if !configuration.is_empty() {
            self.references.push(("Configuration", configuration.clone()));
            (lookup.configuration)(&configuration).ok_or_else(|| missing("Configuration", &configuration))?;
        }
        if !revision.is_ready() {
            return Err(not_ready(&revision));
        }
        Ok(target(entry, &revision, configuration, false))
    }

    fn follow_configuration(&mut self, entry: &TrafficTarget, lookup: &Lookup<'_>) -> Result<Target, Problem> {
        let name = &entry.configuration_name;
        self.references.push(("Configuration", name.clone()));
        let configuration = (lookup.configuration)(name).ok_or_else(|| missing("Configuration", name))?;
        let latest = configuration.status.as_ref().map_or("", |s| s.latest_ready_revision_name.as_str());
        if latest.is_empty() {
            return Err(if configuration.is_failed() {
                let message = format!("Configuration {name:?} does not have any ready Revision.");
                Problem::new(true, "RevisionMissing", message)
            } else {
                let message = format!("Configuration {name:?} is waiting for a Revision to become ready.");
                Problem::new(false, "RevisionMissing", message)
            });
        }
        self.references.push(("Revision", latest.to_owned()));
        let revision = (lookup.revision)(latest).ok_or_else(|| missing("Revision", latest))?;
        if !revision.is_ready() {
            return Err(not_ready(&revision));
        }
        Ok(target(entry, &revision, name.clone(), true))
    }

    fn add(&mut self, target: Target) {
        let same = |entry: &&mut Target| {
            entry.tag == target.tag && entry.revision == target.revision && entry.latest == target.latest
        };
        match self.entries.iter_mut().find(same) {
            Some(entry) => entry.percent += target.percent,
            None => self.entries.push(target.clone()),
        }
        if !target.tag.is_empty() {
            merge(self.groups.entry(target.tag.clone()).or_default(), target.clone());
        }
        merge(self.groups.entry(String::new()).or_default(), target);
    }
}

fn merge(group: &mut Vec<Target>, target: Target) {
    match group.iter_mut().find(|present| present.revision == target.revision) {
        Some(present) => present.percent += target.percent,
        None => group.push(target),
    }
}

fn target(entry: &TrafficTarget, revision: &Revision, configuration: String, latest: bool) -> Target {
    Target {
        tag: entry.tag.clone(),
        revision: revision.name_any(),
        configuration,
        latest,
        percent: entry.percent.unwrap_or_default(),
        protocol: revision.spec.pod.protocol(),
    }
}

fn missing(kind: &str, name: &str) -> Problem {
    Problem::new(true, &format!("{kind}Missing"), format!("{kind} {name:?} referenced in traffic not found."))
}

fn not_ready(revision: &Revision) -> Problem {
    let name = revision.name_any();
    if revision.is_failed() {
        Problem::new(true, "RevisionMissing", format!("Revision {name:?} failed to become ready."))
    } else {
        Problem::new(false, "RevisionMissing", format!("Revision {name:?} is not yet ready."))
    }
}
