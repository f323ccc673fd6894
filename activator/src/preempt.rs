//! Where threads may take turns.
//!
//! What they share in admission is a few atomics and a lock. A test that lets one of several threads run at a time,
//! and chooses at each of these points which (see `throttler/interleaved.rs`), meets every order that matters, again
//! with the same seed. Outside of tests the points are nothing.

use parking_lot::{Mutex, MutexGuard};

#[cfg(test)]
pub(crate) use self::turns::{for_seeds, run};

/// Before something that other threads see.
#[inline(always)]
pub(crate) fn point() {
    #[cfg(test)]
    turns::pass();
}

/// Locks; in a test, whoever has the lock may have to run first.
#[inline(always)]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    #[cfg(test)]
    while turns::is_one_of_many() {
        turns::pass();
        if let Some(guard) = mutex.try_lock() {
            return guard;
        }
    }
    mutex.lock()
}

#[cfg(test)]
mod turns {
    use std::{
        cell::RefCell,
        future::Future,
        panic::{AssertUnwindSafe, catch_unwind},
        pin::pin,
        sync::Arc,
        task::{Context, Poll, Wake, Waker},
    };

    use parking_lot::{Condvar, Mutex};

    thread_local! {
        static MINE: RefCell<Option<(Turns, usize)>> = const { RefCell::new(None) };
    }

    /// Some threads that each do `work` while another does `other`, in an order that `seed` chooses. False if one of
    /// them waits for something that never comes.
    pub(crate) fn run<W: Future<Output = ()>, O: Future<Output = ()>>(
        seed: u64,
        work: impl Fn() -> W + Sync,
        other: impl FnOnce() -> O + Send,
    ) -> bool {
        let workers = 2 + (seed % 3) as usize;
        let turns = Turns::new(seed, workers + 1);
        std::thread::scope(|scope| {
            for me in 0..workers {
                let (work, turns) = (&work, &turns);
                scope.spawn(move || take_part(turns, me, work()));
            }
            scope.spawn(|| take_part(&turns, workers, other()));
        });
        !turns.stuck()
    }

    /// Runs `one` for the seed that `INTERLEAVED_SEED` says, or for 2,000, or as many as `INTERLEAVED_SEEDS` says.
    pub(crate) fn for_seeds(one: impl Fn(u64)) {
        let number = |variable| std::env::var(variable).ok().and_then(|text| text.parse::<u64>().ok());
        if let Some(seed) = number("INTERLEAVED_SEED") {
            return one(seed);
        }
        for seed in 0..number("INTERLEAVED_SEEDS").unwrap_or(2000) {
            let run = AssertUnwindSafe(|| one(seed));
            assert!(catch_unwind(run).is_ok(), "seed {seed} failed; replay it with INTERLEAVED_SEED={seed}");
        }
    }

    /// Threads of which one runs at a time. Clones are the same.
    #[derive(Clone)]
    struct Turns {
        shared: Arc<Shared>,
    }

    struct Shared {
        state: Mutex<State>,
        /// By thread: it is its turn.
        turn: Vec<Condvar>,
    }

    struct State {
        random: fastrand::Rng,
        /// Who runs; nobody before all have come, and after all have ended.
        current: Option<usize>,
        threads: Vec<Thread>,
        /// By thread: it was woken since it began to look.
        woken: Vec<bool>,
        /// Nobody can run, though not all have ended.
        stuck: bool,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Thread {
        Expected,
        Runs,
        /// Waits to be woken.
        Sleeps,
        Ended,
    }

    struct Awake(Turns, usize);

    /// Ends this thread's part, however it ends.
    struct Part(Turns, usize);

    impl Turns {
        fn new(seed: u64, threads: usize) -> Self {
            let state = State {
                random: fastrand::Rng::with_seed(seed),
                current: None,
                threads: vec![Thread::Expected; threads],
                woken: vec![false; threads],
                stuck: false,
            };
            let turn = (0..threads).map(|_| Condvar::new()).collect();
            Self { shared: Arc::new(Shared { state: Mutex::new(state), turn }) }
        }

        /// True if a thread waited for something that never came.
        fn stuck(&self) -> bool {
            self.shared.state.lock().stuck
        }

        /// Lets one of those run that can, and comes back when it is `me` again.
        fn next(&self, me: usize) {
            let mut state = self.shared.state.lock();
            // Mostly nothing changes, or the orders that are met are all of the same kind.
            if state.threads[me] == Thread::Runs && state.random.u8(..4) > 0 {
                return;
            }
            self.choose(&mut state);
            self.wait(&mut state, me);
        }

        fn choose(&self, state: &mut State) {
            let can: Vec<_> = (0..state.threads.len()).filter(|index| state.threads[*index] == Thread::Runs).collect();
            state.current = (!can.is_empty()).then(|| can[state.random.usize(..can.len())]);
            match state.current {
                Some(index) => {
                    self.shared.turn[index].notify_one();
                }
                None if state.threads.contains(&Thread::Sleeps) => {
                    state.stuck = true;
                    for turn in &self.shared.turn {
                        turn.notify_one();
                    }
                }
                None => {}
            }
        }

        fn wait(&self, state: &mut parking_lot::MutexGuard<'_, State>, me: usize) {
            while state.current != Some(me) && !state.stuck {
                self.shared.turn[me].wait(state);
            }
        }
    }

    impl Wake for Awake {
        fn wake(self: Arc<Self>) {
            let mut state = self.0.shared.state.lock();
            state.woken[self.1] = true;
            if state.threads[self.1] == Thread::Sleeps {
                state.threads[self.1] = Thread::Runs;
            }
        }
    }

    impl Drop for Part {
        fn drop(&mut self) {
            MINE.take();
            let mut state = self.0.shared.state.lock();
            state.threads[self.1] = Thread::Ended;
            self.0.choose(&mut state);
        }
    }

    /// Runs `work` as one of the threads, from when all of them have come. None if it waited in vain.
    fn take_part<F: Future>(turns: &Turns, me: usize, work: F) -> Option<F::Output> {
        MINE.set(Some((turns.clone(), me)));
        {
            let mut state = turns.shared.state.lock();
            fastrand::seed(state.random.clone().u64(..).wrapping_add(me as u64));
            state.threads[me] = Thread::Runs;
            if state.threads.iter().all(|thread| *thread == Thread::Runs) {
                turns.choose(&mut state);
            }
            turns.wait(&mut state, me);
        }
        let _part = Part(turns.clone(), me);
        let waker = Waker::from(Arc::new(Awake(turns.clone(), me)));
        let mut work = pin!(work);
        loop {
            turns.shared.state.lock().woken[me] = false;
            let polled = work.as_mut().poll(&mut Context::from_waker(&waker));
            if let Poll::Ready(output) = polled {
                return Some(output);
            }
            let mut state = turns.shared.state.lock();
            if !state.woken[me] {
                state.threads[me] = Thread::Sleeps;
                turns.choose(&mut state);
                turns.wait(&mut state, me);
                if state.stuck {
                    return None;
                }
            }
        }
    }

    pub(super) fn is_one_of_many() -> bool {
        MINE.with_borrow(Option::is_some)
    }

    pub(super) fn pass() {
        let mine = MINE.with_borrow(Clone::clone);
        if let Some((turns, me)) = mine {
            turns.next(me);
        }
    }
}
