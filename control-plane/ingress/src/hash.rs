//! The Ingress hash that the status probe compares: SHA-256 over the JSON that Go would write for the defaulted spec,
//! followed by namespace and name. Bit-exact, because Go processes compute it too.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write},
};

use api::networking::v1alpha1::{HttpIngressPath, IngressBackendSplit, IngressRule, IngressSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// 64 lower-case hexadecimal digits.
pub fn ingress_hash(spec: &IngressSpec, namespace: &str, name: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(go_json(spec));
    hasher.update(namespace);
    hasher.update(name);
    let digits = |byte: &u8| [byte >> 4, byte & 0xf].map(|digit| char::from_digit(digit.into(), 16).expect("below 16"));
    hasher.finalize().iter().flat_map(digits).collect()
}

fn go_json(spec: &IngressSpec) -> String {
    let mut json = String::with_capacity(2048);
    let mut out = Object::new(&mut json);
    out.list("tls", &spec.tls, |json, tls| {
        let mut out = Object::new(json);
        out.list("hosts", &tls.hosts, |json, host| quote(json, host));
        out.text("secretName", &tls.secret_name);
        out.text("secretNamespace", &tls.secret_namespace);
        out.close();
    });
    out.list("rules", &spec.rules, rule);
    out.text("httpOption", &spec.http_option);
    out.close();
    json
}

fn rule(json: &mut String, rule: &IngressRule) {
    let mut out = Object::new(json);
    out.list("hosts", &rule.hosts, |json, host| quote(json, host));
    out.text("visibility", &rule.visibility);
    if let Some(http) = &rule.http {
        let mut out = Object::new(out.value("http"));
        list_or_null(out.value("paths"), &http.paths, path);
        out.close();
    }
    out.close();
}

fn path(json: &mut String, path: &HttpIngressPath) {
    let mut out = Object::new(json);
    out.text("path", &path.path);
    out.text("rewriteHost", &path.rewrite_host);
    if !path.headers.is_empty() {
        let mut headers = Object::new(out.value("headers"));
        for (name, value) in &path.headers {
            let mut header = Object::new(headers.value(name));
            quote(header.value("exact"), &value.exact);
            header.close();
        }
        headers.close();
    }
    list_or_null(out.value("splits"), &path.splits, split);
    out.map("appendHeaders", &path.append_headers);
    out.close();
}

fn split(json: &mut String, split: &IngressBackendSplit) {
    let mut out = Object::new(json);
    quote(out.value("serviceNamespace"), &split.service_namespace);
    quote(out.value("serviceName"), &split.service_name);
    let port = out.value("servicePort");
    match &split.service_port {
        IntOrString::Int(number) => number_into(port, *number),
        IntOrString::String(name) => quote(port, name),
    }
    if split.percent != 0 {
        number_into(out.value("percent"), split.percent);
    }
    out.map("appendHeaders", &split.append_headers);
    out.close();
}

/// A JSON object under construction; empty values are left out, as `omitempty` does.
struct Object<'a> {
    json: &'a mut String,
    empty: bool,
}

impl<'a> Object<'a> {
    fn new(json: &'a mut String) -> Self {
        json.push('{');
        Object { json, empty: true }
    }

    /// Where the value of this name is to be written.
    fn value(&mut self, name: &str) -> &mut String {
        if !std::mem::take(&mut self.empty) {
            self.json.push(',');
        }
        quote(self.json, name);
        self.json.push(':');
        self.json
    }

    fn text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            quote(self.value(name), value);
        }
    }

    fn list<T>(&mut self, name: &str, items: &[T], write: impl Fn(&mut String, &T)) {
        if !items.is_empty() {
            list_or_null(self.value(name), items, write);
        }
    }

    fn map(&mut self, name: &str, map: &BTreeMap<String, String>) {
        if !map.is_empty() {
            let mut object = Object::new(self.value(name));
            for (key, value) in map {
                quote(object.value(key), value);
            }
            object.close();
        }
    }

    fn close(self) {
        self.json.push('}');
    }
}

/// Go writes a list that was never made as null.
fn list_or_null<T>(json: &mut String, items: &[T], write: impl Fn(&mut String, &T)) {
    if items.is_empty() {
        return json.push_str("null");
    }
    for (at, item) in items.iter().enumerate() {
        json.push(if at == 0 { '[' } else { ',' });
        write(json, item);
    }
    json.push(']');
}

fn number_into(json: &mut String, number: impl Display) {
    write!(json, "{number}").expect("a string grows");
}

/// Go's encoder also escapes what HTML and JavaScript trip over.
fn quote(json: &mut String, text: &str) {
    // U+2028 and U+2029 begin with 0xe2.
    let as_it_is = |byte: u8| byte >= b' ' && !matches!(byte, b'"' | b'\\' | b'<' | b'>' | b'&' | 0xe2);
    if text.bytes().all(as_it_is) {
        json.push('"');
        json.push_str(text);
        return json.push('"');
    }
    let plain = Value::from(text).to_string();
    let escaped = plain
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029");
    json.push_str(&escaped);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(value: Value) -> IngressSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_hashes_of_go() {
        let split = json!({"serviceNamespace": "", "serviceName": "blah", "servicePort": 0});
        let plain = spec(json!({"rules": [{"hosts": ["example.com"], "http": {"paths": [{"splits": [split]}]}}]}));
        assert_eq!(ingress_hash(&plain, "", ""), "a25000a350642c8abef53078b329bd043e18758f6063c1172d53b04e14fcf5c1");
        let mut headers = plain;
        headers.rules[0].http.as_mut().unwrap().paths[0].splits[0].append_headers =
            [("Foo".to_owned(), "bar".to_owned())].into();
        assert_eq!(ingress_hash(&headers, "", ""), "6b652c7abed871354affd4a9cb699d33816f24541fac942149b91ad872fe63ca");
        let split = json!({"serviceNamespace": "default", "serviceName": "hello-00001", "servicePort": 80,
            "percent": 100, "appendHeaders": {"Knative-Serving-Namespace": "default",
            "Knative-Serving-Revision": "hello-00001"}});
        let service = spec(json!({"rules": [{"hosts": ["hello.default.example.com"], "visibility": "ExternalIP",
            "http": {"paths": [{"splits": [split]}]}}], "httpOption": "Enabled"}));
        assert_eq!(
            ingress_hash(&service, "default", "hello"),
            "ef7852e1be9ad0620814c4d952a07f610ef0f85d5ee171bc86b899bf575f77ca"
        );
    }

    #[test]
    fn every_field_is_written_as_go_does() {
        let split = json!({"serviceNamespace": "a", "serviceName": "b", "servicePort": "http", "percent": 50});
        let path = json!({"path": "/p", "rewriteHost": "r", "headers": {"H": {"exact": "1"}, "I": {"exact": ""}},
            "splits": [split, split], "appendHeaders": {"A": "1", "B": "2"}});
        let tls = json!({"hosts": ["h", "i"], "secretName": "s", "secretNamespace": "n"});
        let all = spec(json!({"tls": [tls, {"secretName": "t"}], "rules": [
            {"hosts": ["h"], "visibility": "ClusterLocal", "http": {"paths": [path, {"splits": []}]}},
            {"http": {"paths": []}}, {"hosts": ["i"]}]}));
        let split = r#"{"serviceNamespace":"a","serviceName":"b","servicePort":"http","percent":50}"#;
        let tls = r#"[{"hosts":["h","i"],"secretName":"s","secretNamespace":"n"},{"secretName":"t"}]"#;
        let headers = r#"{"H":{"exact":"1"},"I":{"exact":""}}"#;
        let path = format!(
            r#"{{"path":"/p","rewriteHost":"r","headers":{headers},"splits":[{split},{split}],"appendHeaders":{{"A":"1","B":"2"}}}}"#
        );
        let rule =
            format!(r#"{{"hosts":["h"],"visibility":"ClusterLocal","http":{{"paths":[{path},{{"splits":null}}]}}}}"#);
        let expected = format!(r#"{{"tls":{tls},"rules":[{rule},{{"http":{{"paths":null}}}},{{"hosts":["i"]}}]}}"#);
        assert_eq!(go_json(&all), expected);
        assert_eq!(go_json(&IngressSpec::default()), "{}");
    }

    #[test]
    fn html_is_escaped_as_go_does() {
        let quoted = |text: &str| {
            let mut json = String::new();
            quote(&mut json, text);
            json
        };
        assert_eq!(quoted("a<b>&\u{2028}\"\n"), r#""a\u003cb\u003e\u0026\u2028\"\n""#);
        assert_eq!(quoted("a/b ü€\u{2029}\u{7f}\\"), "\"a/b ü€\\u2029\u{7f}\\\\\"");
        assert_eq!(quoted("ü\u{7f}"), "\"ü\u{7f}\"");
    }
}
