//! The short way for plain requests (see `wire`), through the sidecar's chain: drain, time limits, statistics,
//! breaker.
//!
//! The first request that is not plain hands its connection, from that request's first byte on, to the full
//! implementation behind `Chain::handle`. What both do must stay the same; `tests/` runs its HTTP/1.1 cases through
//! both.

mod exchange;
mod head;
mod watch;

use std::{net::SocketAddr, sync::Arc};

use net::{Connections, Http, Prefixed};
use tokio::net::TcpStream;
use wire::{Backend, Client, Head, Next};

use crate::chain::Chain;

pub(crate) use self::head::request as parse_request;

/// The short way of a process.
pub(crate) struct Direct {
    chain: Arc<Chain>,
    program: Arc<Backend>,
    http: Http,
}

// === impl Direct ===

impl Direct {
    pub(crate) fn new(chain: Arc<Chain>, program: SocketAddr, max_idle: usize) -> Arc<Self> {
        Arc::new(Self { chain, program: Backend::new(program, max_idle), http: Http::new() })
    }

    /// Serves one connection to its end.
    pub(crate) async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, connections: Connections) {
        let mut client = Client::new(stream, connections.join(), self.chain.limits);
        let address = peer.ip().to_canonical().to_string();
        let observers = Some(&*self.chain.observers).filter(|observers| observers.any());
        let mut out = Vec::new();
        loop {
            let see = |head: &Head<'_>| observers.map(|observers| observers.see_plain(head, peer));
            match client.next(|input| head::request(input, &address, see, &mut out)).await {
                Next::Plain(plain, asked) => {
                    if !self.exchange(&mut client, plain, asked, &mut out).await {
                        return;
                    }
                }
                Next::Closed => return,
                Next::Other => break,
            }
        }
        let (stream, member, read) = client.into_parts();
        // Apart, so that connections that stay here do not carry the room for it.
        Box::pin(self.hand_over(read, stream, peer, &connections)).await;
        drop(member);
    }

    async fn hand_over(&self, read: Vec<u8>, client: TcpStream, peer: SocketAddr, connections: &Connections) {
        let chain = self.chain.clone();
        let handler = move |request, peer| chain.clone().handle(request, peer, false);
        self.http.serve(Prefixed::new(read, client), peer, connections, handler).await;
    }
}
