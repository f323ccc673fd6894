//! Text to nodes.

use serde_json::Value;

use super::{Command, Node, Operand, Pipeline};

pub(super) const FUNCTIONS: &[&str] =
    &["and", "or", "not", "eq", "ne", "lt", "le", "gt", "ge", "len", "index", "print", "printf", "println", "js"];

#[derive(Debug, PartialEq)]
enum Token {
    Field(Vec<String>),
    Root(Vec<String>),
    Word(String),
    Literal(Value),
    Pipe,
    Open,
    Close,
}

enum Piece {
    Text(String),
    Action(String),
}

pub(super) fn parse(text: &str) -> Result<Vec<Node>, String> {
    let pieces = split(text)?;
    let mut pieces = pieces.into_iter();
    let (nodes, ended_by) = block(&mut pieces)?;
    match ended_by {
        None => Ok(nodes),
        Some(word) => Err(format!("unexpected {{{{{word}}}}}")),
    }
}

/// Nodes up to `else...` or `end`, which is returned, or the end of the text.
fn block(pieces: &mut std::vec::IntoIter<Piece>) -> Result<(Vec<Node>, Option<String>), String> {
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let action = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(action) => action,
        };
        let word = action.split_whitespace().next().unwrap_or_default();
        match word {
            "end" | "else" => return Ok((nodes, Some(action))),
            "if" | "with" => nodes.push(branch(word, &action[word.len()..], pieces)?),
            "range" | "define" | "template" | "block" | "break" | "continue" => {
                return Err(format!("{{{{{word}}}}} is not supported here"));
            }
            _ => nodes.push(Node::Print(pipeline(&action)?)),
        }
    }
    Ok((nodes, None))
}

fn branch(word: &str, condition: &str, pieces: &mut std::vec::IntoIter<Piece>) -> Result<Node, String> {
    let condition = pipeline(condition)?;
    let (then, ended_by) = block(pieces)?;
    let otherwise = match ended_by.as_deref().map(str::trim) {
        None => return Err("unexpected EOF".to_owned()),
        Some("end") => Vec::new(),
        Some(other) => match other.strip_prefix("else").map(str::trim) {
            Some("") => match block(pieces)? {
                (nodes, Some(end)) if end.trim() == "end" => nodes,
                (_, None) => return Err("unexpected EOF".to_owned()),
                (_, Some(other)) => return Err(format!("unexpected {{{{{other}}}}}")),
            },
            // `else if` shares the outer `end`.
            Some(chained) => {
                let word = chained.split_whitespace().next().unwrap_or_default();
                if word != "if" && word != "with" {
                    return Err(format!("unexpected {{{{{other}}}}}"));
                }
                vec![branch(word, &chained[word.len()..], pieces)?]
            }
            None => return Err(format!("unexpected {{{{{other}}}}}")),
        },
    };
    Ok(match word {
        "if" => Node::If { condition, then, otherwise },
        _ => Node::With { value: condition, then, otherwise },
    })
}

/// Cut the text at `{{` and `}}`, trimming white space where a `-` asks for it, and drop comments.
fn split(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim_next = false;
    while let Some(start) = rest.find("{{") {
        let mut before = &rest[..start];
        rest = &rest[start + 2..];
        if trim_next {
            before = before.trim_start();
        }
        if let Some(inner) = rest.strip_prefix('-').filter(|r| r.starts_with(char::is_whitespace)) {
            before = before.trim_end();
            rest = inner;
        }
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        let end = action_end(rest).ok_or("unclosed action")?;
        let mut action = &rest[..end];
        rest = &rest[end + 2..];
        trim_next = false;
        if let Some(inner) = action.strip_suffix('-').filter(|a| a.ends_with(char::is_whitespace)) {
            action = inner;
            trim_next = true;
        }
        let action = action.trim();
        if !(action.starts_with("/*") && action.ends_with("*/")) {
            pieces.push(Piece::Action(action.to_owned()));
        }
    }
    let tail = if trim_next { rest.trim_start() } else { rest };
    if !tail.is_empty() {
        pieces.push(Piece::Text(tail.to_owned()));
    }
    Ok(pieces)
}

/// Offset of the closing braces, not looking inside strings.
fn action_end(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut quoted: Option<u8> = None;
    let mut i = 0;
    while i < bytes.len() {
        match (quoted, bytes[i]) {
            (Some(b'"'), b'\\') => i += 1,
            (Some(q), b) if q == b => quoted = None,
            (None, b @ (b'"' | b'`')) => quoted = Some(b),
            (None, b'}') if bytes.get(i + 1) == Some(&b'}') => return Some(i),
            _ => {}
        }
        i += 1;
    }
    None
}

fn pipeline(text: &str) -> Result<Pipeline, String> {
    let mut tokens = tokens(text)?.into_iter().peekable();
    let parsed = commands(&mut tokens)?;
    match tokens.next() {
        None => Ok(parsed),
        Some(_) => Err("unexpected right paren".to_owned()),
    }
}

fn commands(tokens: &mut std::iter::Peekable<std::vec::IntoIter<Token>>) -> Result<Pipeline, String> {
    let mut pipeline = Vec::new();
    let mut command: Command = Vec::new();
    loop {
        let operand = match tokens.peek() {
            None | Some(Token::Close) => break,
            Some(Token::Pipe) => {
                tokens.next();
                finish(&mut pipeline, &mut command)?;
                continue;
            }
            Some(Token::Open) => {
                tokens.next();
                let inner = commands(tokens)?;
                if tokens.next() != Some(Token::Close) {
                    return Err("unclosed left paren".to_owned());
                }
                Operand::Nested(inner, Vec::new())
            }
            Some(_) => match tokens.next() {
                Some(Token::Field(path)) => Operand::Dot(path),
                Some(Token::Root(path)) => Operand::Root(path),
                Some(Token::Literal(value)) => Operand::Literal(value),
                Some(Token::Word(word)) if FUNCTIONS.contains(&word.as_str()) => Operand::Function(word),
                Some(Token::Word(word)) => return Err(format!("function {word:?} not defined")),
                _ => return Err("unexpected token".to_owned()),
            },
        };
        command.push(operand);
    }
    finish(&mut pipeline, &mut command)?;
    Ok(pipeline)
}

fn finish(pipeline: &mut Pipeline, command: &mut Command) -> Result<(), String> {
    match command.first() {
        None => return Err("missing value for command".to_owned()),
        Some(Operand::Function(_)) => {}
        Some(_) if command.len() == 1 && pipeline.is_empty() => {}
        Some(_) => return Err("can't give argument to non-function".to_owned()),
    }
    pipeline.push(std::mem::take(command));
    Ok(())
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(c) = rest.chars().next() {
        let (token, length) = match c {
            '|' => (Token::Pipe, 1),
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '"' => {
                let end = string_end(rest).ok_or("unterminated quoted string")?;
                let value = serde_json::from_str(&rest[..end]).map_err(|_| "malformed string constant")?;
                (Token::Literal(Value::String(value)), end)
            }
            '`' => {
                let end = rest[1..].find('`').ok_or("unterminated raw quoted string")? + 2;
                (Token::Literal(rest[1..end - 1].into()), end)
            }
            '.' | '$' => {
                let end = rest[1..].find(|c: char| !word_char(c) && c != '.').map_or(rest.len(), |i| i + 1);
                let path = rest[1..end].trim_start_matches('.');
                let path = path.split('.').filter(|p| !p.is_empty()).map(str::to_owned).collect();
                if c == '$' && end > 1 && !rest[1..].starts_with('.') {
                    return Err("variables are not supported here".to_owned());
                }
                (if c == '.' { Token::Field(path) } else { Token::Root(path) }, end)
            }
            c if c.is_ascii_digit() || c == '-' || c == '+' => {
                let end = rest[1..].find(|c: char| !word_char(c) && c != '.').map_or(rest.len(), |i| i + 1);
                let number: serde_json::Number =
                    rest[..end].parse().map_err(|_| format!("bad number syntax: {:?}", &rest[..end]))?;
                (Token::Literal(Value::Number(number)), end)
            }
            c if word_char(c) => {
                let end = rest.find(|c: char| !word_char(c)).unwrap_or(rest.len());
                let token = match &rest[..end] {
                    "true" => Token::Literal(true.into()),
                    "false" => Token::Literal(false.into()),
                    "nil" => Token::Literal(Value::Null),
                    word => Token::Word(word.to_owned()),
                };
                (token, end)
            }
            c => return Err(format!("unexpected {c:?} in operand")),
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

fn string_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().skip(1).find_map(|(i, c)| match c {
        '"' if !escaped => Some(i + 1),
        c => {
            escaped = c == '\\' && !escaped;
            None
        }
    })
}

fn word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}
