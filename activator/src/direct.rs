//! The short way for plain requests (see `wire`): the same lookup, statistics, time limits and throttler as on the
//! long one, without taking the request apart.
//!
//! While a request waits for a pod it is its rewritten head and the state of its connection's task, and no buffer. The
//! first request that is not plain, or whose revision is not known (yet), hands its connection, from that request's
//! first byte on, to `Handler::handle`. What both do must stay the same; `tests/` runs its HTTP/1.1 cases through both.

mod exchange;
mod head;

use std::{future::Future, net::SocketAddr, pin::Pin, sync::Arc};

use net::{Connections, Http, Member, Prefixed, Seat};
use tokio::net::TcpStream;
use wire::{Client, Next};

use crate::{handler::Handler, revisions};

/// The short way of a process.
pub(crate) struct Direct {
    handler: Arc<Handler>,
    http: Http,
}

/// Whose connection it is, and what it belongs to.
struct Guest {
    peer: SocketAddr,
    member: Member,
    connections: Connections,
}

// === impl Direct ===

impl Direct {
    pub(crate) fn new(handler: Arc<Handler>) -> Arc<Self> {
        Arc::new(Self { handler, http: Http::new() })
    }

    /// Serves one connection to its end, at this seat or, after some request, at another.
    pub(crate) fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        seat: Seat,
        connections: Connections,
    ) -> impl Future<Output = ()> + Send {
        let guest = Guest { peer, member: connections.join(), connections };
        self.serve_at(seat, stream, guest)
    }

    async fn serve_at(self: Arc<Self>, seat: Seat, stream: TcpStream, guest: Guest) {
        let Guest { peer, member, connections } = guest;
        let mut client = Client::new(stream, member, revisions::DEFAULT_LIMITS);
        let address = peer.ip().to_canonical().to_string();
        let mut out = Vec::new();
        loop {
            // What is encrypted on the way to pods is taken apart.
            let handler = self.handler.takes_plain().then_some(&*self.handler);
            match client.next(|input| head::request(input, peer, &address, handler, &mut out)).await {
                Next::Plain(plain, asked) => {
                    let Some(ended) = self.exchange(&mut client, plain, asked, &mut out).await else { return };
                    if client.is_between_requests()
                        && let Some(seat) = seat.elsewhere(ended)
                    {
                        let (stream, member, _) = client.into_parts();
                        return self.move_to(seat, stream, Guest { peer, member, connections });
                    }
                }
                Next::Closed => return,
                Next::Other => break,
            }
        }
        let (stream, member, read) = client.into_parts();
        self.hand_over(seat.settle(), stream, read, Guest { peer, member, connections });
    }

    fn move_to(self: Arc<Self>, seat: Seat, stream: TcpStream, mut guest: Guest) {
        guest.member.moved();
        // The same future within itself.
        let again =
            |stream, seat| -> Pin<Box<dyn Future<Output = ()> + Send>> { Box::pin(self.serve_at(seat, stream, guest)) };
        seat.serve(stream, again);
    }

    /// All that is left to do for a connection, as a task of its own: those that stay here do not carry the room for it.
    fn hand_over(self: Arc<Self>, seat: Seat, client: TcpStream, read: Vec<u8>, guest: Guest) {
        seat.serve(client, async move |client, seat| {
            let Guest { peer, member, connections } = guest;
            let handler = self.handler.clone();
            let handle = move |request, peer| handler.clone().handle(request, peer, false);
            self.http.serve(Prefixed::new(read, client), peer, &connections, handle).await;
            drop((member, seat));
        });
    }
}
