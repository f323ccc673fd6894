//! As much of Go's text/template as request log templates use.
//!
//! Text, fields, `.Request.Header.Get "X"`, pipelines, parentheses, literals, `if`/`else`/`end`, trim markers,
//! comments, and the functions `js`, `html`, `urlquery`, `print`, `printf`, `println`, `len`, `index`, `eq`, `ne`,
//! `not`, `and`, `or`. What is not known is an error, which the log line then says.

use std::fmt::Write;

use http::HeaderMap;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Nil,
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    List(Vec<Value>),
    Headers(HeaderMap),
}

pub(super) struct Template(Vec<Node>);

enum Node {
    Text(String),
    Print(Expr),
    If { condition: Expr, then: Vec<Node>, otherwise: Vec<Node> },
}

#[derive(Debug, Clone)]
enum Expr {
    Literal(Value),
    Field(Vec<String>),
    Call {
        function: String,
        arguments: Vec<Expr>,
    },
    /// `.Request.Header.Get "X"`
    Header(Box<Expr>),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Field(Vec<String>),
    Literal(Value),
    Open,
    Close,
    Pipe,
}

/// Where a list of nodes ended.
enum Stop {
    End,
    Else,
    ElseIf(Vec<Token>),
    Input,
}

type Lookup<'a> = dyn Fn(&[String]) -> Option<Value> + 'a;

// === impl Template ===

impl Template {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = pieces(text)?.into_iter();
        let (nodes, stop) = nodes(&mut pieces)?;
        match stop {
            Stop::Input => Ok(Self(nodes)),
            _ => Err("unexpected {{end}} or {{else}}".to_owned()),
        }
    }

    pub(super) fn render(&self, lookup: &Lookup<'_>) -> Result<String, String> {
        let mut out = String::new();
        render(&self.0, lookup, &mut out)?;
        Ok(out)
    }
}

/// Text, or the inside of an action.
enum Piece {
    Text(String),
    Action(String),
}

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim = false;
    while let Some(start) = rest.find("{{") {
        let end = rest[start..].find("}}").ok_or("unclosed action")? + start;
        let mut before = &rest[..start];
        let mut inside = &rest[start + 2..end];
        if trim {
            before = before.trim_start();
        }
        if let Some(trimmed) = inside.strip_prefix("- ") {
            (before, inside) = (before.trim_end(), trimmed);
        }
        trim = inside.ends_with(" -");
        inside = inside.strip_suffix(" -").unwrap_or(inside);
        pieces.push(Piece::Text(before.to_owned()));
        if !inside.trim_start().starts_with("/*") {
            pieces.push(Piece::Action(inside.trim().to_owned()));
        }
        rest = &rest[end + 2..];
    }
    pieces.push(Piece::Text(if trim { rest.trim_start().to_owned() } else { rest.to_owned() }));
    Ok(pieces)
}

fn nodes(pieces: &mut std::vec::IntoIter<Piece>) -> Result<(Vec<Node>, Stop), String> {
    let mut nodes_found = Vec::new();
    while let Some(piece) = pieces.next() {
        let action = match piece {
            Piece::Text(text) => {
                nodes_found.push(Node::Text(text));
                continue;
            }
            Piece::Action(action) => action,
        };
        let mut tokens = tokens(&action)?;
        match tokens.first() {
            Some(Token::Word(word)) if word == "end" => return Ok((nodes_found, Stop::End)),
            Some(Token::Word(word)) if word == "else" => {
                tokens.remove(0);
                let stop = if tokens.is_empty() { Stop::Else } else { Stop::ElseIf(tokens.split_off(1)) };
                return Ok((nodes_found, stop));
            }
            Some(Token::Word(word)) if word == "if" => {
                nodes_found.push(branch(&tokens[1..], pieces)?);
            }
            _ => nodes_found.push(Node::Print(pipeline(&mut &tokens[..])?)),
        }
    }
    Ok((nodes_found, Stop::Input))
}

fn branch(condition: &[Token], pieces: &mut std::vec::IntoIter<Piece>) -> Result<Node, String> {
    let condition = pipeline(&mut &*condition)?;
    let (then, stop) = nodes(pieces)?;
    let otherwise = match stop {
        Stop::End => Vec::new(),
        Stop::ElseIf(condition) => vec![branch(&condition, pieces)?],
        Stop::Else => match nodes(pieces)? {
            (otherwise, Stop::End) => otherwise,
            _ => return Err("{{if}} without {{end}}".to_owned()),
        },
        Stop::Input => return Err("{{if}} without {{end}}".to_owned()),
    };
    Ok(Node::If { condition, then, otherwise })
}

fn tokens(action: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = action.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '|' => (Token::Pipe, 1),
            '"' => {
                let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<String>();
                let text = stream.next().and_then(Result::ok).ok_or("bad string")?;
                (Token::Literal(Value::Text(text)), stream.byte_offset())
            }
            '`' => {
                let end = rest[1..].find('`').ok_or("unterminated raw string")?;
                (Token::Literal(Value::Text(rest[1..=end].to_owned())), end + 2)
            }
            _ => {
                let end = rest.find(|c: char| c.is_whitespace() || "()|\"`".contains(c)).unwrap_or(rest.len());
                (word(&rest[..end])?, end)
            }
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

fn word(text: &str) -> Result<Token, String> {
    if let Some(path) = text.strip_prefix('.') {
        return Ok(Token::Field(path.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect()));
    }
    Ok(match text {
        "true" | "false" => Token::Literal(Value::Bool(text == "true")),
        "nil" => Token::Literal(Value::Nil),
        _ if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => Token::Literal(match text.parse() {
            Ok(integer) => Value::Integer(integer),
            Err(_) => Value::Float(text.parse().map_err(|_| format!("bad number {text:?}"))?),
        }),
        _ if text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') => Token::Word(text.to_owned()),
        _ => return Err(format!("unexpected {text:?}")),
    })
}

/// `command | command`: each gets the former's value as its last argument.
fn pipeline(tokens: &mut &[Token]) -> Result<Expr, String> {
    let mut value: Option<Expr> = None;
    loop {
        value = Some(command(tokens, value)?);
        match tokens.split_first() {
            Some((Token::Pipe, rest)) => *tokens = rest,
            Some((Token::Close, _)) | None => return value.ok_or_else(|| "missing value".to_owned()),
            Some((token, _)) => return Err(format!("unexpected {token:?}")),
        }
    }
}

fn command(tokens: &mut &[Token], piped: Option<Expr>) -> Result<Expr, String> {
    let Some((first, rest)) = tokens.split_first() else { return Err("missing value".to_owned()) };
    match first {
        Token::Word(function) => {
            *tokens = rest;
            let mut arguments = Vec::new();
            while let Some(argument) = operand(tokens)? {
                arguments.push(argument);
            }
            arguments.extend(piped);
            Ok(Expr::Call { function: function.clone(), arguments })
        }
        Token::Field(path) if path.len() == 3 && path[1] == "Header" && matches!(&*path[2], "Get" | "Values") => {
            *tokens = rest;
            let name = operand(tokens)?.or(piped).ok_or("Get needs a name")?;
            Ok(Expr::Header(Box::new(name)))
        }
        _ if piped.is_some() => Err("only functions take a piped value".to_owned()),
        _ => operand(tokens)?.ok_or_else(|| "missing value".to_owned()),
    }
}

fn operand(tokens: &mut &[Token]) -> Result<Option<Expr>, String> {
    let Some((first, rest)) = tokens.split_first() else { return Ok(None) };
    let expr = match first {
        Token::Field(path) => Expr::Field(path.clone()),
        Token::Literal(value) => Expr::Literal(value.clone()),
        Token::Word(function) => Expr::Call { function: function.clone(), arguments: Vec::new() },
        Token::Open => {
            *tokens = rest;
            let inner = pipeline(tokens)?;
            match tokens.split_first() {
                Some((Token::Close, rest)) => *tokens = rest,
                _ => return Err("unclosed parenthesis".to_owned()),
            }
            return Ok(Some(inner));
        }
        Token::Close | Token::Pipe => return Ok(None),
    };
    *tokens = rest;
    Ok(Some(expr))
}

fn render(nodes: &[Node], lookup: &Lookup<'_>, out: &mut String) -> Result<(), String> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Print(expr) => out.push_str(&expr.value(lookup)?.to_string()),
            Node::If { condition, then, otherwise } => {
                let chosen = if condition.value(lookup)?.is_true() { then } else { otherwise };
                render(chosen, lookup, out)?;
            }
        }
    }
    Ok(())
}

// === impl Expr ===

impl Expr {
    fn value(&self, lookup: &Lookup<'_>) -> Result<Value, String> {
        match self {
            Self::Literal(value) => Ok(value.clone()),
            Self::Field(path) => lookup(path).ok_or_else(|| format!("can't evaluate field {}", path.join("."))),
            Self::Header(name) => {
                let name = name.value(lookup)?.to_string();
                let path = ["Request", "Header", &name].map(str::to_owned);
                Ok(match lookup(&path) {
                    Some(Value::List(mut list)) if !list.is_empty() => list.swap_remove(0),
                    _ => Value::Text(String::new()),
                })
            }
            Self::Call { function, arguments } => {
                let values = arguments.iter().map(|argument| argument.value(lookup)).collect::<Result<Vec<_>, _>>()?;
                call(function, values)
            }
        }
    }
}

fn call(function: &str, mut values: Vec<Value>) -> Result<Value, String> {
    let all = |values: &[Value]| values.iter().map(ToString::to_string).collect::<String>();
    Ok(match (function, &mut values[..]) {
        ("js", values) => Value::Text(js(&all(values))),
        ("html", values) => Value::Text(html(&all(values))),
        ("urlquery", values) => Value::Text(urlquery(&all(values))),
        ("print", values) => Value::Text(all(values)),
        ("println", values) => Value::Text(values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ") + "\n"),
        ("printf", [Value::Text(format), rest @ ..]) => Value::Text(printf(format, rest)?),
        ("len", [Value::Text(text)]) => Value::Integer(text.len() as i64),
        ("len", [Value::List(list)]) => Value::Integer(list.len() as i64),
        ("index", [Value::List(list), Value::Integer(index)]) => {
            list.get(*index as usize).cloned().ok_or("index out of range")?
        }
        ("index", [Value::Headers(map), Value::Text(name), rest @ ..]) => {
            let all = map.get_all(&**name).iter();
            let list: Vec<_> =
                all.map(|value| Value::Text(String::from_utf8_lossy(value.as_bytes()).into_owned())).collect();
            match rest {
                [] => Value::List(list),
                [Value::Integer(index)] => list.get(*index as usize).cloned().ok_or("index out of range")?,
                _ => return Err("bad index".to_owned()),
            }
        }
        ("eq", [first, others @ ..]) => Value::Bool(others.contains(first)),
        ("ne", [first, second]) => Value::Bool(first != second),
        ("not", [value]) => Value::Bool(!value.is_true()),
        ("and", values) if !values.is_empty() => {
            values.iter().find(|value| !value.is_true()).or(values.last()).cloned().unwrap_or(Value::Nil)
        }
        ("or", values) if !values.is_empty() => {
            values.iter().find(|value| value.is_true()).or(values.last()).cloned().unwrap_or(Value::Nil)
        }
        _ => return Err(format!("function {function:?} is not known or does not take these arguments")),
    })
}

fn printf(format: &str, values: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match rest.next() {
            Some('%') => out.push('%'),
            Some('q') => {
                let value = values.next().ok_or("printf lacks an argument")?;
                let _ = write!(out, "{}", serde_json::Value::from(value.to_string()));
            }
            Some('s' | 'v' | 'd' | 'f' | 'g') => {
                let _ = write!(out, "{}", values.next().ok_or("printf lacks an argument")?);
            }
            other => return Err(format!("printf verb {other:?} is not known")),
        }
    }
    Ok(out)
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
            _ if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", c as u32);
            }
            _ => out.push(c),
        }
    }
    out
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;").replace('\'', "&#39;")
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

/// The shortest form that reads back the same, with an exponent where Go writes one: `5.1e-05`.
pub(super) fn float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(exponent) if value != 0.0 && !(-4..21).contains(&exponent) => {
            format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        _ => value.to_string(),
    }
}

// === impl Value ===

impl Value {
    fn is_true(&self) -> bool {
        match self {
            Self::Nil => false,
            Self::Text(text) => !text.is_empty(),
            Self::Integer(integer) => *integer != 0,
            Self::Float(float) => *float != 0.0,
            Self::Bool(bool) => *bool,
            Self::List(list) => !list.is_empty(),
            Self::Headers(map) => !map.is_empty(),
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |values: Vec<String>| format!("[{}]", values.join(" "));
        match self {
            Self::Nil => f.write_str("<nil>"),
            Self::Text(text) => f.write_str(text),
            Self::Integer(integer) => write!(f, "{integer}"),
            Self::Float(value) => f.write_str(&float(*value)),
            Self::Bool(bool) => write!(f, "{bool}"),
            Self::List(values) => f.write_str(&list(values.iter().map(ToString::to_string).collect())),
            Self::Headers(map) => {
                let pairs =
                    map.iter().map(|(name, value)| format!("{name}:[{}]", String::from_utf8_lossy(value.as_bytes())));
                f.write_str("map")?;
                f.write_str(&list(pairs.collect()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str) -> Result<String, String> {
        let lookup = |path: &[String]| match path.join(".").as_str() {
            "Request.Method" => Some(Value::Text("GET".into())),
            "Request.RequestURI" => Some(Value::Text("/a?b=\"c\"".into())),
            "Request.TLS" => Some(Value::Nil),
            "Response.Code" => Some(Value::Integer(200)),
            "Response.Latency" => Some(Value::Float(0.000_051)),
            "Request.Header.X-A" => Some(Value::List(vec![Value::Text("b".into())])),
            _ => None,
        };
        Template::parse(template)?.render(&lookup)
    }

    #[test]
    fn what_templates_use_is_rendered_as_go_does() {
        for (template, expected) in [
            ("{{.Request.Method}} {{.Response.Code}}", "GET 200"),
            ("{{js .Request.RequestURI}}", "/a?b\\u003D\\\"c\\\""),
            ("{{.Response.Latency}}s", "5.1e-05s"),
            ("TLS: {{.Request.TLS}}", "TLS: <nil>"),
            ("{{.Request.Header.Get \"X-A\"}}", "b"),
            ("{{.Request.Method | printf \"%s-%q\" \"a\"}}", "a-\"GET\""),
            ("{{if eq .Response.Code 200 201}}ok{{else}}bad{{end}}", "ok"),
            ("{{if ne .Response.Code 200}}a{{else if (not .Request.TLS)}}b{{end}}", "b"),
            ("a {{- /* gone */ -}} b {{- .Request.Method -}} c", "abGETc"),
            ("{{len .Request.Method}}", "3"),
        ] {
            assert_eq!(rendered(template).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for template in
            ["{{", "{{.Nothing}}", "{{range .X}}", "{{if true}}", "{{end}}", "{{.Request.Method | .X}}", "{{(}}"]
        {
            assert!(rendered(template).is_err(), "{template}");
        }
    }

    #[test]
    fn floats_are_written_as_go_writes_them() {
        for (value, text) in [(0.0, "0"), (1.5, "1.5"), (0.0001, "0.0001"), (0.00001, "1e-05"), (1e21, "1e+21")] {
            assert_eq!(float(value), text);
        }
    }
}
