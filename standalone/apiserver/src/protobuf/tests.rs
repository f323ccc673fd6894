use serde_json::json;

use super::*;

/// One field with bytes; all lengths here are below 128.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).expect("short");
    assert!(length < 128);
    [&[number << 3 | 2, length][..], bytes].concat()
}

fn number(number: u8, value: u8) -> Vec<u8> {
    vec![number << 3, value]
}

fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let type_meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), field(1, &type_meta), field(2, raw), field(3, b""), field(4, b"")].concat()
}

#[test]
fn a_secret() {
    // Go writes the empty generateName and the zero creationTimestamp.
    let metadata = [field(1, b"s"), field(2, b""), number(7, 0), field(8, b"")].concat();
    let entry = [field(1, b"key"), field(2, b"value")].concat();
    let secret = [field(1, &metadata), field(2, &entry), field(3, b"Opaque"), number(5, 0)].concat();
    let object = decode(&body("v1", "Secret", &secret)).expect("decodes");
    // immutable is a pointer: false was said.
    assert_eq!(
        object,
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"key": "dmFsdWU="}, "type": "Opaque", "immutable": false})
    );
}

#[test]
fn values_of_their_own_and_embedded_messages() {
    let quantity = field(1, b"100m");
    let limit = [field(1, b"cpu"), field(2, &quantity)].concat();
    let get = [field(1, b"/"), field(2, &[number(1, 0), number(2, 80)].concat())].concat();
    let probe = [field(1, &field(2, &get)), number(2, 0), number(4, 5)].concat();
    let container = [field(1, b"c"), field(8, &field(1, &limit)), field(11, &probe)].concat();
    let volume = [field(1, b"v"), field(2, &field(2, b""))].concat();
    let pod = field(2, &[field(1, &volume), field(2, &container)].concat());
    let object = decode(&body("v1", "Pod", &pod)).expect("decodes");
    assert_eq!(object["spec"]["volumes"], json!([{"name": "v", "emptyDir": {}}]));
    assert_eq!(
        object["spec"]["containers"],
        json!([{"name": "c", "resources": {"limits": {"cpu": "100m"}},
            "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 5}}])
    );
}

#[test]
fn options_of_any_version_and_what_is_refused() {
    let options = [field(4, b"Foreground"), number(1, 0)].concat();
    let object = decode(&body("apps/v1", "DeleteOptions", &options)).expect("decodes");
    assert_eq!(object["propagationPolicy"], "Foreground");
    assert_eq!(object["gracePeriodSeconds"], 0);
    assert!(decode(b"{}").is_err() && decode(MAGIC).is_err());
    assert!(decode(&body("v1", "ConfigMap", &[0x0a, 9, 1])).is_err(), "shorter than it says");
    let unknown = decode(&body("v1", "Gadget", b"")).expect_err("unknown").message;
    assert!(unknown.contains("Gadget"), "{unknown}");
}
