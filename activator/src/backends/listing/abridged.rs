//! Watched Endpoints without their subsets where these are long, which go past the reading of objects.
//!
//! A watch sends an object as a line of JSON. In long lines the list of subsets, which is what comes last, is replaced by a
//! number under which it is kept until the object that has the number asks for it. Every line that is not as expected goes
//! on as it came.

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    io::BufRead,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Request;
use http_body::Frame;
use kube::client::{Body, Client};
use parking_lot::Mutex;
use serde::Deserialize;

use super::{Groups, text::Text};

/// Bytes from which on a line is long; that is what some sixty pods take.
const LONG: usize = 16 << 10;
const SUBSETS: &[u8] = br#""subsets":["#;
const END: &[u8] = b"}}\n";

/// The texts that are on their way, and those of which the next ones differ. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Texts {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The last of each object, as long as anybody keeps it.
    last: HashMap<Key, Weak<Text>>,
    /// How many of these there may be until those that nobody keeps are forgotten.
    sweep_at: usize,
    /// In the order of their numbers.
    sent: VecDeque<(u64, Arc<Text>)>,
    number: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
struct Key {
    #[serde(default)]
    namespace: String,
    name: String,
}

/// The beginning of a line, with something else instead of the subsets.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: Kind,
    object: Object,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
enum Kind {
    Added,
    Modified,
    Deleted,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Object {
    metadata: Key,
}

/// The answer to a watch, or to something else, which stays as it is.
struct Abridged<B> {
    inner: B,
    texts: Option<Texts>,
    /// What has come of a line.
    line: Vec<u8>,
    /// What the last long line took.
    expected: usize,
    is_over: bool,
}

// === impl Texts ===

impl Texts {
    /// A client whose watches of Endpoints leave out long texts.
    pub(crate) fn client(&self, client: &Client) -> Client {
        let (inner, texts) = (client.clone(), self.clone());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (inner, texts) = (inner.clone(), texts.clone());
            async move {
                let query = request.uri().query().unwrap_or_default();
                let is_watch = query.split('&').any(|parameter| parameter == "watch=true");
                let answer = inner.send(request).await?;
                Ok::<_, kube::Error>(answer.map(|body| Abridged::new(body, is_watch.then_some(texts))))
            }
        });
        Client::new(service, client.default_namespace()).with_valid_until(*client.valid_until())
    }

    /// The text that was sent under this number, once.
    pub(super) fn take(&self, number: u64) -> Groups {
        let mut state = self.state.lock();
        // Objects are read in the order in which they come. If one could not be read nobody asks for its text.
        while let Some((next, text)) = state.sent.pop_front() {
            if next == number {
                return Groups::Text(text);
            }
        }
        tracing::error!(number, "the addresses that belong to an object are not there; please report this");
        Groups::default()
    }

    /// What is sent instead of a line.
    fn abridge(&self, line: &Bytes) -> Option<Vec<u8>> {
        let at = line.windows(SUBSETS.len()).position(|window| window == SUBSETS)?;
        let list = at + SUBSETS.len() - 1..line.strip_suffix(END)?.len();
        let with = |text: &str| [&line[..at], text.as_bytes(), END].concat();
        let Event { kind, object: Object { metadata: key } } =
            serde_json::from_slice(&with("\"subsets\":null")).ok()?;
        let mut state = self.state.lock();
        match kind {
            Kind::Added | Kind::Modified => {}
            Kind::Deleted => {
                state.last.remove(&key);
                return Some(with("\"subsets\":null"));
            }
            Kind::Other => return None,
        }
        let before = state.last.get(&key).and_then(Weak::upgrade);
        let text = Arc::new(Text::read(line.slice(list), before.as_ref())?);
        state.number += 1;
        let number = state.number;
        state.keep(key, &text);
        state.sent.push_back((number, text));
        Some(with(&format!("\"postrider.text\":{number}")))
    }
}

// === impl State ===

impl State {
    fn keep(&mut self, key: Key, text: &Arc<Text>) {
        if self.last.len() >= self.sweep_at {
            self.last.retain(|_, text| text.strong_count() > 0);
            self.sweep_at = 2 * self.last.len() + 8;
        }
        self.last.insert(key, Arc::downgrade(text));
    }
}

// === impl Abridged ===

impl<B> Abridged<B> {
    fn new(inner: B, texts: Option<Texts>) -> Self {
        Self { inner, texts, line: Vec::new(), expected: 0, is_over: false }
    }

    /// What can be sent now that this came; whole lines.
    fn feed(&mut self, data: Bytes) -> Option<Bytes> {
        let has_ended = data.ends_with(b"\n");
        if self.texts.is_none() || self.line.is_empty() && has_ended && data.len() < LONG {
            return Some(data);
        }
        let (mut rest, mut lines) = (&data[..], Vec::new());
        while !rest.is_empty() {
            if self.line.capacity() < self.expected && self.line.len() + rest.len() >= LONG {
                self.line.reserve_exact(self.expected - self.line.len());
            }
            rest.read_until(b'\n', &mut self.line).expect("memory can be read");
            if self.line.ends_with(b"\n") {
                self.finish(&mut lines);
            }
        }
        (!lines.is_empty()).then(|| lines.into())
    }

    fn finish(&mut self, lines: &mut Vec<u8>) {
        if self.line.len() < LONG {
            return lines.append(&mut self.line);
        }
        let mut line = std::mem::take(&mut self.line);
        // The next one may be a little longer.
        self.expected = line.len() + line.len() / 16;
        if line.capacity() > self.expected + LONG {
            line.shrink_to(self.expected);
        }
        let line = Bytes::from(line);
        match self.texts.as_ref().and_then(|texts| texts.abridge(&line)) {
            Some(short) => lines.extend(short),
            None => lines.extend_from_slice(&line),
        }
    }
}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Abridged<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        while !self.is_over {
            let Some(frame) = ready!(Pin::new(&mut self.inner).poll_frame(cx)) else {
                self.is_over = true;
                let line = std::mem::take(&mut self.line);
                return Poll::Ready((!line.is_empty()).then(|| Ok(Frame::data(line.into()))));
            };
            match frame?.into_data() {
                Ok(data) => {
                    if let Some(lines) = self.feed(data) {
                        return Poll::Ready(Some(Ok(Frame::data(lines))));
                    }
                }
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        Poll::Ready(None)
    }
}
