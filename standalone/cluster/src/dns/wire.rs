//! The part of the DNS message format that is needed here. Nothing read from the network can make it panic, loop or
//! allocate more than the message's own size.

use std::net::{Ipv4Addr, Ipv6Addr};

pub(crate) const A: u16 = 1;
pub(crate) const CNAME: u16 = 5;
pub(crate) const SOA: u16 = 6;
pub(crate) const AAAA: u16 = 28;
pub(crate) const SRV: u16 = 33;
const OPT: u16 = 41;
pub(crate) const ANY: u16 = 255;
pub(crate) const IN: u16 = 1;

/// The largest message over UDP without EDNS, and the largest we send with it.
const CLASSIC_LIMIT: usize = 512;
const EDNS_LIMIT: usize = 1232;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    NoError = 0,
    FormatError = 1,
    ServerFailure = 2,
    NameError = 3,
    NotImplemented = 4,
    Refused = 5,
}

/// A name in lower case, without the final dot.
pub(crate) type Name = String;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) id: u16,
    pub(crate) recursion: bool,
    pub(crate) name: Name,
    /// As asked: the answer repeats the letters' case.
    question: Vec<u8>,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    /// What the asker can take over UDP.
    pub(crate) limit: usize,
    edns: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Data {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Cname(Name),
    Srv {
        port: u16,
        target: Name,
    },
    /// The zone's, for negative answers.
    Soa {
        zone: Name,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) name: Name,
    pub(crate) ttl: u32,
    pub(crate) data: Data,
}

/// What to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) code: Code,
    pub(crate) authoritative: bool,
    pub(crate) records: Vec<Record>,
    pub(crate) authority: Vec<Record>,
    pub(crate) additional: Vec<Record>,
}

/// Why a message is not a question we answer; the id, if there was one, lets the asker know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub(crate) id: Option<u16>,
    pub(crate) code: Code,
}

// === impl Query ===

impl Query {
    pub(crate) fn parse(message: &[u8]) -> Result<Self, Malformed> {
        let id = read_u16(message, 0);
        let malformed = |code| Malformed { id, code };
        let (Some(id), Some(flags), Some(questions)) = (id, read_u16(message, 2), read_u16(message, 4)) else {
            return Err(Malformed { id: None, code: Code::FormatError });
        };
        if flags & 0x8000 != 0 {
            // An answer is never answered.
            return Err(Malformed { id: None, code: Code::FormatError });
        }
        if flags & 0x7800 != 0 {
            return Err(malformed(Code::NotImplemented));
        }
        if questions != 1 {
            return Err(malformed(Code::FormatError));
        }
        let (name, after) = read_name(message, 12).ok_or(malformed(Code::FormatError))?;
        let (kind, class) =
            read_u16(message, after).zip(read_u16(message, after + 2)).ok_or(malformed(Code::FormatError))?;
        let question = message.get(12..after + 4).ok_or(malformed(Code::FormatError))?.to_vec();
        let udp = edns_size(message, after + 4);
        Ok(Self {
            id,
            recursion: flags & 0x0100 != 0,
            name,
            question,
            kind,
            class,
            limit: udp.map_or(CLASSIC_LIMIT, |size| size.clamp(CLASSIC_LIMIT, EDNS_LIMIT)),
            edns: udp.is_some(),
        })
    }

    /// A question of our own.
    pub(crate) fn new(id: u16, name: &str, kind: u16) -> Option<Self> {
        let mut question = Vec::new();
        write_name(&mut question, name)?;
        question.extend(kind.to_be_bytes());
        question.extend(IN.to_be_bytes());
        let name = name.to_ascii_lowercase();
        Some(Self { id, recursion: true, name, question, kind, class: IN, limit: EDNS_LIMIT, edns: false })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = header(self.id, 0x0100, [1, 0, 0, 0]);
        out.extend(&self.question);
        out
    }

    /// The answer's bytes, cut to nothing but the truncation mark beyond `limit`.
    pub(crate) fn answer(&self, answer: &Answer, limit: usize) -> Vec<u8> {
        let mut flags = 0x8000 | 0x0080 | answer.code as u16;
        if self.recursion {
            flags |= 0x0100;
        }
        if answer.authoritative {
            flags |= 0x0400;
        }
        let mut body = self.question.clone();
        let mut counts = [1u16, 0, 0, 0];
        for (section, records) in [&answer.records, &answer.authority, &answer.additional].into_iter().enumerate() {
            for record in records {
                if write_record(&mut body, record).is_some() {
                    counts[section + 1] = counts[section + 1].saturating_add(1);
                }
            }
        }
        if self.edns {
            body.push(0);
            body.extend(OPT.to_be_bytes());
            body.extend(u16::try_from(EDNS_LIMIT).unwrap_or(u16::MAX).to_be_bytes());
            body.extend([0; 6]);
            counts[3] = counts[3].saturating_add(1);
        }
        if body.len() + 12 > limit {
            let mut out = header(self.id, flags | 0x0200, [1, 0, 0, 0]);
            out.extend(&self.question);
            return out;
        }
        let mut out = header(self.id, flags, counts);
        out.extend(body);
        out
    }
}

// === impl Answer ===

impl Answer {
    pub(crate) fn of(code: Code) -> Self {
        Self { code, authoritative: false, records: Vec::new(), authority: Vec::new(), additional: Vec::new() }
    }
}

// === impl Malformed ===

impl Malformed {
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        Some(header(self.id?, 0x8000 | self.code as u16, [0; 4]))
    }
}

/// Whether `message` answers the question `query`.
pub(crate) fn answers(message: &[u8], query: &[u8]) -> bool {
    let Some((_, after)) = read_name(query, 12) else { return false };
    let question = query.get(12..after + 4).unwrap_or_default();
    let theirs = message.get(12..12 + question.len()).unwrap_or_default();
    message.get(..2) == query.get(..2)
        && read_u16(message, 2).is_some_and(|flags| flags & 0x8000 != 0)
        && theirs.eq_ignore_ascii_case(question)
}

/// The addresses and aliases in an answer's first section, with its code.
pub(crate) fn parse_answer(message: &[u8]) -> Option<(u16, Vec<Record>)> {
    let code = read_u16(message, 2)? & 0x000f;
    let mut at = 12;
    for _ in 0..read_u16(message, 4)? {
        at = read_name(message, at)?.1 + 4;
    }
    let mut records = Vec::new();
    for _ in 0..read_u16(message, 6)? {
        let (name, after) = read_name(message, at)?;
        let kind = read_u16(message, after)?;
        let ttl = u32::from(read_u16(message, after + 4)?) << 16 | u32::from(read_u16(message, after + 6)?);
        let length = usize::from(read_u16(message, after + 8)?);
        let data = message.get(after + 10..after + 10 + length)?;
        let data = match kind {
            A => <[u8; 4]>::try_from(data).ok().map(|bytes| Data::A(bytes.into())),
            AAAA => <[u8; 16]>::try_from(data).ok().map(|bytes| Data::Aaaa(bytes.into())),
            CNAME => Some(Data::Cname(read_name(message, after + 10)?.0)),
            _ => None,
        };
        records.extend(data.map(|data| Record { name, ttl, data }));
        at = after + 10 + length;
    }
    Some((code, records))
}

/// The UDP size of the OPT record among the additional ones of a question.
fn edns_size(message: &[u8], mut at: usize) -> Option<usize> {
    let others = usize::from(read_u16(message, 6)?) + usize::from(read_u16(message, 8)?);
    for _ in 0..others + usize::from(read_u16(message, 10)?) {
        let (_, after) = read_name(message, at)?;
        if read_u16(message, after)? == OPT {
            return read_u16(message, after + 2).map(usize::from);
        }
        at = after + 10 + usize::from(read_u16(message, after + 8)?);
    }
    None
}

fn read_u16(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

/// A name at `at`, and where what follows it begins. Pointers may only lead backwards, so they end.
fn read_name(message: &[u8], mut at: usize) -> Option<(Name, usize)> {
    let mut name = String::new();
    let mut after = None;
    let mut floor = at;
    loop {
        let length = usize::from(*message.get(at)?);
        match length & 0xc0 {
            0 if length == 0 => return Some((name, after.unwrap_or(at + 1))),
            0 => {
                let label = message.get(at + 1..at + 1 + length)?;
                if !name.is_empty() {
                    name.push('.');
                }
                if label.contains(&b'.') || name.len() + length > 255 {
                    return None;
                }
                name.push_str(&std::str::from_utf8(label).ok()?.to_ascii_lowercase());
                at += 1 + length;
            }
            0xc0 => {
                let to = usize::from(read_u16(message, at)? & 0x3fff);
                after.get_or_insert(at + 2);
                if to >= floor {
                    return None;
                }
                floor = to;
                at = to;
            }
            _ => return None,
        }
    }
}

fn header(id: u16, flags: u16, counts: [u16; 4]) -> Vec<u8> {
    [id, flags].into_iter().chain(counts).flat_map(u16::to_be_bytes).collect()
}

fn write_name(out: &mut Vec<u8>, name: &str) -> Option<()> {
    let name = name.trim_end_matches('.');
    if name.len() > 253 {
        return None;
    }
    for label in name.split('.').filter(|_| !name.is_empty()) {
        if label.is_empty() || label.len() > 63 {
            return None;
        }
        out.push(u8::try_from(label.len()).ok()?);
        out.extend(label.as_bytes());
    }
    out.push(0);
    Some(())
}

/// Writes the whole record or nothing.
fn write_record(out: &mut Vec<u8>, record: &Record) -> Option<()> {
    let mut bytes = Vec::new();
    write_name(&mut bytes, &record.name)?;
    let (kind, data) = match &record.data {
        Data::A(ip) => (A, ip.octets().to_vec()),
        Data::Aaaa(ip) => (AAAA, ip.octets().to_vec()),
        Data::Cname(target) => {
            let mut data = Vec::new();
            write_name(&mut data, target)?;
            (CNAME, data)
        }
        Data::Srv { port, target } => {
            let mut data = vec![0, 0, 0, 100];
            data.extend(port.to_be_bytes());
            write_name(&mut data, target)?;
            (SRV, data)
        }
        Data::Soa { zone } => {
            let mut data = Vec::new();
            write_name(&mut data, &format!("ns.dns.{zone}"))?;
            write_name(&mut data, &format!("hostmaster.{zone}"))?;
            for number in [1u32, 7200, 1800, 86400, 5] {
                data.extend(number.to_be_bytes());
            }
            (SOA, data)
        }
    };
    bytes.extend(kind.to_be_bytes());
    bytes.extend(IN.to_be_bytes());
    bytes.extend(record.ttl.to_be_bytes());
    bytes.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
    bytes.extend(data);
    out.extend(bytes);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, data: Data) -> Record {
        Record { name: name.into(), ttl: 5, data }
    }

    #[test]
    fn a_question_and_its_answer() {
        let query = Query::new(7, "Hello.default.svc.cluster.local", A).unwrap();
        let parsed = Query::parse(&query.encode()).unwrap();
        assert_eq!((parsed.id, parsed.name.as_str(), parsed.kind), (7, "hello.default.svc.cluster.local", A));
        let records =
            vec![record("a.b", Data::Cname("c.d".into())), record("c.d", Data::A(Ipv4Addr::new(10, 0, 0, 1)))];
        let answer = Answer { records: records.clone(), authoritative: true, ..Answer::of(Code::NoError) };
        let bytes = parsed.answer(&answer, 512);
        assert!(answers(&bytes, &query.encode()));
        assert_eq!(parse_answer(&bytes), Some((0, records)));
    }

    #[test]
    fn too_much_for_udp_is_marked_as_cut() {
        let query = Query::new(7, "a.b", A).unwrap();
        let many = (0..100).map(|n| record("a.b", Data::A(Ipv4Addr::new(10, 0, 0, n)))).collect();
        let bytes = query.answer(&Answer { records: many, ..Answer::of(Code::NoError) }, 512);
        assert_eq!(bytes[2] & 0x02, 0x02);
        assert!(bytes.len() < 512);
    }

    #[test]
    fn a_pointer_that_leads_forward_or_to_itself_is_refused() {
        let mut message = header(1, 0, [1, 0, 0, 0]);
        message.extend([0xc0, 12, 0, 1, 0, 1]);
        assert!(Query::parse(&message).is_err());
    }

    #[test]
    fn answers_and_other_operations_are_not_questions() {
        let mut message = Query::new(1, "a", A).unwrap().encode();
        message[2] = 0x80;
        assert_eq!(Query::parse(&message).unwrap_err().encode(), None);
        message[2] = 0x28;
        assert_eq!(Query::parse(&message).unwrap_err().code, Code::NotImplemented);
    }

    /// Random bytes, half of them with a header that gets them past the first checks.
    #[test]
    fn no_message_makes_it_panic() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let mut message: Vec<u8> = (0..random.usize(0..80)).map(|_| random.u8(..)).collect();
            if random.bool() && message.len() > 12 {
                message[2] = 0;
                message[4..12].copy_from_slice(&[0, 1, 0, random.u8(..3), 0, random.u8(..3), 0, random.u8(..3)]);
                for byte in &mut message[12..] {
                    // Short labels, ends and pointers more often than chance has them.
                    *byte = *random.choice(&[0, 1, 2, 0xc0, 12, 13, 41, *byte]).unwrap_or(byte);
                }
            }
            if let Ok(query) = Query::parse(&message) {
                let _ = query.answer(&Answer::of(Code::NoError), 512);
            }
            let _ = parse_answer(&message);
            let _ = answers(&message, &message);
        }
    }
}
