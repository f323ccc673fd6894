//! Go's text/template, as far as request log templates can use it.
//!
//! All of its language is here: fields and methods, pipelines, variables, `if`, `with`, `range` (with `else`, `break`
//! and `continue`), `define`, `template`, `block`, trim markers, comments, and its functions but `call`. What the data
//! has is decided by a lookup (see `request_log`). A template that Go would not parse is an error here too; what Go
//! finds out only when it runs is an error then, which the log line says.

mod format;
mod functions;
mod lex;
mod parse;
mod value;

use std::collections::HashMap;

pub(super) use self::{
    format::float,
    value::{Map, Value},
};

/// Of a line; more is a mistake of the template.
const MAX_LINE: usize = 1 << 20;
/// How often the bodies of `range` may run for one line.
const MAX_TURNS: usize = 100_000;
/// How deep templates may call each other.
const MAX_DEPTH: usize = 100;

/// What a template is run with: the value at a path, the last part of which may be a method with arguments.
pub(super) type Lookup<'a> = dyn Fn(&[String], &[Value]) -> Option<Value> + 'a;

pub(super) struct Template {
    nodes: Vec<Node>,
    /// By name.
    defined: HashMap<String, Vec<Node>>,
}

enum Node {
    Text(String),
    Print(Pipeline),
    If {
        condition: Pipeline,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    /// Like `If`, with the value as the dot.
    With {
        value: Pipeline,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        over: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Template {
        name: String,
        dot: Option<Pipeline>,
    },
    Break,
    Continue,
}

struct Pipeline {
    variables: Vec<String>,
    /// They exist already.
    assigns: bool,
    value: Expr,
}

#[derive(Debug, Clone)]
enum Expr {
    Literal(Value),
    Dot,
    Variable(String),
    Call {
        function: String,
        arguments: Vec<Expr>,
    },
    /// Fields of a value; the last may be a method with arguments.
    Chain {
        base: Box<Expr>,
        path: Vec<String>,
        arguments: Vec<Expr>,
    },
}

/// How a list of nodes ended.
#[derive(PartialEq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// One line in the making.
struct Run<'a> {
    template: &'a Template,
    lookup: &'a Lookup<'a>,
    variables: Vec<(String, Value)>,
    out: String,
    depth: usize,
    turns: usize,
}

// === impl Template ===

impl Template {
    /// # Errors
    /// What is wrong with it, and in which line.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        parse::template(text)
    }

    /// # Errors
    /// What of it has no value, or no sense with this one.
    pub(super) fn render(&self, lookup: &Lookup<'_>) -> Result<String, String> {
        let mut run = Run { template: self, lookup, variables: Vec::new(), out: String::new(), depth: 0, turns: 0 };
        run.template(&self.nodes, Value::root())?;
        Ok(run.out)
    }
}

// === impl Run ===

impl Run<'_> {
    /// A template of its own: of the variables there is only `$`.
    fn template(&mut self, nodes: &[Node], dot: Value) -> Result<(), String> {
        let outer = std::mem::replace(&mut self.variables, vec![("$".to_owned(), dot.clone())]);
        let done = self.nodes(nodes, &dot);
        self.variables = outer;
        done.map(drop)
    }

    /// What is declared within ends with it.
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, String> {
        let mark = self.variables.len();
        let mut flow = Flow::Next;
        for node in nodes {
            flow = self.node(node, dot)?;
            if flow != Flow::Next {
                break;
            }
        }
        self.variables.truncate(mark);
        Ok(flow)
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow, String> {
        let mark = self.variables.len();
        let flow = match node {
            Node::Text(text) => {
                self.out.push_str(text);
                return Ok(Flow::Next);
            }
            Node::Print(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                if pipeline.variables.is_empty() {
                    self.out.push_str(&value.to_string());
                }
                if self.out.len() > MAX_LINE {
                    return Err(format!("the line has more than {MAX_LINE} bytes"));
                }
                // A declaration lives on.
                return Ok(Flow::Next);
            }
            Node::If { condition, then, otherwise } => {
                let chosen = if self.pipeline(condition, dot)?.is_true() { then } else { otherwise };
                self.nodes(chosen, dot)?
            }
            Node::With { value, then, otherwise } => {
                let value = self.pipeline(value, dot)?;
                if value.is_true() { self.nodes(then, &value)? } else { self.nodes(otherwise, dot)? }
            }
            Node::Range { over, body, otherwise } => self.range(over, body, otherwise, dot)?,
            Node::Template { name, dot: given } => {
                let given = given.as_ref().map(|given| self.pipeline(given, dot)).transpose()?;
                let nodes = self.template.defined.get(name);
                let nodes = nodes.ok_or_else(|| format!("template {name:?} not defined"))?;
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(format!("template {name:?} calls itself without end"));
                }
                self.template(nodes, given.unwrap_or(Value::Missing))?;
                self.depth -= 1;
                Flow::Next
            }
            Node::Break => Flow::Break,
            Node::Continue => Flow::Continue,
        };
        self.variables.truncate(mark);
        Ok(flow)
    }

    fn range(&mut self, over: &Pipeline, body: &[Node], otherwise: &[Node], dot: &Value) -> Result<Flow, String> {
        let items: Vec<(Value, Value)> = match self.expr(&over.value, dot)? {
            Value::Nil => Vec::new(),
            Value::List(list) => list.into_iter().enumerate().map(|(at, item)| (Value::of(at), item)).collect(),
            Value::Map(map) => map.entries.into_iter().map(|(key, item)| (Value::Text(key), item)).collect(),
            Value::Integer(count) => {
                if usize::try_from(count).is_ok_and(|count| count > MAX_TURNS) {
                    return Err(format!("range over {count}: more than {MAX_TURNS}"));
                }
                (0..count).map(|at| (Value::Integer(at), Value::Integer(at))).collect()
            }
            other => return Err(format!("range can't iterate over {other}")),
        };
        if items.is_empty() {
            return self.nodes(otherwise, dot);
        }
        let single = matches!(over.variables.len(), 0 | 1);
        for (key, item) in items {
            self.turns += 1;
            if self.turns > MAX_TURNS {
                return Err(format!("more than {MAX_TURNS} turns of range"));
            }
            let mark = self.variables.len();
            let values = if single { [item.clone(), Value::Nil] } else { [key, item.clone()] };
            for (name, value) in over.variables.iter().zip(values) {
                self.set(name, value, over.assigns)?;
            }
            let flow = self.nodes(body, &item)?;
            self.variables.truncate(mark);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::Next)
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, String> {
        let value = self.expr(&pipeline.value, dot)?;
        for name in &pipeline.variables {
            self.set(name, value.clone(), pipeline.assigns)?;
        }
        Ok(value)
    }

    fn set(&mut self, name: &str, value: Value, assigns: bool) -> Result<(), String> {
        if !assigns {
            self.variables.push((name.to_owned(), value));
            return Ok(());
        }
        let known = self.variables.iter_mut().rev().find(|(known, _)| known == name);
        known.ok_or_else(|| format!("undefined variable: {name}"))?.1 = value;
        Ok(())
    }

    fn expr(&mut self, expr: &Expr, dot: &Value) -> Result<Value, String> {
        match expr {
            Expr::Literal(value) => Ok(value.clone()),
            Expr::Dot => Ok(dot.clone()),
            Expr::Variable(name) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                known.map(|(_, value)| value.clone()).ok_or_else(|| format!("undefined variable: {name}"))
            }
            // They look no further than they have to.
            Expr::Call { function, arguments } if function == "and" || function == "or" => {
                let mut last = Value::Nil;
                for argument in arguments {
                    last = self.expr(argument, dot)?;
                    if last.is_true() == (function == "or") {
                        break;
                    }
                }
                Ok(last)
            }
            Expr::Call { function, arguments } => {
                let values = self.all(arguments, dot)?;
                functions::call(function, &values)
            }
            Expr::Chain { base, path, arguments } => {
                // A field of a field of what the line is about: most fields are, and nobody needs what is between.
                if path.len() == 2 && matches!(**base, Expr::Dot) && dot.is_root() {
                    let arguments = self.all(arguments, dot)?;
                    if let Some(value) = (self.lookup)(path, &arguments) {
                        return Ok(value);
                    }
                }
                let mut value = self.expr(base, dot)?;
                let arguments = self.all(arguments, dot)?;
                for (at, name) in path.iter().enumerate() {
                    let given = if at + 1 == path.len() { &arguments[..] } else { &[] };
                    value = value.field(name, given, self.lookup)?;
                }
                Ok(value)
            }
        }
    }

    fn all(&mut self, exprs: &[Expr], dot: &Value) -> Result<Vec<Value>, String> {
        exprs.iter().map(|expr| self.expr(expr, dot)).collect()
    }
}

#[cfg(test)]
mod tests;
