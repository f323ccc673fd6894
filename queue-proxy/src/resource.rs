//! Whose metrics and spans they are: the attributes that every export carries.

use crate::Config;

/// Names and values, sorted by name.
pub(crate) fn attributes(config: &Config) -> Vec<(String, String)> {
    let named = [&config.service, &config.configuration, &config.revision, &config.pod];
    let service = config.otel.get("OTEL_SERVICE_NAME");
    let service = service.or_else(|| named.into_iter().find(|name| !name.is_empty()).map(String::as_str));
    let mut all: Vec<_> = [
        ("container.name", "queue-proxy"),
        ("k8s.namespace.name", &config.namespace),
        ("k8s.pod.name", &config.pod),
        ("kn.configuration.name", &config.configuration),
        ("kn.revision.name", &config.revision),
        ("kn.service.name", &config.service),
        ("service.instance.id", &config.pod),
        ("service.name", service.unwrap_or("")),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("telemetry.sdk.language", "rust"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let added = config.otel.get("OTEL_RESOURCE_ATTRIBUTES").unwrap_or("");
    for (name, value) in added.split(',').filter_map(|item| item.split_once('=')) {
        let name = name.trim();
        if !name.is_empty() && !all.iter().any(|(known, _)| known == name) {
            all.push((name.to_owned(), value.trim().to_owned()));
        }
    }
    all.sort();
    all
}
