//! Reading typed values from environment variables, with the syntax Go accepts.

use std::time::Duration;

use telemetry::environment::{Environment, Mistake, integer};

use super::ConfigError;

pub(super) struct Variables<'a>(pub(super) &'a Environment);

// === impl Variables ===

impl<'a> Variables<'a> {
    pub(super) fn text(&self, name: &'static str) -> Option<&'a str> {
        self.0.get(name).map(String::as_str)
    }

    /// Set, though perhaps to nothing.
    pub(super) fn required(&self, name: &'static str) -> Result<&'a str, ConfigError> {
        self.text(name).ok_or(ConfigError::Missing(name))
    }

    pub(super) fn integer(&self, name: &'static str) -> Result<Option<i64>, ConfigError> {
        self.parsed(name, "an integer", integer)
    }

    pub(super) fn boolean(&self, name: &'static str) -> Result<Option<bool>, ConfigError> {
        self.parsed(name, "a boolean", |text| match text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
            _ => None,
        })
    }

    pub(super) fn port(&self, name: &'static str) -> Result<u16, ConfigError> {
        self.required(name)?;
        Ok(self.parsed(name, "a port", |text| text.parse().ok())?.expect("it is set"))
    }

    pub(super) fn optional_port(&self, name: &'static str) -> Result<Option<u16>, ConfigError> {
        self.parsed(name, "a port", |text| text.parse().ok())
    }

    /// `300ms`, `2s`, `1m`, or several of them in a row.
    pub(super) fn duration(&self, name: &'static str) -> Result<Option<Duration>, ConfigError> {
        self.parsed(name, "a duration such as 300ms or 2s", |text| {
            let mut rest = text;
            let mut total = Duration::ZERO;
            while !rest.is_empty() {
                let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
                let value: f64 = rest[..digits].parse().ok()?;
                let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |end| digits + end);
                let scale = match &rest[digits..unit] {
                    "h" => 3600.0,
                    "m" => 60.0,
                    "s" => 1.0,
                    "ms" => 1e-3,
                    "us" => 1e-6,
                    "ns" => 1e-9,
                    _ => return None,
                };
                total += Duration::try_from_secs_f64(value * scale).ok()?;
                rest = &rest[unit..];
            }
            (!text.is_empty()).then_some(total)
        })
    }

    fn parsed<T>(
        &self,
        name: &'static str,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let value = parse(text).ok_or_else(|| Mistake::invalid(name, text, expected))?;
        Ok(Some(value))
    }
}
