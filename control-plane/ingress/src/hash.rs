//! The Ingress hash that the status probe compares: SHA-256 over the JSON that Go would write for the defaulted spec,
//! followed by namespace and name. Bit-exact, because Go processes compute it too.

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
    let mut out = Object::new();
    out.list(
        "tls",
        spec.tls.iter().map(|tls| {
            let mut out = Object::new();
            out.list("hosts", tls.hosts.iter().map(|host| quote(host)));
            out.text("secretName", &tls.secret_name);
            out.text("secretNamespace", &tls.secret_namespace);
            out.close()
        }),
    );
    out.list("rules", spec.rules.iter().map(rule));
    out.text("httpOption", &spec.http_option);
    out.close()
}

fn rule(rule: &IngressRule) -> String {
    let mut out = Object::new();
    out.list("hosts", rule.hosts.iter().map(|host| quote(host)));
    out.text("visibility", &rule.visibility);
    if let Some(http) = &rule.http {
        let paths = match http.paths.is_empty() {
            true => "null".to_owned(),
            false => array(http.paths.iter().map(path)),
        };
        out.raw("http", format!("{{\"paths\":{paths}}}"));
    }
    out.close()
}

fn path(path: &HttpIngressPath) -> String {
    let mut out = Object::new();
    out.text("path", &path.path);
    out.text("rewriteHost", &path.rewrite_host);
    if !path.headers.is_empty() {
        let mut headers = Object::new();
        for (name, value) in &path.headers {
            headers.raw(name, format!("{{\"exact\":{}}}", quote(&value.exact)));
        }
        out.raw("headers", headers.close());
    }
    let splits = match path.splits.is_empty() {
        true => "null".to_owned(),
        false => array(path.splits.iter().map(split)),
    };
    out.raw("splits", splits);
    out.map("appendHeaders", &path.append_headers);
    out.close()
}

fn split(split: &IngressBackendSplit) -> String {
    let mut out = Object::new();
    out.raw("serviceNamespace", quote(&split.service_namespace));
    out.raw("serviceName", quote(&split.service_name));
    out.raw(
        "servicePort",
        match &split.service_port {
            IntOrString::Int(port) => port.to_string(),
            IntOrString::String(port) => quote(port),
        },
    );
    if split.percent != 0 {
        out.raw("percent", split.percent.to_string());
    }
    out.map("appendHeaders", &split.append_headers);
    out.close()
}

/// A JSON object under construction; empty values are left out, as `omitempty` does.
struct Object(String);

impl Object {
    fn new() -> Self {
        Object("{".to_owned())
    }

    fn raw(&mut self, name: &str, value: String) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.push_str(&quote(name));
        self.0.push(':');
        self.0.push_str(&value);
    }

    fn text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.raw(name, quote(value));
        }
    }

    fn list(&mut self, name: &str, items: impl ExactSizeIterator<Item = String>) {
        if items.len() > 0 {
            self.raw(name, array(items));
        }
    }

    fn map(&mut self, name: &str, map: &std::collections::BTreeMap<String, String>) {
        if !map.is_empty() {
            let mut object = Object::new();
            for (key, value) in map {
                object.raw(key, quote(value));
            }
            self.raw(name, object.close());
        }
    }

    fn close(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

fn array(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}

/// Go's encoder also escapes what HTML and JavaScript trip over.
fn quote(text: &str) -> String {
    // U+2028 and U+2029 begin with 0xe2.
    let as_it_is = |byte: u8| byte >= b' ' && !matches!(byte, b'"' | b'\\' | b'<' | b'>' | b'&' | 0xe2);
    if text.bytes().all(as_it_is) {
        return ["\"", text, "\""].concat();
    }
    let plain = Value::from(text).to_string();
    plain
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
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
    fn html_is_escaped_as_go_does() {
        assert_eq!(quote("a<b>&\u{2028}\"\n"), r#""a\u003cb\u003e\u0026\u2028\"\n""#);
        assert_eq!(quote("a/b ü€\u{2029}\u{7f}\\"), "\"a/b ü€\\u2029\u{7f}\\\\\"");
        assert_eq!(quote("ü\u{7f}"), "\"ü\u{7f}\"");
    }
}
