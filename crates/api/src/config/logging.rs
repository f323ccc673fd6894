//! `config-logging`: the log level of each component.

use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logging {
    /// Zap configuration as JSON; not checked, as upstream does not.
    pub zap_logger_config: String,
    pub levels: BTreeMap<String, Level>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
    DPanic,
    Panic,
    Fatal,
}

// === impl Logging ===

impl Logging {
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut config = Self::default();
        for (key, value) in data {
            if key == "zap-logger-config" {
                value.clone_into(&mut config.zap_logger_config);
            } else if let Some(component) = key.strip_prefix("loglevel.") {
                if component.is_empty() || value.is_empty() {
                    continue;
                }
                let level = Level::read(value).ok_or_else(|| format!("invalid logging level: {value}"))?;
                config.levels.insert(component.to_owned(), level);
            }
        }
        Ok(config)
    }

    pub fn level(&self, component: &str) -> Option<Level> {
        self.levels.get(component).copied()
    }
}

// === impl Level ===

impl Level {
    fn read(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "debug" => Self::Debug,
            "info" => Self::Info,
            "warn" | "warning" => Self::Warn,
            "error" => Self::Error,
            "dpanic" => Self::DPanic,
            "panic" => Self::Panic,
            "fatal" => Self::Fatal,
            _ => return None,
        })
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::DPanic => "dpanic",
            Self::Panic => "panic",
            Self::Fatal => "fatal",
        }
    }
}
