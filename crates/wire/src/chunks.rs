//! Finding the end of a chunked body without taking it apart: its bytes are passed on as they come.
//!
//! Only what RFC 9112 allows passes: line ends are CR LF, sizes are hexadecimal digits and nothing before them, and
//! fit 63 bits. Anything else is refused, since two readers that disagree about a chunk's end are an attack.

/// How long the lines of sizes, extensions and trailers may be together between two pieces of data.
const MAX_LINES: u32 = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Digits of a size; how many so far.
    Size {
        size: u64,
        digits: u8,
    },
    Extension {
        size: u64,
    },
    SizeEnd {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataEnd,
    DataEndLine,
    /// At the start of a trailer line.
    Trailer,
    TrailerLine,
    TrailerLineEnd,
    LastLineEnd,
    Done,
}

/// Where in a chunked body the bytes seen so far end.
#[derive(Debug, Clone)]
pub struct Chunks {
    state: State,
    lines: u32,
}

/// What bytes of a chunked body are.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    Data(&'a [u8]),
    /// The end of the data.
    Last,
    /// Of the trailers and the line that ends them.
    Trailers(&'a [u8]),
}

/// The bytes are not a chunked body.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid chunked encoding")]
pub struct Invalid;

// === impl Chunks ===

impl Default for Chunks {
    fn default() -> Self {
        Self { state: State::Size { size: 0, digits: 0 }, lines: 0 }
    }
}

impl Chunks {
    /// Goes on through `bytes`; returns how many belong to the body (all of them unless it ends within).
    ///
    /// # Errors
    /// At the first byte that cannot be.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<usize, Invalid> {
        self.take_apart(bytes, |_| {})
    }

    /// The same, showing what the bytes are.
    ///
    /// # Errors
    /// See `scan`.
    pub fn take_apart<'a>(&mut self, bytes: &'a [u8], mut show: impl FnMut(Part<'a>)) -> Result<usize, Invalid> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            if let State::Data { left } = self.state {
                let step = left.min((bytes.len() - at) as u64);
                show(Part::Data(&bytes[at..at + step as usize]));
                at += step as usize;
                self.lines = 0;
                self.state = if step == left { State::DataEnd } else { State::Data { left: left - step } };
                continue;
            }
            self.lines += 1;
            if self.lines > MAX_LINES {
                return Err(Invalid);
            }
            let in_trailers = self.is_in_trailers();
            self.state = self.state.next(bytes[at])?;
            if in_trailers {
                show(Part::Trailers(&bytes[at..=at]));
            } else if self.state == State::Trailer {
                show(Part::Last);
            }
            at += 1;
        }
        Ok(at)
    }

    /// True once no more data can come.
    pub fn is_in_trailers(&self) -> bool {
        use State as S;
        matches!(self.state, S::Trailer | S::TrailerLine | S::TrailerLineEnd | S::LastLineEnd | S::Done)
    }

    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// True between two chunks, where one more could be inserted.
    pub fn is_between(&self) -> bool {
        self.state == State::Size { size: 0, digits: 0 }
    }
}

// === impl State ===

impl State {
    fn next(self, byte: u8) -> Result<Self, Invalid> {
        Ok(match (self, byte) {
            (Self::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                let digit = (byte as char).to_digit(16).map_or(0, u64::from);
                let grown = size.checked_mul(16).filter(|size| *size <= i64::MAX as u64 - 15).ok_or(Invalid)?;
                // Leading zeros change nothing, but nobody needs many.
                if digits >= 32 {
                    return Err(Invalid);
                }
                Self::Size { size: grown + digit, digits: digits + 1 }
            }
            (Self::Size { digits: 0, .. }, _) => return Err(Invalid),
            (Self::Size { size, .. } | Self::Extension { size }, b'\r') => Self::SizeEnd { size },
            (Self::Size { size, .. }, b';' | b' ' | b'\t') => Self::Extension { size },
            (Self::Extension { size }, _) if byte != b'\n' && byte != 0 => Self::Extension { size },
            (Self::SizeEnd { size: 0 }, b'\n') => Self::Trailer,
            (Self::SizeEnd { size }, b'\n') => Self::Data { left: size },
            (Self::DataEnd, b'\r') => Self::DataEndLine,
            (Self::DataEndLine, b'\n') => Self::Size { size: 0, digits: 0 },
            (Self::Trailer, b'\r') => Self::LastLineEnd,
            (Self::LastLineEnd, b'\n') => Self::Done,
            (Self::TrailerLine, b'\r') => Self::TrailerLineEnd,
            (Self::TrailerLineEnd, b'\n') => Self::Trailer,
            (Self::Trailer | Self::TrailerLine, _) if byte != b'\n' && byte != 0 => Self::TrailerLine,
            _ => return Err(Invalid),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_found_however_the_bytes_are_cut() {
        let body = b"4\r\nWiki\r\n6;a=b\r\npedia \r\n0\r\nX-Sum: 1\r\n\r\nHTTP/1.1";
        let length = body.len() - "HTTP/1.1".len();
        for cut in 0..body.len() {
            let mut chunks = Chunks::default();
            let first = chunks.scan(&body[..cut]).expect("valid");
            assert_eq!(first, cut.min(length));
            assert_eq!(
                first + chunks.scan(&body[first.max(cut.min(length))..]).expect("valid"),
                length,
                "cut at {cut}"
            );
            assert!(chunks.is_done());
        }
    }

    #[test]
    fn shapes_that_readers_disagree_about_are_refused() {
        for body in [
            "\r\n",
            " 4\r\n",
            "+4\r\n",
            "-1\r\n",
            "0x4\r\n",
            "4\n",
            "4\rX",
            "4\r\nWikiX",
            "4\r\nWiki\n",
            "0\r\n\n",
            "8000000000000000\r\n",
            "ffffffffffffffffff\r\n",
            "4;a\nb\r\n",
            "0\r\nA: b\n\r\n",
            "g\r\n",
        ] {
            assert_eq!(Chunks::default().scan(body.as_bytes()), Err(Invalid), "{body:?}");
        }
        let endless = format!("4;{}", "a".repeat(1 << 17));
        assert_eq!(Chunks::default().scan(endless.as_bytes()), Err(Invalid));
    }
}
