//! Nodes and data to text.

use std::cmp::Ordering;

use serde_json::Value;

use super::{Node, Operand, Pipeline};
use crate::go;

struct Scope<'a> {
    root: &'a Value,
    dot: &'a Value,
}

pub(super) fn render(nodes: &[Node], data: &Value) -> Result<String, String> {
    let mut out = String::new();
    write(nodes, &Scope { root: data, dot: data }, &mut out)?;
    Ok(out)
}

fn write(nodes: &[Node], scope: &Scope<'_>, out: &mut String) -> Result<(), String> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Print(pipeline) => out.push_str(&show(&run(pipeline, scope)?)),
            Node::If { condition, then, otherwise } => {
                let branch = if truth(&run(condition, scope)?) { then } else { otherwise };
                write(branch, scope, out)?;
            }
            Node::With { value, then, otherwise } => {
                let value = run(value, scope)?;
                if truth(&value) {
                    write(then, &Scope { root: scope.root, dot: &value }, out)?;
                } else {
                    write(otherwise, scope, out)?;
                }
            }
        }
    }
    Ok(())
}

fn run(pipeline: &Pipeline, scope: &Scope<'_>) -> Result<Value, String> {
    let mut last = None;
    for command in pipeline {
        let value = match &command[0] {
            Operand::Function(name) => {
                let mut arguments =
                    command[1..].iter().map(|operand| operand_value(operand, scope)).collect::<Result<Vec<_>, _>>()?;
                arguments.extend(last.take());
                call(name, &arguments)?
            }
            operand => operand_value(operand, scope)?,
        };
        last = Some(value);
    }
    Ok(last.unwrap_or_default())
}

fn operand_value(operand: &Operand, scope: &Scope<'_>) -> Result<Value, String> {
    match operand {
        Operand::Dot(path) => field(scope.dot, path, std::ptr::eq(scope.dot, scope.root)),
        Operand::Root(path) => field(scope.root, path, true),
        Operand::Literal(value) => Ok(value.clone()),
        Operand::Nested(pipeline, path) => field(&run(pipeline, scope)?, path, false),
        Operand::Function(name) => call(name, &[]),
    }
}

fn field(value: &Value, path: &[String], is_root: bool) -> Result<Value, String> {
    let mut at = value;
    for (depth, name) in path.iter().enumerate() {
        at = match at {
            Value::Object(map) => match map.get(name) {
                Some(value) => value,
                None if is_root && depth == 0 => return Err(format!("can't evaluate field {name}")),
                None => return Ok(Value::String(String::new())),
            },
            _ => return Err(format!("can't evaluate field {name}")),
        };
    }
    Ok(at.clone())
}

fn call(name: &str, arguments: &[Value]) -> Result<Value, String> {
    let wrong = || format!("wrong number of args for {name}: got {}", arguments.len());
    Ok(match name {
        "and" => arguments.iter().find(|v| !truth(v)).or_else(|| arguments.last()).ok_or_else(wrong)?.clone(),
        "or" => arguments.iter().find(|v| truth(v)).or_else(|| arguments.last()).ok_or_else(wrong)?.clone(),
        "not" => (!truth(arguments.first().ok_or_else(wrong)?)).into(),
        "eq" => match arguments {
            [first, rest @ ..] if !rest.is_empty() => rest.contains(first).into(),
            _ => return Err(wrong()),
        },
        "ne" => match arguments {
            [a, b] => (a != b).into(),
            _ => return Err(wrong()),
        },
        "lt" | "le" | "gt" | "ge" => {
            let [a, b] = arguments else { return Err(wrong()) };
            let order =
                compare(a, b).ok_or_else(|| format!("error calling {name}: incompatible types for comparison"))?;
            match name {
                "lt" => order == Ordering::Less,
                "le" => order != Ordering::Greater,
                "gt" => order == Ordering::Greater,
                _ => order != Ordering::Less,
            }
            .into()
        }
        "len" => match arguments {
            [Value::String(s)] => s.len().into(),
            [Value::Array(a)] => a.len().into(),
            [Value::Object(o)] => o.len().into(),
            _ => return Err(format!("error calling {name}: wrong argument")),
        },
        "index" => {
            let mut at = arguments.first().ok_or_else(wrong)?.clone();
            for key in &arguments[1..] {
                at = match (&at, key) {
                    (Value::Object(map), Value::String(key)) => map.get(key).cloned().unwrap_or_else(|| "".into()),
                    (Value::Array(list), Value::Number(n)) => n
                        .as_u64()
                        .and_then(|n| list.get(usize::try_from(n).ok()?))
                        .cloned()
                        .ok_or_else(|| format!("error calling index: index out of range: {n}"))?,
                    _ => return Err(format!("error calling index: can't index with {key}")),
                };
            }
            at
        }
        "print" => arguments.iter().map(show).collect::<String>().into(),
        "println" => (arguments.iter().map(show).collect::<Vec<_>>().join(" ") + "\n").into(),
        "printf" => match arguments {
            [Value::String(format), rest @ ..] => printf(format, rest).into(),
            _ => return Err(wrong()),
        },
        "js" => js(&arguments.iter().map(show).collect::<String>()).into(),
        _ => return Err(format!("function {name:?} not defined")),
    })
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?),
        _ => None,
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(s) => s.clone(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => match n.as_f64() {
            Some(f) if !n.is_i64() && !n.is_u64() => go::format_f64(f),
            _ => n.to_string(),
        },
        Value::Array(list) => go::list(&list.iter().map(show).collect::<Vec<_>>()),
        Value::Object(map) => {
            let items: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", show(v))).collect();
            format!("map[{}]", items.join(" "))
        }
    }
}

fn printf(format: &str, arguments: &[Value]) -> String {
    let mut out = String::new();
    let mut arguments = arguments.iter();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('%') => out.push('%'),
            Some(verb @ ('s' | 'v' | 'd')) => match arguments.next() {
                Some(value) => out.push_str(&show(value)),
                None => out.push_str(&format!("%!{verb}(MISSING)")),
            },
            Some('q') => match arguments.next() {
                Some(value) => out.push_str(&go::quote(&show(value))),
                None => out.push_str("%!q(MISSING)"),
            },
            Some(verb) => out.push_str(&format!("%!{verb}")),
            None => out.push_str("%!(NOVERB)"),
        }
    }
    out
}

/// Go's JSEscape.
fn js(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("\\'"),
            '"' => out.push_str("\\\""),
            '<' | '>' | '&' | '=' => out.push_str(&format!("\\u{:04X}", c as u32)),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04X}", c as u32)),
            c => out.push(c),
        }
    }
    out
}
