//! The body of an answer on its way to the client.
//!
//! Bytes pass as they come. A chunk that is not here to its end is announced with what is here of it, so that the body
//! can be ended between any two pieces: that is how a time limit gets to say why it stops.

use std::io::Write as _;

use crate::{Chunks, Framing, Part};

/// How far the body has got.
pub(crate) enum Body {
    Length(u64),
    Chunked {
        chunks: Chunks,
        /// The program is in the middle of a chunk, and the client at the end of one.
        split: bool,
    },
    /// Ends with the connection; the client gets chunks.
    Close,
}

/// How much of a piece belongs to the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) bytes: usize,
    /// Without what frames them.
    pub(crate) data: usize,
}

// === impl Body ===

impl Body {
    pub(crate) fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked { chunks: Chunks::default(), split: false },
            Framing::Close => Self::Close,
        }
    }

    /// What of `piece` belongs to the body, and what to write for it after what is in `out`; `None` if it cannot be
    /// right.
    pub(crate) fn pass<'a>(&mut self, piece: &'a [u8], out: &'a mut Vec<u8>) -> Option<(Taken, [&'a [u8]; 3])> {
        match self {
            Self::Length(left) => {
                let step = (*left).min(piece.len() as u64) as usize;
                *left -= step as u64;
                Some((Taken { bytes: step, data: step }, [out, &piece[..step], &[]]))
            }
            Self::Chunked { chunks, split } => {
                let (mut after, mut data) = (chunks.clone(), 0);
                let bytes = after
                    .take_apart(piece, |part| {
                        if let Part::Data(part) = part {
                            data += part.len();
                        }
                    })
                    .ok()?;
                let taken = Taken { bytes, data };
                let at_boundary = after.is_between() || after.is_done();
                if at_boundary && !*split {
                    *chunks = after;
                    return Some((taken, [out, &piece[..bytes], &[]]));
                }
                chunks
                    .take_apart(piece, |part| match part {
                        Part::Data(data) => {
                            let _ = write!(out, "{:x}\r\n", data.len());
                            out.extend_from_slice(data);
                            out.extend_from_slice(b"\r\n");
                        }
                        Part::Last => out.extend_from_slice(b"0\r\n"),
                        Part::Trailers(bytes) => out.extend_from_slice(bytes),
                    })
                    .ok()?;
                *split = !at_boundary;
                Some((taken, [out, &[], &[]]))
            }
            Self::Close if piece.is_empty() => Some((Taken { bytes: 0, data: 0 }, [out, &[], &[]])),
            Self::Close => {
                let _ = write!(out, "{:x}\r\n", piece.len());
                Some((Taken { bytes: piece.len(), data: piece.len() }, [out, piece, b"\r\n"]))
            }
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked { chunks, .. } => chunks.is_done(),
            Self::Close => false,
        }
    }

    /// What to write when a time limit cuts the body off: the message, and the end where there can be one. Within an
    /// announced length the message has to fit, and the connection breaks after it.
    pub(crate) fn appended(&self, message: &str) -> Option<String> {
        match self {
            Self::Length(left) => (*left >= message.len() as u64).then(|| message.to_owned()),
            Self::Chunked { chunks, .. } if chunks.is_in_trailers() => None,
            _ => Some(format!("{:x}\r\n{message}\r\n0\r\n\r\n", message.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the client gets for pieces of at most `step` bytes, and the body's state after them.
    fn passed(framing: Framing, bytes: &[u8], step: usize) -> (Vec<u8>, Body) {
        let (mut body, mut all, mut data) = (Body::new(framing), Vec::new(), 0);
        for piece in bytes.chunks(step) {
            let mut out = Vec::new();
            let (taken, parts) = body.pass(piece, &mut out).expect("valid");
            all.extend(parts.concat());
            data += taken.data;
            if taken.bytes < piece.len() {
                break;
            }
        }
        let said = match framing {
            Framing::Chunked if !body.is_done() => data,
            Framing::Chunked => decoded(&all).0.len(),
            _ => bytes.len(),
        };
        assert_eq!(data, said, "what is counted is the data");
        (all, body)
    }

    fn decoded(bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut data, mut trailers) = (Vec::new(), Vec::new());
        let mut chunks = Chunks::default();
        let taken = chunks.take_apart(bytes, |part| match part {
            Part::Data(bytes) => data.extend_from_slice(bytes),
            Part::Last => {}
            Part::Trailers(bytes) => trailers.extend_from_slice(bytes),
        });
        assert_eq!((taken, chunks.is_done()), (Ok(bytes.len()), true));
        (data, trailers)
    }

    #[test]
    fn chunks_arrive_whole_however_they_come() {
        let sent = b"4\r\nWiki\r\n10;a=b\r\n0123456789abcdef\r\n0\r\nX-Sum: 1\r\n\r\n";
        for step in 1..=sent.len() {
            let (got, body) = passed(Framing::Chunked, sent, step);
            assert!(body.is_done(), "step {step}");
            assert_eq!(decoded(&got), (b"Wiki0123456789abcdef".to_vec(), b"X-Sum: 1\r\n\r\n".to_vec()), "step {step}");
        }
        assert_eq!(passed(Framing::Chunked, sent, sent.len()).0, sent, "not touched where it is not cut");
    }

    #[test]
    fn a_body_can_be_ended_with_a_message_wherever_it_is() {
        let sent = b"4\r\nWiki\r\n10\r\n0123456789abcdef\r\n";
        for cut in 0..=sent.len() {
            let (mut got, body) = passed(Framing::Chunked, &sent[..cut], 7);
            got.extend(body.appended("late").expect("before the trailers").into_bytes());
            let (data, _) = decoded(&got);
            let data = String::from_utf8(data).expect("text");
            assert!("Wiki0123456789abcdef".starts_with(data.strip_suffix("late").expect("said")), "{data}");
        }
        let (got, body) = passed(Framing::Close, b"abc", 2);
        assert_eq!(decoded(&[got, body.appended("late").expect("any time").into_bytes()].concat()).0, b"abclate");
        let (_, body) = passed(Framing::Length(8), b"abc", 2);
        assert_eq!((body.appended("later"), body.appended("too late")), (Some("later".to_owned()), None));
        let (_, body) = passed(Framing::Chunked, b"0\r\nX", 9);
        assert_eq!(body.appended("late"), None);
    }
}
