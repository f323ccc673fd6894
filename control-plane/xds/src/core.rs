//! The protocol as a pure state machine: published changes and client requests in, responses and events out.
//!
//! Every stream remembers what its client holds and which names changed since, so a change costs what changed and not
//! what exists. Three rules make delivery safe:
//! * additions go clusters, endpoints, secrets, listeners, routes, each after the earlier ones are acknowledged;
//!   removals go the other way round, after all additions (make before break);
//! * at most one response per type is in flight, so an ACK or NACK names exactly what it is about;
//! * a NACK is narrowed down to the resource that caused it, which is then not offered again until its content
//!   changes, while its last accepted version stays in force.

mod cache;
mod stream;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

pub use self::stream::{DeltaRequest, Protocol, Response, WorldRequest};
use self::{cache::Cache, stream::Stream};
use crate::resource::{Kind, Name, Resource, Version};

pub type StreamId = u64;

/// A set of changes that belong together: published under one revision.
#[derive(Debug, Default)]
pub struct Change {
    pub set: Vec<Resource>,
    pub remove: Vec<(Kind, Name)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A gateway refused this version and keeps what it had.
    Rejected { kind: Kind, name: Name, version: Version, node: String, message: String },
    /// A gateway accepted a version after one was refused.
    Recovered { kind: Kind, name: Name },
}

/// What all connected gateways have in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settled {
    /// Gateways that have asked for clusters and listeners.
    pub gateways: usize,
    /// Every change up to this revision was accepted or refused by each of them; 0 without gateways.
    pub revision: u64,
}

#[derive(Debug, Default)]
pub struct Core {
    cache: Cache,
    streams: BTreeMap<StreamId, Stream>,
    opened: StreamId,
    events: Vec<Event>,
}

// === impl Core ===

impl Core {
    /// Takes a change over and returns its revision. Content that is the same as before changes nothing.
    pub fn publish(&mut self, change: Change) -> u64 {
        let touched = self.cache.apply(change);
        self.touch(&touched);
        self.cache.revision()
    }

    fn touch(&mut self, touched: &[(Kind, Name)]) {
        for (kind, name) in touched {
            for stream in self.streams.values_mut() {
                stream.touch(*kind, name, &self.cache);
            }
        }
    }

    pub fn resource(&self, kind: Kind, name: &str) -> Option<Arc<Resource>> {
        self.cache.get(kind, name).map(|entry| entry.current().clone())
    }

    pub fn open(&mut self, protocol: Protocol) -> StreamId {
        self.opened += 1;
        self.streams.insert(self.opened, Stream::new(protocol));
        self.opened
    }

    pub fn close(&mut self, id: StreamId) {
        self.streams.remove(&id);
    }

    pub fn set_node(&mut self, id: StreamId, node: &str) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.node = node.to_owned();
        }
    }

    /// The gateway takes routes by scope. To be said before its first request.
    pub fn set_scoped(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.set_scoped();
        }
    }

    pub fn delta(&mut self, id: StreamId, request: DeltaRequest) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.delta(request, &mut self.cache, &mut self.events);
        }
        let released = self.cache.take_released();
        self.touch(&released);
    }

    pub fn world(&mut self, id: StreamId, request: WorldRequest) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.world(request, &mut self.cache, &mut self.events);
        }
        let released = self.cache.take_released();
        self.touch(&released);
    }

    /// The next response to send on a stream, if there is one.
    pub fn next(&mut self, id: StreamId) -> Option<Response> {
        self.streams.get_mut(&id)?.next(&mut self.cache)
    }

    /// The oldest response on a stream that its client has not answered.
    pub fn unanswered(&self, id: StreamId) -> Option<u64> {
        self.streams.get(&id)?.unanswered()
    }

    /// Streams that have asked for listeners.
    pub fn gateways(&self) -> Vec<StreamId> {
        self.streams.iter().filter(|(_, stream)| stream.is_gateway()).map(|(id, _)| *id).collect()
    }

    /// Streams that may have something to send.
    pub fn ready(&self) -> impl Iterator<Item = StreamId> + '_ {
        self.streams.iter().filter(|(_, stream)| stream.has_work()).map(|(id, _)| *id)
    }

    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// What each stream still has to deliver, for people who look for the reason why something is not in force.
    pub fn describe(&self) -> Vec<String> {
        self.streams.iter().map(|(id, stream)| format!("stream {id}: {}", stream.describe())).collect()
    }

    pub fn settled(&self) -> Settled {
        let mut gateways = 0;
        let mut revision = self.cache.revision();
        for stream in self.streams.values().filter(|stream| stream.is_gateway()) {
            gateways += 1;
            revision = revision.min(stream.unsettled().saturating_sub(1));
        }
        if gateways == 0 { Settled::default() } else { Settled { gateways, revision } }
    }
}
