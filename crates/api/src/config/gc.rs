//! `config-gc`: which Revisions may be deleted.

use std::collections::BTreeMap;
use std::time::Duration;

use super::data::{Data, duration};
use crate::go;

#[derive(Clone, Debug, PartialEq)]
pub struct Gc {
    /// `None`: disabled.
    pub retain_since_create_time: Option<Duration>,
    /// `None`: disabled.
    pub retain_since_last_active_time: Option<Duration>,
    pub min_non_active_revisions: i64,
    /// `None`: disabled.
    pub max_non_active_revisions: Option<i64>,
}

// === impl Gc ===

impl Default for Gc {
    fn default() -> Self {
        Self {
            retain_since_create_time: Some(Duration::from_secs(48 * 3600)),
            retain_since_last_active_time: Some(Duration::from_secs(15 * 3600)),
            min_non_active_revisions: 20,
            max_non_active_revisions: Some(1000),
        }
    }
}

impl Gc {
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let data = Data(data);
        let mut config = Self::default();
        data.i64(&["min-non-active-revisions"], &mut config.min_non_active_revisions)
            .map_err(|error| format!("failed to parse data: {error}"))?;
        retain(&data, "retain-since-create-time", &mut config.retain_since_create_time)?;
        retain(&data, "retain-since-last-active-time", &mut config.retain_since_last_active_time)?;
        let min = config.min_non_active_revisions;
        if min < 0 {
            return Err(format!("min-non-active-revisions must be non-negative, was: {min}"));
        }
        match data.text(&["max-non-active-revisions"]) {
            None | Some("") => {}
            Some(text) if text.eq_ignore_ascii_case("disabled") => config.max_non_active_revisions = None,
            Some(text) => {
                let failed = |error: String| format!("failed to parse max-non-active-revisions: {error}");
                let value = go::parse_u64(text).map_err(failed)?;
                let value =
                    i64::try_from(value).map_err(|_| failed(format!("value should be lower than {}", i64::MAX)))?;
                config.max_non_active_revisions = Some(value);
            }
        }
        match config.max_non_active_revisions {
            Some(max) if min > max => {
                Err(format!("min-non-active-revisions({min}) must be <= max-non-active-revisions({max})"))
            }
            _ => Ok(config),
        }
    }
}

fn retain(data: &Data<'_>, key: &str, into: &mut Option<Duration>) -> Result<(), String> {
    match data.text(&[key]) {
        None | Some("") => {}
        Some(text) if text.eq_ignore_ascii_case("disabled") => *into = None,
        Some(text) => {
            let nanos = go::parse_duration(text).map_err(|error| format!("failed to parse {key}: {error}"))?;
            if nanos < 0 {
                return Err(format!("failed to parse {key}: must be non-negative"));
            }
            *into = Some(duration(nanos));
        }
    }
    Ok(())
}
