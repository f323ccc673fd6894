//! Threads that count requests while another reports, in every order that a seed may choose (see
//! `throttler/interleaved.rs`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use futures::FutureExt;
use parking_lot::Mutex;

use super::Reporter;
use crate::{
    clock,
    preempt::{self, point},
    revisions::Revision,
    sink::{self, Connection},
};

struct Rig {
    reporter: Arc<Reporter>,
    connection: Mutex<Connection>,
    revisions: Vec<(Arc<Revision>, Moves)>,
    /// Requests that the autoscaler was told of, without what a new connection begins with.
    told: Mutex<f64>,
}

/// How many requests were about to begin, have begun, were about to end, and have ended.
#[derive(Default)]
struct Moves([AtomicUsize; 4]);

// === impl Moves ===

impl Moves {
    fn count(&self, which: usize) {
        self.0[which].fetch_add(1, SeqCst);
    }

    fn seen(&self) -> [usize; 4] {
        [0, 1, 2, 3].map(|which| self.0[which].load(SeqCst))
    }
}

// === impl Rig ===

impl Rig {
    fn new(seed: u64) -> Self {
        let (sink, connection) = sink::new("ws://autoscaler:8080");
        let revision = |number| (Revision::idle(&format!("rev-{number}")), Moves::default());
        Self {
            reporter: Reporter::new("activator".to_owned(), sink),
            connection: Mutex::new(connection),
            revisions: (0..1 + seed % 2).map(revision).collect(),
            told: Mutex::default(),
        }
    }

    fn requests(&self) {
        for _ in 0..1 + fastrand::usize(..3) {
            let (revision, moves) = &self.revisions[fastrand::usize(..self.revisions.len())];
            moves.count(0);
            let counted = self.reporter.enter(revision, clock::now());
            moves.count(1);
            (0..fastrand::usize(..3)).for_each(|_| point());
            moves.count(2);
            drop(counted);
            moves.count(3);
        }
    }

    /// Time passes; and what a connection that began now would say has to be true.
    fn reports(&self, started: Instant) {
        for second in 1..=1 + fastrand::u64(..4) {
            self.reporter.tick(started + Duration::from_secs(second));
            self.deliver();
            let before: Vec<_> = self.revisions.iter().map(|(_, moves)| moves.seen()).collect();
            let snapshot = self.reporter.snapshot().messages;
            for ((revision, moves), before) in self.revisions.iter().zip(before) {
                let said: Vec<_> = snapshot.iter().filter(|message| message.name == revision.key.name).collect();
                assert!(said.len() < 2, "a revision is reported twice");
                let [beginning, begun, ending, ended] = before;
                if moves.seen() == before && beginning == begun && ending == ended {
                    let said = said.first().and_then(|message| message.stat.as_ref());
                    let said = said.map_or(0.0, |stat| stat.average_concurrent_requests);
                    assert_eq!(said, (begun - ended) as f64, "a snapshot is not what there is");
                }
            }
        }
    }

    fn deliver(&self) {
        let mut connection = self.connection.lock();
        while let Some(Some(message)) = connection.next_message().now_or_never() {
            for message in message.messages {
                let stat = message.stat.expect("every message has one");
                assert!(stat.average_concurrent_requests >= 0.0 && stat.request_count >= 0.0);
                *self.told.lock() += stat.request_count;
            }
        }
    }
}

fn interleave(seed: u64) {
    let (rig, started) = (Rig::new(seed), Instant::now());
    let ended = preempt::run(seed, || async { rig.requests() }, || async { rig.reports(started) });
    assert!(ended, "somebody waits for ever");
    for second in 10..12 {
        rig.reporter.tick(started + Duration::from_secs(second));
    }
    rig.deliver();
    assert!(rig.reporter.active().is_empty() && rig.reporter.snapshot().messages.is_empty());
    let ended: usize = rig.revisions.iter().map(|(_, moves)| moves.seen()[3]).sum();
    assert_eq!(*rig.told.lock(), ended as f64, "requests were reported twice, or not at all");
}

#[test]
fn every_request_is_reported_once_whoever_counts_it() {
    preempt::for_seeds(interleave);
}
