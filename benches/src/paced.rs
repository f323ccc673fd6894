//! An open loop whose requests leave when they are due, to a few microseconds.
//!
//! Sleeping tasks wake on whole milliseconds: at 10,000 requests per second ten of them leave together, and what is
//! measured is how long a burst of ten takes. Here one thread waits for answers and for the next request at once,
//! with the kernel's finest clock. Latency counts from when a request was due, so a client that is late, or has no
//! free connection, makes its answer late as well.

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

/// How long the last answers may take.
const PATIENCE: Duration = Duration::from_secs(10);

struct Connection {
    stream: TcpStream,
    /// When the request under way was due.
    due: Duration,
    answer: Vec<u8>,
}

/// Runs `load`, which has a rate, over HTTP/1.1 to its end.
pub(crate) async fn run(load: Load, address: SocketAddr) -> Result<Figures> {
    tokio::task::spawn_blocking(move || drive(load, address)).await?
}

fn drive(load: Load, address: SocketAddr) -> Result<Figures> {
    let rate = load.rate.context("an open loop has a rate")?;
    let request = request(load, address);
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut connections = Vec::new();
    for number in 0..load.connections {
        let mut connection = Connection::open(address)?;
        connection.stream.write_all(&request)?;
        while !connection.read(load.body)? {}
        connection.stream.set_nonblocking(true)?;
        epoll::add(&epoll, &connection.stream, epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN)?;
        connections.push(connection);
    }

    let total = (rate * load.duration.as_secs_f64()) as usize;
    let due = |number: usize| Duration::from_secs_f64(number as f64 / rate);
    let mut free: VecDeque<usize> = (0..connections.len()).collect();
    let mut events = Vec::with_capacity(64);
    let mut taken = Vec::with_capacity(total);
    let (started, mut next) = (Instant::now(), 0);
    while taken.len() < total {
        while next < total
            && due(next) <= started.elapsed()
            && let Some(number) = free.pop_front()
        {
            let connection = &mut connections[number];
            connection.due = due(next);
            connection.stream.write_all(&request)?;
            next += 1;
        }
        let may_send = next < total && !free.is_empty();
        let wait = if may_send { due(next).saturating_sub(started.elapsed()) } else { PATIENCE };
        let ready = poll(&mut [PollFd::new(&epoll, PollFlags::IN)], Some(&Timespec::try_from(wait)?))?;
        ensure!(ready > 0 || may_send, "{} of {total} answers are missing", total - taken.len());
        if ready == 0 {
            continue;
        }
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), Some(&Timespec::default()))?;
        for event in &events {
            let number = event.data.u64() as usize;
            let connection = &mut connections[number];
            if connection.read(load.body)? {
                taken.push(started.elapsed() - connection.due);
                free.push_back(number);
            }
        }
    }
    Ok(Figures::new(taken, started.elapsed()))
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
