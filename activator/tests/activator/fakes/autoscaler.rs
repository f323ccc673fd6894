//! An autoscaler that only listens.

use std::{net::SocketAddr, time::Duration};

use futures::StreamExt;
use proto::{Message as _, WireStatMessage, WireStatMessages};
use tokio::{
    net::TcpListener,
    sync::{broadcast, mpsc},
};
use tokio_tungstenite::tungstenite::Message;

pub(crate) struct Autoscaler {
    address: SocketAddr,
    messages: mpsc::UnboundedReceiver<WireStatMessage>,
    disconnect: broadcast::Sender<()>,
}

impl Autoscaler {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (sender, messages) = mpsc::unbounded_channel();
        let (disconnect, _) = broadcast::channel(1);
        let leaving = disconnect.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (sender, mut leave) = (sender.clone(), leaving.subscribe());
                tokio::spawn(async move {
                    let mut socket = tokio_tungstenite::accept_async(stream).await.expect("a handshake");
                    loop {
                        tokio::select! {
                            _ = leave.recv() => return,
                            frame = socket.next() => match frame {
                                Some(Ok(Message::Binary(bytes))) => {
                                    let batch = WireStatMessages::decode(bytes).expect("stats");
                                    batch.messages.into_iter().for_each(|message| drop(sender.send(message)));
                                }
                                Some(Ok(_)) => {}
                                _ => return,
                            },
                        }
                    }
                });
            }
        });
        Self { address, messages, disconnect }
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    pub(crate) async fn next(&mut self) -> WireStatMessage {
        let next = tokio::time::timeout(Duration::from_secs(60), self.messages.recv());
        next.await.expect("a message in time").expect("the listener runs")
    }

    pub(crate) fn disconnect(&self) {
        let _ = self.disconnect.send(());
    }
}
