//! What a PodAutoscaler says about itself.

use api::Conditioned;
use api::autoscaling::v1alpha1::PodAutoscaler;
use api::config;
use api::networking::v1alpha1::ServerlessService;

use crate::settings::Settings;

/// What the world looks like, and what was decided.
#[derive(Debug, Clone, Copy)]
pub(super) struct Observation {
    pub(super) ready: i32,
    /// -1: not known yet.
    pub(super) want: i32,
}

/// Readiness of the ServerlessService. A new generation of its spec that it has not observed yet only switches the path, it does
/// not make endpoints unready, so that (unlike upstream) the condition does not flap at each switch.
pub(super) fn mirror_service(autoscaler: &mut PodAutoscaler, service: &ServerlessService) {
    match service.ready() {
        Some(ready) if ready.is_true() => autoscaler.mark().mark_true("SKSReady"),
        ready => {
            let message = ready.map(|ready| ready.message.as_str()).unwrap_or_default();
            autoscaler.mark().mark_unknown("SKSReady", "NotReady", message);
        }
    }
}

pub(super) fn update(autoscaler: &mut PodAutoscaler, config: &config::Autoscaler, seen: Observation) {
    let status = autoscaler.status_mut();
    status.actual_scale = Some(seen.ready);
    if seen.want != -1 || status.desired_scale.is_none_or(|scale| scale < 0) {
        status.desired_scale = Some(seen.want);
    }
    mark_active(autoscaler, config, seen);
}

fn mark_active(autoscaler: &mut PodAutoscaler, config: &config::Autoscaler, seen: Observation) {
    let settings = Settings::of(autoscaler, config);
    let initialized = autoscaler.condition("ScaleTargetInitialized").is_some_and(|condition| condition.is_true());
    let min_ready = settings.min_scale().max(if initialized { 1 } else { settings.initial_scale() });
    let has_service = autoscaler.status.as_ref().is_some_and(|status| !status.service_name.is_empty());
    let mut conditions = autoscaler.mark();
    if seen.ready >= min_ready && has_service {
        conditions.mark_true("ScaleTargetInitialized");
    }
    let wanted = seen.want > 0 || !conditions.is_false("Active");
    if seen.want == 0 || min_ready == 0 {
        if conditions.is_unknown("Active") && min_ready > 0 {
            conditions.mark_false("Active", "TimedOut", "The target could not be activated.");
        } else {
            conditions.mark_false("Active", "NoTraffic", "The target is not receiving traffic.");
        }
    } else if seen.ready < min_ready {
        if wanted {
            let message = "Requests to the target are being buffered as resources are provisioned.";
            conditions.mark_unknown("Active", "Queued", message);
        } else {
            conditions.mark_false("Active", "NoTraffic", "The target is not receiving traffic.");
        }
    } else if wanted {
        conditions.mark_true("Active");
    }
}

#[cfg(test)]
mod tests {
    use api::Conditioned;
    use api::autoscaling::v1alpha1::PodAutoscaler;
    use api::config;

    use super::{Observation, update};

    fn autoscaler() -> PodAutoscaler {
        let mut autoscaler = PodAutoscaler::default();
        autoscaler.mark().init();
        autoscaler.status_mut().service_name = "hello-00001".into();
        autoscaler
    }

    fn see(autoscaler: &mut PodAutoscaler, ready: i32, want: i32) -> (String, String) {
        update(autoscaler, &config::Autoscaler::default(), Observation { ready, want });
        let active = autoscaler.condition("Active").unwrap();
        (active.status.clone(), active.reason.clone())
    }

    fn is(status: &str, reason: &str) -> (String, String) {
        (status.to_owned(), reason.to_owned())
    }

    #[test]
    fn a_life() {
        let mut pa = autoscaler();
        assert_eq!(see(&mut pa, 0, -1), is("Unknown", "Queued"));
        assert_eq!(pa.status().unwrap().desired_scale, Some(-1));
        assert_eq!(see(&mut pa, 1, -1), is("True", ""));
        assert!(pa.condition("ScaleTargetInitialized").unwrap().is_true());
        assert_eq!(see(&mut pa, 1, 1), is("True", ""));
        assert_eq!(see(&mut pa, 1, 0), is("False", "NoTraffic"));
        assert_eq!(see(&mut pa, 0, -1), is("False", "NoTraffic"));
        assert_eq!(pa.status().unwrap().desired_scale, Some(0), "not knowing does not overwrite knowing");
        assert_eq!(see(&mut pa, 0, 1), is("Unknown", "Queued"));
        assert_eq!(see(&mut pa, 0, 0), is("False", "TimedOut"));
        assert_eq!(see(&mut pa, 1, 2), is("True", ""), "one ready pod is enough");
    }

    #[test]
    fn an_initial_scale_of_zero_is_inactive_from_the_start() {
        let mut pa = autoscaler();
        let config = config::Autoscaler { allow_zero_initial_scale: true, initial_scale: 0, ..Default::default() };
        update(&mut pa, &config, Observation { ready: 0, want: -1 });
        assert!(pa.condition("Active").unwrap().is_false());
        assert!(pa.condition("ScaleTargetInitialized").unwrap().is_true());
        update(&mut pa, &config, Observation { ready: 0, want: -1 });
        assert_eq!(pa.condition("Active").unwrap().reason, "NoTraffic");
    }
}
