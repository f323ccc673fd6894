//! A request's body that can begin again elsewhere.
//!
//! A sidecar may take some of a body before it says that it could not pass the request on. What is sent is kept, up to
//! a bound, until it is known that somebody has the request. There is one reader at a time: one that begins anew ends
//! the one before.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use crate::{ConnectionError, Incoming};

/// How many bytes are kept of a body.
const MOST: usize = 64 << 10;

/// A reader of the body.
pub struct KeptBody<B = Incoming> {
    shared: Arc<Mutex<State<B>>>,
    turn: u32,
    /// How many of the pieces it has had.
    at: usize,
}

struct State<B> {
    body: B,
    /// Whose turn it is.
    turn: u32,
    /// What was taken of the body; nothing once that is too much, or nobody will ask for it.
    taken: Option<Vec<Piece>>,
    bytes: usize,
}

#[derive(Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

// === impl KeptBody ===

impl<B> KeptBody<B> {
    pub(crate) fn new(body: B) -> Self {
        let state = State { body, turn: 0, taken: Some(Vec::new()), bytes: 0 };
        Self { shared: Arc::new(Mutex::new(state)), turn: 0, at: 0 }
    }

    /// Who reads from the beginning, once it is told to begin.
    pub(crate) fn next(&self) -> Self {
        Self { shared: self.shared.clone(), turn: self.turn + 1, at: 0 }
    }

    /// It is this reader's turn. False if the beginning is not there any more.
    pub(crate) fn begin(&self) -> bool {
        let mut state = self.shared.lock();
        state.turn = self.turn;
        state.taken.is_some()
    }

    /// Nobody will begin again: nothing is kept from now on.
    pub(crate) fn forget(&self) {
        let mut state = self.shared.lock();
        // What the reader of the moment has had already is not for it.
        if self.turn > state.turn {
            state.taken = None;
        }
    }
}

impl<B: Body<Data = Bytes, Error = ConnectionError> + Unpin> Body for KeptBody<B> {
    type Data = Bytes;
    type Error = ConnectionError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ConnectionError>>> {
        let this = self.get_mut();
        let state = &mut *this.shared.lock();
        if state.turn != this.turn {
            return Poll::Ready(None);
        }
        if let Some(piece) = state.taken.as_ref().and_then(|taken| taken.get(this.at)) {
            this.at += 1;
            return Poll::Ready(Some(Ok(piece.clone().into_frame())));
        }
        let polled = ready!(Pin::new(&mut state.body).poll_frame(cx));
        if let Some(Ok(frame)) = &polled
            && let Some(taken) = &mut state.taken
        {
            state.bytes += frame.data_ref().map_or(0, Bytes::len);
            if state.bytes > MOST {
                state.taken = None;
            } else {
                taken.extend(Piece::of(frame));
                this.at += 1;
            }
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        let state = self.shared.lock();
        state.turn != self.turn || (state.left(self.at).is_empty() && state.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.shared.lock();
        let kept = state.left(self.at).iter().map(Piece::len).sum::<u64>();
        state.body.size_hint().exact().map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + kept))
    }
}

impl<B> fmt::Debug for KeptBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptBody({} bytes)", self.shared.lock().bytes)
    }
}

// === impl State ===

impl<B> State<B> {
    /// What is kept for a reader that has had so many pieces.
    fn left(&self, at: usize) -> &[Piece] {
        self.taken.as_deref().and_then(|taken| taken.get(at..)).unwrap_or_default()
    }
}

// === impl Piece ===

impl Piece {
    fn of(frame: &Frame<Bytes>) -> Option<Self> {
        let data = frame.data_ref().cloned().map(Self::Data);
        data.or_else(|| frame.trailers_ref().cloned().map(Self::Trailers))
    }

    fn into_frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(bytes) => Frame::data(bytes),
            Self::Trailers(map) => Frame::trailers(map),
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Data(bytes) => bytes.len() as u64,
            Self::Trailers(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures::FutureExt;
    use http_body_util::BodyExt;

    use super::*;

    /// Gives its pieces, and waits for ever after them unless it `ends`.
    struct Pieces {
        left: VecDeque<Bytes>,
        ends: bool,
    }

    impl Body for Pieces {
        type Data = Bytes;
        type Error = ConnectionError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, ConnectionError>>> {
            match self.left.pop_front() {
                Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                None if self.ends => Poll::Ready(None),
                None => Poll::Pending,
            }
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.left.iter().map(|bytes| bytes.len() as u64).sum())
        }
    }

    fn body(pieces: &[&'static [u8]], ends: bool) -> KeptBody<Pieces> {
        KeptBody::new(Pieces { left: pieces.iter().map(|piece| Bytes::from_static(piece)).collect(), ends })
    }

    fn frame(body: &mut KeptBody<Pieces>) -> Option<Bytes> {
        let frame = body.frame().now_or_never().expect("here already")?;
        Some(frame.expect("no error").into_data().expect("data"))
    }

    #[test]
    fn a_body_begins_again_and_ends_for_who_had_it_before() {
        let mut first = body(&[b"one", b"two", b"three"], true);
        assert_eq!(frame(&mut first).expect("a piece"), "one");
        let second = first.next();
        assert_eq!(frame(&mut first).expect("a piece"), "two");
        assert!(second.begin());
        assert_eq!(frame(&mut first), None);
        assert!(first.is_end_stream() && !second.is_end_stream());
        assert_eq!(second.size_hint().exact(), Some(11));
        let whole = second.collect().now_or_never().expect("here already").expect("no error").to_bytes();
        assert_eq!(whole, "onetwothree");
    }

    #[test]
    fn what_is_too_much_or_not_asked_for_is_not_kept() {
        static LARGE: [u8; MOST] = [0; MOST];
        let mut large = body(&[&LARGE, b"x"], true);
        let again = large.next();
        frame(&mut large);
        assert!(again.shared.lock().taken.is_some());
        frame(&mut large);
        assert!(!again.begin());

        let mut small = body(&[b"one", b"two"], false);
        frame(&mut small);
        let again = small.next();
        again.forget();
        assert_eq!(frame(&mut small).expect("goes on"), "two");
        assert!(small.frame().now_or_never().is_none());
        assert!(!again.begin());
        // One that has begun keeps what it has yet to read.
        let first = body(&[b"one"], true);
        let second = first.next();
        assert!(second.begin());
        second.forget();
        assert!(second.shared.lock().taken.is_some());
    }
}
