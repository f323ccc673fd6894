//! Characters of a request's target that the standard wants encoded.
//!
//! Programs behind upstream's proxies get `/search?q="a"<b>` when clients send it; hyper's parser refuses it, and cuts a
//! target off at `#`. So these characters are encoded before hyper sees them: what a program decodes is the same. Only
//! the first line of a head is changed, and only where it is certain that a head begins: at the start of a connection,
//! and behind a request that has no body and asks for no upgrade.

/// Where in a connection's input the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// Before the first space of a head.
    Method,
    Target,
    /// Where nothing is to be changed.
    Unknown,
}

// === impl Line ===

impl Line {
    /// Goes on through `bytes`; what they have to become, if they cannot stay as they are.
    pub(crate) fn encode(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut start = 0;
        if *self == Self::Method {
            match bytes.iter().position(|byte| matches!(byte, b' ' | b'\n')) {
                Some(at) if bytes[at] == b' ' => (*self, start) = (Self::Target, at + 1),
                Some(_) => *self = Self::Unknown,
                None => {}
            }
        }
        if *self != Self::Target {
            return None;
        }
        let end = bytes[start..].iter().position(|byte| matches!(byte, b' ' | b'\n')).map(|at| start + at);
        if end.is_some() {
            *self = Self::Unknown;
        }
        let target = &bytes[start..end.unwrap_or(bytes.len())];
        if !target.iter().any(|byte| is_encoded(*byte)) {
            return None;
        }
        let mut changed = bytes[..start].to_vec();
        for byte in target {
            if is_encoded(*byte) {
                changed.extend_from_slice(format!("%{byte:02X}").as_bytes());
            } else {
                changed.push(*byte);
            }
        }
        changed.extend_from_slice(&bytes[start + target.len()..]);
        Some(changed)
    }
}

fn is_encoded(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'`' | b'#' | b'{' | b'}') || !byte.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of `input` in pieces of `step` bytes.
    fn encoded(input: &str, step: usize) -> String {
        let mut line = Line::Method;
        let pieces = input.as_bytes().chunks(step);
        let all = pieces.flat_map(|piece| line.encode(piece).unwrap_or_else(|| piece.to_vec())).collect();
        String::from_utf8(all).expect("text")
    }

    #[test]
    fn only_the_target_of_the_first_line_is_changed() {
        let rest = " HTTP/1.1\r\nX-A: \"<é>\"\r\n\r\n<\"body\">";
        for (target, expected) in [
            ("/", "/"),
            ("/a?b=%22c", "/a?b=%22c"),
            ("/a\"<b>?c=\"<d>\"&e", "/a%22%3Cb%3E?c=%22%3Cd%3E%22&e"),
            ("/é#{x}", "/%C3%A9%23%7Bx%7D"),
        ] {
            for step in 1..40 {
                assert_eq!(encoded(&format!("GET {target}{rest}"), step), format!("GET {expected}{rest}"), "{step}");
            }
        }
        for untouched in ["G\"T / HTTP/1.1\r\n", "\r\nGET /\" HTTP/1.1\r\n", "GET\n /\"", "GET / HTTP/1.1\"<\r\n"] {
            assert_eq!(encoded(untouched, 7), untouched);
        }
    }
}
