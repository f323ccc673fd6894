//! Field numbers, names and types, read once from the list beside this file.

use std::collections::HashMap;
use std::sync::LazyLock;

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::parse(include_str!("messages.txt")));

#[derive(Debug)]
pub(super) enum Type {
    Text,
    Integer,
    Boolean,
    Float,
    Bytes,
    Quantity,
    IntegerOrText,
    Time,
    MicroTime,
    /// JSON inside of protobuf.
    Raw,
    /// A message that is a list of strings in JSON.
    Texts,
    Message(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arity {
    One,
    List,
    Map,
}

#[derive(Debug)]
pub(super) struct Field {
    number: u64,
    /// Empty: its fields are those of the object around it.
    pub(super) name: &'static str,
    pub(super) arity: Arity,
    pub(super) kind: Type,
    /// Zero is not the same as absent.
    pub(super) pointer: bool,
}

pub(super) struct Table {
    kinds: HashMap<(&'static str, &'static str), &'static str>,
    messages: HashMap<&'static str, Vec<Field>>,
}

// === impl Table ===

impl Table {
    pub(super) fn get() -> &'static Self {
        &TABLE
    }

    /// The message of a kind; some kinds go with every version.
    pub(super) fn message_of(&self, api_version: &str, kind: &str) -> Option<&'static str> {
        let any = || self.kinds.iter().find(|((version, name), _)| *version == "*" && *name == kind);
        let exact = self.kinds.iter().find(|((version, name), _)| *version == api_version && *name == kind);
        exact.or_else(any).map(|(_, message)| *message)
    }

    pub(super) fn field(&self, message: &str, number: u64) -> Option<&Field> {
        self.fields(message).iter().find(|field| field.number == number)
    }

    pub(super) fn fields(&self, message: &str) -> &[Field] {
        self.messages.get(message).map_or(&[], Vec::as_slice)
    }

    fn parse(text: &'static str) -> Self {
        let mut table = Self { kinds: HashMap::new(), messages: HashMap::new() };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<&'static str> = line.split(' ').collect();
            match words.as_slice() {
                [version, kind, "=", message] => drop(table.kinds.insert((version, kind), message)),
                [message, fields @ ..] => {
                    let fields = fields.iter().map(|word| Field::parse(word).expect("the list is part of the program"));
                    table.messages.insert(message, fields.collect());
                }
                [] => {}
            }
        }
        table
    }
}

// === impl Field ===

impl Field {
    fn parse(word: &'static str) -> Option<Self> {
        let (number, rest) = word.split_once(':')?;
        let (name, code) = rest.split_once(':')?;
        let (arity, code) = match code.as_bytes().first()? {
            b'*' => (Arity::List, &code[1..]),
            b'%' => (Arity::Map, &code[1..]),
            _ => (Arity::One, code),
        };
        let (code, pointer) = code.strip_suffix('?').map_or((code, false), |code| (code, true));
        let kind = match code {
            "s" => Type::Text,
            "i" => Type::Integer,
            "b" => Type::Boolean,
            "f" => Type::Float,
            "y" => Type::Bytes,
            "q" => Type::Quantity,
            "x" => Type::IntegerOrText,
            "t" => Type::Time,
            "m" => Type::MicroTime,
            "raw" => Type::Raw,
            "&" => Type::Texts,
            message => Type::Message(message.strip_prefix('@')?),
        };
        Some(Self { number: number.parse().ok()?, name, arity, kind, pointer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_that_is_named_is_there() {
        let table = Table::get();
        for message in table.kinds.values() {
            assert!(table.messages.contains_key(message), "{message}");
        }
        for (message, fields) in &table.messages {
            for field in fields {
                if let Type::Message(inner) = field.kind {
                    assert!(table.messages.contains_key(inner), "{inner} in {message}");
                    assert!(!field.name.is_empty() || field.arity == Arity::One);
                }
            }
        }
    }
}
