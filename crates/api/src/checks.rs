//! Kubernetes' name checks, with the texts users see.

pub const DNS1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
pub const DNS1123: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
pub const SUBDOMAIN: &str = r"a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const NAME_PART: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const C_IDENTIFIER: &str = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')";

const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;

pub fn dns1035_label(name: &str) -> Vec<String> {
    let mut texts = too_long(name, LABEL_MAX);
    if !is_label(name) || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        texts.push(DNS1035.to_owned());
    }
    texts
}

/// For a `generateName`: a trailing dash stands for what is appended.
pub fn dns1035_prefix(name: &str) -> Vec<String> {
    match name.strip_suffix('-') {
        Some(head) if name.len() > 1 => {
            let mut head = head.to_owned();
            head.pop();
            dns1035_label(&format!("{head}a"))
        }
        _ => dns1035_label(name),
    }
}

pub fn dns1123_label(name: &str) -> Vec<String> {
    let mut texts = too_long(name, LABEL_MAX);
    if !is_label(name) {
        let text = if is_subdomain(name) { "must not contain dots" } else { DNS1123 };
        texts.push(text.to_owned());
    }
    texts
}

pub fn dns1123_subdomain(name: &str) -> Vec<String> {
    let mut texts = too_long(name, SUBDOMAIN_MAX);
    if !is_subdomain(name) {
        texts.push(SUBDOMAIN.to_owned());
    }
    texts
}

pub fn qualified_name(name: &str) -> Vec<String> {
    let (prefix, part) = match name.split_once('/') {
        None => (None, name),
        Some((_, rest)) if rest.contains('/') => {
            return vec![format!(
                "a valid label key {NAME_PART} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
        Some((prefix, part)) => (Some(prefix), part),
    };
    let mut texts = Vec::new();
    match prefix {
        Some("") => texts.push("prefix part must be non-empty".to_owned()),
        Some(prefix) => texts.extend(
            dns1123_subdomain(prefix)
                .into_iter()
                .map(|text| format!("prefix part {}", text.replace("253 characters", "253 bytes"))),
        ),
        None => {}
    }
    if part.is_empty() {
        texts.push("name part must be non-empty".to_owned());
    } else if part.len() > LABEL_MAX {
        texts.push("name part must be no more than 63 bytes".to_owned());
    }
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inside = part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if !(inside && ends(part.chars().next()) && ends(part.chars().next_back())) {
        texts.push(format!("name part {NAME_PART}"));
    }
    texts
}

pub fn c_identifier(name: &str) -> Vec<String> {
    let start = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if start && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        Vec::new()
    } else {
        vec![C_IDENTIFIER.to_owned()]
    }
}

/// A fully qualified domain name: at least two labels. One text per problem.
pub fn fqdn(name: &str) -> Vec<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        return vec!["Required value".to_owned()];
    }
    let texts = dns1123_subdomain(name);
    if !texts.is_empty() {
        return texts;
    }
    let labels: Vec<&str> = name.split('.').collect();
    if labels.len() < 2 {
        return vec!["should be a domain with at least two segments separated by dots".to_owned()];
    }
    labels.into_iter().flat_map(dns1123_label).collect()
}

fn is_label(name: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends(name.chars().next())
        && ends(name.chars().next_back())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn is_subdomain(name: &str) -> bool {
    name.split('.').all(is_label)
}

fn too_long(name: &str, max: usize) -> Vec<String> {
    if name.len() > max { vec![format!("must be no more than {max} characters")] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_domains() {
        assert!(dns1035_label("a-b1").is_empty());
        assert_eq!(dns1035_label("1a"), [DNS1035]);
        assert_eq!(dns1035_label(&"A".repeat(64)).len(), 2);
        assert!(dns1035_prefix("abc-").is_empty() && !dns1035_prefix("-").is_empty());
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert!(dns1123_subdomain("a.b-c.d").is_empty() && !dns1123_subdomain("a..b").is_empty());
        assert!(fqdn("a.example.com").is_empty() && fqdn("com").len() == 1);
        assert!(qualified_name("example.com/Name_1").is_empty());
        assert_eq!(qualified_name("/x"), ["prefix part must be non-empty"]);
        assert_eq!(qualified_name("").len(), 2);
        assert!(c_identifier("_A1").is_empty() && !c_identifier("1a").is_empty());
    }
}
