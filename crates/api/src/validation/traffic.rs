//! Traffic of a Service or Route.

use std::collections::BTreeMap;

use crate::checks;
use crate::field_error::FieldErrors;
use crate::go;
use crate::serving::v1::TrafficTarget;

/// Paths start at `traffic`. Targets of a Service never name a configuration.
pub fn traffic(targets: &[TrafficTarget], of_service: bool) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let mut sum = 0_i64;
    let mut tags: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, target) in targets.iter().enumerate() {
        let mut own = names(target, of_service);
        if let Some(latest) = target.latest_revision
            && latest != target.revision_name.is_empty()
        {
            let message = format!(
                "may not set revisionName {} when latestRevision is {latest}",
                go::quote(&target.revision_name)
            );
            own.add(FieldErrors::new(message, &["latestRevision"]));
        }
        if let Some(percent) = target.percent {
            sum = sum.saturating_add(percent);
            if !(0..=100).contains(&percent) {
                own.add(FieldErrors::out_of_range(percent, 0, 100, "percent"));
            }
        }
        if target.url.is_some() {
            own.add(FieldErrors::disallowed(&["url"]));
        }
        errors.add(own.via_index("traffic", i));
        errors.add(tag(&target.tag, i, &mut tags));
    }
    if sum != 100 {
        errors.add(FieldErrors::new(format!("Traffic targets sum to {sum}, want 100"), &["traffic"]));
    }
    errors
}

fn names(target: &TrafficTarget, of_service: bool) -> FieldErrors {
    let qualified = |name: &str, path: &str| {
        let texts = checks::qualified_name(name);
        if texts.is_empty() {
            FieldErrors::none()
        } else {
            FieldErrors::bad_key(name, path).with_details(texts.join(", "))
        }
    };
    match (target.configuration_name.as_str(), target.revision_name.as_str()) {
        ("", revision) if of_service => {
            if revision.is_empty() {
                FieldErrors::none()
            } else {
                qualified(revision, "revisionName")
            }
        }
        (_, _) if of_service => FieldErrors::disallowed(&["configurationName"]),
        ("", "") => FieldErrors::neither(&["revisionName", "configurationName"]),
        ("", revision) => qualified(revision, "revisionName"),
        (configuration, "") => qualified(configuration, "configurationName"),
        _ => FieldErrors::both(&["revisionName", "configurationName"]),
    }
}

fn tag<'a>(tag: &'a str, index: usize, seen: &mut BTreeMap<&'a str, usize>) -> FieldErrors {
    if tag.is_empty() {
        return FieldErrors::none();
    }
    let texts = checks::dns1035_label(tag);
    if !texts.is_empty() {
        let value = format!("not a DNS 1035 label: {}", go::list(&texts));
        return FieldErrors::invalid(value, &format!("traffic.tag[{index}]"));
    }
    match seen.get(tag) {
        Some(first) => FieldErrors::new(
            format!("Multiple definitions for {}", go::quote(tag)),
            &[&format!("traffic[{first}].tag"), &format!("traffic[{index}].tag")],
        ),
        None => {
            seen.insert(tag, index);
            FieldErrors::none()
        }
    }
}
