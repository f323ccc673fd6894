//! An open loop whose requests leave when they are due, to a few microseconds; and a closed one in the same place.
//!
//! Sleeping tasks wake on whole milliseconds: at 10,000 requests per second ten of them leave together, and what is
//! measured is how long a burst of ten takes. Here one thread waits for answers and for the next request at once,
//! with the kernel's finest clock. Latency counts from when a request was due, so a client that is late, or has no
//! free connection, makes its answer late as well.
//!
//! What a proxy adds is a difference, and the two runs of a difference do not meet the same machine: without the
//! proxy there is more idle time, cores sleep deeper or less deep, and the same run takes 110 us or 240. So some
//! requests can go past the proxy, in the same run and from the same thread, and meet what the others meet.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    num::NonZeroU64,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    buffer::spare_capacity,
    event::{PollFd, PollFlags, Timespec, epoll, poll},
};

use crate::queue_proxy::load::{Figures, Load, request};

/// Where some requests go past the proxy: so many go through it for each of them.
const THROUGH: usize = 4;
/// How long the last answers may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections to one address, and what was measured over them.
struct Way {
    connections: Vec<Connection>,
    free: VecDeque<usize>,
    taken: Vec<Duration>,
}

struct Connection {
    stream: TcpStream,
    /// When the request under way was due.
    due: Duration,
    answer: Vec<u8>,
}

/// Connections to some addresses, driven by the thread that calls.
pub(crate) struct Pacer {
    epoll: OwnedFd,
    ways: Vec<Way>,
    load: Load,
    request: Vec<u8>,
}

// === impl Pacer ===

impl Pacer {
    /// Opens so many connections as `load` says to every address, and asks once over each of them.
    pub(crate) fn open(load: Load, addresses: &[SocketAddr]) -> Result<Self> {
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
        let request = request(load, *addresses.first().context("an address is needed")?);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut ways = Vec::new();
        for (way, address) in addresses.iter().enumerate() {
            let mut connections = Vec::new();
            for number in 0..load.connections {
                let mut connection = Connection::open(*address)?;
                connection.stream.write_all(&request)?;
                while !connection.read(load.body)? {}
                connection.stream.set_nonblocking(true)?;
                let token = epoll::EventData::new_u64((number * addresses.len() + way) as u64);
                epoll::add(&epoll, &connection.stream, token, epoll::EventFlags::IN)?;
                connections.push(connection);
            }
            ways.push(Way { free: (0..connections.len()).collect(), connections, taken: Vec::new() });
        }
        Ok(Self { epoll, ways, load, request })
    }

    /// Requests to the address of that number, `rate` in a second, until all are answered.
    pub(crate) fn run(&mut self, way: usize, rate: f64) -> Result<Figures> {
        self.drive(rate, &|_| way)?;
        Ok(self.figures(way))
    }

    /// As `run`, with one more request `past` it for every few. What the requests took, and the others.
    pub(crate) fn beside(&mut self, way: usize, past: usize, rate: f64) -> Result<[Figures; 2]> {
        // The last of every few turns is the other way's.
        let turn = |number: usize| if number % (THROUGH + 1) == THROUGH { past } else { way };
        self.drive(rate * (THROUGH + 1) as f64 / THROUGH as f64, &turn)?;
        Ok([self.figures(way), self.figures(past)])
    }

    /// As `run`, but over `connections` that each ask again as soon as they are answered.
    pub(crate) fn closed(&mut self, way: usize, connections: usize) -> Result<Figures> {
        let started = Instant::now();
        let all = self.ways.len();
        let mut events = Vec::with_capacity(64);
        let mut under_way = 0;
        for connection in &mut self.ways[way].connections[..connections] {
            connection.due = started.elapsed();
            connection.stream.write_all(&self.request)?;
            under_way += 1;
        }
        while under_way > 0 {
            events.clear();
            epoll::wait(&self.epoll, spare_capacity(&mut events), None)?;
            for event in &events {
                let token = event.data.u64() as usize;
                let (way, number) = (&mut self.ways[token % all], token / all);
                let connection = &mut way.connections[number];
                if connection.read(self.load.body)? {
                    let now = started.elapsed();
                    way.taken.push(now - connection.due);
                    if now < self.load.duration {
                        connection.due = now;
                        connection.stream.write_all(&self.request)?;
                    } else {
                        under_way -= 1;
                    }
                }
            }
        }
        Ok(self.figures(way))
    }

    fn figures(&mut self, way: usize) -> Figures {
        Figures::new(std::mem::take(&mut self.ways[way].taken), self.load.duration)
    }

    fn drive(&mut self, rate: f64, way: &dyn Fn(usize) -> usize) -> Result<()> {
        let total = (rate * self.load.duration.as_secs_f64()) as usize;
        let due = |number: usize| Duration::from_secs_f64(number as f64 / rate);
        let all = self.ways.len();
        let mut events = Vec::with_capacity(64);
        let (started, mut next, mut answered) = (Instant::now(), 0, 0);
        while answered < total {
            while next < total
                && due(next) <= started.elapsed()
                && let Way { connections, free, .. } = &mut self.ways[way(next)]
                && let Some(number) = free.pop_front()
            {
                let connection = &mut connections[number];
                connection.due = due(next);
                connection.stream.write_all(&self.request)?;
                next += 1;
            }
            let may_send = next < total && !self.ways[way(next)].free.is_empty();
            let wait = if may_send { due(next).saturating_sub(started.elapsed()) } else { PATIENCE };
            let ready = poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&Timespec::try_from(wait)?))?;
            ensure!(ready > 0 || may_send, "{} of {total} answers are missing", total - answered);
            if ready == 0 {
                continue;
            }
            events.clear();
            epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&Timespec::default()))?;
            for event in &events {
                let token = event.data.u64() as usize;
                let (way, number) = (&mut self.ways[token % all], token / all);
                let connection = &mut way.connections[number];
                if connection.read(self.load.body)? {
                    way.taken.push(started.elapsed() - connection.due);
                    way.free.push_back(number);
                    answered += 1;
                }
            }
        }
        Ok(())
    }
}

// === impl Connection ===

impl Connection {
    fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, due: Duration::ZERO, answer: Vec::with_capacity(4096) })
    }

    /// Reads once; true when the answer, with `body` bytes after its head, is complete.
    fn read(&mut self, body: usize) -> Result<bool> {
        let mut buffer = [0; 4096];
        let read = match self.stream.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            read => read?,
        };
        ensure!(read > 0, "the connection was closed instead of an answer");
        self.answer.extend_from_slice(&buffer[..read]);
        let Some(head) = self.answer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(false) };
        if self.answer.len() < head + 4 + body {
            return Ok(false);
        }
        ensure!(self.answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&self.answer[..head]));
        self.answer.clear();
        Ok(true)
    }
}
