//! The encoding below the table: varints, lengths, and the few messages that are values in JSON.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::metadata;

#[derive(Clone, Copy, Debug)]
pub(super) struct Malformed;

/// What a field carries.
#[derive(Clone, Copy, Debug)]
pub(super) enum Payload<'a> {
    Integer(u64),
    Fixed(f64),
    Bytes(&'a [u8]),
}

/// The numbered fields of a message, in order.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

// === impl Payload ===

impl<'a> Payload<'a> {
    pub(super) fn bytes(&self) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed),
        }
    }

    /// Negative numbers are sent as their two's complement, whatever their width.
    pub(super) fn integer(&self) -> Result<i64, Malformed> {
        match self {
            Self::Integer(number) => Ok(number.cast_signed()),
            _ => Err(Malformed),
        }
    }

    pub(super) fn float(&self) -> Result<f64, Malformed> {
        match self {
            Self::Fixed(number) => Ok(*number),
            _ => Err(Malformed),
        }
    }
}

// === impl Fields ===

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first().ok_or(Malformed)?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed)
    }

    fn field(&mut self) -> Result<(u64, Payload<'a>), Malformed> {
        let tag = self.varint()?;
        let payload = match tag & 7 {
            0 => Payload::Integer(self.varint()?),
            1 => Payload::Fixed(f64::from_le_bytes(self.take(8)?.try_into().map_err(|_| Malformed)?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                Payload::Bytes(self.take(length)?)
            }
            5 => Payload::Fixed(f32::from_le_bytes(self.take(4)?.try_into().map_err(|_| Malformed)?).into()),
            _ => return Err(Malformed),
        };
        Ok((tag >> 3, payload))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Payload<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

pub(super) fn text(bytes: &[u8]) -> Result<String, Malformed> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed)
}

pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Many integers in one payload.
pub(super) fn packed(bytes: &[u8]) -> Result<Vec<i64>, Malformed> {
    let mut fields = Fields::new(bytes);
    let mut numbers = Vec::new();
    while !fields.rest.is_empty() {
        numbers.push(fields.varint()?.cast_signed());
    }
    Ok(numbers)
}

/// The string in one field of a message.
pub(super) fn inner_text(bytes: &[u8], number: u64) -> Result<String, Malformed> {
    let mut found = String::new();
    for entry in Fields::new(bytes) {
        match entry? {
            (this, payload) if this == number => found = text(payload.bytes()?)?,
            _ => {}
        }
    }
    Ok(found)
}

pub(super) fn integer_or_text(bytes: &[u8]) -> Result<Value, Malformed> {
    let (mut is_text, mut number, mut string) = (false, 0, String::new());
    for entry in Fields::new(bytes) {
        match entry? {
            (1, payload) => is_text = payload.integer()? == 1,
            (2, payload) => number = payload.integer()?,
            (3, payload) => string = text(payload.bytes()?)?,
            _ => {}
        }
    }
    Ok(if is_text { string.into() } else { number.into() })
}

/// Seconds and nanoseconds since 1970; nothing for Go's zero time.
pub(super) fn time(bytes: &[u8], micro: bool) -> Result<Value, Malformed> {
    let (mut seconds, mut nanoseconds) = (0, 0);
    for entry in Fields::new(bytes) {
        match entry? {
            (1, payload) => seconds = payload.integer()?,
            (2, payload) => nanoseconds = payload.integer()?,
            _ => {}
        }
    }
    if seconds == 0 && nanoseconds == 0 {
        return Ok(Value::Null);
    }
    let nanoseconds = i32::try_from(nanoseconds).map_err(|_| Malformed)?;
    let at = jiff::Timestamp::new(seconds, nanoseconds).map_err(|_| Malformed)?;
    Ok(if micro { at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string() } else { metadata::timestamp(at) }.into())
}
