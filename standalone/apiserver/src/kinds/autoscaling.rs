//! HorizontalPodAutoscalers: defaults and bounds.

use serde_json::{Value, json};

use super::edit::{child, fill, has, items, text};
use crate::{FieldError, Strategy, WriteContext};

pub(super) struct HorizontalPodAutoscaler;

// === impl HorizontalPodAutoscaler ===

impl Strategy for HorizontalPodAutoscaler {
    fn default(&self, autoscaler: &mut Value) {
        let spec = child(autoscaler, "spec");
        fill(spec, "minReplicas", 1);
        if items(spec, "metrics").is_empty() {
            let target = json!({ "type": "Utilization", "averageUtilization": 80 });
            let metrics = json!([{ "type": "Resource", "resource": { "name": "cpu", "target": target } }]);
            super::edit::set(spec, "metrics", metrics);
        }
        child(autoscaler, "status");
    }

    fn validate(&self, cx: &WriteContext<'_>, autoscaler: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        if cx.subresource == "status" {
            return Vec::new();
        }
        let spec = autoscaler.get("spec").unwrap_or(&Value::Null);
        let mut errors = Vec::new();
        for field in ["kind", "name"] {
            if text(spec, &format!("/scaleTargetRef/{field}")).is_empty() {
                errors.push(FieldError::required(format!("spec.scaleTargetRef.{field}"), ""));
            }
        }
        let number = |field: &str| spec.get(field).and_then(Value::as_i64).unwrap_or_default();
        let (least, most) = (number("minReplicas"), number("maxReplicas"));
        if has(spec, "minReplicas") && least < 1 {
            errors.push(FieldError::invalid("spec.minReplicas", &least.into(), "must be greater than or equal to 1"));
        }
        if most < 1 {
            errors.push(FieldError::invalid("spec.maxReplicas", &most.into(), "must be greater than 0"));
        } else if most < least {
            let message = "must be greater than or equal to `minReplicas`";
            errors.push(FieldError::invalid("spec.maxReplicas", &most.into(), message));
        }
        errors
    }
}
