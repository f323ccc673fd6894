//! The part of Go's `text/template` that ConfigMap templates use: fields, `index`, conditionals, comparison and printing.
//!
//! Data is JSON. A missing field of the top-level value is an error (upstream has a struct there); a missing key further
//! down is an empty string (upstream has maps of strings there). Loops, `define` and methods are not supported and are refused
//! when the template is parsed, so that a ConfigMap with one is rejected and not half understood.

mod eval;
mod parse;

use serde_json::Value;

/// A parsed template.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    text: String,
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Print(Pipeline),
    If { condition: Pipeline, then: Vec<Node>, otherwise: Vec<Node> },
    With { value: Pipeline, then: Vec<Node>, otherwise: Vec<Node> },
}

/// Commands separated by `|`; the result of one is the last argument of the next.
type Pipeline = Vec<Command>;
type Command = Vec<Operand>;

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    /// `.`, `.A.B`
    Dot(Vec<String>),
    /// `$`, `$.A.B`
    Root(Vec<String>),
    Literal(Value),
    Function(String),
    Nested(Pipeline, Vec<String>),
}

// === impl Template ===

impl Template {
    /// `name` appears in errors.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let nodes = parse::parse(text).map_err(|error| format!("template: {name}:1: {error}"))?;
        Ok(Self { text: text.to_owned(), nodes })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn render(&self, data: &Value) -> Result<String, String> {
        eval::render(&self.nodes, data)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Template;

    fn render(text: &str) -> Result<String, String> {
        let data = json!({"Name": "hello", "Namespace": "default", "Domain": "example.com", "Annotations": {"sub": "x"}, "Labels": {}});
        Template::parse("t", text)?.render(&data)
    }

    #[test]
    fn fields_and_functions() {
        for (text, out) in [
            ("{{.Name}}.{{.Namespace}}.{{.Domain}}", "hello.default.example.com"),
            ("{{ .Annotations.sub }}-{{index .Labels \"none\"}}!", "x-!"),
            ("{{if .Labels.a}}A{{else if eq .Name \"hello\"}}B{{else}}C{{end}}", "B"),
            ("a {{- .Name -}} b", "ahellob"),
            ("{{with .Annotations.sub}}{{.}}{{$.Name}}{{end}}", "xhello"),
            ("{{printf \"%s-%q\" .Name .Domain}}", "hello-\"example.com\""),
            ("{{.Name | printf \"<%v>\"}}{{/* no */}}", "<hello>"),
            ("{{len .Name}}{{if and .Name (not .Labels.a)}}y{{end}}", "5y"),
        ] {
            assert_eq!(render(text).as_deref(), Ok(out), "{text}");
        }
    }

    #[test]
    fn mistakes_are_errors() {
        assert!(render("{{.Nam}}").unwrap_err().contains("can't evaluate field Nam"));
        for text in [
            "{{.Name",
            "{{if .Name}}",
            "{{end}}",
            "{{nosuch .Name}}",
            "{{range .Labels}}{{end}}",
            "{{}}",
            "{{.Name \"x\"}}",
        ] {
            assert!(render(text).is_err(), "{text}");
        }
    }
}
