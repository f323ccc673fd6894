//! The short way for plain requests (see `wire`): the same lookup, statistics, time limits and throttler as on the
//! long one, without taking the request apart.
//!
//! While a request waits for a pod it is its rewritten head and the state of its connection's task, and no buffer. The
//! first request that is not plain, or whose revision is not known (yet), hands its connection, from that request's
//! first byte on, to `Handler::handle`. What both do must stay the same; `tests/` runs its HTTP/1.1 cases through both.

mod exchange;
mod head;

use std::{net::SocketAddr, sync::Arc};

use net::{Connections, Http, Prefixed};
use tokio::net::TcpStream;
use wire::{Client, Next};

use crate::{handler::Handler, revisions};

/// The short way of a process.
pub(crate) struct Direct {
    handler: Arc<Handler>,
    http: Http,
}

// === impl Direct ===

impl Direct {
    pub(crate) fn new(handler: Arc<Handler>) -> Arc<Self> {
        Arc::new(Self { handler, http: Http::new() })
    }

    /// Serves one connection to its end.
    pub(crate) async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, connections: Connections) {
        let mut client = Client::new(stream, connections.join(), revisions::DEFAULT_LIMITS);
        let address = peer.ip().to_canonical().to_string();
        let mut out = Vec::new();
        loop {
            // What is encrypted on the way to pods is taken apart.
            let handler = self.handler.takes_plain().then_some(&*self.handler);
            match client.next(|input| head::request(input, peer, &address, handler, &mut out)).await {
                Next::Plain(plain, asked) => {
                    if !self.exchange(&mut client, plain, asked, &mut out).await {
                        return;
                    }
                }
                Next::Closed => return,
                Next::Other => break,
            }
        }
        drop(out);
        let (stream, member, read) = client.into_parts();
        // Apart, so that connections that stay here do not carry the room for it.
        Box::pin(self.hand_over(read, stream, peer, &connections)).await;
        drop(member);
    }

    async fn hand_over(&self, read: Vec<u8>, client: TcpStream, peer: SocketAddr, connections: &Connections) {
        let handler = self.handler.clone();
        let handle = move |request, peer| handler.clone().handle(request, peer, false);
        self.http.serve(Prefixed::new(read, client), peer, connections, handle).await;
    }
}
