//! Endpoints and EndpointSlices: what consumers of either rely on being there.

use serde_json::Value;

use super::edit::{fill, fill_text, items, items_mut, text};
use super::pod_spec_check::port_range;
use crate::{FieldError, Strategy, WriteContext};

pub(super) struct Endpoints;

pub(super) struct EndpointSlice;

// === impl Endpoints ===

impl Strategy for Endpoints {
    fn default(&self, endpoints: &mut Value) {
        for subset in items_mut(endpoints, "subsets") {
            for port in items_mut(subset, "ports") {
                fill_text(port, "protocol", "TCP");
            }
        }
    }

    fn validate(&self, _cx: &WriteContext<'_>, endpoints: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for (index, subset) in items(endpoints, "subsets").iter().enumerate() {
            let path = format!("subsets[{index}]");
            if items(subset, "addresses").is_empty() && items(subset, "notReadyAddresses").is_empty() {
                errors.push(FieldError::required(path.clone(), "must specify `addresses` or `notReadyAddresses`"));
            }
            for list in ["addresses", "notReadyAddresses"] {
                for (index, address) in items(subset, list).iter().enumerate() {
                    ip(text(address, "/ip"), format!("{path}.{list}[{index}].ip"), &mut errors);
                }
            }
            let ports = items(subset, "ports");
            for (index, port) in ports.iter().enumerate() {
                let path = format!("{path}.ports[{index}]");
                if ports.len() > 1 && text(port, "/name").is_empty() {
                    errors.push(FieldError::required(format!("{path}.name"), ""));
                }
                number(port, format!("{path}.port"), &mut errors);
            }
        }
        errors
    }
}

// === impl EndpointSlice ===

impl Strategy for EndpointSlice {
    fn default(&self, slice: &mut Value) {
        for port in items_mut(slice, "ports") {
            fill(port, "name", "");
            fill_text(port, "protocol", "TCP");
        }
    }

    fn validate(&self, _cx: &WriteContext<'_>, slice: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let family = text(slice, "/addressType");
        match family {
            "" => errors.push(FieldError::required("addressType", "")),
            "IPv4" | "IPv6" | "FQDN" => {}
            other => errors.push(FieldError::not_supported("addressType", &other.into(), &["FQDN", "IPv4", "IPv6"])),
        }
        if old.is_some_and(|old| text(old, "/addressType") != family) {
            errors.push(FieldError::invalid("addressType", &family.into(), "field is immutable"));
        }
        for (index, endpoint) in items(slice, "endpoints").iter().enumerate() {
            let path = format!("endpoints[{index}].addresses");
            let addresses = items(endpoint, "addresses");
            if addresses.is_empty() {
                errors.push(FieldError::required(path.clone(), "must contain at least 1 address"));
            }
            for (index, address) in addresses.iter().enumerate().filter(|_| family != "FQDN") {
                ip(address.as_str().unwrap_or_default(), format!("{path}[{index}]"), &mut errors);
            }
        }
        let ports = items(slice, "ports");
        for (index, port) in ports.iter().enumerate() {
            let name = text(port, "/name");
            if ports[..index].iter().any(|other| text(other, "/name") == name) {
                errors.push(FieldError::duplicate(format!("ports[{index}].name"), &name.into()));
            }
            if port.get("port").is_some_and(|p| !p.is_null()) {
                number(port, format!("ports[{index}].port"), &mut errors);
            }
        }
        errors
    }
}

fn ip(address: &str, field: String, errors: &mut Vec<FieldError>) {
    if address.parse::<std::net::IpAddr>().is_err() {
        let message = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.push(FieldError::invalid(field, &address.into(), message));
    }
}

fn number(port: &Value, field: String, errors: &mut Vec<FieldError>) {
    let number = port.get("port").and_then(Value::as_i64).unwrap_or_default();
    if !(1..=65535).contains(&number) {
        errors.push(port_range(field, number));
    }
}
