//! `config-defaults`.

use std::collections::BTreeMap;

use serde_json::json;

use super::data::Data;
use crate::template::Template;

#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    pub revision_timeout_seconds: i64,
    pub max_revision_timeout_seconds: i64,
    pub revision_response_start_timeout_seconds: i64,
    /// 0 means none.
    pub revision_idle_timeout_seconds: i64,
    pub revision_cpu_request: Option<String>,
    pub revision_memory_request: Option<String>,
    pub revision_ephemeral_storage_request: Option<String>,
    pub revision_cpu_limit: Option<String>,
    pub revision_memory_limit: Option<String>,
    pub revision_ephemeral_storage_limit: Option<String>,
    pub container_name_template: Template,
    pub init_container_name_template: Template,
    pub container_concurrency: i64,
    pub container_concurrency_max_limit: i64,
    pub allow_container_concurrency_zero: bool,
    pub enable_service_links: EnableServiceLinks,
}

/// What to write into a pod spec that does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnableServiceLinks {
    True,
    False,
    /// Leave it to Kubernetes.
    Default,
}

// === impl Defaults ===

impl Default for Defaults {
    fn default() -> Self {
        Self {
            revision_timeout_seconds: 300,
            max_revision_timeout_seconds: 600,
            revision_response_start_timeout_seconds: 300,
            revision_idle_timeout_seconds: 0,
            revision_cpu_request: None,
            revision_memory_request: None,
            revision_ephemeral_storage_request: None,
            revision_cpu_limit: None,
            revision_memory_limit: None,
            revision_ephemeral_storage_limit: None,
            container_name_template: name_template("user-container"),
            init_container_name_template: name_template("init-container"),
            container_concurrency: 0,
            container_concurrency_max_limit: 1000,
            allow_container_concurrency_zero: true,
            enable_service_links: EnableServiceLinks::False,
        }
    }
}

fn name_template(text: &str) -> Template {
    Template::parse("user-container-template", text).expect("a plain text is a template")
}

impl Defaults {
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let data = Data(data);
        let mut config = Self::default();
        for (key, template) in [
            ("container-name-template", &mut config.container_name_template),
            ("init-container-name-template", &mut config.init_container_name_template),
        ] {
            if let Some(text) = data.raw(key) {
                *template = Template::parse("container-template", text)?;
                let empty = json!({"Name": "", "GenerateName": "", "Namespace": "", "UID": "", "Labels": {}, "Annotations": {}});
                template.render(&empty).map_err(|error| format!("error executing template: {error}"))?;
            }
        }
        if let Some(text) = data.raw("enable-service-links") {
            config.enable_service_links = match text.trim().to_ascii_lowercase().as_str() {
                "true" => EnableServiceLinks::True,
                "false" => EnableServiceLinks::False,
                _ => EnableServiceLinks::Default,
            };
        }
        data.bool(&["allow-container-concurrency-zero"], &mut config.allow_container_concurrency_zero)?;
        data.i64(&["revision-timeout-seconds"], &mut config.revision_timeout_seconds)?;
        data.i64(&["max-revision-timeout-seconds"], &mut config.max_revision_timeout_seconds)?;
        config.revision_response_start_timeout_seconds = config.revision_timeout_seconds;
        data.i64(&["revision-response-start-timeout-seconds"], &mut config.revision_response_start_timeout_seconds)?;
        data.i64(&["revision-idle-timeout-seconds"], &mut config.revision_idle_timeout_seconds)?;
        data.i64(&["container-concurrency"], &mut config.container_concurrency)?;
        data.i64(&["container-concurrency-max-limit"], &mut config.container_concurrency_max_limit)?;
        data.quantity(&["revision-cpu-request"], &mut config.revision_cpu_request)?;
        data.quantity(&["revision-memory-request"], &mut config.revision_memory_request)?;
        data.quantity(&["revision-ephemeral-storage-request"], &mut config.revision_ephemeral_storage_request)?;
        data.quantity(&["revision-cpu-limit"], &mut config.revision_cpu_limit)?;
        data.quantity(&["revision-memory-limit"], &mut config.revision_memory_limit)?;
        data.quantity(&["revision-ephemeral-storage-limit"], &mut config.revision_ephemeral_storage_limit)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let timeout = self.revision_timeout_seconds;
        if timeout > self.max_revision_timeout_seconds {
            return Err(format!(
                "revision-timeout-seconds ({timeout}) cannot be greater than max-revision-timeout-seconds ({})",
                self.max_revision_timeout_seconds
            ));
        }
        for (key, value) in [
            ("revision-response-start-timeout-seconds", self.revision_response_start_timeout_seconds),
            ("revision-idle-timeout-seconds", self.revision_idle_timeout_seconds),
        ] {
            if value > 0 && value > timeout {
                return Err(format!("{key} ({value}) cannot be greater than revision-timeout-seconds ({timeout})"));
            }
        }
        let limit = self.container_concurrency_max_limit;
        if limit < 1 {
            return Err(format!("expected 1 <= {limit} <= 2147483647: container-concurrency-max-limit"));
        }
        let concurrency = self.container_concurrency;
        if concurrency < 0 || concurrency > limit {
            return Err(format!("expected 0 <= {concurrency} <= {limit}: container-concurrency"));
        }
        Ok(())
    }
}
