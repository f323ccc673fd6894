//! How long a client may take to answer.
//!
//! What is settled waits for every gateway, so one that takes responses and never answers them would hold up all others'
//! readiness for ever. Its stream is ended after [`PATIENCE`]: a gateway that lives connects again and says what it has;
//! one that does not is not waited for. A connection without any sign of life ends earlier, by the keepalive.

use std::{sync::Arc, time::Duration};

use super::{Link, StreamId, Xds};

/// Longer than Envoy takes for anything: it holds an acknowledgement back for 15 s at most, while clusters wait for their
/// endpoints.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Runs until the stream is closed, or was abandoned.
pub(super) async fn watch(xds: Xds, id: StreamId, link: Arc<Link>) {
    let unanswered = || xds.0.core.lock().unanswered(id);
    loop {
        let Some(nonce) = unanswered() else {
            link.sent.notified().await;
            continue;
        };
        tokio::time::sleep(PATIENCE).await;
        if unanswered() == Some(nonce) {
            let seconds = PATIENCE.as_secs();
            tracing::warn!(stream = id, "a gateway has not answered for {seconds} s and is not waited for any more");
            return xds.abandon(id);
        }
    }
}
