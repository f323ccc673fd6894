//! What the queue-proxy may use: explicit annotations over a percentage of the program's resources over `config-deployment` over
//! built-in defaults (if that feature is on).

use api::config::Flag;
use api::go::parse_quantity;
use api::keys::{first, queue_sidecar as keys};
use api::serving::v1::Revision;
use kube::ResourceExt;
use serde_json::{Map, Value, json};

use super::super::deployment::Settings;

const MILLI: i128 = 1_000_000;
const UNIT: i128 = 1_000_000_000;
const MEBI: i128 = 1 << 20;

/// One cell of the table: requests or limits of one resource.
struct Cell<'a> {
    kind: &'static str,
    resource: &'static str,
    config: &'a Option<String>,
    default: Option<&'static str>,
    /// Least and most that a percentage may give: thousandths of a CPU, bytes of memory.
    bounds: Option<(i128, i128)>,
    annotation: &'static str,
}

pub(super) fn resources(revision: &Revision, serving: &Value, settings: &Settings<'_>) -> Result<Value, String> {
    let config = settings.deployment;
    let cell = |kind, resource, config, default, bounds, annotation| Cell {
        kind,
        resource,
        config,
        default,
        bounds,
        annotation,
    };
    let cells = [
        cell("requests", "cpu", &config.queue_sidecar_cpu_request, Some("25m"), Some((25, 100)), keys::CPU_REQUEST),
        cell("limits", "cpu", &config.queue_sidecar_cpu_limit, Some("1"), Some((40, 500)), keys::CPU_LIMIT),
        cell(
            "requests",
            "memory",
            &config.queue_sidecar_memory_request,
            Some("400Mi"),
            Some((50 * MEBI, 200 * MEBI)),
            keys::MEMORY_REQUEST,
        ),
        cell(
            "limits",
            "memory",
            &config.queue_sidecar_memory_limit,
            Some("800Mi"),
            Some((200 * MEBI, 500 * MEBI)),
            keys::MEMORY_LIMIT,
        ),
        cell(
            "requests",
            "ephemeral-storage",
            &config.queue_sidecar_ephemeral_storage_request,
            None,
            None,
            keys::EPHEMERAL_STORAGE_REQUEST,
        ),
        cell(
            "limits",
            "ephemeral-storage",
            &config.queue_sidecar_ephemeral_storage_limit,
            None,
            None,
            keys::EPHEMERAL_STORAGE_LIMIT,
        ),
    ];
    let annotations = revision.annotations();
    let percentage = first(annotations, keys::RESOURCE_PERCENTAGE).and_then(|(_, value)| value.parse::<f64>().ok());
    let with_defaults = settings.features.queue_proxy_resource_defaults == Flag::Enabled;

    let mut resources = Map::new();
    for cell in cells {
        let mut value = cell.config.clone().or_else(|| cell.default.filter(|_| with_defaults).map(str::to_owned));
        if let (Some(percentage), Some(bounds)) = (percentage, cell.bounds) {
            let users = serving["resources"][cell.kind][cell.resource].as_str();
            value = users.and_then(|users| share(users, percentage, cell.resource, bounds)).or(value);
        }
        if let Some(explicit) = annotations.get(cell.annotation) {
            parse_quantity(explicit).map_err(|error| format!("annotation {}: {error}", cell.annotation))?;
            value = Some(explicit.clone());
        }
        if let Some(value) = value {
            let group = resources.entry(cell.kind).or_insert_with(|| json!({}));
            group[cell.resource] = json!(value);
        }
    }
    Ok(Value::Object(resources))
}

/// `percentage` of a quantity within bounds; `None` if there is nothing to take a share of.
fn share(users: &str, percentage: f64, resource: &str, (least, most): (i128, i128)) -> Option<String> {
    let nanos = parse_quantity(users).ok()?.nanos();
    if nanos == 0 {
        return None;
    }
    let base = if resource == "cpu" { nanos / MILLI } else { nanos / UNIT };
    let share = ((base as f64 * percentage / 100.0) as i128).clamp(least, most);
    Some(if resource == "cpu" { milli(share) } else { bytes(share) })
}

fn milli(value: i128) -> String {
    if value % 1000 == 0 { (value / 1000).to_string() } else { format!("{value}m") }
}

fn bytes(value: i128) -> String {
    let units = [("Gi", MEBI << 10), ("Mi", MEBI), ("Ki", 1 << 10)];
    let fitting = units.into_iter().find(|(_, unit)| value % unit == 0);
    fitting.map_or_else(|| value.to_string(), |(suffix, unit)| format!("{}{suffix}", value / unit))
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn shares_are_truncated_and_bounded() {
        assert_eq!(share("1", 5.0, "cpu", (25, 100)).as_deref(), Some("50m"));
        assert_eq!(share("100m", 5.0, "cpu", (25, 100)).as_deref(), Some("25m"));
        assert_eq!(share("8", 50.0, "cpu", (40, 500)).as_deref(), Some("500m"));
        assert_eq!(share("0", 50.0, "cpu", (40, 500)), None);
        let bounds = (50 << 20, 200 << 20);
        assert_eq!(share("1Gi", 10.0, "memory", bounds).as_deref(), Some("107374182"));
        assert_eq!(share("1Gi", 12.5, "memory", bounds).as_deref(), Some("128Mi"));
        assert_eq!(share("10Gi", 50.0, "memory", bounds).as_deref(), Some("200Mi"));
    }
}
