//! Runs tasks on virtual time, in an order that the seed decides.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::clock;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Clones are the same executor.
#[derive(Clone)]
pub(super) struct Executor {
    shared: Arc<Shared>,
}

struct Shared {
    start: Instant,
    state: Mutex<State>,
    ready: Arc<Mutex<Vec<usize>>>,
}

struct State {
    now: Duration,
    /// The number of the next timer.
    next: u64,
    random: fastrand::Rng,
    /// By number; empty while it runs, and for good when it has ended.
    tasks: Vec<Option<(Task, Waker)>>,
    timers: BinaryHeap<Reverse<(Duration, u64)>>,
    sleepers: BTreeMap<u64, Waker>,
}

struct Awake {
    id: usize,
    ready: Arc<Mutex<Vec<usize>>>,
}

/// Ends at its time.
pub(super) struct Sleep {
    executor: Executor,
    until: Duration,
    timer: Option<u64>,
}

// === impl Executor ===

impl Executor {
    pub(super) fn new(seed: u64) -> Self {
        let start = Instant::now();
        clock::set(start);
        let state = State {
            now: Duration::ZERO,
            next: 0,
            random: fastrand::Rng::with_seed(seed),
            tasks: Vec::new(),
            timers: BinaryHeap::new(),
            sleepers: BTreeMap::new(),
        };
        Self { shared: Arc::new(Shared { start, state: Mutex::new(state), ready: Arc::default() }) }
    }

    pub(super) fn now(&self) -> Duration {
        self.shared.state.lock().now
    }

    /// A number below `end`.
    pub(super) fn below(&self, end: u64) -> u64 {
        self.shared.state.lock().random.u64(..end.max(1))
    }

    /// True in so many of a hundred cases.
    pub(super) fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A time up to `most`; short ones are as likely as long ones of ten times the size.
    pub(super) fn up_to(&self, most: Duration) -> Duration {
        let scale = 10u64.pow(self.below(4) as u32);
        Duration::from_micros(self.below(most.as_micros() as u64 / scale + 1))
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut state = self.shared.state.lock();
        let id = state.tasks.len();
        let waker = Waker::from(Arc::new(Awake { id, ready: self.shared.ready.clone() }));
        state.tasks.push(Some((Box::pin(task), waker)));
        self.shared.ready.lock().push(id);
    }

    pub(super) fn sleep(&self, time: Duration) -> Sleep {
        Sleep { executor: self.clone(), until: self.now() + time, timer: None }
    }

    /// Goes on until `end`, calling `check` whenever nothing can run without time passing.
    pub(super) fn run_until(&self, end: Duration, mut check: impl FnMut()) {
        loop {
            while self.poll_one() {}
            check();
            let waker = {
                let mut state = self.shared.state.lock();
                match state.timers.peek() {
                    Some(Reverse((time, _))) if *time <= end => {}
                    _ => {
                        state.now = end;
                        clock::set(self.shared.start + end);
                        return;
                    }
                }
                let Reverse((time, id)) = state.timers.pop().expect("just seen");
                state.now = time;
                clock::set(self.shared.start + time);
                state.sleepers.remove(&id)
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Runs one of those that can; which one is left to chance.
    fn poll_one(&self) -> bool {
        let id = {
            let mut ready = self.shared.ready.lock();
            if ready.is_empty() {
                return false;
            }
            let index = self.below(ready.len() as u64) as usize;
            ready.swap_remove(index)
        };
        let Some((mut task, waker)) = self.shared.state.lock().tasks[id].take() else { return true };
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.shared.state.lock().tasks[id] = Some((task, waker));
        }
        true
    }
}

// === impl Awake ===

impl Wake for Awake {
    fn wake(self: Arc<Self>) {
        let mut ready = self.ready.lock();
        if !ready.contains(&self.id) {
            ready.push(self.id);
        }
    }
}

// === impl Sleep ===

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut state = this.executor.shared.state.lock();
        if state.now >= this.until {
            return Poll::Ready(());
        }
        let id = match this.timer {
            Some(id) => id,
            None => {
                let id = state.next;
                state.next += 1;
                state.timers.push(Reverse((this.until, id)));
                this.timer = Some(id);
                id
            }
        };
        state.sleepers.insert(id, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.timer {
            self.executor.shared.state.lock().sleepers.remove(&id);
        }
    }
}
