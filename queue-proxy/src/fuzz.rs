//! What must hold for any input: the properties that the fuzz targets (`fuzz/`) look for counterexamples of.
//!
//! The tests below try them on mutations of real messages, from fixed seeds.

use wire::{Chunks, Framing, Incoming, response as parse_response};

use crate::direct::parse_request;

/// A request that is taken for plain leaves as exactly one well-formed request of the same length.
pub fn request(data: &[u8]) {
    let mut out = Vec::new();
    let Incoming::Plain(plain, _) = parse_request(data, "10.0.0.1", |_| None, &mut out) else { return };
    assert!(plain.head + plain.body <= data.len());
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut parsed = httparse::Request::new(&mut fields);
    let head = parsed.parse(&out).expect("what is sent can be read");
    assert_eq!(head, httparse::Status::Complete(out.len()), "bytes after the head");
    assert_eq!(parsed.version, Some(1));
    let count = |name: &str| parsed.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).count();
    assert_eq!((count("host"), count("x-forwarded-for")), (1, 1));
    for hop in ["connection", "upgrade", "te", "transfer-encoding", "knative-serving-revision"] {
        assert_eq!(count(hop), 0, "{hop}");
    }
    let original = parsed.headers.iter().find(|field| field.name.eq_ignore_ascii_case("k-original-host"));
    assert!(original.is_none_or(|field| field.value.is_empty()));
    let mut lengths = parsed.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("content-length"));
    let said =
        lengths.next().map_or(0, |field| std::str::from_utf8(field.value).expect("digits").parse().expect("fits"));
    assert_eq!((plain.body, lengths.next()), (said, None));
}

/// A response that is accepted leaves with one framing, and it is the one that was read.
pub fn response(data: &[u8]) {
    let mut out = Vec::new();
    let Ok(Some(answer)) = parse_response(data, false, b"now", &mut out) else { return };
    assert!(answer.head <= data.len());
    let mut fields = [httparse::EMPTY_HEADER; 1024];
    let mut parsed = httparse::Response::new(&mut fields);
    let head = parsed.parse(&out).expect("what is sent can be read");
    assert_eq!(head, httparse::Status::Complete(out.len()), "bytes after the head");
    let all = |name: &str| parsed.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).count();
    match answer.framing {
        Framing::Length(_) => assert_eq!(all("transfer-encoding"), 0),
        Framing::Chunked | Framing::Close if answer.status >= 200 => {
            assert_eq!((all("transfer-encoding"), all("content-length")), (1, 0));
        }
        _ => {}
    }
    assert_eq!(all("connection") + all("keep-alive") + all("upgrade"), 0);
}

/// The end of a chunked body is the same wherever its bytes are cut; `data` starts with where to cut.
pub fn chunks(data: &[u8]) {
    let Some((&cut, body)) = data.split_first() else { return };
    let whole = Chunks::default().scan(body);
    let cut = usize::from(cut).min(body.len());
    let mut chunks = Chunks::default();
    let parts = chunks.scan(&body[..cut]).and_then(|first| {
        if chunks.is_done() || first < cut { Ok(first) } else { Ok(first + chunks.scan(&body[cut..])?) }
    });
    assert_eq!(whole, parts);
}

/// Anything the environment may contain is either understood or refused.
pub fn environment(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = crate::Probe::parse(text, 8080);
    let _ = crate::Observability::parse(text);
    telemetry::try_template(text);
    crate::otlp::try_endpoint(text);
    let _ = crate::TlsSettings::parse("1.2", "", text, "");
    let _ = crate::TlsSettings::parse("", "", "", text);
    if let Some(made) = crate::forwarded::render(text, "http", "host") {
        assert!(made.starts_with("for=") || made.starts_with("host="), "{made}");
    }
}

/// What a program answers to a probe, and what a client says of its trace, is either understood or refused.
pub fn answers(data: &[u8]) {
    crate::probe::try_health(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    crate::probe::try_location(text);
    if let Some((trace, parent)) = telemetry::trace::try_parent(text) {
        assert!(trace != 0 && parent != 0, "{text:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Xorshift: the same inputs on every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % bound.max(1) as u64) as usize
        }
    }

    const PIECES: &[&str] = &[
        "\r\n",
        "\n",
        "\r",
        "\0",
        " ",
        ":",
        ",",
        ";",
        "0",
        "5",
        "ffffffffffffffff",
        "-1",
        "+",
        "chunked",
        "Content-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Connection: close\r\n",
        "Connection: x-own\r\n",
        "Host: b\r\n",
        "HTTP/1.0",
        "{{",
        "}}",
        "if",
        "end",
        "\"",
        "|",
        "(",
        ")",
        "{",
        "[",
        "\u{ff}",
    ];

    fn mutated(random: &mut Random, seeds: &[&str]) -> Vec<u8> {
        let mut data = seeds[random.below(seeds.len())].as_bytes().to_vec();
        for _ in 0..=random.below(4) {
            let at = random.below(data.len() + 1);
            match random.below(5) {
                0 if at < data.len() => data[at] = random.below(256) as u8,
                1 if at < data.len() => drop(data.remove(at)),
                2 => data.truncate(at),
                3 => {
                    let other = seeds[random.below(seeds.len())].as_bytes();
                    let from = random.below(other.len());
                    data.splice(at..at, other[from..].iter().copied());
                }
                _ => drop(data.splice(at..at, PIECES[random.below(PIECES.len())].bytes())),
            }
        }
        data
    }

    /// More for a long run on a stable toolchain: `FUZZ_INPUTS=2000000 cargo test -p queue-proxy fuzz`.
    fn inputs() -> u64 {
        std::env::var("FUZZ_INPUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000)
    }

    fn hold(property: fn(&[u8]), seeds: &[&str]) {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for seed in seeds {
            property(seed.as_bytes());
        }
        for _ in 0..inputs() {
            property(&mutated(&mut random, seeds));
        }
    }

    #[test]
    fn mutated_requests_leave_well_formed() {
        hold(
            request,
            &[
                "GET /a?b HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\r\nAccept: */*\r\n\r\n",
                "POST / HTTP/1.1\r\nhost: a\r\nContent-Length: 3\r\nK-Original-Host: b\r\nConnection: keep-alive\r\n\r\nabc",
            ],
        );
    }

    #[test]
    fn mutated_responses_leave_with_one_framing() {
        hold(
            response,
            &[
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nKeep-Alive: 5\r\nDate: x\r\n\r\nabc",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: X-Own\r\nX-Own: 1\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                "HTTP/1.0 404 Not Found\r\n\r\n",
                "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n",
            ],
        );
    }

    #[test]
    fn mutated_chunks_end_where_they_end() {
        hold(chunks, &["\x053\r\nabc\r\n0\r\n\r\nGET", "\x09a;b=c\r\n0123456789\r\n0\r\nX: y\r\n\r\n", "\x01ff\r\n"]);
    }

    #[test]
    fn mutated_answers_are_refused_or_understood() {
        hold(
            answers,
            &[
                "\0\0\0\0\x02\x08\x01",
                "http://[::1]:9/x?y",
                "../a",
                "//b:1",
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            ],
        );
    }

    #[test]
    fn mutated_settings_are_refused_or_understood() {
        hold(
            environment,
            &[
                r#"{"httpGet":{"path":"/","port":8080,"host":"127.0.0.1"},"periodSeconds":5}"#,
                r#"{"requestMetrics":{"protocol":"none","exportInterval":1},"enableRequestLog":true}"#,
                "{\"a\": \"{{js .Request.RequestURI}}\", {{if eq .Response.Code 200}}{{.TraceID | js}}{{else}}{{end}}}",
                "1.1.1.1, ::1,,",
                "https://user@[::1]:4318/v1/traces?x",
                "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, X25519,P-256",
            ],
        );
    }
}
