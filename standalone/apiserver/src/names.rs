//! Name, label and annotation formats, with the sentences Kubernetes uses when they are broken.
//!
//! Every function answers the message without a field path: the caller knows whether it was `metadata.name` or a selector value.

use std::sync::LazyLock;

use regex::Regex;

static LABEL: LazyLock<Regex> = LazyLock::new(|| pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"));
static LABEL_1035: LazyLock<Regex> = LazyLock::new(|| pattern("^[a-z]([-a-z0-9]*[a-z0-9])?$"));
static SUBDOMAIN: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"));
static QUALIFIED: LazyLock<Regex> = LazyLock::new(|| pattern("^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$"));
static CONFIG_KEY: LazyLock<Regex> = LazyLock::new(|| pattern("^[-._a-zA-Z0-9]+$"));
static ENV_NAME: LazyLock<Regex> = LazyLock::new(|| pattern("^[-._a-zA-Z][-._a-zA-Z0-9]*$"));
static PORT_NAME: LazyLock<Regex> = LazyLock::new(|| pattern("^[-a-z0-9]+$"));

const LABEL_TEXT: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an \
    alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035_TEXT: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, \
    and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_TEXT: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start \
    and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const NAME_PART_TEXT: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
    character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const QUALIFIED_TEXT: &str = "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
    alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
const LABEL_VALUE_TEXT: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start \
    and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
    '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY_TEXT: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  \
    or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_TEXT: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

/// How a kind's `metadata.name` is formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NameFormat {
    /// RFC 1123 subdomain, 253 characters: most kinds.
    #[default]
    Subdomain,
    /// RFC 1123 label, 63 characters: namespaces.
    Label,
    /// RFC 1035 label: Services.
    Label1035,
    /// Anything that can be a path segment: RBAC.
    PathSegment,
}

// === impl NameFormat ===

impl NameFormat {
    pub fn check(self, name: &str) -> Result<(), String> {
        match self {
            Self::Subdomain => subdomain(name),
            Self::Label => label(name),
            Self::Label1035 => label_1035(name),
            Self::PathSegment => path_segment(name),
        }
    }
}

pub fn label(name: &str) -> Result<(), String> {
    joined([longer(name, 63), unless(&LABEL, name, LABEL_TEXT)])
}

pub fn label_1035(name: &str) -> Result<(), String> {
    joined([longer(name, 63), unless(&LABEL_1035, name, LABEL_1035_TEXT)])
}

pub fn subdomain(name: &str) -> Result<(), String> {
    joined([longer(name, 253), unless(&SUBDOMAIN, name, SUBDOMAIN_TEXT)])
}

pub fn path_segment(name: &str) -> Result<(), String> {
    if name == "." || name == ".." {
        return Err(format!("may not be '{name}'"));
    }
    match ["/", "%"].into_iter().find(|c| name.contains(c)) {
        Some(c) => Err(format!("may not contain '{c}'")),
        None => Ok(()),
    }
}

/// A label or annotation key: `[prefix/]name`.
pub fn label_key(key: &str) -> Result<(), String> {
    let parts: Vec<&str> = key.split('/').collect();
    let (prefix, name) = match parts[..] {
        [name] => (None, name),
        [prefix, name] => (Some(prefix), name),
        _ => return Err(QUALIFIED_TEXT.to_owned()),
    };
    let prefix = prefix.and_then(|p| {
        if p.is_empty() {
            Some("prefix part must be non-empty".to_owned())
        } else {
            subdomain(p).err().map(|e| format!("prefix part {e}"))
        }
    });
    if name.is_empty() {
        let errors = [prefix, Some("name part must be non-empty".to_owned()), Some(NAME_PART_TEXT.to_owned())];
        return joined(errors);
    }
    let long = (name.len() > 63).then(|| "name part must be no more than 63 bytes".to_owned());
    joined([prefix, long, unless(&QUALIFIED, name, NAME_PART_TEXT)])
}

pub fn label_value(value: &str) -> Result<(), String> {
    let long = (value.len() > 63).then(|| "must be no more than 63 bytes".to_owned());
    let shape = if value.is_empty() { None } else { unless(&QUALIFIED, value, LABEL_VALUE_TEXT) };
    joined([long, shape])
}

/// A key of a ConfigMap or Secret.
pub fn config_key(key: &str) -> Result<(), String> {
    let dots = match key {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        _ => key.starts_with("..").then(|| "must not start with '..'".to_owned()),
    };
    joined([longer(key, 253), unless(&CONFIG_KEY, key, CONFIG_KEY_TEXT), dots])
}

pub fn env_name(name: &str) -> Result<(), String> {
    if ENV_NAME.is_match(name) || (!name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')) {
        return Ok(());
    }
    Err(ENV_TEXT.to_owned())
}

/// The name of a container port (IANA service name).
pub fn port_name(name: &str) -> Result<(), String> {
    let has_letter = name.bytes().any(|b| b.is_ascii_lowercase());
    joined([
        (name.len() > 15).then(|| "must be no more than 15 bytes".to_owned()),
        unless(&PORT_NAME, name, "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"),
        (!has_letter).then(|| "must contain at least one letter (a-z)".to_owned()),
        name.contains("--").then(|| "must not contain consecutive hyphens".to_owned()),
        (name.starts_with('-') || name.ends_with('-')).then(|| "must not begin or end with a hyphen".to_owned()),
    ])
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a constant pattern")
}

fn longer(text: &str, limit: usize) -> Option<String> {
    (text.len() > limit).then(|| format!("must be no more than {limit} bytes"))
}

fn unless(pattern: &Regex, text: &str, message: &str) -> Option<String> {
    (!pattern.is_match(text)).then(|| message.to_owned())
}

fn joined(errors: impl IntoIterator<Item = Option<String>>) -> Result<(), String> {
    let errors: Vec<String> = errors.into_iter().flatten().collect();
    if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        assert!(NameFormat::Subdomain.check("a.b-c").is_ok());
        assert!(
            NameFormat::Subdomain.check("A").expect_err("upper case").starts_with("a lowercase RFC 1123 subdomain")
        );
        assert!(NameFormat::Label.check("a.b").is_err());
        assert!(NameFormat::Label1035.check("1a").expect_err("digit").starts_with("a DNS-1035 label"));
        assert!(NameFormat::PathSegment.check("system:node").is_ok());
        assert_eq!(NameFormat::PathSegment.check("a/b"), Err("may not contain '/'".to_owned()));
        assert!(label_key("serving.knative.dev/service").is_ok());
        assert!(label_key("/x").is_err());
        assert!(label_value(&"x".repeat(64)).is_err());
        assert!(config_key("a_b.c").is_ok());
        assert!(env_name("a=b").is_err());
        assert!(port_name("http-usermetric").is_ok());
    }
}
