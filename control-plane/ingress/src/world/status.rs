//! What can be said about an Ingress: published, waiting, refused.

use std::collections::BTreeSet;

use controller::ObjectKey;
use xds::{Event, Kind, Name, Settled};

use super::{Entry, Objects, World, listeners};
use crate::envoy;

/// How far the last translation of an Ingress got.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum State {
    #[default]
    New,
    /// Complete in this revision.
    Published {
        revision: u64,
    },
    /// These Services have no address yet; without a revision the former translation is still served.
    Waiting {
        services: BTreeSet<ObjectKey>,
        revision: Option<u64>,
    },
    /// Another Ingress has one of the hosts.
    Conflict {
        owner: ObjectKey,
    },
    Invalid(String),
}

/// What the status of an Ingress waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pending {
    /// Every gateway has it in force.
    Nothing,
    /// Not every gateway has acknowledged this revision, or there is none.
    Gateways {
        revision: u64,
    },
    /// An event about one of these Services comes first.
    Services(BTreeSet<ObjectKey>),
    Conflict,
    Invalid(String),
    /// A gateway refused a resource of this Ingress.
    Refused(String),
    /// A gateway refused what this Ingress shares with others: what is served there may be older.
    Shared(String),
    /// Not seen in this generation.
    Unseen,
}

// === impl State ===

impl State {
    pub(super) fn awaits(&self, service: &ObjectKey) -> bool {
        matches!(self, State::Waiting { services, .. } if services.contains(service))
    }
}

// === impl World ===

impl<O: Objects> World<O> {
    pub fn pending(&self, key: &ObjectKey, generation: i64, settled: Settled) -> Pending {
        let Some(entry) = self.ingresses.get(key).filter(|entry| entry.generation == generation) else {
            return Pending::Unseen;
        };
        match &entry.state {
            State::New => Pending::Unseen,
            State::Invalid(message) => Pending::Invalid(message.clone()),
            State::Conflict { .. } => Pending::Conflict,
            State::Waiting { services, .. } => Pending::Services(services.clone()),
            State::Published { .. } if !entry.refused.is_empty() => {
                let (kind, name) = entry.refused.keys().next().expect("not empty");
                let message = &entry.refused[&(*kind, name.clone())];
                Pending::Refused(format!(
                    "the gateway refused the {kind} {name} and keeps the last good one: {message}"
                ))
            }
            State::Published { .. } if self.refused_listener(entry).is_some() => {
                let (name, message) = self.refused_listener(entry).expect("just seen");
                Pending::Shared(format!("a gateway refused the listener {name} and keeps the last good one: {message}"))
            }
            State::Published { revision } => match settled.gateways > 0 && settled.revision >= *revision {
                true => Pending::Nothing,
                false => Pending::Gateways { revision: *revision },
            },
        }
    }

    /// A listener of one of its tables that a gateway does not have in its newest version.
    fn refused_listener(&self, entry: &Entry) -> Option<(&Name, &String)> {
        let uses = |kind: Kind, name: &Name| listeners::table(kind, name).is_some_and(|table| entry.live.is_in(table));
        let found = self.refused.iter().find(|((kind, name), _)| uses(*kind, name));
        found.map(|((_, name), message)| (name, message))
    }

    /// How many Ingresses there are, and how many resources a gateway refused.
    pub fn figures(&self) -> (usize, usize) {
        (self.ingresses.len(), self.refused.len())
    }

    /// Who a refusal or a recovery is about; nobody, if it is about what has nothing to do with single Ingresses.
    pub fn note(&mut self, event: &Event) -> BTreeSet<ObjectKey> {
        let (Event::Rejected { kind, name, .. } | Event::Recovered { kind, name }) = event;
        match event {
            Event::Rejected { message, .. } => self.refused.insert((*kind, name.clone()), message.clone()),
            Event::Recovered { .. } => self.refused.remove(&(*kind, name.clone())),
        };
        if let Some(table) = listeners::table(*kind, name) {
            let served = self.ingresses.iter().filter(|(_, entry)| entry.live.is_in(table));
            return served.map(|(key, _)| ObjectKey::clone(key)).collect();
        }
        let owner =
            owner(name).filter(|owner| self.ingresses.get(owner).is_some_and(|entry| entry.live.contains(name)));
        let mut owners: BTreeSet<ObjectKey> = owner.into_iter().collect();
        if let Some(used) = self.clusters.get(name) {
            owners.extend(used.users.iter().map(|user| ObjectKey::clone(user)));
        }
        if let (Event::Rejected { kind: Kind::Secret, .. } | Event::Recovered { kind: Kind::Secret, .. }, false) =
            (event, [envoy::TRUST, envoy::AUTHORIZER_TRUST].contains(&&**name))
        {
            owners.extend(self.certificates.users_of(name));
            owners.extend(self.domains.get(name).map(|owner| ObjectKey::clone(owner)));
        }
        for owner in &owners {
            let Some(entry) = self.ingresses.get_mut(owner) else { continue };
            match event {
                Event::Rejected { message, .. } => {
                    entry.refused.insert((*kind, name.clone()), message.clone());
                }
                Event::Recovered { .. } => {
                    entry.refused.remove(&(*kind, name.clone()));
                }
            }
        }
        owners
    }
}

/// The Ingress in the name of a host (`<table>/(<namespace>/<name>).Domain[...]`) or of its routes for gateways that take
/// them by scope (`<table>/<namespace>/<name>`).
fn owner(name: &str) -> Option<ObjectKey> {
    let (_, rest) = name.split_once('/')?;
    let key = rest.strip_prefix('(').map_or(Some(rest), |rest| rest.split_once(')').map(|(key, _)| key))?;
    let (namespace, name) = key.split_once('/')?;
    Some(ObjectKey::new(namespace, name))
}
