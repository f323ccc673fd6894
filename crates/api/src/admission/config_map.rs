//! Admission of the ConfigMaps that configure the system.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::{self, names};
use crate::keys::EXAMPLE_CHECKSUM;

/// An error is the denial's text. ConfigMaps that are not ours pass.
pub fn validate_config_map(object: &Value) -> Result<(), String> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let data: BTreeMap<String, String> = object["data"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
        .collect();
    let parsed = match name {
        names::AUTOSCALER => config::Autoscaler::parse(&data).map(drop),
        names::CERT_MANAGER => config::CertManager::parse(&data).map(drop),
        names::DEFAULTS => config::Defaults::parse(&data).map(drop),
        names::DEPLOYMENT => config::Deployment::parse(&data).map(drop),
        names::DOMAIN => config::Domain::parse(&data).map(drop),
        names::FEATURES => config::Features::parse(&data).map(drop),
        names::GC => config::Gc::parse(&data).map(drop),
        names::LEADER_ELECTION => config::LeaderElection::parse(&data).map(drop),
        names::LOGGING => config::Logging::parse(&data).map(drop),
        names::NETWORK => config::Network::parse(&data).map(drop),
        names::OBSERVABILITY => config::Observability::parse(&data).map(drop),
        _ => return Ok(()),
    };
    parsed.and_then(|()| example(object, &data)).map_err(|error| format!("validation failed: {error}"))
}

fn example(object: &Value, data: &BTreeMap<String, String>) -> Result<(), String> {
    let expected = object["metadata"]["annotations"][EXAMPLE_CHECKSUM].as_str();
    match (data.get("_example"), expected) {
        (Some(example), Some(expected)) if checksum(example) != expected => Err(
            "the update modifies a key in \"_example\" which is probably not what you want. Instead, copy the respective setting to the top-level of the ConfigMap, directly below \"data\""
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

/// CRC-32 (IEEE) of the trimmed text, each run of line ends written as `\n`.
fn checksum(example: &str) -> String {
    let lines: Vec<&str> = example.trim().split('\n').filter(|line| !line.is_empty()).collect();
    let text = lines.join("\\n");
    let mut crc = u32::MAX;
    for byte in text.bytes() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    format!("{:08x}", !crc)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bad_data_and_changed_examples_are_refused() {
        let map = |data: Value| json!({"metadata": {"name": "config-autoscaler", "annotations": {EXAMPLE_CHECKSUM: checksum("a\n\nb")}}, "data": data});
        assert_eq!(validate_config_map(&map(json!({"_example": "\na\nb\n"}))), Ok(()));
        assert!(validate_config_map(&map(json!({"_example": "a\nc"}))).unwrap_err().contains("_example"));
        assert_eq!(
            validate_config_map(&map(json!({"stable-window": "1s"}))).unwrap_err(),
            "validation failed: stable-window = 1s, must be in [6s; 1h0m0s] range"
        );
        assert_eq!(checksum("123456789"), "cbf43926");
    }
}
