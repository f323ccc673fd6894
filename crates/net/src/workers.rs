//! Threads that serve connections, each with a runtime of its own.
//!
//! A proxy's request has two sides, the client's connection and the backend's. On a runtime of several threads they
//! may be driven by two of them, and every event of one side is then a thread woken by another, which takes longer
//! than everything else that a proxy does. Here all that is done for a request happens on the thread that its
//! connection has a seat at: what waits for a thread is only what happens on another one.
//!
//! Which thread that is, is decided when a connection is accepted, and again between two requests by whoever serves it
//! and can take it elsewhere (see `balance`). What threads have to do is looked at when one of them asks, at most once
//! in a while, so a process that nobody asks for anything does nothing.

mod balance;

use std::{
    cell::Cell,
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Handle},
    sync::oneshot,
};

use crate::{Connections, accept::accept_with};
use balance::{Load, Move};

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// How often what threads have to do is looked at.
const WINDOW: Duration = Duration::from_millis(20);
/// After so long, what was seen before says nothing.
const STALE: Duration = Duration::from_millis(100);

/// Some threads. Clones are the same ones; they end with the last of them.
#[derive(Clone)]
pub struct Workers {
    crew: Arc<Crew>,
    /// Dropped, they end the threads.
    _running: Arc<[oneshot::Sender<()>]>,
}

/// Whether connections can be taken from one thread to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// Between requests, by whoever serves them (see [`Seat::elsewhere`]).
    Movable,
    /// Never, because there is no such moment.
    Settled,
}

/// A connection's place at a thread.
pub struct Seat {
    crew: Arc<Crew>,
    index: usize,
    stay: Stay,
}

struct Crew {
    workers: Box<[Worker]>,
    started: Instant,
    /// When the loads were looked at, in nanoseconds after the start.
    looked: AtomicU64,
}

struct Worker {
    runtime: Handle,
    /// Connections that have a seat.
    movable: AtomicUsize,
    settled: AtomicUsize,
    /// Those that got one since the loads were looked at.
    fresh: AtomicUsize,
    /// How long it had had work then, in nanoseconds, and lately, as the bits of a share.
    worked: AtomicU64,
    busy: AtomicU64,
    /// How many connections are to leave, and where to.
    leave: AtomicUsize,
    to: AtomicUsize,
}

// === impl Workers ===

impl Workers {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// If the kernel gives no more of them.
    pub fn start(count: usize) -> io::Result<Self> {
        let started = (1..=count.max(1)).map(Worker::start).collect::<io::Result<Vec<_>>>()?;
        let (workers, running): (Vec<_>, Vec<_>) = started.into_iter().unzip();
        let crew = Crew { workers: workers.into(), started: Instant::now(), looked: AtomicU64::new(0) };
        Ok(Self { crew: Arc::new(crew), _running: running.into() })
    }

    /// The number of the worker that runs this code, from 1; 0 on any other thread.
    pub fn current() -> usize {
        NUMBER.get()
    }

    pub fn count(&self) -> usize {
        self.crew.workers.len()
    }

    /// Accepts until `connections` are told to close. Every connection is served as a task of its own, at the seat
    /// that it was given and has as long as it keeps it, to the end of `each`'s future.
    ///
    /// # Errors
    /// If the listener cannot be given to a worker.
    pub fn accept<C, F>(
        &self,
        listener: TcpListener,
        connections: Connections,
        stay: Stay,
        each: C,
    ) -> io::Result<impl Future<Output = ()> + use<C, F>>
    where
        C: Fn(TcpStream, SocketAddr, Seat) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = listener.into_std()?;
        let crew = self.crew.clone();
        let accepting = self.crew.workers[0].runtime.spawn(async move {
            let take = |stream, peer| {
                let each = each.clone();
                crew.seat(stay).serve(stream, move |stream, seat| each(stream, peer, seat));
            };
            match TcpListener::from_std(listener) {
                Ok(listener) => accept_with(listener, connections, take).await,
                Err(error) => tracing::error!(%error, "cannot accept connections"),
            }
        });
        Ok(async move { drop(accepting.await) })
    }
}

// === impl Crew ===

impl Crew {
    /// A seat for a new connection.
    fn seat(self: &Arc<Self>, stay: Stay) -> Seat {
        self.look(Instant::now());
        let loads = self.loads();
        let index = match stay {
            Stay::Movable => balance::place(&loads),
            Stay::Settled => balance::settle(&loads),
        };
        self.workers[index].fresh.fetch_add(1, Relaxed);
        Seat::take(self, index, stay)
    }

    fn loads(&self) -> Vec<Load> {
        self.workers.iter().map(Worker::load).collect()
    }

    /// Looks at what the threads have to do, unless that was done a moment ago, and plans who leaves which.
    fn look(&self, now: Instant) {
        let now = nanos(now.saturating_duration_since(self.started));
        let before = self.looked.load(Relaxed);
        let passed = now.saturating_sub(before);
        if passed < nanos(WINDOW) || self.looked.compare_exchange(before, now, Relaxed, Relaxed).is_err() {
            return;
        }
        for worker in &self.workers {
            worker.look(passed);
        }
        let loads = self.loads();
        for (own, worker) in self.workers.iter().enumerate() {
            let Move { count, to } = balance::plan(&loads, own).unwrap_or(Move { count: 0, to: own });
            worker.to.store(to, Relaxed);
            worker.leave.store(count, Relaxed);
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

// === impl Seat ===

impl Seat {
    fn take(crew: &Arc<Crew>, index: usize, stay: Stay) -> Self {
        crew.workers[index].seats(stay).fetch_add(1, Relaxed);
        Self { crew: crew.clone(), index, stay }
    }

    /// A seat at another thread, if this one has too much to do or too little. To be asked between requests, with the
    /// time then.
    pub fn elsewhere(&self, now: Instant) -> Option<Self> {
        let Self { crew, index, stay } = self;
        if crew.workers.len() == 1 {
            return None;
        }
        crew.look(now);
        let worker = &crew.workers[*index];
        if worker.leave.load(Relaxed) == 0 {
            return None;
        }
        worker.leave.fetch_update(Relaxed, Relaxed, |count| count.checked_sub(1)).ok()?;
        let to = worker.to.load(Relaxed);
        (to != *index).then(|| Self::take(crew, to, *stay))
    }

    /// The seat of a connection that will not be moved any more, here or at another thread.
    #[must_use]
    pub fn settle(self) -> Self {
        let index = balance::settle(&self.crew.loads());
        Self::take(&self.crew, index, Stay::Settled)
    }

    /// Serves a connection at this seat, as a task of its own.
    pub fn serve<C, F>(self, stream: TcpStream, each: C)
    where
        C: FnOnce(TcpStream, Self) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        if self.index + 1 == Workers::current() {
            tokio::spawn(each(stream, self));
            return;
        }
        let lost = |error| tracing::warn!(%error, "a connection was lost on its way to a thread");
        let stream = match stream.into_std() {
            Ok(stream) => stream,
            Err(error) => return lost(error),
        };
        let runtime = self.crew.workers[self.index].runtime.clone();
        runtime.spawn(async move {
            match TcpStream::from_std(stream) {
                Ok(stream) => each(stream, self).await,
                Err(error) => lost(error),
            }
        });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.crew.workers[self.index].seats(self.stay).fetch_sub(1, Relaxed);
    }
}

// === impl Worker ===

impl Worker {
    fn start(number: usize) -> io::Result<(Self, oneshot::Sender<()>)> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (running, ended) = oneshot::channel::<()>();
        let handle = runtime.handle().clone();
        std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            NUMBER.set(number);
            // Ends with an error, when nobody can give it work any more.
            let _ = runtime.block_on(ended);
        })?;
        Ok((Self::at(handle), running))
    }

    fn at(runtime: Handle) -> Self {
        Self {
            runtime,
            movable: AtomicUsize::new(0),
            settled: AtomicUsize::new(0),
            fresh: AtomicUsize::new(0),
            worked: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            leave: AtomicUsize::new(0),
            to: AtomicUsize::new(0),
        }
    }

    fn seats(&self, stay: Stay) -> &AtomicUsize {
        match stay {
            Stay::Movable => &self.movable,
            Stay::Settled => &self.settled,
        }
    }

    fn load(&self) -> Load {
        Load {
            busy: f64::from_bits(self.busy.load(Relaxed)),
            movable: self.movable.load(Relaxed),
            settled: self.settled.load(Relaxed),
            fresh: self.fresh.load(Relaxed),
        }
    }

    /// Notes what it had to do in the nanoseconds that have passed.
    fn look(&self, passed: u64) {
        let worked = nanos(self.runtime.metrics().worker_total_busy_duration(0));
        let share = worked.saturating_sub(self.worked.swap(worked, Relaxed)) as f64 / passed as f64;
        let before = f64::from_bits(self.busy.load(Relaxed));
        let busy = if passed > nanos(STALE) { share } else { f64::midpoint(before, share) };
        self.busy.store(busy.to_bits(), Relaxed);
        self.fresh.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::Pin, task::Poll};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::Member;

    /// Answers every byte with the number of the thread that it is on, until it is told to close.
    async fn number(mut stream: TcpStream, seat: Seat, mut member: Member) {
        loop {
            let closing = poll_fn(|cx| if member.poll_closing(cx) { Poll::Ready(()) } else { Poll::Pending });
            tokio::select! {
                byte = stream.read_u8() => if byte.is_err() { return },
                () = closing => return,
            }
            tokio::task::yield_now().await;
            let number = u8::try_from(Workers::current()).expect("few");
            stream.write_all(&[number]).await.expect("open");
            if let Some(seat) = seat.elsewhere(Instant::now()) {
                member.moved();
                return seat.serve(stream, |stream, seat| boxed(stream, seat, member));
            }
        }
    }

    fn boxed(stream: TcpStream, seat: Seat, member: Member) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(number(stream, seat, member))
    }

    async fn serving(workers: &Workers, stay: Stay) -> (SocketAddr, Connections) {
        let listener = crate::listen(([127, 0, 0, 1], 0).into()).await.expect("free");
        let (address, connections) = (listener.local_addr().expect("bound"), Connections::new());
        let members = connections.clone();
        let accepting = workers
            .accept(listener, connections.clone(), stay, move |stream, _, seat| number(stream, seat, members.join()));
        tokio::spawn(accepting.expect("a listener"));
        (address, connections)
    }

    async fn ask(client: &mut TcpStream) -> usize {
        client.write_all(b"?").await.expect("open");
        client.read_u8().await.expect("an answer").into()
    }

    #[tokio::test]
    async fn settled_connections_are_spread_over_the_threads_and_stay_there() {
        let workers = Workers::start(2).expect("threads");
        let (address, _) = serving(&workers, Stay::Settled).await;
        let (mut clients, mut served) = (Vec::new(), [0; 3]);
        for _ in 0..6 {
            let mut client = TcpStream::connect(address).await.expect("listening");
            let first = ask(&mut client).await;
            assert_eq!([ask(&mut client).await, ask(&mut client).await], [first; 2]);
            served[first] += 1;
            clients.push(client);
        }
        assert_eq!(served, [0, 3, 3]);
    }

    #[tokio::test]
    async fn a_connection_that_is_to_leave_goes_on_at_another_thread() {
        let workers = Workers::start(2).expect("threads");
        let (address, connections) = serving(&workers, Stay::Movable).await;
        let mut client = TcpStream::connect(address).await.expect("listening");
        let crew = &workers.crew;
        let mut own = ask(&mut client).await;
        let mut moved = 0;
        // However often the loads are looked at meanwhile, which takes the order back.
        while moved < 5 {
            let [here, there] = [&crew.workers[own - 1], &crew.workers[2 - own]];
            here.to.store(2 - own, Relaxed);
            here.leave.store(1, Relaxed);
            ask(&mut client).await;
            let now = ask(&mut client).await;
            moved += usize::from(now != own);
            own = now;
            // The seat it had is free as soon as its task has ended.
            while here.movable.load(Relaxed) + there.movable.load(Relaxed) != 1 {
                tokio::task::yield_now().await;
            }
        }
        // Told to the task that it has now.
        connections.close();
        connections.closed().await;
        assert!(client.read_u8().await.is_err(), "closed");
    }

    #[tokio::test]
    async fn threads_end_with_the_last_handle_whoever_has_a_seat() {
        let workers = Workers::start(2).expect("threads");
        let (address, _) = serving(&workers, Stay::Movable).await;
        let mut client = TcpStream::connect(address).await.expect("listening");
        ask(&mut client).await;
        drop(workers);
        assert!(client.read_u8().await.is_err(), "the connection ends with its thread");
    }
}
