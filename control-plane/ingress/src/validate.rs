//! What an Ingress may ask for. The API takes any text; a gateway would refuse some of it, and what it would refuse is
//! better told at once, on the Ingress, in words of the Ingress.

use api::networking::v1alpha1::{HttpIngressPath, IngressSpec};

use crate::model::Headers;

/// The host of the gateway's own readiness.
pub const STATUS_HOST: &str = "internalkourier";

/// A gateway reads no request head that is longer, so nothing longer could ever match.
const LONGEST_PATH: usize = 60 * 1024;
const LONGEST_HEADER: usize = 16 * 1024;

/// # Errors
/// With the first thing that cannot be, and where it is.
pub fn check(spec: &IngressSpec) -> Result<(), String> {
    for rule in &spec.rules {
        for host in &rule.hosts {
            check_host(host).map_err(|error| format!("the host {:?} {error}", excerpt(host)))?;
        }
        for path in rule.http.iter().flat_map(|http| &http.paths) {
            let place = |error| {
                let host = rule.hosts.first().map_or("*", String::as_str);
                format!("path {:?} of {}: {error}", excerpt(&path.path), excerpt(host))
            };
            check_path(path).map_err(place)?;
        }
    }
    Ok(())
}

fn check_host(host: &str) -> Result<(), String> {
    // Otherwise the ports of one host would be another host's.
    let foreign = |c: char| !c.is_ascii_graphic() || ":/?#@".contains(c);
    if host.is_empty() || host.len() > 253 {
        return Err("must have 1 to 253 letters".to_owned());
    }
    if host.eq_ignore_ascii_case(STATUS_HOST) {
        return Err("is the gateway's own".to_owned());
    }
    match host.chars().find(|c| foreign(*c)) {
        Some(bad) => Err(format!("has a {bad:?}, which no host name has")),
        None => Ok(()),
    }
}

fn check_path(path: &HttpIngressPath) -> Result<(), String> {
    check_value(&path.path, LONGEST_PATH).map_err(|error| format!("the path {error}"))?;
    check_value(&path.rewrite_host, LONGEST_HEADER).map_err(|error| format!("rewriteHost {error}"))?;
    for (name, value) in &path.headers {
        check_name(name)?;
        check_value(&value.exact, LONGEST_PATH).map_err(|error| format!("the value of header {name} {error}"))?;
    }
    let appended = path.splits.iter().map(|split| &split.append_headers).chain([&path.append_headers]);
    appended.into_iter().try_for_each(check_appended)
}

fn check_appended(headers: &Headers) -> Result<(), String> {
    for (name, value) in headers {
        check_name(name)?;
        if name.eq_ignore_ascii_case("host") {
            return Err("the header host cannot be set with appendHeaders; use rewriteHost".to_owned());
        }
        check_value(value, LONGEST_HEADER).map_err(|error| format!("the value of header {name} {error}"))?;
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), String> {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if name.is_empty() || name.len() > LONGEST_HEADER || !name.chars().all(token) {
        return Err(format!("{:?} cannot be the name of a header", excerpt(name)));
    }
    Ok(())
}

fn check_value(value: &str, longest: usize) -> Result<(), String> {
    if value.len() > longest {
        return Err(format!("is {} bytes long, and a gateway takes no more than {longest}", value.len()));
    }
    match value.chars().find(|c| c.is_control() && *c != '\t') {
        Some(bad) => Err(format!("has the control character {bad:?}")),
        None => Ok(()),
    }
}

/// So that a message stays readable, whatever it is about.
fn excerpt(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn errors(host: &str, path: Value) -> String {
        let spec = json!({"rules": [{"hosts": [host], "http": {"paths": [path]}}]});
        check(&serde_json::from_value(spec).unwrap()).err().unwrap_or_default()
    }

    #[test]
    fn what_serving_asks_for_is_fine() {
        let path = json!({"path": "/a b?c", "rewriteHost": "a.b:80", "headers": {"Knative-Serving-Tag": {"exact": ""}},
            "splits": [{"serviceName": "a", "appendHeaders": {"Knative-Serving-Revision": "a b\t50%"}}]});
        for host in ["a.example.com", "*.example.com", "A_b.example.com", "*"] {
            assert_eq!(errors(host, path.clone()), "");
        }
    }

    #[test]
    fn what_a_gateway_would_refuse_is_told() {
        let long = "x".repeat(70_000);
        for (host, path, expected) in [
            ("", json!({}), "1 to 253"),
            (&long, json!({}), "1 to 253"),
            ("InternalKourier", json!({}), "the gateway's own"),
            ("a.com:80", json!({}), "':'"),
            ("a b", json!({}), "' '"),
            ("a", json!({"path": "/\u{1}"}), "control character"),
            ("a", json!({"path": long}), "61440"),
            ("a", json!({"rewriteHost": "a\nb"}), "rewriteHost has the control"),
            ("a", json!({"headers": {"a b": {"exact": "x"}}}), "cannot be the name"),
            ("a", json!({"appendHeaders": {"a": "x\r\ny"}}), "control character"),
            ("a", json!({"appendHeaders": {"": "x"}}), "cannot be the name"),
            ("a", json!({"appendHeaders": {"a": long}}), "16384"),
            ("a", json!({"splits": [{"appendHeaders": {"Host": "x"}}]}), "use rewriteHost"),
        ] {
            let error = errors(host, path);
            assert!(error.contains(expected) && error.len() < 400, "{expected}: {error}");
        }
    }
}
