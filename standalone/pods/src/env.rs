//! A container's environment: literals, references, the downward API, and `$(VAR)`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod};
use kube::ResourceExt;

use crate::facts::{self, Facts, Sources};

/// What a program finds without its container saying so.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The environment of `container`. The error is the message of `CreateContainerConfigError`.
pub(crate) fn build(
    pod: &Pod,
    container: &Container,
    home: &str,
    facts: &Facts,
    sources: &Sources,
) -> Result<Vec<(String, String)>, String> {
    let namespace = pod.namespace().unwrap_or_default();
    let mut env: Vec<(String, String)> = Vec::new();
    let mut put = |name: &str, value: String| match env.iter_mut().find(|(known, _)| known == name) {
        Some(entry) => entry.1 = value,
        None => env.push((name.to_owned(), value)),
    };
    put("PATH", std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned()));
    put("HOSTNAME", hostname(pod));
    put("HOME", home.to_owned());
    put("KUBERNETES_SERVICE_HOST", facts.kubernetes.0.to_string());
    put("KUBERNETES_SERVICE_PORT", facts.kubernetes.1.to_string());
    put("KUBERNETES_SERVICE_PORT_HTTPS", facts.kubernetes.1.to_string());

    // What `$(VAR)` can refer to: everything before it.
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        for (key, value) in env_from(from, &namespace, sources)? {
            known.insert(format!("{prefix}{key}"), value.clone());
            put(&format!("{prefix}{key}"), value);
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => expand(variable.value.as_deref().unwrap_or_default(), &known),
            Some(source) => match from_source(pod, container, facts, sources, source, &namespace)? {
                Some(value) => value,
                None => continue,
            },
        };
        known.insert(variable.name.clone(), value.clone());
        put(&variable.name, value);
    }
    Ok(env)
}

/// The home of whom a program runs as, as container runtimes find it: what `accounts` (`/etc/passwd`) says, else `/`.
pub(crate) fn home(uid: u32, accounts: &str) -> &str {
    let mut lines = accounts.lines().map(|line| line.split(':'));
    let home = lines.find_map(|mut fields| (fields.nth(2)?.parse() == Ok(uid)).then(|| fields.nth(2)).flatten());
    home.filter(|home| !home.is_empty()).unwrap_or("/")
}

/// The pod's host name: what the spec says, else the name of the pod, cut to what a host name may have.
pub(crate) fn hostname(pod: &Pod) -> String {
    let given = pod.spec.as_ref().and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty());
    let mut name = given.unwrap_or_else(|| pod.name_any());
    name.truncate(63);
    name.trim_end_matches(['-', '.']).to_owned()
}

fn env_from(
    from: &k8s_openapi::api::core::v1::EnvFromSource,
    namespace: &str,
    sources: &Sources,
) -> Result<BTreeMap<String, String>, String> {
    if let Some(reference) = &from.config_map_ref {
        return match sources.config_maps.get(&reference.name).and_then(Option::as_ref) {
            Some(map) => Ok(map.data.clone().unwrap_or_default()),
            None if reference.optional == Some(true) => Ok(BTreeMap::new()),
            None => Err(not_found("configmap", namespace, &reference.name)),
        };
    }
    if let Some(reference) = &from.secret_ref {
        return match sources.secrets.get(&reference.name).and_then(Option::as_ref) {
            Some(secret) => {
                let data = secret.data.iter().flatten();
                Ok(data.map(|(key, value)| (key.clone(), String::from_utf8_lossy(&value.0).into_owned())).collect())
            }
            None if reference.optional == Some(true) => Ok(BTreeMap::new()),
            None => Err(not_found("secret", namespace, &reference.name)),
        };
    }
    Ok(BTreeMap::new())
}

fn not_found(kind: &str, _namespace: &str, name: &str) -> String {
    format!("{kind} {name:?} not found")
}

/// `None` if an optional reference leads nowhere: the variable is then not set.
fn from_source(
    pod: &Pod,
    container: &Container,
    facts: &Facts,
    sources: &Sources,
    source: &EnvVarSource,
    namespace: &str,
) -> Result<Option<String>, String> {
    if let Some(selector) = &source.field_ref {
        return facts::field(pod, facts, selector).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let own = [container.clone()];
        let containers = if selector.container_name.is_some() { containers } else { &own };
        return facts::resource(containers, Some(&container.name), facts, selector).map(Some);
    }
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let Some(map) = sources.config_maps.get(&reference.name).and_then(Option::as_ref) else {
            return if optional { Ok(None) } else { Err(not_found("configmap", namespace, &reference.name)) };
        };
        return match map.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", reference.key, reference.name)),
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional == Some(true);
        let Some(secret) = sources.secrets.get(&reference.name).and_then(Option::as_ref) else {
            return if optional { Ok(None) } else { Err(not_found("secret", namespace, &reference.name)) };
        };
        return match secret.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in Secret {namespace}/{}", reference.key, reference.name)),
        };
    }
    Ok(Some(String::new()))
}

/// Replaces `$(NAME)` of known names; `$$` is a dollar sign; anything else stays as it is.
pub(crate) fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match known.get(name) {
                Some(value) => result.push_str(value),
                None => result.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use k8s_openapi::api::core::v1::{ConfigMap, Secret};
    use serde_json::{from_value, json};

    use super::*;

    fn facts() -> Facts {
        Facts {
            pod_ip: [10, 244, 0, 7].into(),
            host_ip: [10, 244, 0, 1].into(),
            kubernetes: ([10, 96, 0, 1].into(), 443),
            node_millicpu: 2000,
            node_memory: 1 << 30,
        }
    }

    fn build_one(env: serde_json::Value, sources: &Sources) -> Result<BTreeMap<String, String>, String> {
        let pod: Pod = from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"a/b": "c"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "envFrom": env["from"], "env": env["env"],
                "resources": {"limits": {"cpu": "1500m"}}}]},
        }))
        .unwrap();
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        Ok(build(&pod, &container, "/home/of", &facts(), sources)?.into_iter().collect())
    }

    #[test]
    fn every_source_and_expansion_in_order() {
        let sources = Sources {
            config_maps: BTreeMap::from([(
                "cm".to_owned(),
                Some(ConfigMap { data: Some(BTreeMap::from([("K".into(), "v".into())])), ..ConfigMap::default() }),
            )]),
            secrets: BTreeMap::from([
                (
                    "s".to_owned(),
                    Some(Secret {
                        data: Some(BTreeMap::from([("T".into(), ByteString(b"x".to_vec()))])),
                        ..Secret::default()
                    }),
                ),
                ("gone".to_owned(), None),
            ]),
        };
        let env = json!({"from": [{"prefix": "P_", "configMapRef": {"name": "cm"}}], "env": [
            {"name": "A", "value": "1-$(P_K)-$(LATER)-$$(A)-$x"},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "T"}}},
            {"name": "O", "valueFrom": {"secretKeyRef": {"name": "gone", "key": "T", "optional": true}}},
            {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "M", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            {"name": "LATER", "value": "z"},
        ]});
        let env = build_one(env, &sources).unwrap();
        assert_eq!(env["A"], "1-v-$(LATER)-$(A)-$x");
        assert_eq!((env["IP"].as_str(), env["L"].as_str(), env["S"].as_str()), ("10.244.0.7", "c", "x"));
        assert_eq!((env["C"].as_str(), env["M"].as_str()), ("2", "1024"));
        assert!(!env.contains_key("O"));
        assert_eq!(env["HOME"], "/home/of");
        assert_eq!(env["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
        let missing = json!({"env": [{"name": "S", "valueFrom": {"secretKeyRef": {"name": "gone", "key": "T"}}}]});
        assert_eq!(build_one(missing, &sources).unwrap_err(), "secret \"gone\" not found");
        let key = json!({"env": [{"name": "S", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "N"}}}]});
        assert_eq!(build_one(key, &sources).unwrap_err(), "couldn't find key N in ConfigMap ns/cm");
    }

    #[test]
    fn a_user_without_an_account_is_at_home_in_the_root() {
        let accounts =
            "root:x:0:0:root:/root:/bin/bash\nbroken\nnobody:x:65534:65534::/nonexistent:/bin/false\nx:x:7:7:::\n";
        assert_eq!([0, 65534, 7, 65532].map(|uid| home(uid, accounts)), ["/root", "/nonexistent", "/", "/"]);
    }
}
