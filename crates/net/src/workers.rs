//! Threads that serve connections, each with a runtime of its own.
//!
//! A proxy's request has two sides, the client's connection and the backend's. On a runtime of several threads they
//! may be driven by two of them, and every event of one side is then a thread woken by another, which takes longer
//! than everything else that a proxy does. Here a connection is given to a thread once, when it is accepted, and all
//! that is done for it happens there: what waits for a thread is only what happens on another one.

use std::{
    cell::Cell,
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Handle},
    sync::oneshot,
};

use crate::{Connections, accept::accept_with};

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// Some threads. Clones are the same ones; they end with the last of them.
#[derive(Clone)]
pub struct Workers {
    all: Arc<[Worker]>,
}

struct Worker {
    runtime: Handle,
    /// Connections given to it that have not ended.
    open: Arc<AtomicUsize>,
    /// Dropped, it ends the thread.
    _running: oneshot::Sender<()>,
}

/// One connection of a worker's count.
struct Open(Arc<AtomicUsize>);

// === impl Workers ===

impl Workers {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// If the kernel gives no more of them.
    pub fn start(count: usize) -> io::Result<Self> {
        let all = (1..=count.max(1)).map(Worker::start).collect::<io::Result<Vec<_>>>()?;
        Ok(Self { all: all.into() })
    }

    /// The number of the worker that runs this code, from 1; 0 on any other thread.
    pub fn current() -> usize {
        NUMBER.get()
    }

    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Accepts until `connections` are told to close. Every connection is served by the worker that has the fewest, as
    /// a task of its own, to the end of `each`'s future.
    ///
    /// # Errors
    /// If the listener cannot be given to a worker.
    pub fn accept<C, F>(
        &self,
        listener: TcpListener,
        connections: Connections,
        each: C,
    ) -> io::Result<impl Future<Output = ()> + use<C, F>>
    where
        C: Fn(TcpStream, SocketAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = listener.into_std()?;
        let all = Arc::downgrade(&self.all);
        let accepting = self.all[0].runtime.spawn(async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => {
                    accept_with(listener, connections, |stream, peer| give(&all, stream, peer, &each)).await
                }
                Err(error) => tracing::error!(%error, "cannot accept connections"),
            }
        });
        Ok(async move { drop(accepting.await) })
    }
}

/// Gives a connection to the worker with the fewest, which is this one where others have no fewer.
fn give<C, F>(all: &Weak<[Worker]>, stream: TcpStream, peer: SocketAddr, each: &C)
where
    C: Fn(TcpStream, SocketAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    // Gone is who would serve it.
    let Some(all) = all.upgrade() else { return };
    let Some((index, worker)) = all.iter().enumerate().min_by_key(|(_, worker)| worker.open.load(Relaxed)) else {
        return;
    };
    let open = Open::count(&worker.open);
    if index + 1 == Workers::current() {
        let served = each(stream, peer);
        tokio::spawn(async move {
            served.await;
            drop(open);
        });
        return;
    }
    let stream = match stream.into_std() {
        Ok(stream) => stream,
        Err(error) => return tracing::warn!(%peer, %error, "a connection was lost on its way to a thread"),
    };
    let each = each.clone();
    worker.runtime.spawn(async move {
        match TcpStream::from_std(stream) {
            Ok(stream) => each(stream, peer).await,
            Err(error) => tracing::warn!(%peer, %error, "a connection was lost on its way to a thread"),
        }
        drop(open);
    });
}

// === impl Worker ===

impl Worker {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (_running, ended) = oneshot::channel::<()>();
        let handle = runtime.handle().clone();
        std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            NUMBER.set(number);
            // Ends with an error, when nobody can give it work any more.
            let _ = runtime.block_on(ended);
        })?;
        Ok(Self { runtime: handle, open: Arc::default(), _running })
    }
}

// === impl Open ===

impl Open {
    fn count(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Relaxed);
        Self(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    #[tokio::test]
    async fn connections_are_spread_over_the_threads_and_stay_there() {
        let workers = Workers::start(2).expect("threads");
        let (listener, connections) =
            (crate::listen(([127, 0, 0, 1], 0).into()).await.expect("free"), Connections::new());
        let address = listener.local_addr().expect("bound");
        let members = connections.clone();
        let accepting = workers
            .accept(listener, connections.clone(), move |mut stream, _| {
                let member = members.join();
                async move {
                    while stream.read_u8().await.is_ok() {
                        tokio::task::yield_now().await;
                        let number = u8::try_from(Workers::current()).expect("few");
                        stream.write_all(&[number]).await.expect("open");
                    }
                    drop(member);
                }
            })
            .expect("a listener");
        let accepting = tokio::spawn(accepting);
        let mut clients = Vec::new();
        let mut served = [0; 3];
        for _ in 0..6 {
            let mut client = TcpStream::connect(address).await.expect("listening");
            let mut numbers = [0; 3];
            for number in &mut numbers {
                client.write_all(b"?").await.expect("open");
                *number = client.read_u8().await.expect("an answer");
            }
            assert!(numbers.iter().all(|number| *number == numbers[0]), "{numbers:?}");
            served[usize::from(numbers[0])] += 1;
            clients.push(client);
        }
        assert_eq!(served, [0, 3, 3]);
        connections.close();
        accepting.await.expect("no panic");
        drop(clients);
        connections.closed().await;
    }
}
