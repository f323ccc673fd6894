//! Where the processes of one pod are made: a thread that lives in the pod's namespaces.
//!
//! Namespaces belong to threads, so a thread that entered the pod's network namespace gives it to every process it
//! starts, without a helper program and without a fork that does more than exec. The thread also stands for the
//! agent's life: a child is told to die with the thread that made it, so no pod outlives the agent, however it ends.
//! Per container, the thread enters a fresh mount namespace, builds the container's root there and leaves it after
//! the exec; the container's process is what keeps that namespace.

mod child;
mod isolate;
mod launch;
mod rootfs;

use std::fs::File;
use std::io;
use std::sync::mpsc;

use tokio::sync::oneshot;

pub(crate) use child::{Child, Exit};
pub(crate) use launch::{Launch, StartError};
pub(crate) use rootfs::{HostMounts, Mount, Root};

use crate::Error;

type Job = Box<dyn FnOnce(&mut Inside) + Send>;

/// The handle of a pod's thread. Dropping the last one ends the thread, which kills what it started.
#[derive(Debug, Clone)]
pub(crate) struct Sandbox {
    jobs: mpsc::Sender<Job>,
}

/// What a job sees inside the thread.
pub(crate) struct Inside {
    pub(crate) runtime: tokio::runtime::Handle,
    /// The host's mount namespace, to return to.
    host_mounts: Option<File>,
}

/// What of the host the thread leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// Network, host name, IPC; a mount namespace per container.
    Pod,
    /// The host's network, but a mount namespace per container.
    HostNetwork,
    /// Nothing: what an ordinary user may do.
    None,
}

// === impl Sandbox ===

impl Sandbox {
    /// Starts the thread; returns when it is in its namespaces, together with the value of `first`, which ran there.
    pub(crate) async fn start<T: Send + 'static>(
        isolation: Isolation,
        first: impl FnOnce(&mut Inside) -> io::Result<T> + Send + 'static,
    ) -> Result<(Self, T), Error> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (reply, started) = oneshot::channel();
        let runtime = tokio::runtime::Handle::current();
        let work = move || {
            let entered = enter(isolation, runtime).and_then(|mut inside| {
                let value = first(&mut inside)?;
                Ok((inside, value))
            });
            match entered {
                Ok((mut inside, value)) => {
                    if reply.send(Ok(value)).is_ok() {
                        while let Ok(job) = queue.recv() {
                            job(&mut inside);
                        }
                    }
                }
                Err(error) => drop(reply.send(Err(error))),
            }
        };
        std::thread::Builder::new().name("pod".to_owned()).stack_size(256 * 1024).spawn(work).map_err(Error::Thread)?;
        let value = started.await.map_err(|_| Error::ThreadGone)?.map_err(Error::Privilege)?;
        Ok((Self { jobs }, value))
    }

    /// Runs `job` in the thread and returns its value.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Inside) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, done) = oneshot::channel();
        let job: Job = Box::new(move |inside| drop(reply.send(job(inside))));
        self.jobs.send(job).map_err(|_| Error::ThreadGone)?;
        done.await.map_err(|_| Error::ThreadGone)
    }
}

fn enter(isolation: Isolation, runtime: tokio::runtime::Handle) -> io::Result<Inside> {
    let host_mounts = match isolation {
        Isolation::None => None,
        Isolation::Pod | Isolation::HostNetwork => {
            let mounts = File::open("/proc/thread-self/ns/mnt")?;
            isolate::leave_host(isolation == Isolation::Pod)?;
            Some(mounts)
        }
    };
    Ok(Inside { runtime, host_mounts })
}

#[cfg(test)]
mod tests;
