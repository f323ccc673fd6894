//! Label and field selectors, as the list and watch parameters spell them.
//!
//! The grammar and the error texts are the API's contract: kubectl prints them verbatim after `Error from server (BadRequest):`.
//! Both kinds of selector are parsed once per request and then asked for every object, so matching borrows and never allocates
//! except for the few fields that are not strings.

use serde_json::{Map, Value};

use crate::{Kind, names};

/// A parsed label selector. The empty selector matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// A parsed field selector: a conjunction of `=` and `!=` terms.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<FieldTerm>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldTerm {
    pub field: String,
    pub value: String,
    pub negated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    End,
    Comma,
    Open,
    Close,
    Bang,
    Equals,
    DoubleEquals,
    NotEquals,
    Greater,
    Less,
    Word(String),
    Unknown(String),
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

// === impl LabelSelector ===

impl LabelSelector {
    /// Parses the query-parameter form: `a=b,c!=d,e in (f,g),!h,i`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { tokens: tokens(text), at: 0 };
        let mut requirements = Vec::new();
        loop {
            match parser.peek() {
                Token::End => return Ok(Self(requirements)),
                Token::Word(_) | Token::Bang => {}
                other => {
                    return Err(format!("found '{}', expected: !, identifier, or 'end of string'", literal(other)));
                }
            }
            requirements.push(parser.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?);
            match parser.next() {
                Token::End => return Ok(Self(requirements)),
                Token::Comma => match parser.peek() {
                    Token::Word(_) | Token::Bang => {}
                    other => return Err(format!("found '{}', expected: identifier after ','", literal(other))),
                },
                other => return Err(format!("found '{}', expected: ',' or 'end of string'", literal(&other))),
            }
        }
    }

    /// The `LabelSelector` object of a spec: `{matchLabels, matchExpressions}`.
    pub fn from_object(selector: &Value) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement { key: key.clone(), operator: Operator::In, values: vec![value] });
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = expression.get("key").and_then(Value::as_str).unwrap_or_default().to_owned();
            let operator = match expression.get("operator").and_then(Value::as_str).unwrap_or_default() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("\"{other}\" is not a valid label selector operator")),
            };
            let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            requirements.push(Requirement { key, operator, values });
        }
        Ok(Self(requirements))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a label map (absent = no labels) satisfies every requirement.
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.0.iter().all(|r| r.matches(labels.and_then(|l| l.get(&r.key)).and_then(Value::as_str)))
    }

    /// Whether the object's `metadata.labels` satisfy every requirement.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.0.is_empty() || self.matches(object.pointer("/metadata/labels").and_then(Value::as_object))
    }
}

// === impl Requirement ===

impl Requirement {
    fn matches(&self, label: Option<&str>) -> bool {
        match self.operator {
            Operator::In => label.is_some_and(|l| self.values.iter().any(|v| v == l)),
            Operator::NotIn => label.is_none_or(|l| !self.values.iter().any(|v| v == l)),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let (Some(Ok(label)), Some(Ok(bound))) =
                    (label.map(str::parse::<i64>), self.values.first().map(|v| v.parse::<i64>()))
                else {
                    return false;
                };
                if self.operator == Operator::GreaterThan { label > bound } else { label < bound }
            }
        }
    }

    fn checked(key: String, operator: Operator, values: Vec<String>) -> Result<Self, String> {
        for (index, value) in values.iter().enumerate() {
            if matches!(operator, Operator::GreaterThan | Operator::LessThan) && value.parse::<i64>().is_err() {
                return Err(format!(
                    "values[{index}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                ));
            }
            if let Err(message) = names::label_value(value) {
                return Err(format!("values[{index}][{key}]: Invalid value: {value:?}: {message}"));
            }
        }
        Ok(Self { key, operator, values })
    }
}

// === impl Parser ===

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut token = self.next();
        let negated = token == Token::Bang;
        if negated {
            token = self.next();
        }
        let Token::Word(key) = token else {
            return Err(format!("found '{}', expected: identifier", literal(&token)));
        };
        if let Err(message) = names::label_key(&key) {
            return Err(format!("<nil>: Invalid value: {key:?}: {message}"));
        }
        if negated {
            return Requirement::checked(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Requirement::checked(key, Operator::Exists, Vec::new());
        }
        let operator = match self.next() {
            Token::Word(word) if word == "in" => Operator::In,
            Token::Word(word) if word == "notin" => Operator::NotIn,
            Token::Equals | Token::DoubleEquals => return self.exact(key, Operator::In),
            Token::NotEquals => return self.exact(key, Operator::NotIn),
            Token::Greater => return self.exact(key, Operator::GreaterThan),
            Token::Less => return self.exact(key, Operator::LessThan),
            other => return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", literal(&other))),
        };
        let values = self.set()?;
        Requirement::checked(key, operator, values)
    }

    fn exact(&mut self, key: String, operator: Operator) -> Result<Requirement, String> {
        let value = match self.peek() {
            Token::End | Token::Comma => String::new(),
            Token::Word(word) => {
                let word = word.clone();
                self.at += 1;
                word
            }
            other => return Err(format!("found '{}', expected: identifier", literal(other))),
        };
        Requirement::checked(key, operator, vec![value])
    }

    fn set(&mut self) -> Result<Vec<String>, String> {
        let token = self.next();
        if token != Token::Open {
            return Err(format!("found '{}', expected: '('", literal(&token)));
        }
        let mut values = Vec::new();
        let mut pending = None;
        loop {
            match self.next() {
                Token::Word(word) if pending.is_none() => pending = Some(word),
                Token::Comma => values.push(pending.take().unwrap_or_default()),
                Token::Close => {
                    values.push(pending.take().unwrap_or_default());
                    values.sort();
                    values.dedup();
                    return Ok(values);
                }
                other => return Err(format!("found '{}', expected: ',', ')' or identifier", literal(&other))),
            }
        }
    }
}

fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let special = |c: char| matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<');
    let mut out = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        if c.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        let start = at;
        if special(c) {
            at += 1;
            let pair = matches!((c, chars.get(at)), ('=' | '!', Some('=')));
            if pair {
                at += 1;
            }
            out.push(match (c, pair) {
                ('=', true) => Token::DoubleEquals,
                ('!', true) => Token::NotEquals,
                ('=', false) => Token::Equals,
                ('!', false) => Token::Bang,
                ('(', _) => Token::Open,
                (')', _) => Token::Close,
                (',', _) => Token::Comma,
                ('>', _) => Token::Greater,
                ('<', _) => Token::Less,
                _ => Token::Unknown(c.to_string()),
            });
            continue;
        }
        while at < chars.len() && !special(chars[at]) && !chars[at].is_ascii_whitespace() {
            at += 1;
        }
        out.push(Token::Word(chars[start..at].iter().collect()));
    }
    out
}

fn literal(token: &Token) -> &str {
    match token {
        Token::End => "",
        Token::Comma => ",",
        Token::Open => "(",
        Token::Close => ")",
        Token::Bang => "!",
        Token::Equals => "=",
        Token::DoubleEquals => "==",
        Token::NotEquals => "!=",
        Token::Greater => ">",
        Token::Less => "<",
        Token::Word(text) | Token::Unknown(text) => text,
    }
}

// === impl FieldSelector ===

impl FieldSelector {
    /// Parses `a=b,c==d,e!=f`; a backslash escapes `,`, `=` and itself.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut terms = Vec::new();
        for term in split_terms(text) {
            if term.is_empty() {
                continue;
            }
            let parsed = split_term(term)
                .and_then(|(field, negated, value)| Some(FieldTerm { field, negated, value: unescape(value)? }));
            terms.push(parsed.ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{term}'"))?);
        }
        Ok(Self(terms))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn terms(&self) -> &[FieldTerm] {
        &self.0
    }

    /// The value a field is required to have, e.g. `metadata.name`: lets a list by name be a lookup.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|t| !t.negated && t.field == field).map(|t| t.value.as_str())
    }

    /// Refuses labels the kind does not select on. Kinds without any beyond the name use the generic message, as the original does.
    pub fn check(&self, kind: &Kind) -> Result<(), String> {
        match self.0.iter().find(|term| !kind.knows_field(&term.field)) {
            None => Ok(()),
            Some(FieldTerm { field, .. }) if kind.field_labels.is_empty() => {
                Err(format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""))
            }
            Some(FieldTerm { field, .. }) => Err(format!("field label not supported: {field}")),
        }
    }

    pub fn matches(&self, kind: &Kind, object: &Value) -> bool {
        self.0.iter().all(|term| {
            let equal = match &*term.field {
                // The usual selector, asked for every object of a list: no copy.
                "metadata.name" => object.pointer("/metadata/name").and_then(Value::as_str) == Some(&term.value),
                field => kind.field(object, field).unwrap_or_default() == term.value,
            };
            equal != term.negated
        })
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn split_term(term: &str) -> Option<(String, bool, &str)> {
    for (index, _) in term.char_indices() {
        let rest = &term[index..];
        for (operator, negated) in [("!=", true), ("==", false), ("=", false)] {
            if let Some(value) = rest.strip_prefix(operator) {
                return Some((term[..index].to_owned(), negated, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Option<String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                c @ ('\\' | ',' | '=') => out.push(c),
                _ => return None,
            },
            ',' | '=' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{FieldLabel, Scope};

    fn matches(selector: &str, labels: Value) -> bool {
        LabelSelector::parse(selector).expect(selector).matches(labels.as_object())
    }

    #[test]
    fn label_operators() {
        assert!(matches("", json!({})));
        assert!(matches("a=b", json!({"a": "b"})));
        assert!(matches("a==b,c", json!({"a": "b", "c": ""})));
        assert!(!matches("a=b", json!({"a": "c"})));
        assert!(matches("a!=b", json!({})));
        assert!(matches("a in (b, c),d notin (e)", json!({"a": "c"})));
        assert!(!matches("!a", json!({"a": "c"})));
        assert!(matches("a=", json!({"a": ""})));
        assert!(matches("n>3,n<5", json!({"n": "4"})));
        assert!(matches("serving.knative.dev/service=x", json!({"serving.knative.dev/service": "x"})));
        assert!(matches("in in (in)", json!({"in": "in"})));
    }

    #[test]
    fn label_errors_are_the_servers() {
        let error = |s| LabelSelector::parse(s).expect_err(s);
        assert_eq!(error("a,,b"), "found ',', expected: identifier after ','");
        assert_eq!(error("=b"), "found '=', expected: !, identifier, or 'end of string'");
        assert_eq!(error("a b"), "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt");
        assert_eq!(error("a in b"), "unable to parse requirement: found 'b', expected: '('");
        assert!(
            error("a/b/c=d")
                .starts_with("unable to parse requirement: <nil>: Invalid value: \"a/b/c\": a qualified name must")
        );
        assert!(
            error("a=-")
                .starts_with("unable to parse requirement: values[0][a]: Invalid value: \"-\": a valid label must")
        );
    }

    #[test]
    fn selector_objects() {
        let selector =
            json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "DoesNotExist"}]});
        let selector = LabelSelector::from_object(&selector).expect("selector");
        assert!(selector.matches_object(&json!({"metadata": {"labels": {"a": "b"}}})));
        assert!(!selector.matches_object(&json!({"metadata": {"labels": {"a": "b", "c": "d"}}})));
    }

    #[test]
    fn fields() {
        let mut kind = Kind::new("", "v1", "Pod", "pods", Scope::Namespaced);
        let generic = kind.clone();
        kind.field_labels = vec![FieldLabel::dotted("spec.nodeName"), FieldLabel::dotted("status.phase")];
        let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
        let matches = |s: &str| FieldSelector::parse(s).expect(s).matches(&kind, &pod);
        assert!(matches("metadata.name=p,status.phase!=Failed"));
        assert!(matches("spec.nodeName==n"));
        assert!(!matches("metadata.name!=p"));
        assert_eq!(FieldSelector::parse("a").expect_err("a"), "invalid selector: 'a'; can't understand 'a'");
        let selector = FieldSelector::parse("spec.x=1").expect("parses");
        assert_eq!(selector.check(&kind).expect_err("unknown"), "field label not supported: spec.x");
        assert!(selector.check(&generic).expect_err("unknown").starts_with("\"spec.x\" is not a known field selector"));
        assert_eq!(FieldSelector::parse("metadata.name=a,b=c").expect("parses").exact("metadata.name"), Some("a"));
    }
}
