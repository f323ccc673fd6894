//! The head of a response: from the bytes of one connection to those of the other, with no map of headers between.

use std::mem::MaybeUninit;

use crate::fields::{digits, has_token, is, write_field};

/// As many as the full implementation takes.
const MAX_HEADERS: usize = 1000;

/// How a response ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked,
    /// With its connection.
    Close,
}

/// A response's head that was rewritten for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub head: usize,
    pub status: u16,
    pub framing: Framing,
    /// The backend's connection may carry another request afterwards.
    pub reusable: bool,
    /// It says that the request got no further.
    pub unsent: bool,
}

/// The backend's answer is not HTTP/1 as it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed HTTP response: {0}")]
pub struct Malformed(&'static str);

/// Rewrites the response's head that `input` starts with into `out`; `None` if it is not complete. `date` is for
/// responses without one.
///
/// # Errors
/// What makes it unusable.
pub fn response(input: &[u8], bodiless: bool, date: &[u8], out: &mut Vec<u8>) -> Result<Option<Answer>, Malformed> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    // A header that is none is left out, as upstream does: its program worked there.
    let mut config = httparse::ParserConfig::default();
    config.ignore_invalid_headers_in_responses(true);
    let head = match config.parse_response_with_uninit_headers(&mut parsed, input, &mut fields) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Malformed("its head is invalid")),
    };
    let status = parsed.code.ok_or(Malformed("no status"))?;
    let (mut length, mut chunked, mut dated, mut unsent) = (None, false, false, false);
    let mut reusable = parsed.version == Some(1);
    let mut connection: Option<&[u8]> = None;
    for field in &*parsed.headers {
        match field.name.len() {
            4 => dated |= field.name.eq_ignore_ascii_case("date"),
            8 if status == 502 => unsent |= is(field.name, "k-unsent"),
            10 if field.name.eq_ignore_ascii_case("connection") => {
                reusable = !has_token(field.value, "close") && (reusable || has_token(field.value, "keep-alive"));
                connection = Some(field.value);
            }
            14 if field.name.eq_ignore_ascii_case("content-length") => {
                let value = digits(field.value).ok_or(Malformed("invalid Content-Length"))?;
                if length.is_some_and(|known| known != value) {
                    return Err(Malformed("several Content-Lengths"));
                }
                length = Some(value);
            }
            17 if field.name.eq_ignore_ascii_case("transfer-encoding") => {
                if chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Malformed("unsupported Transfer-Encoding"));
                }
                chunked = true;
            }
            _ => {}
        }
    }
    let empty = bodiless || status == 204 || status == 304 || (100..200).contains(&status);
    let framing = match (empty, chunked, length) {
        (true, ..) => Framing::Length(0),
        (_, true, _) => Framing::Chunked,
        (_, _, Some(length)) => Framing::Length(length),
        _ => Framing::Close,
    };
    reusable &= framing != Framing::Close;

    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(&[b'0' + (status / 100) as u8, b'0' + (status / 10 % 10) as u8, b'0' + (status % 10) as u8]);
    out.push(b' ');
    out.extend_from_slice(parsed.reason.unwrap_or("").as_bytes());
    out.extend_from_slice(b"\r\n");
    for field in &*parsed.headers {
        let named = || connection.is_some_and(|list| has_token(list, field.name)) && !is(field.name, "trailer");
        let dropped = match field.name.len() {
            2 => is(field.name, "te"),
            7 => is(field.name, "upgrade"),
            10 => is(field.name, "connection") || is(field.name, "keep-alive"),
            // Both would be an ambiguity, and a length is none where the body is chunked.
            14 => chunked && is(field.name, "content-length"),
            16 => is(field.name, "proxy-connection"),
            17 => is(field.name, "transfer-encoding"),
            18 => is(field.name, "proxy-authenticate"),
            19 => is(field.name, "proxy-authorization"),
            _ => false,
        };
        if !dropped && !named() {
            write_field(out, field.name, field.value);
        }
    }
    if status >= 200 {
        if !dated {
            write_field(out, "Date", date);
        }
        if framing == Framing::Chunked || framing == Framing::Close {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
    Ok(Some(Answer { head, status, framing, reusable, unsent }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(input: &str) -> Result<(Answer, String), Malformed> {
        let mut out = Vec::new();
        let answer = response(input.as_bytes(), false, b"now", &mut out)?.expect("complete");
        Ok((answer, String::from_utf8(out).expect("text")))
    }

    #[test]
    fn a_response_loses_what_belongs_to_its_hop() {
        let (seen, out) = answer(
            "HTTP/1.1 200 Fine\r\ncontent-length: 5\r\nconnection: X-Own\r\nx-own: 1\r\nkeep-alive: 5\r\nx-kept: 1\r\n\r\n",
        )
        .expect("valid");
        assert_eq!((seen.framing, seen.reusable), (Framing::Length(5), true));
        assert_eq!(out, "HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nX-Kept: 1\r\nDate: now\r\n\r\n");
    }

    #[test]
    fn the_end_of_a_response_is_what_the_standard_says() {
        let framing = |head: &str| answer(&format!("{head}\r\n\r\n")).map(|(seen, _)| (seen.framing, seen.reusable));
        assert_eq!(
            framing("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3"),
            Ok((Framing::Chunked, true))
        );
        assert_eq!(framing("HTTP/1.1 200 OK"), Ok((Framing::Close, false)));
        assert_eq!(framing("HTTP/1.1 204 No Content\r\nContent-Length: 3"), Ok((Framing::Length(0), true)));
        assert_eq!(framing("HTTP/1.0 200 OK\r\nContent-Length: 3"), Ok((Framing::Length(3), false)));
        assert_eq!(
            framing("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close"),
            Ok((Framing::Length(3), false))
        );
        for bad in ["Content-Length: 3\r\nContent-Length: 4", "Content-Length: -1", "Transfer-Encoding: gzip, chunked"]
        {
            assert!(framing(&format!("HTTP/1.1 200 OK\r\n{bad}")).is_err(), "{bad}");
        }
    }
}
