//! Why the node agent cannot start or do what it was asked to.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Namespaces were asked for and the kernel refuses them.
    #[error("cannot make a network namespace: {0}; run as root, or choose the loopback network")]
    Privilege(io::Error),
    /// Another program, probably another installation, has the node's address.
    #[error(
        "address {address} is already on interface {interface}: another installation runs here; stop it, or choose \
         another pod network"
    )]
    AddressTaken { address: Ipv4Addr, interface: String },
    #[error("network set-up failed ({step}): {source}")]
    Netlink { step: String, source: rtnetlink::Error },
    #[error("no free pod address in {0}: delete pods, or choose a larger pod network")]
    Exhausted(String),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("cannot start the thread of a pod: {0}")]
    Thread(io::Error),
    #[error("the thread of the pod has ended")]
    ThreadGone,
}

/// Why logs cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LogError {
    #[error("pods {pod:?} not found")]
    NoPod { pod: String },
    #[error("container {container} is not valid for pod {pod}")]
    NoContainer { pod: String, container: String },
    #[error("container {container:?} in pod {pod:?} is waiting to start: {reason}")]
    NotStarted { pod: String, container: String, reason: String },
    #[error("previous terminated container {container:?} in pod {pod:?} not found")]
    NoPrevious { pod: String, container: String },
}

impl Error {
    pub(crate) fn netlink(step: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
        let step = step.into();
        move |source| Error::Netlink { step, source }
    }

    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { path, source }
    }
}
