//! Which Revisions share the traffic of each Configuration, as the Ingress's rollout annotation keeps it
//! (controllers.md 7.7; upstream `pkg/reconciler/route/traffic/rollout.go`).

use serde::{Deserialize, Serialize};

use super::traffic::Traffic;

/// The annotation's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rollout {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub configurations: Vec<ConfigurationRollout>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigurationRollout {
    pub configuration_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tag: String,
    pub percent: i64,
    /// Oldest first; more than one while a rollout goes on.
    pub revisions: Vec<RevisionRollout>,
    pub step_params: StepParams,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionRollout {
    pub revision_name: String,
    pub percent: i64,
}

/// Times in nanoseconds since 1970, durations in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StepParams {
    #[serde(rename = "starttime", skip_serializing_if = "is_zero")]
    pub start_time: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub next_step_time: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub step_duration: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub step_size: i64,
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

// === impl Rollout ===

impl Rollout {
    /// What the traffic asks for, everything at once.
    pub fn goal(traffic: &Traffic) -> Self {
        let mut configurations: Vec<_> = traffic
            .groups
            .iter()
            .flat_map(|(tag, targets)| targets.iter().map(move |target| (tag, target)))
            .filter(|(_, target)| target.latest && target.percent != 0)
            .map(|(tag, target)| ConfigurationRollout {
                configuration_name: target.configuration.clone(),
                tag: tag.clone(),
                percent: target.percent,
                revisions: vec![RevisionRollout { revision_name: target.revision.clone(), percent: target.percent }],
                step_params: StepParams::default(),
            })
            .collect();
        configurations.sort_by(|a, b| (&a.tag, &a.configuration_name).cmp(&(&b.tag, &b.configuration_name)));
        Self { configurations }
    }

    /// The Revisions of a Configuration under a tag.
    pub fn of(&self, tag: &str, configuration: &str) -> Option<&[RevisionRollout]> {
        let found = self.configurations.iter().find(|c| c.tag == tag && c.configuration_name == configuration);
        found.map(|configuration| configuration.revisions.as_slice())
    }

    pub fn to_json(&self) -> String {
        // Strings and integers always serialise.
        serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned())
    }
}
