//! What requests and responses have in common: names and values of headers.

pub(crate) fn is(name: &str, expected: &str) -> bool {
    name.eq_ignore_ascii_case(expected)
}

/// The way Go writes names, as some programs expect: `X-Request-Id`.
pub fn write_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    let mut first = true;
    out.extend(name.bytes().map(|byte| {
        let cased = if first { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() };
        first = byte == b'-';
        cased
    }));
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

pub(crate) fn has_token(list: &[u8], token: &str) -> bool {
    list.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

pub(crate) fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}
