//! Which addresses and ports are free. Round robin: an address comes back as late as possible, since others may still
//! hold connections to, or endpoints of, the pod that had it.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use crate::Error;
use crate::options::Cidr;

#[derive(Debug)]
pub(super) struct Addresses {
    cidr: Cidr,
    next: u32,
    used: HashSet<u32>,
}

#[derive(Debug)]
pub(super) struct Ports {
    next: u16,
    used: HashSet<u16>,
}

/// Below what the kernel gives to outgoing connections by default.
const PORTS: std::ops::Range<u16> = 18_000..32_000;

// === impl Addresses ===

impl Addresses {
    /// All of `cidr` except `node`.
    pub(super) fn new(cidr: Cidr, node: Ipv4Addr) -> Self {
        Self { cidr, next: cidr.hosts().0 + 1, used: HashSet::from([u32::from(node)]) }
    }

    pub(super) fn take(&mut self) -> Result<Ipv4Addr, Error> {
        let (first, last) = self.cidr.hosts();
        for _ in first..=last {
            let candidate = self.next.clamp(first, last);
            self.next = if candidate == last { first } else { candidate + 1 };
            if self.used.insert(candidate) {
                return Ok(Ipv4Addr::from(candidate));
            }
        }
        Err(Error::Exhausted(self.cidr.to_string()))
    }

    pub(super) fn release(&mut self, address: Ipv4Addr) {
        self.used.remove(&u32::from(address));
    }
}

// === impl Ports ===

impl Default for Ports {
    fn default() -> Self {
        // Two agents on one machine begin at different places and rarely meet; binding decides.
        let offset = u16::try_from(std::process::id() % u32::from(PORTS.end - PORTS.start)).unwrap_or(0);
        Self { next: PORTS.start + offset, used: HashSet::new() }
    }
}

impl Ports {
    pub(super) fn take(&mut self) -> Option<u16> {
        for _ in PORTS {
            let port = self.next;
            self.next = if port + 1 == PORTS.end { PORTS.start } else { port + 1 };
            let free = || TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).is_ok();
            if !self.used.contains(&port) && free() {
                self.used.insert(port);
                return Some(port);
            }
        }
        None
    }

    pub(super) fn release(&mut self, port: u16) {
        self.used.remove(&port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_last_and_run_out() {
        let node = Ipv4Addr::new(10, 9, 0, 1);
        let mut addresses = Addresses::new("10.9.0.0/29".parse().unwrap(), node);
        let taken: Vec<_> = (0..5).map(|_| addresses.take().unwrap()).collect();
        assert_eq!(taken[0], Ipv4Addr::new(10, 9, 0, 2));
        assert!(!taken.contains(&node));
        assert!(addresses.take().is_err(), "six hosts, one of them the node");
        addresses.release(taken[3]);
        assert_eq!(addresses.take().unwrap(), taken[3]);
    }

    #[test]
    fn a_port_is_given_once() {
        let mut ports = Ports::default();
        let first = ports.take().unwrap();
        let second = ports.take().unwrap();
        assert_ne!(first, second);
    }
}
