//! `config-domain`: which domain a Route gets.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::keys::networking::{CLUSTER_LOCAL, VISIBILITY};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Domain {
    /// Domain to the labels that select it. An empty selector makes the default domain.
    pub domains: BTreeMap<String, DomainEntry>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct DomainEntry {
    pub selector: BTreeMap<String, String>,
    /// `wildcard` or empty. Always `wildcard` for the default domain.
    #[serde(rename = "type")]
    pub kind: String,
}

// === impl Domain ===

impl Domain {
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut domains = BTreeMap::new();
        for (domain, text) in data {
            if domain == "_example" {
                continue;
            }
            let mut entry: DomainEntry = if text.trim().is_empty() {
                DomainEntry::default()
            } else {
                serde_saphyr::from_str::<Option<DomainEntry>>(text)
                    .map_err(|error| error.to_string())?
                    .unwrap_or_default()
            };
            if entry.selector.is_empty() {
                "wildcard".clone_into(&mut entry.kind);
            }
            domains.insert(domain.clone(), entry);
        }
        Ok(Self { domains })
    }

    /// The domain for a Route with these labels: the most specific match, among equals the smallest. Without a default entry,
    /// what nothing selects is local to the cluster.
    pub fn lookup(&self, labels: &BTreeMap<String, String>, cluster_domain: &str) -> String {
        let local = format!("svc.{cluster_domain}");
        if labels.get(VISIBILITY).is_some_and(|v| v == CLUSTER_LOCAL) {
            return local;
        }
        self.domains
            .iter()
            .filter(|(_, entry)| entry.selector.iter().all(|(k, v)| labels.get(k) == Some(v)))
            .max_by(|a, b| a.1.selector.len().cmp(&b.1.selector.len()).then(b.0.cmp(a.0)))
            .map_or(local, |(domain, _)| domain.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_most_specific_selector_wins() {
        let config = Domain::parse(&map(&[
            ("example.com", ""),
            ("a.org", "selector:\n  app: x\n"),
            ("b.org", "selector:\n  app: x\n  tier: y\n"),
        ]))
        .unwrap();
        let lookup = |labels: &[(&str, &str)]| config.lookup(&map(labels), "cluster.local");
        assert_eq!(lookup(&[]), "example.com");
        assert_eq!(lookup(&[("app", "x")]), "a.org");
        assert_eq!(lookup(&[("app", "x"), ("tier", "y")]), "b.org");
        assert_eq!(lookup(&[(VISIBILITY, "cluster-local")]), "svc.cluster.local");
        assert_eq!(Domain::default().lookup(&map(&[]), "cluster.local"), "svc.cluster.local");
    }
}
