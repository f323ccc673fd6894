//! From tokens to what is to be done.

use std::collections::HashMap;

use super::{
    Expr, Node, Pipeline, Template, Value, functions,
    lex::{self, Piece, Token},
};

/// How deep blocks and parentheses may be nested.
const MAX_DEPTH: usize = 100;

struct Parser {
    pieces: std::iter::Peekable<std::vec::IntoIter<Piece>>,
    defined: HashMap<String, Vec<Node>>,
    /// Variables in sight.
    variables: Vec<String>,
    /// How many `range` are around.
    ranges: usize,
    depth: usize,
    line: usize,
}

/// Where a list of nodes ended.
enum Stop {
    End,
    Else,
    /// `else if` or `else with`, and what follows.
    Chained(String, Vec<Token>),
    Input,
}

pub(super) fn template(text: &str) -> Result<Template, String> {
    let pieces = lex::pieces(text)?.into_iter().peekable();
    let variables = vec!["$".to_owned()];
    let mut parser = Parser { pieces, defined: HashMap::new(), variables, ranges: 0, depth: 0, line: 1 };
    let (nodes, stop) = parser.nodes().map_err(|error| format!("line {}: {error}", parser.line))?;
    match stop {
        Stop::Input => Ok(Template { nodes, defined: parser.defined }),
        Stop::End => Err(format!("line {}: unexpected {{{{end}}}}", parser.line)),
        Stop::Else | Stop::Chained(..) => Err(format!("line {}: unexpected {{{{else}}}}", parser.line)),
    }
}

// === impl Parser ===

impl Parser {
    fn nodes(&mut self) -> Result<(Vec<Node>, Stop), String> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let (tokens, line) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(tokens, line) => (tokens, line),
            };
            self.line = line;
            let keyword = match tokens.first() {
                Some(Token::Word(word)) => word.clone(),
                _ => String::new(),
            };
            let mut rest = tokens.get(1..).unwrap_or_default();
            match &*keyword {
                "end" if rest.is_empty() => return Ok((nodes, Stop::End)),
                "else" => {
                    let stop = match rest {
                        [] => Stop::Else,
                        [Token::Word(word), rest @ ..] if word == "if" || word == "with" => {
                            Stop::Chained(word.clone(), rest.to_vec())
                        }
                        _ => return Err("unexpected text after else".to_owned()),
                    };
                    return Ok((nodes, stop));
                }
                "if" | "with" | "range" => nodes.push(self.control(&keyword, rest)?),
                "break" | "continue" if rest.is_empty() => {
                    if self.ranges == 0 {
                        return Err(format!("{{{{{keyword}}}}} outside {{{{range}}}}"));
                    }
                    nodes.push(if keyword == "break" { Node::Break } else { Node::Continue });
                }
                "define" => {
                    let name = self.name(&mut rest, &keyword)?;
                    if !rest.is_empty() {
                        return Err("unexpected text after the name of a define".to_owned());
                    }
                    let body = self.apart()?;
                    self.defined.insert(name, body);
                }
                "block" => {
                    let name = self.name(&mut rest, &keyword)?;
                    let dot = Some(self.pipeline(rest)?);
                    let body = self.apart()?;
                    self.defined.entry(name.clone()).or_insert(body);
                    nodes.push(Node::Template { name, dot });
                }
                "template" => {
                    let name = self.name(&mut rest, &keyword)?;
                    let dot = if rest.is_empty() { None } else { Some(self.pipeline(rest)?) };
                    nodes.push(Node::Template { name, dot });
                }
                _ => nodes.push(Node::Print(self.pipeline(&tokens)?)),
            }
        }
        Ok((nodes, Stop::Input))
    }

    fn name(&mut self, rest: &mut &[Token], keyword: &str) -> Result<String, String> {
        match rest.split_first() {
            Some((Token::Literal(Value::Text(name)), after)) => {
                *rest = after;
                Ok(name.clone())
            }
            _ => Err(format!("{keyword} needs a name in quotes")),
        }
    }

    /// The body of a template of its own, to its `end`.
    fn apart(&mut self) -> Result<Vec<Node>, String> {
        let variables = std::mem::replace(&mut self.variables, vec!["$".to_owned()]);
        let ranges = std::mem::take(&mut self.ranges);
        let (nodes, stop) = self.deeper(Self::nodes)?;
        (self.variables, self.ranges) = (variables, ranges);
        match stop {
            Stop::End => Ok(nodes),
            _ => Err("define or block without {{end}}".to_owned()),
        }
    }

    fn control(&mut self, keyword: &str, rest: &[Token]) -> Result<Node, String> {
        let mark = self.variables.len();
        let value = if keyword == "range" { self.over(rest)? } else { self.pipeline(rest)? };
        let is_range = keyword == "range";
        self.ranges += usize::from(is_range);
        let (then, stop) = self.deeper(Self::nodes)?;
        self.ranges -= usize::from(is_range);
        let otherwise = match stop {
            Stop::End => Vec::new(),
            Stop::Chained(keyword, _) if is_range => return Err(format!("{{{{else {keyword}}}}} in a {{{{range}}}}")),
            Stop::Chained(keyword, rest) => vec![self.deeper(|parser| parser.control(&keyword, &rest))?],
            Stop::Else => match self.deeper(Self::nodes)? {
                (otherwise, Stop::End) => otherwise,
                _ => return Err(format!("{{{{{keyword}}}}} without {{{{end}}}}")),
            },
            Stop::Input => return Err(format!("{{{{{keyword}}}}} without {{{{end}}}}")),
        };
        self.variables.truncate(mark);
        Ok(match keyword {
            "if" => Node::If { condition: value, then, otherwise },
            "with" => Node::With { value, then, otherwise },
            _ => Node::Range { over: value, body: then, otherwise },
        })
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, String>) -> Result<T, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("nested more than {MAX_DEPTH} deep"));
        }
        let mark = self.variables.len();
        let parsed = parse(self)?;
        self.variables.truncate(mark);
        self.depth -= 1;
        Ok(parsed)
    }

    /// What a `range` goes over, with up to two variables.
    fn over(&mut self, tokens: &[Token]) -> Result<Pipeline, String> {
        if let [
            Token::Variable(key),
            Token::Comma,
            Token::Variable(item),
            sign @ (Token::Declare | Token::Assign),
            rest @ ..,
        ] = tokens
        {
            let value = self.value(rest)?;
            let variables = vec![key.clone(), item.clone()];
            return self.with_variables(variables, *sign == Token::Assign, value);
        }
        self.pipeline(tokens)
    }

    fn pipeline(&mut self, tokens: &[Token]) -> Result<Pipeline, String> {
        if let [Token::Variable(name), sign @ (Token::Declare | Token::Assign), rest @ ..] = tokens {
            let value = self.value(rest)?;
            return self.with_variables(vec![name.clone()], *sign == Token::Assign, value);
        }
        Ok(Pipeline { variables: Vec::new(), assigns: false, value: self.value(tokens)? })
    }

    fn with_variables(&mut self, variables: Vec<String>, assigns: bool, value: Expr) -> Result<Pipeline, String> {
        if assigns {
            variables.iter().try_for_each(|name| self.is_known(name))?;
        } else {
            self.variables.extend(variables.iter().cloned());
        }
        Ok(Pipeline { variables, assigns, value })
    }

    fn is_known(&self, name: &String) -> Result<(), String> {
        if self.variables.contains(name) { Ok(()) } else { Err(format!("undefined variable {name:?}")) }
    }

    /// All of `tokens` as one value.
    fn value(&mut self, mut tokens: &[Token]) -> Result<Expr, String> {
        let value = self.commands(&mut tokens)?;
        if tokens.is_empty() { Ok(value) } else { Err("unexpected \")\" in an action".to_owned()) }
    }

    /// `command | command`: each gets the former's value as its last argument.
    fn commands(&mut self, tokens: &mut &[Token]) -> Result<Expr, String> {
        let mut value = None;
        loop {
            value = Some(self.command(tokens, value)?);
            match tokens.split_first() {
                Some((Token::Pipe, rest)) => *tokens = rest,
                Some((Token::Close, _)) | None => return value.ok_or_else(|| "missing value for command".to_owned()),
                Some((token, _)) => return Err(format!("unexpected {token:?}")),
            }
        }
    }

    fn command(&mut self, tokens: &mut &[Token], piped: Option<Expr>) -> Result<Expr, String> {
        let mut arguments = Vec::new();
        let first = self.operand(tokens)?.ok_or("missing value for command")?;
        while let Some(argument) = self.operand(tokens)? {
            arguments.push(argument);
        }
        arguments.extend(piped);
        if arguments.is_empty() {
            return Ok(first);
        }
        match first {
            Expr::Call { function, arguments: none } if none.is_empty() => Ok(Expr::Call { function, arguments }),
            Expr::Chain { base, path, arguments: none } if none.is_empty() => Ok(Expr::Chain { base, path, arguments }),
            _ => Err("only functions and methods take arguments".to_owned()),
        }
    }

    /// A value with the fields that hang on it.
    fn operand(&mut self, tokens: &mut &[Token]) -> Result<Option<Expr>, String> {
        let Some((first, rest)) = tokens.split_first() else { return Ok(None) };
        let mut path = Vec::new();
        let base = match first {
            Token::Dot => Expr::Dot,
            Token::Field(name, _) => {
                path.push(name.clone());
                Expr::Dot
            }
            Token::Variable(name) => {
                self.is_known(name)?;
                Expr::Variable(name.clone())
            }
            Token::Literal(value) => Expr::Literal(value.clone()),
            Token::Word(function) if functions::NAMES.contains(&&**function) => {
                Expr::Call { function: function.clone(), arguments: Vec::new() }
            }
            Token::Word(function) => return Err(format!("function {function:?} not defined")),
            Token::Open => {
                *tokens = rest;
                let inner = self.deeper(|parser| parser.commands(tokens))?;
                match tokens.split_first() {
                    Some((Token::Close, _)) => inner,
                    _ => return Err("unclosed left paren".to_owned()),
                }
            }
            Token::Close | Token::Pipe => return Ok(None),
            Token::Comma | Token::Declare | Token::Assign => return Err(format!("unexpected {first:?}")),
        };
        *tokens = &tokens[1..];
        while let Some((Token::Field(name, true), rest)) = tokens.split_first() {
            path.push(name.clone());
            *tokens = rest;
        }
        Ok(Some(if path.is_empty() { base } else { Expr::Chain { base: Box::new(base), path, arguments: Vec::new() } }))
    }
}
