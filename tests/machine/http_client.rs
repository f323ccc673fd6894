//! A small HTTP client that names a host and connects to the gateway.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

#[derive(Debug, Clone)]
pub struct Client {
    gateway: SocketAddr,
    host: String,
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Client {
    pub fn new(gateway: SocketAddr, host: &str) -> Self {
        Self { gateway, host: host.to_owned() }
    }

    pub fn get(&self, path: &str) -> Answer {
        runtime().block_on(self.request(path)).unwrap_or_else(|error| panic!("GET {}{path}: {error}", self.host))
    }

    /// `count` requests at once, each on a connection of its own.
    pub fn burst(&self, path: &str, count: usize) -> Vec<Answer> {
        runtime().block_on(async {
            let all = (0..count).map(|_| self.request(path));
            let answers = futures::future::join_all(all).await;
            answers.into_iter().map(|answer| answer.expect("an answer")).collect()
        })
    }

    /// `count` requests, `lanes` at a time.
    pub fn many(&self, path: &str, count: usize, lanes: usize) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(count);
        while answers.len() < count {
            answers.extend(self.burst(path, lanes.min(count - answers.len())));
        }
        answers
    }

    /// Requests in `lanes` until `work` is done; returns all answers.
    pub fn during<T>(&self, path: &str, lanes: usize, work: impl FnOnce() -> T) -> (Vec<Answer>, T) {
        let stop = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..lanes)
            .map(|_| {
                let (client, stop, path) = (self.clone(), stop.clone(), path.to_owned());
                std::thread::spawn(move || {
                    let runtime = runtime();
                    let mut answers = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        answers.push(runtime.block_on(client.request(&path)).expect("an answer"));
                    }
                    answers
                })
            })
            .collect();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        let answers = threads.into_iter().flat_map(|thread| thread.join().expect("a lane")).collect();
        match result {
            Ok(value) => (answers, value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    async fn request(&self, path: &str) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(self.gateway).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = Request::get(path).header("host", &self.host).body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = String::from_utf8_lossy(&body.collect().await?.to_bytes()).into_owned();
        drop(sender);
        let _ = driver.await;
        Ok(Answer { status: head.status, headers: head.headers, body })
    }
}

/// Panics with the first answer that is not 200.
pub fn assert_all_ok(answers: &[Answer]) {
    let failed: Vec<_> = answers.iter().filter(|answer| answer.status != StatusCode::OK).collect();
    assert!(failed.is_empty(), "{} of {} failed, the first: {:?}", failed.len(), answers.len(), failed[0]);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
