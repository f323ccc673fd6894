//! The JSONPath of CRD printer columns, selectable fields and the scale subresource.
//!
//! A subset on purpose: fields, indexes, wildcards, quoted fields and filters with one comparison or an existence test. That is what
//! CRDs may use; anything else is refused when the CRD is registered and not when someone lists the objects.

use serde_json::Value;

/// A parsed path such as `.status.conditions[?(@.type=='Ready')].status`.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    Filter { path: JsonPath, test: Test },
}

#[derive(Debug, Clone, PartialEq)]
enum Test {
    Exists,
    Equal(Value),
    NotEqual(Value),
    Less(f64),
    LessOrEqual(f64),
    Greater(f64),
    GreaterOrEqual(f64),
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

// === impl JsonPath ===

impl JsonPath {
    /// Accepts `.a.b`, `{.a.b}` and `$.a.b`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let inner = text.trim();
        let inner = inner.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(inner);
        let inner = inner.strip_prefix('$').unwrap_or(inner);
        let mut reader = Reader { text: inner, at: 0 };
        let mut steps = Vec::new();
        while let Some(c) = reader.peek() {
            match c {
                '.' => {
                    reader.at += 1;
                    match reader.peek() {
                        Some('.') => return Err(format!("{text}: recursive descent is not supported")),
                        Some('*') => {
                            reader.at += 1;
                            steps.push(Step::All);
                        }
                        Some('[') | None => {}
                        Some(_) => steps.push(Step::Field(reader.field())),
                    }
                }
                '[' => {
                    let body = reader.bracket().ok_or_else(|| format!("{text}: unterminated array"))?;
                    steps.push(bracket(body.trim()).ok_or_else(|| format!("{text}: invalid array index {body}"))?);
                }
                _ if reader.at == 0 => steps.push(Step::Field(reader.field())),
                other => return Err(format!("{text}: unexpected character {other:?}")),
            }
        }
        Ok(Self(steps))
    }

    /// Every value the path leads to, in document order.
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        let mut found = vec![value];
        for step in &self.0 {
            found = found.into_iter().flat_map(|v| step.apply(v)).collect();
        }
        found
    }

    pub fn first<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        self.find(value).into_iter().next()
    }

    /// The plain field names when the path consists of nothing else, for writing through it (scale).
    pub fn fields(&self) -> Option<Vec<&str>> {
        self.0.iter().map(|s| if let Step::Field(name) = s { Some(name.as_str()) } else { None }).collect()
    }
}

// === impl Step ===

impl Step {
    fn apply<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        match (self, value) {
            (Self::Field(name), Value::Object(map)) => map.get(name).into_iter().collect(),
            (Self::Index(index), Value::Array(items)) => {
                let index = if *index < 0 { items.len() as i64 + index } else { *index };
                usize::try_from(index).ok().and_then(|i| items.get(i)).into_iter().collect()
            }
            (Self::All, Value::Array(items)) => items.iter().collect(),
            (Self::All, Value::Object(map)) => map.values().collect(),
            (Self::Filter { path, test }, Value::Array(items)) => {
                items.iter().filter(|item| test.holds(path.first(item))).collect()
            }
            (Self::Filter { path, test }, Value::Object(map)) => {
                map.values().filter(|item| test.holds(path.first(item))).collect()
            }
            _ => Vec::new(),
        }
    }
}

// === impl Test ===

impl Test {
    fn holds(&self, value: Option<&Value>) -> bool {
        let Some(value) = value else { return false };
        let number = || value.as_f64();
        match self {
            Self::Exists => true,
            Self::Equal(wanted) => value == wanted,
            Self::NotEqual(wanted) => value != wanted,
            Self::Less(bound) => number().is_some_and(|n| n < *bound),
            Self::LessOrEqual(bound) => number().is_some_and(|n| n <= *bound),
            Self::Greater(bound) => number().is_some_and(|n| n > *bound),
            Self::GreaterOrEqual(bound) => number().is_some_and(|n| n >= *bound),
        }
    }
}

// === impl Reader ===

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    /// A bare field name; a backslash keeps the next character (`kubernetes\.io/x`).
    fn field(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.peek() {
            if c == '.' || c == '[' {
                break;
            }
            self.at += c.len_utf8();
            if c == '\\' {
                if let Some(escaped) = self.peek() {
                    self.at += escaped.len_utf8();
                    name.push(escaped);
                }
                continue;
            }
            name.push(c);
        }
        name
    }

    /// The text between `[` and its matching `]`, quotes and nesting respected.
    fn bracket(&mut self) -> Option<&'a str> {
        let start = self.at + 1;
        let (mut depth, mut quote) = (0, None);
        for (offset, c) in self.text[self.at..].char_indices() {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (Some(_), _) => {}
                (None, '\'' | '"') => quote = Some(c),
                (None, '[') => depth += 1,
                (None, ']') => {
                    depth -= 1;
                    if depth == 0 {
                        let end = self.at + offset;
                        self.at = end + 1;
                        return Some(&self.text[start..end]);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

fn bracket(body: &str) -> Option<Step> {
    if body == "*" {
        return Some(Step::All);
    }
    if let Some(name) = unquoted(body) {
        return Some(Step::Field(name));
    }
    if let Some(filter) = body.strip_prefix("?(").and_then(|b| b.strip_suffix(')')) {
        return filter_step(filter.trim());
    }
    body.parse().ok().map(Step::Index)
}

fn filter_step(filter: &str) -> Option<Step> {
    let mut quote = None;
    for (index, c) in filter.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => continue,
            (None, '\'' | '"') => quote = Some(c),
            (None, '=' | '!' | '<' | '>') => {
                let rest = &filter[index..];
                let operator = ["==", "!=", "<=", ">=", "<", ">"].into_iter().find(|o| rest.starts_with(o))?;
                let path = current(filter[..index].trim())?;
                let operand = constant(rest[operator.len()..].trim())?;
                let test = match operator {
                    "==" => Test::Equal(operand),
                    "!=" => Test::NotEqual(operand),
                    "<" => Test::Less(operand.as_f64()?),
                    "<=" => Test::LessOrEqual(operand.as_f64()?),
                    ">" => Test::Greater(operand.as_f64()?),
                    _ => Test::GreaterOrEqual(operand.as_f64()?),
                };
                return Some(Step::Filter { path, test });
            }
            _ => {}
        }
    }
    Some(Step::Filter { path: current(filter)?, test: Test::Exists })
}

fn current(text: &str) -> Option<JsonPath> {
    JsonPath::parse(text.strip_prefix('@')?).ok()
}

fn constant(text: &str) -> Option<Value> {
    match unquoted(text) {
        Some(text) => Some(Value::String(text)),
        None => serde_json::from_str(text).ok(),
    }
}

fn unquoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    (!inner.contains(quote)).then(|| inner.replace("\\.", "."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn find(path: &str, value: &Value) -> Vec<Value> {
        JsonPath::parse(path).expect(path).find(value).into_iter().cloned().collect()
    }

    #[test]
    fn paths_of_printer_columns() {
        let value = json!({
            "metadata": {"labels": {"a.b/c": "x"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}], "n": [1, 2, 3]},
        });
        assert_eq!(find(".status.conditions[?(@.type=='Ready')].status", &value), [json!("True")]);
        assert_eq!(find(r#".status.conditions[?(@.type == "Other")].status"#, &value), [json!("False")]);
        assert_eq!(find(".status.conditions[*].type", &value), [json!("Ready"), json!("Other")]);
        assert_eq!(find(".metadata.labels['a.b/c']", &value), [json!("x")]);
        assert_eq!(find(r".metadata.labels['a\.b/c']", &value), [json!("x")]);
        assert_eq!(find(r".metadata.labels.a\.b/c", &value), [json!("x")]);
        assert_eq!(find("{.status.n[-1]}", &value), [json!(3)]);
        assert_eq!(find(".status.n[?(@ > 1)]", &value), [json!(2), json!(3)]);
        assert_eq!(find(".missing.x", &value), [] as [Value; 0]);
    }

    #[test]
    fn refused() {
        assert!(JsonPath::parse("..a").is_err());
        assert!(JsonPath::parse(".a[").is_err());
        assert!(JsonPath::parse(".a[x]").is_err());
    }

    #[test]
    fn plain_fields() {
        assert_eq!(JsonPath::parse(".spec.replicas").expect("path").fields(), Some(vec!["spec", "replicas"]));
        assert_eq!(JsonPath::parse(".spec[0]").expect("path").fields(), None);
    }
}
