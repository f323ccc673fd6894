//! `config-kourier`, `config-network` and the environment as [`Settings`]. A key that a ConfigMap does not have leaves
//! what the options said, so that one machine and a cluster share the parser.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use api::config::{ExternalAuthz, Kourier, KourierTracing, Network, TracingProtocol};
use controller::ObjectKey;

use crate::{
    fleets::Fleets,
    options::{Authorization, AuthorizationProtocol, Options, Settings, Tracing},
};

/// Seconds between two probes, at most.
const PROBE_DELAY: u64 = 30;

/// `config-kourier` and which keys it has.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Values {
    values: Kourier,
    present: BTreeSet<String>,
}

// === impl Values ===

impl Values {
    pub(crate) fn parse(data: &BTreeMap<String, String>) -> Result<Self, String> {
        Ok(Values { values: Kourier::parse(data)?, present: data.keys().cloned().collect() })
    }

    /// What holds now.
    pub(crate) fn over(&self, options: &Options, network: &Network) -> Settings {
        let base = &options.settings;
        let values = &self.values;
        let mut out = base.clone();
        macro_rules! take {
            ($($key:literal => $field:ident = $value:expr;)*) => {
                $(if self.present.contains($key) {
                    out.$field = $value;
                })*
            };
        }
        take! {
            "enable-service-access-logging" => access_log = values.enable_service_access_logging;
            "service-access-log-template" => access_log_template = values.service_access_log_template.clone();
            "stream-idle-timeout" => stream_idle_timeout = values.stream_idle_timeout;
            "trusted-hops-count" => trusted_hops = values.trusted_hops_count;
            "use-remote-address" => use_remote_address = values.use_remote_address;
            "enable-proxy-protocol" => proxy_protocol = values.enable_proxy_protocol;
            "disable-envoy-server-header" => hide_server_header = values.disable_envoy_server_header;
            "cipher-suites" => cipher_suites = values.cipher_suites.clone().unwrap_or_default();
            "enable-cryptomb" => cryptomb = values.enable_cryptomb;
            "listen-ip-addresses" => listen_ips =
                values.listen_ip_addresses.iter().filter_map(|ip| ip.parse().ok()).collect();
            "cluster-cert-secret" => cluster_certificate =
                secret(&options.system_namespace, &values.cluster_cert_secret);
            "tracing-endpoint" => tracing = values.tracing.as_ref().map(tracing);
        }
        if ["certs-secret-name", "certs-secret-namespace"].iter().any(|key| self.present.contains(*key)) {
            let old = base.certificate.clone();
            let pick = |key: &str, new: &str, old: Option<String>| match self.present.contains(key) {
                true => new.to_owned(),
                false => old.unwrap_or_default(),
            };
            let (namespace, name) = old.map(|old| (old.namespace, old.name)).unzip();
            let namespace = pick("certs-secret-namespace", &values.certs_secret_namespace, namespace);
            let name = pick("certs-secret-name", &values.certs_secret_name, name);
            out.certificate = secret(&namespace, &name);
        }
        if base.authorization.is_none() {
            out.authorization = values.external_authz.as_ref().map(authorization);
        }
        out.internal_tls |= network.system_internal_tls;
        out
    }
}

// === impl Options ===

impl Options {
    /// Upstream's environment variables over the defaults.
    ///
    /// # Errors
    /// If a variable cannot be read; the text names it.
    pub fn from_environment(get: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let text = |name: &str| get(name).unwrap_or_default();
        let mut options = Options { config_wait: Some(Duration::from_secs(60)), ..Options::default() };
        options.system_namespace = match text("SYSTEM_NAMESPACE") {
            empty if empty.is_empty() => options.system_namespace,
            namespace => namespace,
        };
        options.gateway_namespace = match text("KOURIER_GATEWAY_NAMESPACE") {
            empty if empty.is_empty() => options.system_namespace.clone(),
            namespace => namespace,
        };
        options.redirects = get("KOURIER_HTTPOPTION_DISABLED").is_none();
        options.labelled_secrets = parse_bool(&text("ENABLE_SECRET_INFORMER_FILTERING_BY_CERT_UID")).unwrap_or(false);
        options.certificates_on_demand = match text("KOURIER_CERTIFICATES").as_str() {
            "" | "chains" => false,
            "on-demand" => true,
            other => return Err(format!("KOURIER_CERTIFICATES is {other:?}, which must be chains or on-demand")),
        };
        options.settings.certificate = secret(&text("CERTS_SECRET_NAMESPACE"), &text("CERTS_SECRET_NAME"));
        if let Some(workers) = get("K_THREADS_PER_CONTROLLER") {
            options.workers =
                workers.parse().ok().filter(|workers| *workers > 0).ok_or_else(|| {
                    format!("K_THREADS_PER_CONTROLLER is {workers:?}, which must be a positive number")
                })?;
        }
        let delay = match text("PROBE_MAX_RETRY_DELAY_SECONDS").as_str() {
            "" => PROBE_DELAY,
            text => text.parse().ok().filter(|seconds| *seconds > 0).ok_or_else(|| {
                format!("PROBE_MAX_RETRY_DELAY_SECONDS is {text:?}, which must be a positive number of seconds")
            })?,
        };
        options.probe = Some(Duration::from_secs(delay));
        let gateways = text("KOURIER_GATEWAYS");
        if !gateways.trim().is_empty() {
            options.fleets = Fleets::parse(&gateways).map_err(|error| format!("KOURIER_GATEWAYS: {error}"))?;
        }
        let host = text("KOURIER_EXTAUTHZ_HOST");
        if !host.is_empty() {
            options.settings.authorization = Some(environment_authorization(&host, &get)?);
        }
        Ok(options)
    }
}

fn environment_authorization(host: &str, get: &impl Fn(&str) -> Option<String>) -> Result<Authorization, String> {
    // The same keys, defaults and messages as in the ConfigMap, except that the protocol has a default here.
    let mut data: BTreeMap<String, String> = [("extauthz-host".to_owned(), host.to_owned())].into();
    for (variable, key) in [
        ("PROTOCOL", "protocol"),
        ("FAILUREMODEALLOW", "failure-mode-allow"),
        ("MAXREQUESTBYTES", "max-request-body-bytes"),
        ("TIMEOUT", "timeout"),
        ("PATHPREFIX", "path-prefix"),
        ("PACKASBYTES", "pack-as-bytes"),
    ] {
        if let Some(value) = get(&format!("KOURIER_EXTAUTHZ_{variable}")) {
            data.insert(format!("extauthz-{key}"), value);
        }
    }
    data.entry("extauthz-protocol".to_owned()).or_insert_with(|| "grpc".to_owned());
    let failed = |error| format!("failed to parse external authz config: {error}; correct KOURIER_EXTAUTHZ_*");
    let parsed = Kourier::parse(&data).map_err(failed)?;
    Ok(authorization(&parsed.external_authz.expect("the host is set")))
}

fn authorization(from: &ExternalAuthz) -> Authorization {
    let protocol = match from.protocol.as_str() {
        "http" => AuthorizationProtocol::Http,
        "https" => AuthorizationProtocol::Https,
        _ => AuthorizationProtocol::Grpc,
    };
    Authorization {
        host: from.host.clone(),
        port: from.port,
        protocol,
        failure_mode_allow: from.failure_mode_allow,
        max_request_bytes: from.max_request_body_bytes,
        timeout: Duration::from_millis(u64::try_from(from.timeout_millis).unwrap_or_default()),
        path_prefix: from.path_prefix.clone(),
        // HTTP has no such option; upstream ends its process when both are set.
        pack_as_bytes: from.pack_as_bytes && protocol == AuthorizationProtocol::Grpc,
    }
}

fn tracing(from: &KourierTracing) -> Tracing {
    Tracing {
        host: from.host.clone(),
        port: from.port,
        path: from.path.clone(),
        grpc: from.protocol == TracingProtocol::Grpc,
        sampled_per_million: (from.sampling_rate * 1e6).round() as u32,
        service_name: from.service_name.clone(),
    }
}

fn secret(namespace: &str, name: &str) -> Option<ObjectKey> {
    (!namespace.is_empty() && !name.is_empty()).then(|| ObjectKey::new(namespace, name))
}

fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, &str)]) -> Values {
        Values::parse(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()).unwrap()
    }

    #[test]
    fn only_keys_that_are_there_change_something() {
        let mut options = Options::default();
        options.settings.access_log = false;
        let network = Network::default();
        assert_eq!(values(&[("_example", "x")]).over(&options, &network), options.settings);
        let set = values(&[
            ("enable-service-access-logging", "true"),
            ("listen-ip-addresses", "::,127.0.0.1"),
            ("cluster-cert-secret", "server-certs"),
            ("certs-secret-name", "wildcard"),
            ("certs-secret-namespace", "tls"),
            ("tracing-endpoint", "http://jaeger.tracing:4318/v1/traces"),
            ("tracing-protocol", "http/protobuf"),
            ("tracing-sampling-rate", "0.25"),
            ("extauthz-host", "authz.auth:6000"),
            ("extauthz-protocol", "http"),
            ("extauthz-pack-as-bytes", "true"),
        ])
        .over(&options, &network);
        assert!(set.access_log && !set.internal_tls);
        assert_eq!(set.listen_ips.len(), 2);
        assert_eq!(set.cluster_certificate, Some(ObjectKey::new("knative-serving", "server-certs")));
        assert_eq!(set.certificate, Some(ObjectKey::new("tls", "wildcard")));
        let tracing = set.tracing.unwrap();
        assert_eq!((tracing.sampled_per_million, tracing.path.as_str(), tracing.grpc), (250_000, "/v1/traces", false));
        let authorization = set.authorization.unwrap();
        assert!(!authorization.pack_as_bytes, "no such option over HTTP");
        assert_eq!(authorization.timeout, Duration::from_secs(2));
    }

    #[test]
    fn a_present_but_empty_certificate_name_wins_over_the_environment() {
        let mut options = Options::default();
        options.settings.certificate = Some(ObjectKey::new("a", "b"));
        let network = Network::default();
        assert_eq!(values(&[("certs-secret-name", "")]).over(&options, &network).certificate, None);
        let renamed = values(&[("certs-secret-name", "c")]).over(&options, &network).certificate;
        assert_eq!(renamed, Some(ObjectKey::new("a", "c")));
    }

    #[test]
    fn the_environment_of_upstream() {
        let environment = |pairs: &'static [(&str, &str)]| {
            Options::from_environment(move |name| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let plain = environment(&[("SYSTEM_NAMESPACE", "kn")]).unwrap();
        assert_eq!((plain.gateway_namespace.as_str(), plain.redirects), ("kn", true));
        assert_eq!(plain.settings, Settings::default());
        let full = environment(&[
            ("KOURIER_GATEWAY_NAMESPACE", "kourier-system"),
            ("KOURIER_HTTPOPTION_DISABLED", ""),
            ("ENABLE_SECRET_INFORMER_FILTERING_BY_CERT_UID", "junk"),
            ("CERTS_SECRET_NAMESPACE", "ns"),
            ("CERTS_SECRET_NAME", "cert"),
            ("KOURIER_EXTAUTHZ_HOST", "authz:6000"),
            ("KOURIER_EXTAUTHZ_TIMEOUT", "50"),
            ("PROBE_MAX_RETRY_DELAY_SECONDS", "5"),
            ("KOURIER_CERTIFICATES", "on-demand"),
            ("KOURIER_GATEWAYS", "[{name: inside, node: {id: inside}, visibility: ClusterLocal}]"),
        ])
        .unwrap();
        assert_eq!((plain.probe, full.probe), (Some(Duration::from_secs(30)), Some(Duration::from_secs(5))));
        assert_eq!((plain.fleets.iter().count(), full.fleets.iter().count()), (1, 2));
        for (name, value) in
            [("PROBE_MAX_RETRY_DELAY_SECONDS", "0"), ("KOURIER_GATEWAYS", "inside"), ("KOURIER_CERTIFICATES", "some")]
        {
            let error = Options::from_environment(|n| (n == name).then(|| value.to_owned())).unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
        assert!(!full.redirects && !full.labelled_secrets);
        assert!(full.certificates_on_demand && !plain.certificates_on_demand);
        assert_eq!(full.settings.certificate, Some(ObjectKey::new("ns", "cert")));
        let authorization = full.settings.authorization.clone().unwrap();
        assert_eq!(authorization.protocol, AuthorizationProtocol::Grpc);
        assert_eq!(authorization.timeout, Duration::from_millis(50));
        // The environment wins over the ConfigMap.
        let other = values(&[("extauthz-host", "other:1"), ("extauthz-protocol", "http")]);
        assert_eq!(other.over(&full, &Network::default()).authorization, Some(authorization));
        let error = environment(&[("KOURIER_EXTAUTHZ_HOST", "a:1"), ("KOURIER_EXTAUTHZ_TIMEOUT", "soon")]).unwrap_err();
        assert!(error.starts_with("failed to parse external authz config: "), "{error}");
    }
}
