//! Everything that decides where a request goes, on virtual time, with whatever can go wrong going wrong.
//!
//! A seed decides everything: who does what when, and which of several tasks that can run is next. The throttler, the
//! backends, the dispatching, the reports and the pools of connections are the real ones; pods (with the sidecar's real
//! breaker), connections to them, watches, the autoscaler and its connections are models that fail.
//! `SIMULATION_SEED=n` replays a seed, `SIMULATION_SEEDS=n` says how many to run.

mod activators;
mod cluster;
mod executor;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use self::{
    activators::{Activator, Event, Outcome},
    cluster::Revision,
    executor::Executor,
};

const SECOND: Duration = Duration::from_secs(1);
const CHAOS: Duration = Duration::from_secs(8);

/// How requests ended, and what happened on their way.
type Tally = BTreeMap<Seen, usize>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    Status(u16),
    Event(Event),
}

#[derive(Default)]
struct Requests {
    started: usize,
    ended: usize,
    tally: Tally,
}

/// Runs one seed; panics if anything is not as it must be.
fn simulate(seed: u64) -> Tally {
    fastrand::seed(seed);
    let executor = Executor::new(seed);
    let revisions: Vec<_> = (0..1 + executor.below(3)).map(|number| Revision::new(executor.clone(), number)).collect();
    let everyone: Arc<Mutex<Vec<Arc<Activator>>>> = Arc::default();
    let serving: Arc<Mutex<Vec<Arc<Activator>>>> = Arc::default();
    executor.spawn(come_and_go(executor.clone(), revisions.clone(), everyone.clone(), serving.clone()));
    let requests: Arc<Mutex<Requests>> = Arc::default();
    executor.spawn(send(executor.clone(), CHAOS, 40, false, serving.clone(), requests.clone()));

    // The pools' own time, which passes in steps; nothing else runs there.
    let pools = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let pools = pools.expect("nothing is needed for it");
    let _guard = pools.enter();
    let (clock, mut passed) = (executor.clone(), 0);
    let mut check = || {
        everyone.lock().iter().for_each(|activator| activator.check());
        let now = clock.now().as_secs();
        if now > passed {
            pools.block_on(tokio::time::advance(Duration::from_secs(now - passed)));
            passed = now;
        }
    };
    executor.run_until(CHAOS, &mut check);
    revisions.iter().for_each(Revision::calm_down);
    // What was begun before may fail until its own limit; what comes after everyone has heard that all is well may not.
    executor.run_until(CHAOS + 40 * SECOND, &mut check);
    let end = CHAOS + 45 * SECOND;
    executor.spawn(send(executor.clone(), end, 4, true, serving, requests.clone()));
    executor.run_until(end + 60 * SECOND, check);

    let requests = requests.lock();
    assert_eq!(requests.started, requests.ended, "requests were not answered");
    everyone.lock().iter().for_each(|activator| activator.check_idle());
    let mut tally = requests.tally.clone();
    for handler in everyone.lock().iter().flat_map(|activator| &activator.handlers) {
        for (event, count) in &*handler.events.lock() {
            *tally.entry(Seen::Event(*event)).or_default() += count;
        }
    }
    tally
}

/// Activators join and leave, and hear of each other late.
async fn come_and_go(
    executor: Executor,
    revisions: Vec<Arc<Revision>>,
    everyone: Arc<Mutex<Vec<Arc<Activator>>>>,
    serving: Arc<Mutex<Vec<Arc<Activator>>>>,
) {
    let mut number = 0;
    while number == 0 || executor.now() < CHAOS {
        let count = serving.lock().len();
        if count == 0 || (count < 3 && executor.chance(50)) {
            number += 1;
            let activator = Activator::start(&executor, number, &revisions);
            everyone.lock().push(activator.clone());
            serving.lock().push(activator);
        } else if count > 1 {
            let leaves = executor.below(count as u64) as usize;
            serving.lock().remove(leaves);
        }
        let members = serving.lock().clone();
        for (index, activator) in members.iter().enumerate() {
            let (executor, activator, count) = (executor.clone(), activator.clone(), members.len());
            executor.clone().spawn(async move {
                executor.sleep(executor.up_to(SECOND)).await;
                activator.place(index, count);
            });
        }
        executor.sleep(SECOND + executor.up_to(10 * SECOND)).await;
    }
}

/// Bursts of requests until `end`; if all is well, every one must succeed.
async fn send(
    executor: Executor,
    end: Duration,
    most: u64,
    all_is_well: bool,
    serving: Arc<Mutex<Vec<Arc<Activator>>>>,
    requests: Arc<Mutex<Requests>>,
) {
    while executor.now() < end {
        let burst = 1 + executor.below(most);
        for _ in 0..burst {
            let activator = {
                let serving = serving.lock();
                let Some(activator) = serving.get(executor.below(serving.len() as u64) as usize) else { continue };
                activator.clone()
            };
            let index = executor.below(activator.handlers.len() as u64) as usize;
            let limit = if all_is_well { 50 * SECOND } else { SECOND + executor.up_to(30 * SECOND) };
            let leaves = !all_is_well && executor.chance(20);
            let patience = if leaves { executor.up_to(2 * SECOND) } else { 1000 * SECOND };
            let requests = requests.clone();
            requests.lock().started += 1;
            executor.spawn(async move {
                let outcome = activator.request(index, patience, limit).await;
                assert!(!all_is_well || outcome == Outcome::Status(200), "{outcome:?} though all is well");
                let mut requests = requests.lock();
                requests.ended += 1;
                if let Outcome::Status(status) = outcome {
                    *requests.tally.entry(Seen::Status(status)).or_default() += 1;
                }
            });
        }
        executor.sleep(SECOND / 5 + executor.up_to(2 * SECOND)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(variable: &str) -> Option<u64> {
        std::env::var(variable).ok()?.parse().ok()
    }

    #[test]
    fn every_request_is_answered_once_whatever_happens() {
        if let Some(seed) = number("SIMULATION_SEED") {
            println!("seed {seed}: {:?}", simulate(seed));
            return;
        }
        let seeds = number("SIMULATION_SEEDS").unwrap_or(3000);
        let total = Mutex::new(Tally::new());
        let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let total = &total;
                scope.spawn(move || {
                    for seed in (thread..seeds).step_by(threads as usize) {
                        let Ok(tally) = catch_unwind(AssertUnwindSafe(|| simulate(seed))) else {
                            panic!("seed {seed} failed; replay it with SIMULATION_SEED={seed}");
                        };
                        let mut total = total.lock();
                        tally.into_iter().for_each(|(seen, count)| *total.entry(seen).or_default() += count);
                    }
                });
            }
        });
        let total = total.into_inner();
        println!("{seeds} seeds: {total:?}");
        let events = [Event::Reused, Event::LookedAt, Event::Again, Event::Over].map(Seen::Event);
        for seen in [200, 500, 502, 503, 504].map(Seen::Status).into_iter().chain(events) {
            assert!(total.contains_key(&seen), "no seed led to {seen:?}: {total:?}");
        }
    }

    #[test]
    fn a_seed_always_gives_the_same_run() {
        assert_eq!(simulate(7), simulate(7));
    }
}
