//! Go's `printf`.

use std::fmt::Write as _;

use super::Value;

/// Wider than any log line needs; a larger one is a mistake of the template.
const MAX_WIDTH: usize = 10_000;
/// Where no precision is given, an exponent is written from this one on.
const SHORTEST: i32 = 6;

/// What stands between `%` and the verb.
#[derive(Default)]
struct Flags {
    plus: bool,
    minus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

/// What does not fit together is said in the text, as Go does.
pub(super) fn printf(format: &str, values: &[Value]) -> String {
    let mut out = String::new();
    let mut values = values.iter();
    let mut rest = format.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut flags = Flags::default();
        while let Some(flag) = rest.next_if(|c| "+-# 0".contains(*c)) {
            match flag {
                '+' => flags.plus = true,
                '-' => flags.minus = true,
                '#' => flags.sharp = true,
                ' ' => flags.space = true,
                _ => flags.zero = true,
            }
        }
        let mut number = |rest: &mut std::iter::Peekable<std::str::Chars<'_>>, flags: &mut Flags| {
            if rest.next_if_eq(&'*').is_some() {
                let Some(Value::Integer(number)) = values.next() else { return Err("%!(BADWIDTH)") };
                flags.minus |= *number < 0;
                return Ok(Some(number.unsigned_abs() as usize));
            }
            let mut number: Option<usize> = None;
            while let Some(digit) = rest.next_if(char::is_ascii_digit) {
                let digit = digit.to_digit(10).map_or(0, |digit| digit as usize);
                number = Some(number.unwrap_or(0).saturating_mul(10).saturating_add(digit));
            }
            Ok(number)
        };
        match number(&mut rest, &mut flags) {
            Ok(width) => flags.width = width.map(|width| width.min(MAX_WIDTH)),
            Err(text) => out.push_str(text),
        }
        if rest.next_if_eq(&'.').is_some() {
            match number(&mut rest, &mut flags) {
                Ok(precision) => flags.precision = Some(precision.unwrap_or(0).min(MAX_WIDTH)),
                Err(text) => out.push_str(text),
            }
        }
        match rest.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some(verb) => match values.next() {
                None => {
                    let _ = write!(out, "%!{verb}(MISSING)");
                }
                Some(value) => out.push_str(&flags.value(verb, value)),
            },
        }
    }
    let extra: Vec<_> = values.map(|value| format!("{}={value}", value.kind())).collect();
    if !extra.is_empty() {
        let _ = write!(out, "%!(EXTRA {})", extra.join(", "));
    }
    out
}

/// The shortest form that reads back the same, with an exponent where Go writes one: `5.1e-05`.
pub(in crate::request_log) fn float(value: f64) -> String {
    general(value, None, SHORTEST)
}

/// As `%g` has it: with an exponent from `large` on.
fn general(value: f64, precision: Option<usize>, large: i32) -> String {
    if !value.is_finite() {
        return special(value);
    }
    let scientific = match precision {
        None => format!("{value:e}"),
        Some(precision) => format!("{value:.*e}", precision.max(1) - 1),
    };
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let mantissa = match precision {
        Some(_) if mantissa.contains('.') => mantissa.trim_end_matches('0').trim_end_matches('.'),
        _ => mantissa,
    };
    if value != 0.0 && !(-4..large).contains(&exponent) {
        return format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
    }
    match precision {
        None => value.to_string(),
        // All digits are in the mantissa.
        Some(_) => {
            let places = mantissa.split_once('.').map_or(0, |(_, places)| places.len() as i32) - exponent;
            format!("{value:.*}", usize::try_from(places).unwrap_or(0))
        }
    }
}

fn special(value: f64) -> String {
    match value {
        _ if value.is_nan() => "NaN",
        _ if value > 0.0 => "+Inf",
        _ => "-Inf",
    }
    .to_owned()
}

/// Whether Go shows a character as it is.
pub(super) fn is_printable(c: char) -> bool {
    let hidden = matches!(c as u32, 0xad | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xfffb | 0xe000..=0xf8ff | 0xe0000..);
    c == ' ' || !(c.is_control() || c.is_whitespace() || hidden)
}

/// As a Go literal; with only ASCII where that is asked for.
fn quoted(text: &str, ascii: bool) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            _ if is_printable(c) && (c.is_ascii() || !ascii) => out.push(c),
            _ => {
                let _ = match c as u32 {
                    code @ ..0x80 => write!(out, "\\x{code:02x}"),
                    code @ ..0x1_0000 => write!(out, "\\u{code:04x}"),
                    code => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push('"');
    out
}

// === impl Flags ===

impl Flags {
    fn value(&self, verb: char, value: &Value) -> String {
        match (verb, value) {
            ('T', _) => self.pad(value.kind().to_owned(), false),
            (_, Value::Nil | Value::Missing) if verb != 'v' => format!("%!{verb}(<nil>)"),
            ('v', Value::Text(text)) if self.sharp => self.pad(quoted(text, false), false),
            ('v' | 's', Value::Text(text)) => self.pad(self.cut(text), false),
            ('v' | 's', Value::Object(_, text)) => self.pad(text.clone(), false),
            ('v', Value::Nil | Value::Missing) => self.pad("<nil>".to_owned(), false),
            ('v' | 't', Value::Bool(bool)) => self.pad(bool.to_string(), false),
            ('v' | 'd', Value::Integer(integer)) => self.integer(*integer, 10, ""),
            ('v', Value::Float(float)) => self.float('g', *float),
            (_, Value::List(list)) => {
                let items: Vec<_> = list.iter().map(|item| self.value(verb, item)).collect();
                format!("[{}]", items.join(" "))
            }
            (_, Value::Map(map)) => {
                let pair = |(name, value): &(String, Value)| {
                    format!("{}:{}", self.value(verb, &Value::Text(name.clone())), self.value(verb, value))
                };
                format!("map[{}]", map.entries.iter().map(pair).collect::<Vec<_>>().join(" "))
            }
            ('q', Value::Text(text)) => {
                let text = self.cut(text);
                let raw = self.sharp && !text.contains('`') && text.chars().all(|c| c == '\t' || !c.is_control());
                self.pad(if raw { format!("`{text}`") } else { quoted(&text, self.plus) }, false)
            }
            ('q', Value::Integer(code)) => {
                let c = u32::try_from(*code).ok().and_then(char::from_u32).unwrap_or('\u{fffd}');
                let text = quoted(&c.to_string(), self.plus);
                let inner = text[1..text.len() - 1].replace("\\\"", "\"").replace('\'', "\\'");
                self.pad(format!("'{inner}'"), false)
            }
            ('x' | 'X', Value::Text(text)) => {
                let bytes = text.as_bytes();
                let bytes = &bytes[..self.precision.unwrap_or(bytes.len()).min(bytes.len())];
                let hex = |byte: &u8| if verb == 'x' { format!("{byte:02x}") } else { format!("{byte:02X}") };
                let prefix = match (self.sharp && !bytes.is_empty(), verb) {
                    (false, _) => "",
                    (true, 'x') => "0x",
                    (true, _) => "0X",
                };
                let between = if self.space { format!(" {prefix}") } else { String::new() };
                self.pad(prefix.to_owned() + &bytes.iter().map(hex).collect::<Vec<_>>().join(&between), false)
            }
            ('b', Value::Integer(integer)) => self.integer(*integer, 2, "0b"),
            ('o', Value::Integer(integer)) => self.integer(*integer, 8, "0"),
            ('O', Value::Integer(integer)) => {
                let prefixed = Self { sharp: true, ..*self };
                prefixed.integer(*integer, 8, "0o")
            }
            ('x', Value::Integer(integer)) => self.integer(*integer, 16, "0x"),
            ('X', Value::Integer(integer)) => self.integer(*integer, 16, "0X").to_uppercase(),
            ('c', Value::Integer(code)) => {
                let c = u32::try_from(*code).ok().and_then(char::from_u32).unwrap_or('\u{fffd}');
                self.pad(c.to_string(), false)
            }
            ('U', Value::Integer(code)) => self.pad(format!("U+{code:04X}"), false),
            ('e' | 'E' | 'f' | 'F' | 'g' | 'G', Value::Float(float)) => self.float(verb, *float),
            _ => format!("%!{verb}({}={value})", value.kind()),
        }
    }

    /// The first characters, as many as the precision says.
    fn cut(&self, text: &str) -> String {
        text.chars().take(self.precision.unwrap_or(usize::MAX)).collect()
    }

    fn integer(&self, integer: i64, radix: u32, prefix: &str) -> String {
        let magnitude = integer.unsigned_abs();
        let mut digits = match radix {
            2 => format!("{magnitude:b}"),
            8 => format!("{magnitude:o}"),
            16 => format!("{magnitude:x}"),
            _ => magnitude.to_string(),
        };
        let sign = self.sign(integer < 0);
        // The zeros that fill a width are digits: a prefix stands before them and does not count.
        let filled = self.width.filter(|_| self.zero && !self.minus).map(|width| width.saturating_sub(sign.len()));
        if let Some(precision) = self.precision.or(filled) {
            let none = self.precision == Some(0) && integer == 0;
            digits = if none { String::new() } else { format!("{digits:0>precision$}") };
        }
        let prefix = if self.sharp && radix != 10 { prefix } else { "" };
        let spaced = Self { zero: false, ..*self };
        spaced.pad(format!("{sign}{prefix}{digits}"), false)
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (.., true) => " ",
            _ => "",
        }
    }

    fn float(&self, verb: char, value: f64) -> String {
        let magnitude = value.abs();
        let text = match verb {
            _ if !value.is_finite() => special(magnitude).trim_start_matches('+').to_owned(),
            'f' | 'F' => format!("{magnitude:.*}", self.precision.unwrap_or(6)),
            'e' | 'E' => {
                let text = format!("{magnitude:.*e}", self.precision.unwrap_or(6));
                let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                let exponent: i32 = exponent.parse().unwrap_or(0);
                format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
            }
            _ => match self.precision {
                None => general(magnitude, None, SHORTEST),
                Some(precision) => general(magnitude, Some(precision), i32::try_from(precision.max(1)).unwrap_or(21)),
            },
        };
        let text = if verb.is_uppercase() { text.to_uppercase() } else { text };
        let sign = if value.is_infinite() && value > 0.0 { "+" } else { self.sign(value.is_sign_negative()) };
        self.pad(format!("{sign}{text}"), value.is_finite())
    }

    /// With zeros only behind the sign of a number.
    fn pad(&self, text: String, number: bool) -> String {
        let Some(missing) = self.width.and_then(|width| width.checked_sub(text.chars().count())) else { return text };
        if self.minus {
            return text + &" ".repeat(missing);
        }
        if !self.zero {
            return " ".repeat(missing) + &text;
        }
        let sign = if number && text.starts_with(['+', '-', ' ']) { 1 } else { 0 };
        format!("{}{}{}", &text[..sign], "0".repeat(missing), &text[sign..])
    }
}
