//! An open loop whose requests leave when they are due, to a few microseconds.
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

/// Runs `load`, which has a rate, over HTTP/1.1 to its end.
pub(crate) async fn run(load: Load, address: SocketAddr) -> Result<Figures> {
    let mut figures = tokio::task::spawn_blocking(move || drive(load, &[address])).await??;
    figures.pop().context("one address has one way")
}

/// As `run`, with one more request past the proxy, to `without`, for every few of `load`. What the requests through the
/// proxy took, and the others.
pub(crate) async fn beside(load: Load, proxy: SocketAddr, without: SocketAddr) -> Result<[Figures; 2]> {
    let figures = tokio::task::spawn_blocking(move || drive(load, &[proxy, without])).await??;
    figures.try_into().ok().context("two addresses have two ways")
}

fn drive(load: Load, addresses: &[SocketAddr]) -> Result<Vec<Figures>> {
    let rate = load.rate.context("an open loop has a rate")?;
    let request = request(load, addresses[0]);
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
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

    let through = (rate * load.duration.as_secs_f64()) as usize;
    let (total, rate, turns) = match ways.len() {
        1 => (through, rate, 1),
        _ => (through + through / THROUGH, rate * (THROUGH + 1) as f64 / THROUGH as f64, THROUGH + 1),
    };
    let due = |number: usize| Duration::from_secs_f64(number as f64 / rate);
    // The last of every few turns is the last way's, all others are the first's.
    let way = |number: usize, ways: usize| if number % turns == turns - 1 { ways - 1 } else { 0 };
    let mut events = Vec::with_capacity(64);
    let (started, mut next, mut answered) = (Instant::now(), 0, 0);
    while answered < total {
        let all = ways.len();
        while next < total
            && due(next) <= started.elapsed()
            && let Way { connections, free, .. } = &mut ways[way(next, all)]
            && let Some(number) = free.pop_front()
        {
            let connection = &mut connections[number];
            connection.due = due(next);
            connection.stream.write_all(&request)?;
            next += 1;
        }
        let may_send = next < total && !ways[way(next, all)].free.is_empty();
        let wait = if may_send { due(next).saturating_sub(started.elapsed()) } else { PATIENCE };
        let ready = poll(&mut [PollFd::new(&epoll, PollFlags::IN)], Some(&Timespec::try_from(wait)?))?;
        ensure!(ready > 0 || may_send, "{} of {total} answers are missing", total - answered);
        if ready == 0 {
            continue;
        }
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), Some(&Timespec::default()))?;
        for event in &events {
            let token = event.data.u64() as usize;
            let (way, number) = (&mut ways[token % all], token / all);
            let connection = &mut way.connections[number];
            if connection.read(load.body)? {
                way.taken.push(started.elapsed() - connection.due);
                way.free.push_back(number);
                answered += 1;
            }
        }
    }
    let time = started.elapsed();
    Ok(ways.into_iter().map(|way| Figures::new(way.taken, time)).collect())
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
