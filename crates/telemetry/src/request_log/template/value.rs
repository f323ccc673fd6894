//! What templates compute with.

use std::fmt;

use super::format::float;

#[derive(Debug, Clone, PartialEq)]
pub(in crate::request_log) enum Value {
    Nil,
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    List(Vec<Value>),
    Map(Map),
    /// Something with fields; the text is what it prints as.
    Object(Vec<String>, String),
    /// What a map has at a key that it has not.
    Missing,
}

/// Lists of texts by name: headers, or the parameters of a query.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::request_log) struct Map {
    /// Sorted by name.
    pub(in crate::request_log) entries: Vec<(String, Value)>,
    /// Whose names are compared as headers are.
    pub(in crate::request_log) headers: bool,
}

// === impl Map ===

impl Map {
    /// The names of headers become what Go makes of them.
    pub(in crate::request_log) fn new(pairs: impl Iterator<Item = (String, String)>, headers: bool) -> Self {
        let mut entries: Vec<(String, Value)> = Vec::new();
        for (name, value) in pairs {
            let name = if headers { canonical(&name) } else { name };
            let value = Value::Text(value);
            match entries.iter_mut().find(|(known, _)| *known == name) {
                Some((_, Value::List(list))) => list.push(value),
                _ => entries.push((name, Value::List(vec![value]))),
            }
        }
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        Self { entries, headers }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.entries.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    fn method(&self, name: &str, arguments: &[Value]) -> Option<Value> {
        let [Value::Text(key)] = arguments else { return None };
        let key = if self.headers { canonical(key) } else { key.clone() };
        let list = self.get(&key);
        match (name, list) {
            ("Get", Some(Value::List(list))) => list.first().cloned(),
            ("Get", _) => Some(Value::Text(String::new())),
            ("Values", _) if self.headers => Some(list.cloned().unwrap_or(Value::List(Vec::new()))),
            ("Has", _) if !self.headers => Some(Value::Bool(list.is_some())),
            _ => None,
        }
    }
}

/// A header's name as Go writes it: `X-Request-Id`.
fn canonical(name: &str) -> String {
    let mut first = true;
    let cased = |byte: u8| {
        let cased = if first { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() };
        first = byte == b'-';
        cased as char
    };
    if name.is_ascii() { name.bytes().map(cased).collect() } else { name.to_owned() }
}

// === impl Value ===

impl Value {
    pub(super) fn root() -> Self {
        Self::Object(Vec::new(), "{}".to_owned())
    }

    pub(super) fn is_root(&self) -> bool {
        matches!(self, Self::Object(path, _) if path.is_empty())
    }

    pub(super) fn of(number: usize) -> Self {
        Self::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }

    /// A field of it, or a method with `arguments`.
    pub(in crate::request_log) fn field(
        &self,
        name: &str,
        arguments: &[Self],
        lookup: &super::Lookup<'_>,
    ) -> Result<Self, String> {
        match self {
            Self::Object(path, _) => {
                let mut path = path.clone();
                path.push(name.to_owned());
                lookup(&path, arguments).ok_or_else(|| format!("can't evaluate field .{}", path.join(".")))
            }
            Self::Map(map) => {
                if let Some(value) = map.method(name, arguments) {
                    return Ok(value);
                }
                if !arguments.is_empty() {
                    return Err(format!("{name} has arguments but cannot be invoked as function"));
                }
                Ok(map.get(name).cloned().unwrap_or(Self::Missing))
            }
            Self::Nil => Err(format!("nil pointer evaluating .{name}")),
            _ => Err(format!("can't evaluate field {name} of {}", self.kind())),
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Nil | Self::Missing => false,
            Self::Text(text) => !text.is_empty(),
            Self::Integer(integer) => *integer != 0,
            Self::Float(float) => *float != 0.0,
            Self::Bool(bool) => *bool,
            Self::List(list) => !list.is_empty(),
            Self::Map(map) => !map.entries.is_empty(),
            Self::Object(..) => true,
        }
    }

    /// What Go calls its type.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Nil | Self::Missing => "<nil>",
            Self::Text(_) => "string",
            Self::Integer(_) => "int",
            Self::Float(_) => "float64",
            Self::Bool(_) => "bool",
            Self::List(_) => "[]string",
            Self::Map(Map { headers: true, .. }) => "http.Header",
            Self::Map(_) => "url.Values",
            Self::Object(..) => "struct",
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("<nil>"),
            Self::Missing => f.write_str("<no value>"),
            Self::Text(text) | Self::Object(_, text) => f.write_str(text),
            Self::Integer(integer) => write!(f, "{integer}"),
            Self::Float(value) => f.write_str(&float(*value)),
            Self::Bool(bool) => write!(f, "{bool}"),
            Self::List(values) => {
                f.write_str("[")?;
                for (at, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if at == 0 { "" } else { " " })?;
                }
                f.write_str("]")
            }
            Self::Map(map) => {
                f.write_str("map[")?;
                for (at, (name, value)) in map.entries.iter().enumerate() {
                    write!(f, "{}{name}:{value}", if at == 0 { "" } else { " " })?;
                }
                f.write_str("]")
            }
        }
    }
}
