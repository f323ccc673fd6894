//! From the text of a template to text and tokens.

use super::Value;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// A keyword or a function.
    Word(String),
    Dot,
    /// `.name`; with `true` right behind what is before it.
    Field(String, bool),
    /// `$name`
    Variable(String),
    Literal(Value),
    Open,
    Close,
    Pipe,
    Comma,
    Declare,
    Assign,
}

pub(super) enum Piece {
    Text(String),
    /// The inside of `{{ }}`, and the line it begins in.
    Action(Vec<Token>, usize),
}

/// What is left of an action.
struct Lexer<'a> {
    rest: &'a str,
    line: usize,
}

/// What Go trims.
const SPACES: [char; 4] = [' ', '\t', '\r', '\n'];

/// Takes a template apart.
pub(super) fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trims = false;
    let line = |rest: &str| 1 + text[..text.len() - rest.len()].matches('\n').count();
    loop {
        let start = rest.find("{{");
        let mut before = &rest[..start.unwrap_or(rest.len())];
        if trims {
            before = before.trim_start_matches(SPACES);
        }
        let Some(start) = start else {
            pieces.push(Piece::Text(before.to_owned()));
            return Ok(pieces);
        };
        let at = line(&rest[start..]);
        let mut inside = &rest[start + 2..];
        if let Some(trimmed) = inside.strip_prefix('-').filter(|rest| rest.starts_with(SPACES)) {
            (before, inside) = (before.trim_end_matches(SPACES), trimmed);
        }
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        if let Some(comment) = inside.trim_start_matches(SPACES).strip_prefix("/*") {
            let end = comment.find("*/").ok_or_else(|| format!("line {at}: unclosed comment"))?;
            let after = &comment[end + 2..];
            let closed = after.trim_start_matches(SPACES);
            trims = after.len() > closed.len() && closed.starts_with("-}}");
            let closed = if trims { &closed[1..] } else { after };
            rest =
                closed.strip_prefix("}}").ok_or_else(|| format!("line {at}: comment ends before closing delimiter"))?;
            continue;
        }
        let mut lexer = Lexer { rest: inside, line: at };
        let (tokens, trim) = lexer.action()?;
        (rest, trims) = (lexer.rest, trim);
        pieces.push(Piece::Action(tokens, at));
    }
}

// === impl Lexer ===

impl<'a> Lexer<'a> {
    fn error<T>(&self, what: &str) -> Result<T, String> {
        Err(format!("line {}: {what}", self.line))
    }

    /// To the end of the action; and whether the text after it is to be trimmed.
    fn action(&mut self) -> Result<(Vec<Token>, bool), String> {
        let mut tokens = Vec::new();
        loop {
            let trimmed = self.rest.trim_start_matches(SPACES);
            let spaced = trimmed.len() < self.rest.len();
            if spaced && trimmed.starts_with("-}}") {
                self.rest = &trimmed[3..];
                return Ok((tokens, true));
            }
            self.rest = trimmed;
            if let Some(rest) = self.rest.strip_prefix("}}") {
                self.rest = rest;
                return Ok((tokens, false));
            }
            let Some(first) = self.rest.chars().next() else { return self.error("unclosed action") };
            let token = match first {
                '(' => self.take(1, Token::Open),
                ')' => self.take(1, Token::Close),
                '|' => self.take(1, Token::Pipe),
                ',' => self.take(1, Token::Comma),
                ':' if self.rest.starts_with(":=") => self.take(2, Token::Declare),
                '=' => self.take(1, Token::Assign),
                '"' | '\'' => self.quoted(first)?,
                '`' => match self.rest[1..].find('`') {
                    Some(end) => self.take(end + 2, Token::Literal(Value::Text(self.rest[1..=end].to_owned()))),
                    None => return self.error("unterminated raw quoted string"),
                },
                '$' => {
                    let name = format!("${}", name(&self.rest[1..]));
                    self.take(name.len(), Token::Variable(name))
                }
                '.' if !self.rest[1..].starts_with(|c: char| c.is_ascii_digit()) => match name(&self.rest[1..]) {
                    "" => self.take(1, Token::Dot),
                    field => {
                        let glued = !spaced && !tokens.is_empty();
                        self.take(field.len() + 1, Token::Field(field.to_owned(), glued))
                    }
                },
                '.' | '+' | '-' | '0'..='9' => self.number()?,
                _ => match name(self.rest) {
                    "" => return self.error(&format!("unexpected {first:?} in an action")),
                    "true" => self.take(4, Token::Literal(Value::Bool(true))),
                    "false" => self.take(5, Token::Literal(Value::Bool(false))),
                    "nil" => self.take(3, Token::Literal(Value::Nil)),
                    word => self.take(word.len(), Token::Word(word.to_owned())),
                },
            };
            tokens.push(token);
        }
    }

    fn take(&mut self, bytes: usize, token: Token) -> Token {
        self.rest = &self.rest[bytes..];
        token
    }

    /// A string, or a character, which is a number.
    fn quoted(&mut self, quote: char) -> Result<Token, String> {
        let mut text = String::new();
        let mut chars = self.rest[1..].char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '\n' => break,
                '\\' => match escape(self.rest, at + 2, quote) {
                    Some((c, length)) => {
                        text.push(c);
                        for _ in 0..self.rest[at + 2..at + 2 + length].chars().count() {
                            chars.next();
                        }
                    }
                    None => return self.error("unknown escape in a quoted string"),
                },
                _ if c == quote => {
                    self.rest = &self.rest[at + 2..];
                    if quote == '"' {
                        return Ok(Token::Literal(Value::Text(text)));
                    }
                    let mut chars = text.chars();
                    return match (chars.next(), chars.next()) {
                        (Some(c), None) => Ok(Token::Literal(Value::Integer(i64::from(u32::from(c))))),
                        _ => self.error("a character constant has one character"),
                    };
                }
                _ => text.push(c),
            }
        }
        self.error("unterminated quoted string")
    }

    fn number(&mut self) -> Result<Token, String> {
        let signed = usize::from(self.rest.starts_with(['+', '-']));
        let mut end = signed;
        let bytes = self.rest.as_bytes();
        while let Some(&byte) = bytes.get(end) {
            let exponent = matches!(byte, b'+' | b'-') && matches!(bytes[end - 1], b'e' | b'E' | b'p' | b'P');
            let hexadecimal = self.rest[signed..].starts_with("0x") || self.rest[signed..].starts_with("0X");
            let after_sign = end > signed && exponent && !hexadecimal;
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_') || after_sign) {
                break;
            }
            end += 1;
        }
        let text = &self.rest[..end];
        match parse_number(text) {
            Some(value) => Ok(self.take(end, Token::Literal(value))),
            None => self.error(&format!("bad number {text:?}")),
        }
    }
}

/// Letters, digits and underscores, of which the first is no digit.
fn name(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    if text.starts_with(|c: char| c.is_ascii_digit()) { "" } else { &text[..end] }
}

/// The character that an escape stands for, and how many bytes it has; `at` is behind the backslash.
fn escape(text: &str, at: usize, quote: char) -> Option<(char, usize)> {
    let digits = |from: usize, count: usize, radix: u32| {
        let digits = text.get(at + from..at + from + count)?;
        let valid = digits.bytes().all(|byte| (byte as char).is_digit(radix));
        char::from_u32(u32::from_str_radix(digits, radix).ok().filter(|_| valid)?)
    };
    let first = text[at..].chars().next()?;
    Some(match first {
        'a' => ('\x07', 1),
        'b' => ('\x08', 1),
        'f' => ('\x0c', 1),
        'n' => ('\n', 1),
        'r' => ('\r', 1),
        't' => ('\t', 1),
        'v' => ('\x0b', 1),
        '\\' => ('\\', 1),
        'x' => (digits(1, 2, 16)?, 3),
        'u' => (digits(1, 4, 16)?, 5),
        'U' => (digits(1, 8, 16)?, 9),
        '0'..='7' => (digits(0, 3, 8)?, 3),
        _ if first == quote => (quote, 1),
        _ => return None,
    })
}

fn parse_number(text: &str) -> Option<Value> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.is_empty() || digits.ends_with('_') || digits.contains("__") {
        return None;
    }
    let plain = digits.replace('_', "");
    let lower = plain.to_ascii_lowercase();
    let radix = |prefix: &str, radix: u32| i64::from_str_radix(lower.strip_prefix(prefix)?, radix).ok();
    let octal = lower.len() > 1 && lower.starts_with('0') && lower.bytes().all(|byte| byte.is_ascii_digit());
    let integer = radix("0x", 16).or_else(|| radix("0b", 2)).or_else(|| radix("0o", 8));
    let integer = integer.or_else(|| if octal { radix("0", 8) } else { lower.parse().ok() });
    if let Some(integer) = integer {
        return Some(Value::Integer(if negative { -integer } else { integer }));
    }
    let float: f64 = lower.parse().ok().filter(|_| lower.starts_with(|c: char| c.is_ascii_digit() || c == '.'))?;
    Some(Value::Float(if negative { -float } else { float }))
}
