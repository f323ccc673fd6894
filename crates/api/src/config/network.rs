//! `config-network`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::data::Data;
use crate::keys;
use crate::template::Template;

#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    pub ingress_class: String,
    pub certificate_class: String,
    pub domain_template: Template,
    pub tag_template: Template,
    pub external_domain_tls: bool,
    pub cluster_local_domain_tls: bool,
    pub system_internal_tls: bool,
    pub http_protocol: HttpProtocol,
    pub rollout_duration_seconds: i64,
    pub autocreate_cluster_domain_claims: bool,
    pub default_external_scheme: String,
    pub enable_mesh_pod_addressability: bool,
    pub mesh_compatibility_mode: MeshCompatibility,
    /// A LabelSelector.
    pub namespace_wildcard_cert_selector: Option<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpProtocol {
    Enabled,
    Disabled,
    Redirected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeshCompatibility {
    Auto,
    Enabled,
    Disabled,
}

pub(crate) const DOMAIN_TEMPLATE: &str = "{{.Name}}.{{.Namespace}}.{{.Domain}}";
const TAG_TEMPLATE: &str = "{{.Tag}}-{{.Name}}";

// === impl Network ===

impl Default for Network {
    fn default() -> Self {
        let template = |name, text| Template::parse(name, text).expect("the default templates are valid");
        Self {
            ingress_class: keys::networking::ISTIO_INGRESS_CLASS.to_owned(),
            certificate_class: keys::networking::CERT_MANAGER_CLASS.to_owned(),
            domain_template: template("domain-template", DOMAIN_TEMPLATE),
            tag_template: template("tag-template", TAG_TEMPLATE),
            external_domain_tls: false,
            cluster_local_domain_tls: false,
            system_internal_tls: false,
            http_protocol: HttpProtocol::Enabled,
            rollout_duration_seconds: 0,
            autocreate_cluster_domain_claims: false,
            default_external_scheme: "http".to_owned(),
            enable_mesh_pod_addressability: false,
            mesh_compatibility_mode: MeshCompatibility::Auto,
            namespace_wildcard_cert_selector: None,
        }
    }
}

impl Network {
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let data = Data(data);
        let mut config = Self::default();
        data.string(&["ingress.class", "ingress-class"], &mut config.ingress_class);
        data.string(&["certificate.class", "certificate-class"], &mut config.certificate_class);
        data.string(&["defaultExternalScheme", "default-external-scheme"], &mut config.default_external_scheme);
        data.i64(&["rolloutDuration", "rollout-duration"], &mut config.rollout_duration_seconds)?;
        data.bool(
            &["autocreateClusterDomainClaims", "autocreate-cluster-domain-claims"],
            &mut config.autocreate_cluster_domain_claims,
        )?;
        data.bool(&["enable-mesh-pod-addressability"], &mut config.enable_mesh_pod_addressability)?;
        if let Some(text) = data.text(&["mesh-compatibility-mode"]) {
            match text.to_ascii_lowercase().as_str() {
                "auto" => config.mesh_compatibility_mode = MeshCompatibility::Auto,
                "enabled" => config.mesh_compatibility_mode = MeshCompatibility::Enabled,
                "disabled" => config.mesh_compatibility_mode = MeshCompatibility::Disabled,
                _ => {}
            }
        }
        if config.rollout_duration_seconds < 0 {
            return Err(format!(
                "rollout-duration must be a positive integer, but was {}",
                config.rollout_duration_seconds
            ));
        }
        config.read_templates(&data)?;
        config.read_tls(&data)?;
        if let Some(text) = data.raw("namespace-wildcard-cert-selector").filter(|t| !t.trim().is_empty()) {
            config.namespace_wildcard_cert_selector =
                serde_saphyr::from_str::<Option<Value>>(text).map_err(|error| error.to_string())?;
        }
        Ok(config)
    }

    fn read_templates(&mut self, data: &Data<'_>) -> Result<(), String> {
        if let Some(text) = data.text(&["domainTemplate", "domain-template"]) {
            let template = Template::parse("domain-template", text)?;
            let sample =
                json!({"Name": "foo", "Namespace": "bar", "Domain": "baz.com", "Annotations": {}, "Labels": {}});
            let host = template.render(&sample)?;
            if host.is_empty() {
                return Err("empty hostname".to_owned());
            }
            if let Some(slash) = host.find('/') {
                return Err(format!("domain template has url path: {}", &host[slash..]));
            }
            self.domain_template = template;
        }
        if let Some(text) = data.text(&["tagTemplate", "tag-template"]) {
            let template = Template::parse("tag-template", text)?;
            template.render(&json!({"Name": "foo", "Tag": "v2"}))?;
            self.tag_template = template;
        }
        Ok(())
    }

    fn read_tls(&mut self, data: &Data<'_>) -> Result<(), String> {
        for key in ["autoTLS", "auto-tls", "external-domain-tls"] {
            if let Some(text) = data.raw(key) {
                self.external_domain_tls = text.eq_ignore_ascii_case("enabled");
            }
        }
        for (key, flag) in [
            ("cluster-local-domain-tls", &mut self.cluster_local_domain_tls),
            ("system-internal-tls", &mut self.system_internal_tls),
        ] {
            match data.raw(key) {
                None | Some("") => {}
                Some(text) if text.eq_ignore_ascii_case("enabled") => *flag = true,
                Some(text) if text.eq_ignore_ascii_case("disabled") => *flag = false,
                Some(text) => {
                    return Err(format!("{key} with value: {text:?} in config-network ConfigMap is not supported"));
                }
            }
        }
        let mut internal_encryption = false;
        data.bool(&["internal-encryption"], &mut internal_encryption)?;
        self.system_internal_tls |= internal_encryption;
        if let Some(text) = data.text(&["httpProtocol", "http-protocol"]) {
            self.http_protocol = match text.to_ascii_lowercase().as_str() {
                "" | "enabled" => HttpProtocol::Enabled,
                "disabled" => HttpProtocol::Disabled,
                "redirected" => HttpProtocol::Redirected,
                _ => {
                    let value = data.raw("http-protocol").unwrap_or_default();
                    return Err(format!("httpProtocol {value} in config-network ConfigMap is not supported"));
                }
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Network, String> {
        Network::parse(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn newer_keys_override_older_ones() {
        let config = parse(&[
            ("ingress.class", "a"),
            ("ingress-class", "b"),
            ("auto-tls", "Enabled"),
            ("external-domain-tls", "no"),
            ("httpProtocol", "Redirected"),
        ])
        .unwrap();
        assert_eq!(config.ingress_class, "b");
        assert!(!config.external_domain_tls);
        assert_eq!(config.http_protocol, HttpProtocol::Redirected);
    }

    #[test]
    fn bad_values_are_refused() {
        assert_eq!(parse(&[("domain-template", "{{.Name}}/x")]).unwrap_err(), "domain template has url path: /x");
        assert_eq!(
            parse(&[("system-internal-tls", "maybe")]).unwrap_err(),
            "system-internal-tls with value: \"maybe\" in config-network ConfigMap is not supported"
        );
        assert!(parse(&[("domain-template", "{{.Nope}}")]).is_err());
        assert!(parse(&[("rollout-duration", "-1")]).is_err());
    }
}
