//! The condition engine shared by all kinds: a happy condition (`Ready`) that summarises its dependents.
//!
//! The rules are upstream's "living" condition set: which dependent decides `Ready` depends on when the dependents last
//! changed, so the order of transitions is part of the contract. Conditions stay sorted by type, and setting a condition
//! to what it already is changes nothing.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize, Serializer};

use crate::status::null_default;

pub const READY: &str = "Ready";
pub const TRUE: &str = "True";
pub const FALSE: &str = "False";
pub const UNKNOWN: &str = "Unknown";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Empty (an error) for `Ready` and its dependents, else `Warning` or `Info`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub severity: String,
    #[serde(serialize_with = "whole_seconds")]
    pub last_transition_time: Option<Time>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_default")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_default")]
    pub message: String,
}

/// As [`Time`] writes itself, in a tenth of the steps: statuses are mostly times.
fn whole_seconds<S: Serializer>(time: &Option<Time>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(Time(time)) = time else { return serializer.serialize_none() };
    match Timestamp::from_second(time.as_second()) {
        Ok(whole) if time.subsec_nanosecond() >= 0 => serializer.collect_str(&whole),
        _ => Time(*time).serialize(serializer),
    }
}

/// Which conditions decide `Ready`.
#[derive(Clone, Copy, Debug)]
pub struct ConditionSet {
    dependents: &'static [&'static str],
}

/// Edits one object's conditions.
#[derive(Debug)]
pub struct Manager<'a> {
    set: ConditionSet,
    conditions: &'a mut Vec<Condition>,
    now: Timestamp,
}

// === impl Condition ===

impl Condition {
    pub fn is_true(&self) -> bool {
        self.status == TRUE
    }

    pub fn is_false(&self) -> bool {
        self.status == FALSE
    }

    pub fn is_unknown(&self) -> bool {
        self.status == UNKNOWN
    }

    /// Equal but for the transition time.
    pub fn same(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.status == other.status
            && self.severity == other.severity
            && self.reason == other.reason
            && self.message == other.message
    }
}

// === impl ConditionSet ===

impl ConditionSet {
    pub const fn living(dependents: &'static [&'static str]) -> Self {
        Self { dependents }
    }

    pub fn dependents(&self) -> &'static [&'static str] {
        self.dependents
    }

    pub fn manage(self, conditions: &mut Vec<Condition>) -> Manager<'_> {
        self.manage_at(conditions, Timestamp::now())
    }

    pub fn manage_at(self, conditions: &mut Vec<Condition>, now: Timestamp) -> Manager<'_> {
        Manager { set: self, conditions, now }
    }

    fn severity(&self, kind: &str) -> &'static str {
        if self.is_terminal(kind) { "" } else { "Info" }
    }

    fn is_terminal(&self, kind: &str) -> bool {
        kind == READY || self.dependents.contains(&kind)
    }
}

/// Give each condition the time of its equal in `old`, and all others the same `now`.
pub fn groom(old: &[Condition], new: &mut [Condition], now: Timestamp) {
    for condition in new {
        let kept = old.iter().find(|c| c.same(condition)).and_then(|c| c.last_transition_time.clone());
        condition.last_transition_time = Some(kept.unwrap_or(Time(now)));
    }
}

/// Whether two lists say the same, whatever their times.
pub fn same(a: &[Condition], b: &[Condition]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b))
}

// === impl Manager ===

impl Manager<'_> {
    pub fn get(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.kind == kind)
    }

    pub fn is_true(&self, kind: &str) -> bool {
        self.get(kind).is_some_and(Condition::is_true)
    }

    pub fn is_false(&self, kind: &str) -> bool {
        self.get(kind).is_some_and(Condition::is_false)
    }

    /// An absent condition is unknown.
    pub fn is_unknown(&self, kind: &str) -> bool {
        self.get(kind).is_none_or(Condition::is_unknown)
    }

    /// Add `Ready` and the dependents where absent.
    pub fn init(&mut self) {
        if self.get(READY).is_none() {
            self.set(READY, UNKNOWN, "", "");
        }
        let status = if self.is_true(READY) { TRUE } else { UNKNOWN };
        for dependent in self.set.dependents {
            if self.get(dependent).is_none() {
                self.set(dependent, status, "", "");
            }
        }
    }

    pub fn mark_true(&mut self, kind: &str) {
        self.mark_true_with(kind, "", "");
    }

    pub fn mark_true_with(&mut self, kind: &str, reason: &str, message: &str) {
        self.set(kind, TRUE, reason, message);
        self.recompute(kind);
    }

    pub fn mark_false(&mut self, kind: &str, reason: &str, message: &str) {
        self.set(kind, FALSE, reason, message);
        if self.set.dependents.contains(&kind) {
            self.set(READY, FALSE, reason, message);
        }
    }

    pub fn mark_unknown(&mut self, kind: &str, reason: &str, message: &str) {
        self.set(kind, UNKNOWN, reason, message);
        if self.set.dependents.iter().any(|d| self.is_false(d)) {
            if !self.is_false(READY) {
                self.set(READY, FALSE, reason, message);
            }
        } else if self.set.dependents.contains(&kind) {
            self.set(READY, UNKNOWN, reason, message);
        }
    }

    /// Take over status, reason and message of another object's condition. `None` changes nothing.
    pub fn mirror(&mut self, kind: &str, from: Option<&Condition>) {
        match from {
            None => {}
            Some(c) if c.is_true() => self.mark_true(kind),
            Some(c) if c.is_false() => self.mark_false(kind, &c.reason, &c.message),
            Some(c) => self.mark_unknown(kind, &c.reason, &c.message),
        }
    }

    pub fn clear(&mut self, kind: &str) {
        self.conditions.retain(|c| c.kind != kind);
    }

    /// Set one condition without looking at the others.
    pub fn set(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        let condition = Condition {
            kind: kind.to_owned(),
            status: status.to_owned(),
            severity: self.set.severity(kind).to_owned(),
            last_transition_time: Some(Time(self.now)),
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        match self.conditions.iter_mut().find(|c| c.kind == kind) {
            Some(present) if present.same(&condition) => return,
            Some(present) => *present = condition,
            None => self.conditions.push(condition),
        }
        self.conditions.sort_by(|a, b| a.kind.cmp(&b.kind));
    }

    fn recompute(&mut self, changed: &str) {
        match self.unhappy() {
            Some((status, reason, message)) => self.set(READY, status, &reason, &message),
            None if changed != READY => self.set(READY, TRUE, "", ""),
            None => {}
        }
    }

    /// The newest false dependent, else the newest unknown one, else "unknown" while one is missing.
    fn unhappy(&self) -> Option<(&'static str, String, String)> {
        let mut present: Vec<&Condition> =
            self.conditions.iter().filter(|c| self.set.dependents.contains(&c.kind.as_str())).collect();
        present.sort_by_key(|c| std::cmp::Reverse(c.last_transition_time.as_ref().map(|t| t.0)));
        if let Some(c) = present.iter().find(|c| c.is_false()) {
            return Some((FALSE, c.reason.clone(), c.message.clone()));
        }
        if let Some(c) = present.iter().find(|c| c.is_unknown()) {
            return Some((UNKNOWN, c.reason.clone(), c.message.clone()));
        }
        (present.len() < self.set.dependents.len()).then(|| (UNKNOWN, String::new(), String::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: ConditionSet = ConditionSet::living(&["A", "B"]);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("small timestamps are valid")
    }

    fn ready(conditions: &[Condition]) -> (&str, &str) {
        let c = conditions.iter().find(|c| c.kind == READY).unwrap();
        (&c.status, &c.reason)
    }

    #[test]
    fn init_adds_the_missing_ones_sorted() {
        let mut conditions = Vec::new();
        SET.manage_at(&mut conditions, at(1)).init();
        let kinds: Vec<_> = conditions.iter().map(|c| c.kind.as_str()).collect();
        assert_eq!(kinds, ["A", "B", "Ready"]);
        assert!(conditions.iter().all(Condition::is_unknown));
    }

    #[test]
    fn ready_follows_the_newest_false_then_the_newest_unknown() {
        let mut conditions = Vec::new();
        let c = &mut conditions;
        SET.manage_at(c, at(1)).init();
        SET.manage_at(c, at(2)).mark_false("A", "Broken", "a");
        assert_eq!(ready(c), (FALSE, "Broken"));
        SET.manage_at(c, at(3)).mark_unknown("B", "Waiting", "b");
        assert_eq!(ready(c), (FALSE, "Broken"), "a false dependent wins");
        SET.manage_at(c, at(4)).mark_true("A");
        assert_eq!(ready(c), (UNKNOWN, "Waiting"));
        SET.manage_at(c, at(5)).mark_true("B");
        assert_eq!(ready(c), (TRUE, ""));
        SET.manage_at(c, at(6)).mark_false("Extra", "Idle", "");
        assert_eq!(ready(c), (TRUE, ""), "a condition outside the set never pulls Ready down");
        assert_eq!(c.iter().find(|c| c.kind == "Extra").unwrap().severity, "Info");
    }

    #[test]
    fn times_are_written_as_kubernetes_does() {
        for (second, nanosecond) in [(1_800_000_000, 0), (1_800_000_000, 999_999_999), (0, 1), (-1, -500_000_000)] {
            let time = Time(Timestamp::new(second, nanosecond).expect("in range"));
            let condition = Condition { last_transition_time: Some(time.clone()), ..Condition::default() };
            let written = serde_json::to_value(condition).expect("JSON");
            assert_eq!(written["lastTransitionTime"], serde_json::to_value(time).expect("JSON"));
        }
        let none = serde_json::to_value(Condition::default()).expect("JSON");
        assert_eq!(none["lastTransitionTime"], serde_json::Value::Null);
    }

    #[test]
    fn a_missing_dependent_leaves_ready_unknown() {
        let mut conditions = Vec::new();
        SET.manage_at(&mut conditions, at(1)).mark_true("A");
        assert_eq!(ready(&conditions), (UNKNOWN, ""));
    }

    #[test]
    fn same_value_keeps_its_time_and_grooming_shares_one() {
        let mut conditions = Vec::new();
        SET.manage_at(&mut conditions, at(1)).init();
        let old = conditions.clone();
        SET.manage_at(&mut conditions, at(2)).init();
        assert_eq!(old, conditions);
        SET.manage_at(&mut conditions, at(3)).mark_false("B", "X", "");
        groom(&old, &mut conditions, at(9));
        let times: Vec<_> = conditions.iter().map(|c| c.last_transition_time.clone().unwrap().0).collect();
        assert_eq!(times, [at(1), at(9), at(9)]);
    }
}
