//! The environment of a process, as upstream's programs read theirs.

mod prometheus;

use std::collections::BTreeMap;

pub use self::prometheus::{METRICS_ENDPOINT, METRICS_PORT, Scraped};
use crate::tls::{TlsSettings, Which};

/// A set of environment variables.
pub type Environment = BTreeMap<String, String>;

/// The variables of a TLS listener, in the order of [`TlsSettings::parse`].
pub type TlsNames = [&'static str; 4];

/// Variables that make no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    #[error("{name} has the value {value:?}, which is not {expected}: correct it, or leave it out for the default")]
    Invalid { name: &'static str, value: String, expected: &'static str },
    /// The first of them asks for the second.
    #[error("{0} is set and {1} is not: set both or neither")]
    Alone(&'static str, &'static str),
}

impl Mistake {
    pub fn invalid(name: &'static str, value: &str, expected: &'static str) -> Self {
        Self::Invalid { name, value: value.to_owned(), expected }
    }
}

/// What a variable says, if it says anything.
pub fn set<'a>(env: &'a Environment, name: &str) -> Option<&'a str> {
    env.get(name).map(String::as_str).filter(|text| !text.is_empty())
}

/// What a TLS listener offers.
///
/// # Errors
/// The first variable that makes no sense.
pub fn tls(env: &Environment, names: TlsNames) -> Result<TlsSettings, Mistake> {
    let values = names.map(|name| set(env, name).unwrap_or(""));
    TlsSettings::parse(values[0], values[1], values[2], values[3]).map_err(|mistake| {
        let index = match mistake.which {
            Which::Min => 0,
            Which::Max => 1,
            Which::Suites => 2,
            Which::Curves => 3,
        };
        Mistake::invalid(names[index], values[index], mistake.expected)
    })
}

/// A whole number as Go's programs write it: `0x10`, `0o20`, `020` and `0b10000` are sixteen, as is `1_6`.
pub fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        Some(two) if two.starts_with('0') => (8, &lower[1..]),
        _ => (10, &*lower),
    };
    let odd = digits.starts_with(['+', '-']) || digits.ends_with('_') || digits.contains("__");
    if odd || radix == 10 && digits.starts_with('_') {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{}", digits.replace('_', "")), radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_gos() {
        for odd in ["", "-", "+", "0x", "1.5", "1__0", "_1", "1_", "--1", "+-1", "0x-1", "09", "many"] {
            assert_eq!(integer(odd), None, "{odd}");
        }
        let numbers = ["9", "07", "0", "0b11", "0x20", "+0X_20", "1_000", "-0o17", "-9223372036854775808"];
        assert_eq!(numbers.map(integer), [9, 7, 0, 3, 32, 32, 1000, -15, i64::MIN].map(Some));
    }
}
