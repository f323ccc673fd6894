//! The format of profiles (`profile.proto`), by its published field numbers.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prost::Message;

/// One line of a profile: a stack, innermost first, and a value of each type.
pub(super) struct Sampled {
    pub(super) stack: Vec<String>,
    pub(super) values: Vec<u64>,
}

type Kind = (&'static str, &'static str);

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
}

/// The strings of a profile, each once; the first is empty.
struct Strings {
    all: Vec<String>,
    known: HashMap<String, i64>,
}

pub(super) fn encode(
    types: &[Kind],
    samples: &[Sampled],
    duration: Option<Duration>,
    period: Option<(Kind, i64)>,
) -> Vec<u8> {
    let mut strings = Strings { all: Vec::new(), known: HashMap::new() };
    strings.index("");
    let mut functions: Vec<(i64, u64)> = Vec::new();
    let mut profile = Profile::default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    profile.time_nanos = now.as_nanos() as i64;
    profile.duration_nanos = duration.unwrap_or_default().as_nanos() as i64;
    profile.sample_type = types.iter().map(|kind| strings.kind(*kind)).collect();
    for sample in samples {
        let mut place = |name: &String| {
            let name = strings.index(name);
            if let Some((_, id)) = functions.iter().find(|(known, _)| *known == name) {
                return *id;
            }
            let id = functions.len() as u64 + 1;
            functions.push((name, id));
            id
        };
        let location = sample.stack.iter().map(&mut place).collect();
        let value = sample.values.iter().map(|value| i64::try_from(*value).unwrap_or(i64::MAX)).collect();
        profile.sample.push(Sample { location, value });
    }
    for (name, id) in functions {
        profile.function.push(Function { id, name, system_name: name });
        profile.location.push(Location { id, line: vec![Line { function: id }] });
    }
    if let Some((kind, every)) = period {
        profile.period_type = Some(strings.kind(kind));
        profile.period = every;
    }
    profile.string_table = strings.all;
    profile.encode_to_vec()
}

// === impl Strings ===

impl Strings {
    fn index(&mut self, text: &str) -> i64 {
        if let Some(index) = self.known.get(text) {
            return *index;
        }
        let index = self.all.len() as i64;
        self.all.push(text.to_owned());
        self.known.insert(text.to_owned(), index);
        index
    }

    fn kind(&mut self, (kind, unit): Kind) -> ValueType {
        ValueType { kind: self.index(kind), unit: self.index(unit) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_share_their_functions_and_strings() {
        let sample = |stack: &[&str], value| Sampled {
            stack: stack.iter().map(|name| (*name).to_owned()).collect(),
            values: vec![value],
        };
        let samples = [sample(&["[user]", "main"], 3), sample(&["[kernel]", "main"], 4)];
        let bytes = encode(&[("cpu", "nanoseconds")], &samples, None, Some((("cpu", "nanoseconds"), 10)));
        let profile = Profile::decode(&*bytes).expect("a profile");
        assert_eq!(profile.string_table, ["", "cpu", "nanoseconds", "[user]", "main", "[kernel]"]);
        assert_eq!(profile.sample[0].location, [1, 2]);
        assert_eq!((&*profile.sample[1].location, &*profile.sample[1].value), (&[3, 2][..], &[4][..]));
        assert_eq!((profile.function.len(), profile.location.len(), profile.period), (3, 3, 10));
    }
}
