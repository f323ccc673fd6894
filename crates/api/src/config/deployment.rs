//! `config-deployment`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::data::{Data, SECOND, duration, whole_seconds};
use crate::checks;
use crate::go::{self, format_duration};

#[derive(Clone, Debug, PartialEq)]
pub struct Deployment {
    /// Required by [`Deployment::parse`]; empty only in the default value.
    pub queue_sidecar_image: String,
    pub registries_skipping_tag_resolving: BTreeSet<String>,
    pub digest_resolution_timeout: Duration,
    pub progress_deadline: Duration,
    /// `None` only where the key is unset and has no default; the flag `queueproxy.resource-defaults` adds its own.
    pub queue_sidecar_cpu_request: Option<String>,
    pub queue_sidecar_cpu_limit: Option<String>,
    pub queue_sidecar_memory_request: Option<String>,
    pub queue_sidecar_memory_limit: Option<String>,
    pub queue_sidecar_ephemeral_storage_request: Option<String>,
    pub queue_sidecar_ephemeral_storage_limit: Option<String>,
    /// Without the empty entry upstream uses for "none".
    pub queue_sidecar_token_audiences: BTreeSet<String>,
    pub queue_sidecar_rootca: String,
    pub queue_sidecar_tls_min_version: String,
    pub queue_sidecar_tls_max_version: String,
    pub queue_sidecar_tls_cipher_suites: String,
    pub queue_sidecar_tls_curve_preferences: String,
    pub default_affinity_type: AffinityType,
    /// Runtime class to the labels that select it.
    pub runtime_class_names: BTreeMap<String, BTreeMap<String, String>>,
    pub pod_is_always_schedulable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AffinityType {
    None,
    PreferSpreadRevisionOverNodes,
}

// === impl Deployment ===

impl Default for Deployment {
    fn default() -> Self {
        Self {
            queue_sidecar_image: String::new(),
            registries_skipping_tag_resolving: ["kind.local", "ko.local", "dev.local"].map(str::to_owned).into(),
            digest_resolution_timeout: Duration::from_secs(10),
            progress_deadline: Duration::from_secs(600),
            queue_sidecar_cpu_request: Some("25m".to_owned()),
            queue_sidecar_cpu_limit: None,
            queue_sidecar_memory_request: None,
            queue_sidecar_memory_limit: None,
            queue_sidecar_ephemeral_storage_request: None,
            queue_sidecar_ephemeral_storage_limit: None,
            queue_sidecar_token_audiences: BTreeSet::new(),
            queue_sidecar_rootca: String::new(),
            queue_sidecar_tls_min_version: String::new(),
            queue_sidecar_tls_max_version: String::new(),
            queue_sidecar_tls_cipher_suites: String::new(),
            queue_sidecar_tls_curve_preferences: String::new(),
            default_affinity_type: AffinityType::PreferSpreadRevisionOverNodes,
            runtime_class_names: BTreeMap::new(),
            pod_is_always_schedulable: false,
        }
    }
}

impl Deployment {
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let data = Data(data);
        let mut config = Self::default();
        let mut digest_timeout = 10 * SECOND;
        let mut deadline = 600 * SECOND;

        data.string(&["queueSidecarImage", "queue-sidecar-image"], &mut config.queue_sidecar_image);
        data.nanos(&["progressDeadline", "progress-deadline"], &mut deadline)?;
        data.nanos(&["digestResolutionTimeout", "digest-resolution-timeout"], &mut digest_timeout)?;
        data.set(
            &["registriesSkippingTagResolving", "registries-skipping-tag-resolving"],
            &mut config.registries_skipping_tag_resolving,
        );
        for (legacy, key, quantity) in [
            ("queueSidecarCPURequest", "queue-sidecar-cpu-request", &mut config.queue_sidecar_cpu_request),
            ("queueSidecarCPULimit", "queue-sidecar-cpu-limit", &mut config.queue_sidecar_cpu_limit),
            ("queueSidecarMemoryRequest", "queue-sidecar-memory-request", &mut config.queue_sidecar_memory_request),
            ("queueSidecarMemoryLimit", "queue-sidecar-memory-limit", &mut config.queue_sidecar_memory_limit),
            (
                "queueSidecarEphemeralStorageRequest",
                "queue-sidecar-ephemeral-storage-request",
                &mut config.queue_sidecar_ephemeral_storage_request,
            ),
            (
                "queueSidecarEphemeralStorageLimit",
                "queue-sidecar-ephemeral-storage-limit",
                &mut config.queue_sidecar_ephemeral_storage_limit,
            ),
        ] {
            data.quantity(&[legacy, key], quantity)?;
        }
        data.set(&["queue-sidecar-token-audiences"], &mut config.queue_sidecar_token_audiences);
        config.queue_sidecar_token_audiences.remove("");
        data.string(&["queue-sidecar-rootca"], &mut config.queue_sidecar_rootca);
        data.string(&["queue-sidecar-tls-min-version"], &mut config.queue_sidecar_tls_min_version);
        data.string(&["queue-sidecar-tls-max-version"], &mut config.queue_sidecar_tls_max_version);
        data.string(&["queue-sidecar-tls-cipher-suites"], &mut config.queue_sidecar_tls_cipher_suites);
        data.string(&["queue-sidecar-tls-curve-preferences"], &mut config.queue_sidecar_tls_curve_preferences);
        data.bool(&["pod-is-always-schedulable"], &mut config.pod_is_always_schedulable)?;
        if let Some(text) = data.raw("runtime-class-name") {
            config.runtime_class_names = runtime_classes(text)?;
        }
        if let Some(text) = data.text(&["default-affinity-type"]) {
            config.default_affinity_type = match text {
                "none" => AffinityType::None,
                "prefer-spread-revision-over-nodes" => AffinityType::PreferSpreadRevisionOverNodes,
                _ => return Err(format!("unsupported default-affinity-type value: {}", go::quote(text))),
            };
        }

        if config.queue_sidecar_image.is_empty() {
            return Err("queue-sidecar-image cannot be empty or unset".to_owned());
        }
        if deadline <= 0 {
            return Err(format!(
                "progress-deadline cannot be a non-positive duration, was {}",
                format_duration(deadline)
            ));
        }
        if !whole_seconds(deadline) {
            return Err(format!(
                "progress-deadline must be rounded to a whole second, was: {}",
                format_duration(deadline)
            ));
        }
        if digest_timeout <= 0 {
            return Err(format!(
                "digest-resolution-timeout cannot be a non-positive duration, was {}",
                format_duration(digest_timeout)
            ));
        }
        config.progress_deadline = duration(deadline);
        config.digest_resolution_timeout = duration(digest_timeout);
        Ok(config)
    }

    /// The class whose selector matches with most labels; among equals the smallest name.
    pub fn runtime_class_for(&self, labels: &BTreeMap<String, String>) -> Option<&str> {
        self.runtime_class_names
            .iter()
            .filter(|(_, selector)| selector.iter().all(|(k, v)| labels.get(k) == Some(v)))
            .max_by(|a, b| a.1.len().cmp(&b.1.len()).then(b.0.cmp(a.0)))
            .map(|(name, _)| name.as_str())
    }
}

fn runtime_classes(text: &str) -> Result<BTreeMap<String, BTreeMap<String, String>>, String> {
    #[derive(Default, serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        selector: BTreeMap<String, String>,
    }
    if text.trim().is_empty() {
        return Ok(BTreeMap::new());
    }
    let classes: BTreeMap<String, Option<Entry>> = serde_saphyr::from_str(text)
        .map_err(|error| format!("runtime-class-name cannot be parsed, please check the format: {error}"))?;
    let mut result = BTreeMap::new();
    for (name, entry) in classes {
        let texts = checks::dns1123_subdomain(&name);
        if !texts.is_empty() {
            return Err(format!("runtime-class-name {name} selector not valid DNSSubdomain: {}", go::list(&texts)));
        }
        let selector = entry.unwrap_or_default().selector;
        for key in selector.keys() {
            let texts = checks::qualified_name(key);
            if !texts.is_empty() {
                return Err(format!("runtime-class-name {name} selector invalid: {key}: {}", texts.join("; ")));
            }
        }
        result.insert(name, selector);
    }
    Ok(result)
}
