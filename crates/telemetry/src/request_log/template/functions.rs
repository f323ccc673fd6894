//! The functions of templates.

use std::{cmp::Ordering, fmt::Write as _};

use super::{Value, format};

pub(super) const NAMES: [&str; 18] = [
    "and", "or", "not", "len", "index", "slice", "print", "printf", "println", "html", "js", "urlquery", "eq", "ne",
    "lt", "le", "gt", "ge",
];

/// Whatever but `and` and `or`, which do not evaluate all of their arguments.
pub(super) fn call(function: &str, values: &[Value]) -> Result<Value, String> {
    Ok(match (function, values) {
        ("js", values) => Value::Text(js(&escaped(values))),
        ("html", values) => Value::Text(html(&escaped(values))),
        ("urlquery", values) => Value::Text(urlquery(&escaped(values))),
        ("print", values) => Value::Text(print(values)),
        ("println", values) => {
            let texts: Vec<_> = values.iter().map(ToString::to_string).collect();
            Value::Text(texts.join(" ") + "\n")
        }
        ("printf", [Value::Text(format), rest @ ..]) => Value::Text(format::printf(format, rest)),
        ("len", [Value::Text(text)]) => Value::of(text.len()),
        ("len", [Value::List(list)]) => Value::of(list.len()),
        ("len", [Value::Map(map)]) => Value::of(map.entries.len()),
        ("index", [first, keys @ ..]) => keys.iter().try_fold(first.clone(), |value, key| index(&value, key))?,
        ("slice", [first, bounds @ ..]) => slice(first, bounds)?,
        ("not", [value]) => Value::Bool(!value.is_true()),
        ("eq", [first, others @ ..]) if !others.is_empty() => {
            let mut equal = false;
            for other in others {
                equal |= is_equal(first, other)?;
            }
            Value::Bool(equal)
        }
        ("ne", [first, second]) => Value::Bool(!is_equal(first, second)?),
        ("lt", [first, second]) => Value::Bool(order(first, second)?.is_lt()),
        ("le", [first, second]) => Value::Bool(order(first, second)?.is_le()),
        ("gt", [first, second]) => Value::Bool(order(first, second)?.is_gt()),
        ("ge", [first, second]) => Value::Bool(order(first, second)?.is_ge()),
        _ => {
            let kinds: Vec<_> = values.iter().map(Value::kind).collect();
            return Err(format!("{function} does not take ({})", kinds.join(", ")));
        }
    })
}

/// What is to be escaped, as one text.
fn escaped(values: &[Value]) -> String {
    match values {
        [Value::Text(text)] => text.clone(),
        values => print(values),
    }
}

/// Spaces stand between values of which none is a text.
fn print(values: &[Value]) -> String {
    let mut out = String::new();
    for (at, value) in values.iter().enumerate() {
        let is_text = |value: &Value| matches!(value, Value::Text(_));
        if at > 0 && !is_text(value) && !is_text(&values[at - 1]) {
            out.push(' ');
        }
        let _ = write!(out, "{value}");
    }
    out
}

fn index(value: &Value, key: &Value) -> Result<Value, String> {
    let out_of_range = |key: i64| format!("index out of range: {key}");
    match (value, key) {
        (Value::List(list), Value::Integer(at)) => {
            let item = usize::try_from(*at).ok().and_then(|at| list.get(at));
            item.cloned().ok_or_else(|| out_of_range(*at))
        }
        (Value::Text(text), Value::Integer(at)) => {
            let byte = usize::try_from(*at).ok().and_then(|at| text.as_bytes().get(at));
            byte.map(|byte| Value::Integer(i64::from(*byte))).ok_or_else(|| out_of_range(*at))
        }
        (Value::Map(map), Value::Text(name)) => Ok(map.get(name).cloned().unwrap_or(Value::List(Vec::new()))),
        _ => Err(format!("can't index {} with {}", value.kind(), key.kind())),
    }
}

fn slice(value: &Value, bounds: &[Value]) -> Result<Value, String> {
    let length = match value {
        Value::Text(text) => text.len(),
        Value::List(list) => list.len(),
        _ => return Err(format!("can't slice {}", value.kind())),
    };
    let bound = |at: usize, default: usize| match bounds.get(at) {
        None => Ok(default),
        Some(Value::Integer(bound)) => {
            let bound = usize::try_from(*bound).ok().filter(|bound| *bound <= length);
            bound.ok_or_else(|| format!("index out of range: {}", bounds[at]))
        }
        Some(other) => Err(format!("cannot index slice/array with type {}", other.kind())),
    };
    let (from, to) = (bound(0, 0)?, bound(1, length)?);
    if from > to || bounds.len() > 2 {
        return Err(format!("invalid slice index: {from} > {to}"));
    }
    Ok(match value {
        Value::Text(text) => Value::Text(String::from_utf8_lossy(&text.as_bytes()[from..to]).into_owned()),
        Value::List(list) => Value::List(list[from..to].to_vec()),
        _ => Value::Nil,
    })
}

fn is_equal(one: &Value, other: &Value) -> Result<bool, String> {
    use Value as V;
    match (one, other) {
        (V::Text(one), V::Text(other)) => Ok(one == other),
        (V::Integer(one), V::Integer(other)) => Ok(one == other),
        (V::Float(one), V::Float(other)) => Ok(one == other),
        (V::Bool(one), V::Bool(other)) => Ok(one == other),
        (V::Nil | V::Missing, other) | (other, V::Nil | V::Missing) => Ok(matches!(other, V::Nil | V::Missing)),
        (V::List(_) | V::Map(_), _) | (_, V::List(_) | V::Map(_)) => {
            Err(format!("non-comparable types {} and {}", one.kind(), other.kind()))
        }
        _ => Err("incompatible types for comparison".to_owned()),
    }
}

fn order(one: &Value, other: &Value) -> Result<Ordering, String> {
    let order = match (one, other) {
        (Value::Text(one), Value::Text(other)) => Some(one.cmp(other)),
        (Value::Integer(one), Value::Integer(other)) => Some(one.cmp(other)),
        (Value::Float(one), Value::Float(other)) => one.partial_cmp(other),
        (
            Value::Text(_) | Value::Integer(_) | Value::Float(_),
            Value::Text(_) | Value::Integer(_) | Value::Float(_),
        ) => {
            return Err("incompatible types for comparison".to_owned());
        }
        _ => return Err("invalid type for comparison".to_owned()),
    };
    // Nothing is in an order with NaN.
    order.ok_or_else(|| "not a number".to_owned())
}

/// Escapes for a JavaScript string, as Go does.
fn js(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("\\'"),
            '"' => out.push_str("\\\""),
            '<' | '>' | '&' | '=' => {
                let _ = write!(out, "\\u{:04X}", c as u32);
            }
            _ if format::is_printable(c) => out.push(c),
            _ => {
                let _ = write!(out, "\\u{:04X}", c as u32);
            }
        }
    }
    out
}

fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\0' => out.push('\u{fffd}'),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            _ => out.push(c),
        }
    }
    out
}

fn urlquery(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            b' ' => out.push('+'),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}
