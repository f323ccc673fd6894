//! Objects that go by themselves: events, an hour after they last happened.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::core::Core;
use crate::delete::DeleteOptions;
use crate::kinds;

const INTERVAL: Duration = Duration::from_secs(60);

/// Looks for what has expired, now and then, for as long as the server is there.
pub(crate) fn start(core: &Arc<Core>) {
    let (weak, stop) = (Arc::downgrade(core), core.stop.clone());
    tokio::spawn(stop.run_until_cancelled_owned(watch_the_clock(weak)));
}

async fn watch_the_clock(core: Weak<Core>) {
    let mut clock = tokio::time::interval(INTERVAL);
    loop {
        clock.tick().await;
        match core.upgrade() {
            Some(core) => {
                core.expire(jiff::Timestamp::now());
                core.store.trim();
            }
            None => return,
        }
    }
}

// === impl Core ===

impl Core {
    /// Deletes the events that are too old at `now`.
    fn expire(&self, now: jiff::Timestamp) {
        let registry = self.kinds.load();
        let Some(kind) = registry.by_kind("v1", "Event") else { return };
        let events = self.store.list(&kind.storage, None).objects;
        for event in events.iter().filter(|event| kinds::event_expired(&event.value, now)) {
            let call = self.administrator_call(kind, &event.key.namespace, &event.key.name);
            match self.delete(&call, &DeleteOptions::default()) {
                Err(status) if status.reason != "NotFound" => {
                    tracing::warn!(event = %event.key, message = status.message, "cannot delete an expired event");
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{Options, Server};

    #[tokio::test]
    async fn old_events_go() {
        let server = Server::open(Options::default()).await.expect("opens");
        for (name, last) in [("old", "2026-11-20T08:00:00Z"), ("new", "2026-11-20T09:30:00Z")] {
            let event = json!({
                "apiVersion": "v1", "kind": "Event", "metadata": { "name": name, "namespace": "default" },
                "involvedObject": { "kind": "Pod", "namespace": "default", "name": "p" }, "lastTimestamp": last,
            });
            server.ensure(&event).expect("creates");
        }
        // Their creation is now; only that keeps them, so look from an hour later on.
        server.core.expire(jiff::Timestamp::now());
        assert_eq!(server.core.store.count("events"), 2);
        server.core.expire(jiff::Timestamp::now() + jiff::SignedDuration::from_mins(61));
        assert_eq!(server.core.store.count("events"), 0);
    }
}
