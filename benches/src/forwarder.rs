//! As little as a process between two others can do: one thread, each client's connection with one to the backend,
//! bytes read from one and written to the other, nothing looked at. What it adds is what the kernel and the machine
//! take for one more process on the way, and no proxy can be below it.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
};

use anyhow::Result;
use clap::Args;
use rustix::{buffer::spare_capacity, event::epoll};

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    to: SocketAddr,
}

/// The listener's; connections have a pair each, which differ in the last bit.
const LISTENER: u64 = 0;

pub(crate) fn run(options: &Options) -> Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let add = |stream: &TcpStream, token: u64| {
        epoll::add(&epoll, stream, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
    };
    let listener = TcpListener::bind(options.listen)?;
    epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
    let mut streams: HashMap<u64, TcpStream> = HashMap::new();
    let (mut next, mut events, mut buffer) = (2, Vec::with_capacity(256), vec![0; 32 << 10]);
    loop {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in &events {
            let token = event.data.u64();
            if token == LISTENER {
                let (client, backend) = (listener.accept()?.0, TcpStream::connect(options.to)?);
                for (stream, token) in [(client, next), (backend, next + 1)] {
                    stream.set_nodelay(true)?;
                    stream.set_nonblocking(true)?;
                    add(&stream, token)?;
                    streams.insert(token, stream);
                }
                next += 2;
                continue;
            }
            // Its other half may have ended a moment ago.
            let Some(mut from) = streams.get(&token) else { continue };
            let passed = match from.read(&mut buffer) {
                Ok(read) if read > 0 => streams.get(&(token ^ 1)).is_some_and(|to| write(to, &buffer[..read])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => true,
                _ => false,
            };
            if !passed {
                streams.remove(&token);
                streams.remove(&(token ^ 1));
            }
        }
    }
}

/// All of it; what is asked for here always fits into a socket.
fn write(mut to: &TcpStream, bytes: &[u8]) -> bool {
    to.write_all(bytes).is_ok()
}
