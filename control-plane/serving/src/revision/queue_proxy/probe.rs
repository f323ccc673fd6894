//! Two forms of the user's readiness probe: what the kubelet asks the queue-proxy, and what the queue-proxy asks the program.

use api::serving::v1::Revision;
use serde_json::{Map, Value, json};

const HANDLERS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "grpc"];
const LOCALHOST: &str = "127.0.0.1";

/// The order in which Go prints a probe's fields.
const ORDER: [&str; 18] = [
    "exec",
    "httpGet",
    "tcpSocket",
    "grpc",
    "command",
    "path",
    "port",
    "host",
    "scheme",
    "httpHeaders",
    "name",
    "value",
    "service",
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
];

/// The kubelet's probe: the user's timing, aimed at the queue-proxy.
pub(super) fn kubelet(serving: &Value, port: u16) -> Option<Value> {
    let mut probe = serving.get("readinessProbe")?.as_object()?.clone();
    for handler in HANDLERS {
        probe.remove(handler);
    }
    probe.insert(
        "httpGet".to_owned(),
        json!({"port": port, "httpHeaders": [{"name": "K-Network-Probe", "value": "queue"}]}),
    );
    Some(Value::Object(probe))
}

/// The text of `SERVING_READINESS_PROBE`: one probe, or with `multi` a list of the serving container's and the sidecars'.
pub(super) fn queue_proxy(revision: &Revision, port: i64, multi: bool) -> Result<String, String> {
    let pod = &revision.spec.pod;
    let serving =
        pod.serving_container().and_then(|container| container.get("readinessProbe")).and_then(Value::as_object);
    // Admission adds this default; an object that never saw it is served all the same.
    let default = || json!({"tcpSocket": {}, "successThreshold": 1}).as_object().cloned().unwrap_or_default();
    let serving = aimed(serving.cloned().unwrap_or_else(default), port);
    if !multi {
        return Ok(print(&Value::Object(serving)));
    }
    let mut probes = vec![Value::Object(serving)];
    for (index, container) in pod.containers().iter().enumerate() {
        let probe = container.get("readinessProbe").and_then(Value::as_object);
        let Some(probe) = probe.filter(|probe| Some(index) != pod.serving_index() && !present(probe, "exec")) else {
            continue;
        };
        let own = HANDLERS.iter().find_map(|handler| probe.get(*handler)?["port"].as_i64()).unwrap_or_default();
        if own == 0 {
            let name = container["name"].as_str().unwrap_or_default();
            return Err(format!("sidecar readiness probe does not define probe port on container: {name}"));
        }
        probes.push(Value::Object(aimed(probe.clone(), own)));
    }
    Ok(print(&Value::Array(probes)))
}

/// The probe as done from within the pod: `port` stands in for ports that are not given, commands become "is the port open".
fn aimed(mut probe: Map<String, Value>, port: i64) -> Map<String, Value> {
    if present(&probe, "exec") {
        probe.remove("exec");
        probe.insert("tcpSocket".to_owned(), json!({}));
    }
    for handler in ["httpGet", "tcpSocket", "grpc"] {
        let Some(action) = probe.get_mut(handler).filter(|action| action.is_object()) else { continue };
        let own = action["port"].as_i64().filter(|own| *own > 0);
        action["port"] = json!(own.unwrap_or(port));
        if handler != "grpc" {
            action["host"] = json!(LOCALHOST);
        }
        if handler == "httpGet" && action["scheme"].as_str().is_none_or(str::is_empty) {
            action["scheme"] = json!("HTTP");
        }
    }
    let number = |key: &str| probe.get(key).and_then(Value::as_i64).unwrap_or_default();
    if number("periodSeconds") > 0 && number("timeoutSeconds") < 1 {
        probe.insert("timeoutSeconds".to_owned(), json!(1));
    }
    probe
}

fn present(probe: &Map<String, Value>, handler: &str) -> bool {
    probe.get(handler).is_some_and(Value::is_object)
}

fn print(value: &Value) -> String {
    fn write(value: &Value, out: &mut String) {
        match value {
            Value::Object(map) => {
                let rank = |key: &str| ORDER.iter().position(|known| *known == key).unwrap_or(ORDER.len());
                let mut fields: Vec<_> = map.iter().filter(|(_, value)| !is_zero(value)).collect();
                fields.sort_by(|a, b| rank(a.0).cmp(&rank(b.0)).then_with(|| a.0.cmp(b.0)));
                list(out, ['{', '}'], fields, |(key, value), out| {
                    out.push_str(&json!(key).to_string());
                    out.push(':');
                    write(value, out);
                });
            }
            Value::Array(values) => list(out, ['[', ']'], values, write),
            scalar => out.push_str(&scalar.to_string()),
        }
    }
    fn list<T>(
        out: &mut String,
        [open, close]: [char; 2],
        items: impl IntoIterator<Item = T>,
        each: impl Fn(T, &mut String),
    ) {
        out.push(open);
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            each(item, out);
        }
        out.push(close);
    }
    let mut out = String::new();
    write(value, &mut out);
    escape(out)
}

/// What Go leaves out of a probe: numbers and texts without content.
fn is_zero(value: &Value) -> bool {
    value.is_null() || value == &json!(0) || value == &json!("") || value.as_array().is_some_and(Vec::is_empty)
}

/// Go escapes these in all JSON it prints.
pub(super) fn escape(json: String) -> String {
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(containers: Value) -> Revision {
        serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": {"containers": containers}})).unwrap()
    }

    fn probe(probe: Value) -> String {
        queue_proxy(&revision(json!([{"name": "c", "readinessProbe": probe}])), 8080, false).unwrap()
    }

    #[test]
    fn ports_hosts_and_schemes_are_filled_in() {
        assert_eq!(
            probe(json!({"tcpSocket": {"port": 0}, "successThreshold": 1})),
            r#"{"tcpSocket":{"port":8080,"host":"127.0.0.1"},"successThreshold":1}"#
        );
        assert_eq!(
            probe(json!({"httpGet": {"path": "/up?a=1&b", "port": 9000, "httpHeaders": [{"value": "v", "name": "n"}]},
                "periodSeconds": 5, "initialDelaySeconds": 2})),
            r#"{"httpGet":{"path":"/up?a=1\u0026b","port":9000,"host":"127.0.0.1","scheme":"HTTP","httpHeaders":[{"name":"n","value":"v"}]},"initialDelaySeconds":2,"timeoutSeconds":1,"periodSeconds":5}"#
        );
        assert_eq!(
            probe(json!({"exec": {"command": ["true"]}, "failureThreshold": 3})),
            r#"{"tcpSocket":{"port":8080,"host":"127.0.0.1"},"failureThreshold":3}"#
        );
        assert_eq!(probe(json!({"grpc": {"port": 0, "service": "s"}})), r#"{"grpc":{"port":8080,"service":"s"}}"#);
        let none = queue_proxy(&revision(json!([{"name": "c"}])), 8080, false).unwrap();
        assert_eq!(none, r#"{"tcpSocket":{"port":8080,"host":"127.0.0.1"},"successThreshold":1}"#);
    }

    #[test]
    fn sidecars_are_probed_if_asked_for() {
        let containers = json!([
            {"name": "main", "ports": [{"containerPort": 80}], "readinessProbe": {"tcpSocket": {}}},
            {"name": "exec", "readinessProbe": {"exec": {"command": ["true"]}}},
            {"name": "side", "readinessProbe": {"httpGet": {"port": 81}}},
        ]);
        assert_eq!(
            queue_proxy(&revision(containers.clone()), 80, true).unwrap(),
            r#"[{"tcpSocket":{"port":80,"host":"127.0.0.1"}},{"httpGet":{"port":81,"host":"127.0.0.1","scheme":"HTTP"}}]"#
        );
        let mut containers = containers;
        containers[2]["readinessProbe"]["httpGet"]["port"] = json!(0);
        let error = queue_proxy(&revision(containers), 80, true).unwrap_err();
        assert_eq!(error, "sidecar readiness probe does not define probe port on container: side");
    }

    #[test]
    fn the_kubelet_asks_the_queue_proxy_with_the_users_timing() {
        let serving = json!({"readinessProbe": {"exec": {"command": ["x"]}, "periodSeconds": 3}});
        assert_eq!(
            kubelet(&serving, 8012).unwrap(),
            json!({"httpGet": {"port": 8012, "httpHeaders": [{"name": "K-Network-Probe", "value": "queue"}]}, "periodSeconds": 3})
        );
        assert_eq!(kubelet(&json!({}), 8012), None);
    }
}
