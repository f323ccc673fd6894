//! The pod part of a RevisionSpec, kept exactly as written.
//!
//! Fields that this version's typed PodSpec does not know must still reach the Deployment, so the map is the truth and the typed form
//! is a view made on demand.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodSpecMap(pub Map<String, Value>);

// === impl PodSpecMap ===

impl PodSpecMap {
    /// The pod spec as Kubernetes types it. Fields unknown to these types are not in it.
    pub fn typed(&self) -> Result<PodSpec, serde_json::Error> {
        let mut map = self.0.clone();
        // Required by the typed form, optional here.
        map.entry("containers").or_insert_with(|| Value::Array(Vec::new()));
        for key in ["containers", "initContainers"] {
            for container in map.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(container) = container.as_object_mut() {
                    container.entry("name").or_insert_with(|| Value::String(String::new()));
                }
            }
        }
        serde_json::from_value(Value::Object(map))
    }

    pub fn containers(&self) -> &[Value] {
        self.list("containers")
    }

    pub fn init_containers(&self) -> &[Value] {
        self.list("initContainers")
    }

    pub fn volumes(&self) -> &[Value] {
        self.list("volumes")
    }

    pub fn containers_mut(&mut self) -> &mut [Value] {
        self.list_mut("containers")
    }

    pub fn init_containers_mut(&mut self) -> &mut [Value] {
        self.list_mut("initContainers")
    }

    /// Index of the container that serves: the only one, or the first with a port.
    pub fn serving_index(&self) -> Option<usize> {
        let containers = self.containers();
        match containers.len() {
            0 => None,
            1 => Some(0),
            _ => containers.iter().position(has_ports),
        }
    }

    pub fn serving_container(&self) -> Option<&Value> {
        self.containers().get(self.serving_index()?)
    }

    /// The serving container, typed.
    pub fn serving_container_typed(&self) -> Option<Result<Container, serde_json::Error>> {
        let mut value = self.serving_container()?.clone();
        if let Some(container) = value.as_object_mut() {
            container.entry("name").or_insert_with(|| Value::String(String::new()));
        }
        Some(serde_json::from_value(value))
    }

    /// `h2c` if the serving container's first port is named so, else `http1`.
    pub fn protocol(&self) -> &'static str {
        let name = self.serving_container().and_then(|c| c["ports"][0]["name"].as_str());
        if name == Some("h2c") { "h2c" } else { "http1" }
    }

    pub fn service_account_name(&self) -> &str {
        self.0.get("serviceAccountName").and_then(Value::as_str).unwrap_or_default()
    }

    fn list(&self, key: &str) -> &[Value] {
        self.0.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn list_mut(&mut self, key: &str) -> &mut [Value] {
        self.0.get_mut(key).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
    }
}

/// Whether a container declares a port.
pub(crate) fn has_ports(container: &Value) -> bool {
    container["ports"].as_array().is_some_and(|ports| !ports.is_empty())
}
