//! Label selectors against labels.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

pub(crate) type Labels = BTreeMap<String, String>;

/// Whether `labels` satisfy the selector. An unknown operator selects nothing.
pub(crate) fn matches(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let get = |key: &str| labels.and_then(|labels| labels.get(key));
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|e| {
            let listed = |value: &String| e.values.iter().flatten().any(|v| v == value);
            match e.operator.as_str() {
                "In" => get(&e.key).is_some_and(listed),
                "NotIn" => !get(&e.key).is_some_and(listed),
                "Exists" => get(&e.key).is_some(),
                "DoesNotExist" => get(&e.key).is_none(),
                _ => false,
            }
        })
}

/// Whether `labels` have every pair of `selector`; the empty selector selects nothing, as in a Service.
pub(crate) fn matches_map(selector: &Labels, labels: Option<&Labels>) -> bool {
    !selector.is_empty() && labels.is_some_and(|labels| selector.iter().all(|(k, v)| labels.get(k) == Some(v)))
}

/// The index entry of one label pair in one namespace.
pub(crate) fn pair(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}\0{key}={value}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    fn expression(operator: &str) -> LabelSelector {
        let values = Some(vec!["x".to_owned()]);
        let one = LabelSelectorRequirement { key: "a".into(), operator: operator.into(), values };
        LabelSelector { match_expressions: Some(vec![one]), match_labels: None }
    }

    #[test]
    fn operators() {
        let x: Labels = [("a".into(), "x".into())].into();
        let y: Labels = [("a".into(), "y".into())].into();
        for (operator, on_x, on_y, on_none) in [
            ("In", true, false, false),
            ("NotIn", false, true, true),
            ("Exists", true, true, false),
            ("DoesNotExist", false, false, true),
            ("Near", false, false, false),
        ] {
            let selector = expression(operator);
            let got = (matches(&selector, Some(&x)), matches(&selector, Some(&y)), matches(&selector, None));
            assert_eq!(got, (on_x, on_y, on_none), "{operator}");
        }
    }

    #[test]
    fn an_empty_service_selector_selects_nothing() {
        assert!(!matches_map(&Labels::new(), Some(&Labels::new())));
    }
}
