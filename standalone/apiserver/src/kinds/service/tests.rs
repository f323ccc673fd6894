use super::*;
use crate::Kind;

fn service(json: Value) -> Value {
    let mut service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s" }, "spec": json });
    strategy().default(&mut service);
    service
}

fn strategy() -> Service {
    Service::new("10.96.0.0/24".parse().expect("a network"), 30000..=30001)
}

fn with_context<T>(run: impl FnOnce(&WriteContext<'_>) -> T) -> T {
    let kind = Kind::new("", "v1", "Service", "services", crate::Scope::Namespaced);
    run(&WriteContext {
        kind: &kind,
        namespace: "default",
        name: "s",
        subresource: "",
        user: "admin",
        groups: &[],
        dry_run: false,
        now: Timestamp::now(),
        lookup: &|_, _, _| None,
    })
}

fn created(rules: &Service, mut object: Value) -> Result<Value, Status> {
    with_context(|cx| rules.prepare_create(cx, &mut object).map(|()| object))
}

fn errors(object: &Value, old: Option<&Value>) -> Vec<String> {
    with_context(|cx| strategy().validate(cx, object, old).iter().map(ToString::to_string).collect())
}

#[test]
fn addresses_are_given_once_and_come_back() {
    let rules = strategy();
    let wish = || service(json!({ "ports": [{ "port": 80 }] }));
    let mut seen = std::collections::HashSet::new();
    let mut last = Value::Null;
    for _ in 0..254 {
        last = created(&rules, wish()).expect("an address");
        assert!(seen.insert(text(&last, "/spec/clusterIP").to_owned()), "given twice");
        rules.observe(None, Some(&last));
    }
    assert!(created(&rules, wish()).expect_err("full").message.contains("is full"));
    rules.observe(Some(&last), None);
    let again = created(&rules, wish()).expect("a free address");
    assert_eq!(again["spec"]["clusterIP"], last["spec"]["clusterIP"]);
    assert_eq!(again["spec"]["ipFamilies"], json!(["IPv4"]));
    assert_eq!(again["status"], json!({ "loadBalancer": {} }));
}

#[test]
fn chosen_addresses() {
    let rules = strategy();
    let wish = |ip: &str| service(json!({ "clusterIP": ip, "ports": [{ "port": 80 }] }));
    let first = created(&rules, wish("10.96.0.10")).expect("free");
    assert_eq!(first["spec"]["clusterIPs"], json!(["10.96.0.10"]));
    rules.observe(None, Some(&first));
    assert!(
        created(&rules, wish("10.96.0.10")).expect_err("taken").message.contains("provided IP is already allocated")
    );
    assert!(created(&rules, wish("10.97.0.1")).expect_err("outside").message.contains("not in the valid range"));
    assert_eq!(created(&rules, wish("None")).expect("headless")["spec"]["clusterIP"], "None");
}

#[test]
fn updates_keep_the_address() {
    let rules = strategy();
    let old = created(&rules, service(json!({ "ports": [{ "port": 80 }] }))).expect("created");
    rules.observe(None, Some(&old));
    let mut new = service(json!({ "ports": [{ "port": 81 }] }));
    with_context(|cx| rules.prepare_update(cx, &mut new, &old)).expect("updated");
    assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"]);
    new["spec"]["clusterIP"] = "10.96.0.77".into();
    new["spec"]["clusterIPs"] = json!(["10.96.0.77"]);
    let changed = ["spec.clusterIPs[0]: Invalid value: [\"10.96.0.77\"]: may not change once set"];
    assert_eq!(errors(&new, Some(&old)), changed);
    let mut external =
        service(json!({ "type": "ExternalName", "externalName": "a.b", "clusterIP": old["spec"]["clusterIP"] }));
    with_context(|cx| rules.prepare_update(cx, &mut external, &old)).expect("released");
    assert_eq!(external["spec"], json!({ "type": "ExternalName", "externalName": "a.b", "sessionAffinity": "None" }));
    assert_eq!(errors(&external, Some(&old)), [] as [&str; 0]);
}

#[test]
fn node_ports_only_where_they_belong() {
    let rules = strategy();
    let made = created(&rules, service(json!({ "type": "NodePort", "ports": [{ "port": 80 }] }))).expect("created");
    let port = made["spec"]["ports"][0]["nodePort"].as_i64().expect("a port");
    assert!((30000..=30001).contains(&port));
    let made = created(&rules, service(json!({ "ports": [{ "port": 80, "nodePort": 30000 }] }))).expect("created");
    assert!(made["spec"]["ports"][0].get("nodePort").is_none());
    let outside = service(json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 80 }] }));
    assert!(created(&rules, outside).expect_err("outside").message.contains("range of valid ports is 30000-30001"));
}

#[test]
fn what_people_get_wrong() {
    assert_eq!(errors(&service(json!({})), None), ["spec.ports: Required value"]);
    assert_eq!(errors(&service(json!({ "type": "ExternalName" })), None), ["spec.externalName: Required value"]);
    let two = service(json!({ "ports": [{ "port": 80 }, { "port": 80 }] }));
    let expected = [
        "spec.ports[0].name: Required value",
        "spec.ports[1].name: Required value",
        "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
    ];
    assert_eq!(errors(&two, None), expected);
    let zero = service(json!({ "ports": [{ "port": 0, "targetPort": "http" }] }));
    assert_eq!(errors(&zero, None), ["spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"]);
    assert!("10.0.0.0".parse::<Range>().is_err());
}
