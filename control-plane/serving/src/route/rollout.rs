//! Gradual rollout of a configuration's latest revision: how much traffic each revision has had, kept as an annotation of the Ingress.
//!
//! A change of the latest revision starts with 1% on the new one. When the Ingress has served that once, the time it took
//! bounds how many steps fit into the rollout's duration, and traffic then moves step by step from the older revisions to
//! the newest. All of it is a function of the previous state, the goal and the time.

use serde::{Deserialize, Serialize};

use super::traffic::{Target, Traffic};

/// Unix time and durations in nanoseconds, as in the annotation.
pub type Nanos = i64;

const SECOND: f64 = 1e9;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rollout {
    /// Sorted by tag, then configuration.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub configurations: Vec<ConfigurationRollout>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigurationRollout {
    pub configuration_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tag: String,
    /// Of the configuration within its group.
    pub percent: i64,
    /// Oldest first; the last one is where traffic goes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<RevisionRollout>,
    pub step_params: StepParams,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionRollout {
    pub revision_name: String,
    pub percent: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepParams {
    #[serde(rename = "starttime", skip_serializing_if = "is_zero")]
    pub start_time: Nanos,
    #[serde(rename = "nextStepTime", skip_serializing_if = "is_zero")]
    pub next_step_time: Nanos,
    #[serde(rename = "stepDuration", skip_serializing_if = "is_zero")]
    pub step_duration: Nanos,
    #[serde(rename = "stepSize", skip_serializing_if = "is_zero")]
    pub step_size: i64,
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

// === impl Rollout ===

impl Rollout {
    /// All traffic where it shall be.
    pub fn steady(traffic: &Traffic) -> Self {
        let mut configurations: Vec<ConfigurationRollout> = traffic
            .groups
            .iter()
            .flat_map(|(tag, targets)| {
                targets.iter().filter(|t| t.latest && t.percent != 0).map(|t| ConfigurationRollout::steady(tag, t))
            })
            .collect();
        configurations.sort_by(|a, b| (&a.tag, &a.configuration_name).cmp(&(&b.tag, &b.configuration_name)));
        Self { configurations }
    }

    /// `None` for anything that no rollout could have left.
    pub fn parse(annotation: &str) -> Option<Self> {
        let rollout: Self = serde_json::from_str(annotation).ok()?;
        rollout.configurations.iter().all(ConfigurationRollout::is_valid).then_some(rollout)
    }

    pub fn to_annotation(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers serialise")
    }

    pub fn is_done(&self) -> bool {
        self.configurations.iter().all(|c| c.revisions.len() < 2)
    }

    pub fn find(&self, tag: &str, configuration: &str) -> Option<&ConfigurationRollout> {
        self.configurations.iter().find(|c| c.tag == tag && c.configuration_name == configuration)
    }

    /// The Ingress serves what was last asked of it: new rollouts now know how fast they can go.
    pub fn observe_ready(&mut self, now: Nanos, duration_seconds: f64) {
        for configuration in &mut self.configurations {
            if configuration.step_params.step_duration == 0 && configuration.step_params.start_time > 0 {
                configuration.plan(now, duration_seconds);
            }
        }
    }

    /// From `previous` towards `self`.
    pub fn step(self, previous: Option<&Self>, now: Nanos) -> Self {
        let Some(previous) = previous else { return self };
        let configurations = self
            .configurations
            .into_iter()
            .map(|goal| match previous.find(&goal.tag, &goal.configuration_name) {
                Some(previous) if goal.percent > 1 => step(goal, previous, now),
                _ => goal,
            })
            .collect();
        Self { configurations }
    }

    /// When to step next, if rolling out.
    pub fn next_step_time(&self) -> Option<Nanos> {
        self.configurations.iter().map(|c| c.step_params.next_step_time).filter(|t| *t > 0).min()
    }
}

// === impl ConfigurationRollout ===

impl ConfigurationRollout {
    fn steady(tag: &str, target: &Target) -> Self {
        Self {
            configuration_name: target.configuration.clone(),
            tag: tag.to_owned(),
            percent: target.percent,
            revisions: vec![RevisionRollout { revision_name: target.revision.clone(), percent: target.percent }],
            step_params: StepParams::default(),
        }
    }

    fn is_valid(&self) -> bool {
        let size = self.step_params.step_size;
        let sum: i64 = self.revisions.iter().map(|r| r.percent).sum();
        self.percent <= 100 && (0..=self.percent.max(0)).contains(&size) && sum == self.percent
    }

    /// Steps no shorter than what the first one took.
    fn plan(&mut self, now: Nanos, duration_seconds: f64) {
        let elapsed = (now - self.step_params.start_time) as f64 / SECOND;
        let shortest = elapsed.ceil().max(1.0);
        let duration = (duration_seconds - shortest).max(1.0);
        let remaining = ((self.percent - 1) as f64).max(1.0);
        let steps = (duration / shortest).max(1.0).min(remaining);
        let step_duration = (duration / steps * SECOND) as Nanos;
        self.step_params.step_size = (remaining / steps).round() as i64;
        self.step_params.step_duration = step_duration;
        self.step_params.next_step_time = now + step_duration;
    }

    fn drop_empty(&mut self) {
        self.revisions.retain(|r| r.percent > 0);
    }
}

/// `goal` has one revision; `previous` may be in the middle of a rollout.
fn step(goal: ConfigurationRollout, previous: &ConfigurationRollout, now: Nanos) -> ConfigurationRollout {
    let mut next = previous.clone();
    next.percent = goal.percent;
    adjust(&mut next, goal.percent - previous.percent);
    let newest = next.revisions.last().map(|r| r.revision_name.clone());
    let wanted = goal.revisions.last().map(|r| r.revision_name.clone());
    if newest.is_none() || newest == wanted {
        if next.revisions.len() < 2 {
            return goal;
        }
        if next.step_params.step_size > 0 && now >= next.step_params.next_step_time {
            advance(&mut next, now);
        }
        return next;
    }
    next.step_params = StepParams { start_time: now, ..StepParams::default() };
    if let Some(giver) = next.revisions.iter_mut().rev().find(|r| r.percent > 0) {
        giver.percent -= 1;
    }
    next.drop_empty();
    next.revisions.push(RevisionRollout { revision_name: wanted.unwrap_or_default(), percent: 1 });
    next
}

/// Follow a change of the configuration's own share: more goes to the newest, less comes from the oldest.
fn adjust(rollout: &mut ConfigurationRollout, difference: i64) {
    if difference >= 0 {
        if let Some(newest) = rollout.revisions.last_mut() {
            newest.percent += difference;
        }
        return;
    }
    let mut excess = -difference;
    for revision in &mut rollout.revisions {
        let taken = excess.min(revision.percent);
        revision.percent -= taken;
        excess -= taken;
    }
    rollout.drop_empty();
}

fn advance(rollout: &mut ConfigurationRollout, now: Nanos) {
    let mut wanted = rollout.step_params.step_size;
    let Some((newest, older)) = rollout.revisions.split_last_mut() else { return };
    for revision in older.iter_mut().rev() {
        let taken = wanted.min(revision.percent);
        revision.percent -= taken;
        newest.percent += taken;
        wanted -= taken;
    }
    rollout.drop_empty();
    if rollout.revisions.len() > 1 {
        rollout.step_params.next_step_time = now + rollout.step_params.step_duration;
    } else {
        rollout.step_params = StepParams::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Nanos = 1_000_000_000;

    fn configuration(percent: i64, revisions: &[(&str, i64)]) -> ConfigurationRollout {
        ConfigurationRollout {
            configuration_name: "c".into(),
            percent,
            revisions: revisions
                .iter()
                .map(|(name, percent)| RevisionRollout { revision_name: (*name).into(), percent: *percent })
                .collect(),
            ..ConfigurationRollout::default()
        }
    }

    fn rollout(percent: i64, revisions: &[(&str, i64)]) -> Rollout {
        Rollout { configurations: vec![configuration(percent, revisions)] }
    }

    fn shares(rollout: &Rollout) -> Vec<(&str, i64)> {
        rollout.configurations[0].revisions.iter().map(|r| (r.revision_name.as_str(), r.percent)).collect()
    }

    #[test]
    fn a_change_of_share_in_the_middle_keeps_the_proportions_of_the_contract() {
        for (previous, goal, expected) in [
            (rollout(42, &[("goat", 11), ("after", 31)]), 33, vec![("goat", 2), ("after", 30), ("new", 1)]),
            (rollout(25, &[("goat", 11), ("after", 14)]), 75, vec![("goat", 11), ("after", 63), ("new", 1)]),
        ] {
            let next = rollout(goal, &[("new", goal)]).step(Some(&previous), S);
            assert_eq!(shares(&next), expected);
        }
        for (previous, expected) in [
            (rollout(75, &[("a", 21), ("b", 22), ("c", 32)]), vec![("b", 10), ("c", 32)]),
            (rollout(75, &[("a", 10), ("b", 5), ("c", 60)]), vec![("c", 42)]),
        ] {
            let next = rollout(42, &[("c", 42)]).step(Some(&previous), S);
            assert_eq!(shares(&next), expected);
        }
    }

    #[test]
    fn a_rollout_runs_to_its_end() {
        let mut state = rollout(100, &[("new", 100)]).step(Some(&rollout(100, &[("old", 100)])), S);
        assert_eq!(shares(&state), [("old", 99), ("new", 1)]);
        assert!(!state.is_done() && state.next_step_time().is_none());

        state.observe_ready(3 * S, 120.0);
        let params = &state.configurations[0].step_params;
        assert_eq!((params.step_size, params.step_duration, params.next_step_time), (2, 2 * S, 5 * S));

        let goal = rollout(100, &[("new", 100)]);
        assert_eq!(goal.clone().step(Some(&state), 4 * S), state, "not before its time");
        let mut now = 5 * S;
        let mut steps = 0;
        while !state.is_done() {
            state = goal.clone().step(Some(&state), now);
            now += 2 * S;
            steps += 1;
            assert_eq!(shares(&state).iter().map(|s| s.1).sum::<i64>(), 100);
        }
        assert_eq!(steps, 50);
        assert_eq!(state, goal);
    }

    #[test]
    fn annotations_that_no_rollout_left_are_ignored() {
        let good = rollout(100, &[("a", 60), ("b", 40)]);
        assert_eq!(Rollout::parse(&good.to_annotation()), Some(good));
        assert_eq!(Rollout::default().to_annotation(), "{}");
        for bad in [rollout(120, &[("a", 120)]), rollout(100, &[("a", 60)])] {
            assert_eq!(Rollout::parse(&bad.to_annotation()), None);
        }
        assert_eq!(Rollout::parse("?"), None);
    }
}
