//! Services: defaults, ports, and the cluster address and node ports the API hands out.
//!
//! The address is chosen while the object is prepared and becomes taken for good when the commit is observed. In between (a retry, another
//! request, a dry run that never commits) it is only reserved for a while, so no lock is held across the write.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::edit::{carry, child, fill, fill_number, fill_text, has, items, items_mut, remove, set, text};
use super::pod_spec_check::port_range;
use crate::{FieldError, Status, Strategy, WriteContext, names};

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    network: u32,
    bits: u8,
}

/// How long a choice holds without a commit.
const RESERVED_SECONDS: i64 = 30;

pub(super) struct Service {
    range: Range,
    node_ports: RangeInclusive<u16>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    addresses: HashMap<Ipv4Addr, Claim>,
    ports: HashMap<u16, Claim>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Claim {
    Committed,
    Until(i64),
}

// === impl Range ===

impl Default for Range {
    fn default() -> Self {
        Self { network: Ipv4Addr::new(10, 96, 0, 0).to_bits(), bits: 16 }
    }
}

impl std::str::FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is not an IPv4 network: write it as 10.96.0.0/16");
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let bits: u8 = bits.parse().ok().filter(|bits| (8..=28).contains(bits)).ok_or_else(wrong)?;
        Ok(Self { network: address.to_bits() & (u32::MAX << (32 - bits)), bits })
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}/{}", Ipv4Addr::from_bits(self.network), self.bits)
    }
}

impl Range {
    fn size(self) -> u32 {
        1 << (32 - self.bits)
    }

    /// The `n`th address, e.g. 1 for the API itself and 10 for DNS.
    pub fn nth(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network + n)
    }

    fn contains(self, address: Ipv4Addr) -> bool {
        let bits = address.to_bits();
        bits > self.network && bits < self.network + self.size() - 1
    }

    /// The lower part is kept for addresses people choose.
    fn dynamic(self) -> std::ops::Range<u32> {
        (self.size() / 16).clamp(16, 256).min(self.size() / 2)..self.size() - 1
    }
}

// === impl Taken ===

impl Taken {
    fn free<K: std::hash::Hash + Eq>(claims: &HashMap<K, Claim>, key: &K, now: i64) -> bool {
        match claims.get(key) {
            None => true,
            Some(Claim::Committed) => false,
            Some(Claim::Until(end)) => *end <= now,
        }
    }

    fn choose<K: std::hash::Hash + Eq + Copy>(
        claims: &mut HashMap<K, Claim>,
        candidates: u32,
        at: impl Fn(u32) -> K,
        now: i64,
    ) -> Option<K> {
        let start = fastrand::u32(..candidates);
        let found =
            (0..candidates).map(|step| at((start + step) % candidates)).find(|key| Self::free(claims, key, now))?;
        claims.insert(found, Claim::Until(now + RESERVED_SECONDS));
        Some(found)
    }
}

// === impl Service ===

impl Service {
    pub(super) fn new(range: Range, node_ports: RangeInclusive<u16>) -> Self {
        Self { range, node_ports, taken: Mutex::default() }
    }

    fn allocate(&self, cx: &WriteContext<'_>, service: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        let now = cx.now.as_second();
        let mut errors = Vec::new();
        let spec = child(service, "spec");
        if text(spec, "/type") == "ExternalName" {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
                remove(spec, field);
            }
        } else {
            self.allocate_address(spec, old, now, &mut errors);
            fill(spec, "ipFamilies", json!(["IPv4"]));
            fill_text(spec, "ipFamilyPolicy", "SingleStack");
        }
        self.allocate_ports(spec, old, now, &mut errors);
        if errors.is_empty() { Ok(()) } else { Err(Status::invalid(cx.kind, cx.name, &errors)) }
    }

    fn allocate_address(&self, spec: &mut Value, old: Option<&Value>, now: i64, errors: &mut Vec<FieldError>) {
        let given = match text(spec, "/clusterIP") {
            "" => text(spec, "/clusterIPs/0").to_owned(),
            given => given.to_owned(),
        };
        let before = old.map_or("", |old| text(old, "/spec/clusterIP"));
        let mut taken = self.taken.lock();
        let address = match given.as_str() {
            "" => {
                let dynamic = self.range.dynamic();
                let chosen = Taken::choose(
                    &mut taken.addresses,
                    dynamic.len() as u32,
                    |n| self.range.nth(dynamic.start + n),
                    now,
                )
                .or_else(|| Taken::choose(&mut taken.addresses, dynamic.start - 1, |n| self.range.nth(n + 1), now));
                let Some(chosen) = chosen else {
                    let message = format!("failed to allocate a serviceIP: range {} is full", self.range);
                    errors.push(FieldError::new(crate::errors::FieldReason::InternalError, "spec.clusterIP", message));
                    return;
                };
                chosen.to_string()
            }
            "None" => given,
            _ if given == before => given,
            _ => {
                let refuse = |why: String| FieldError::invalid("spec.clusterIPs", &json!([given]), &why);
                match given.parse::<Ipv4Addr>() {
                    Err(_) => {
                        let message = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                        errors.push(FieldError::invalid("spec.clusterIPs[0]", &given.as_str().into(), message));
                        return;
                    }
                    Ok(address) if !self.range.contains(address) => {
                        let range = self.range;
                        let why = format!("provided IP is not in the valid range. The range of valid IPs is {range}");
                        errors.push(refuse(format!("failed to allocate IP {given}: {why}")));
                        return;
                    }
                    Ok(address) if !Taken::free(&taken.addresses, &address, now) => {
                        errors.push(refuse(format!("failed to allocate IP {given}: provided IP is already allocated")));
                        return;
                    }
                    Ok(_) => given,
                }
            }
        };
        set(spec, "clusterIPs", json!([address]));
        set(spec, "clusterIP", address);
    }

    fn allocate_ports(&self, spec: &mut Value, old: Option<&Value>, now: i64, errors: &mut Vec<FieldError>) {
        let wanted = match text(spec, "/type") {
            "NodePort" => true,
            "LoadBalancer" => spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
            _ => false,
        };
        let exposed = matches!(text(spec, "/type"), "NodePort" | "LoadBalancer");
        let before: Vec<i64> = old.into_iter().flat_map(node_ports).collect();
        let mut taken = self.taken.lock();
        for (index, port) in items_mut(spec, "ports").iter_mut().enumerate() {
            let given = port.get("nodePort").and_then(Value::as_i64).unwrap_or_default();
            if !exposed {
                remove(port, "nodePort");
                continue;
            }
            if given != 0 {
                let path = format!("spec.ports[{index}].nodePort");
                let number = u16::try_from(given).ok().filter(|number| self.node_ports.contains(number));
                match number {
                    None => {
                        let (first, last) = (self.node_ports.start(), self.node_ports.end());
                        let why = format!(
                            "provided port is not in the valid range. The range of valid ports is {first}-{last}"
                        );
                        errors.push(FieldError::invalid(path, &given.into(), &why));
                    }
                    Some(number) if !before.contains(&given) && !Taken::free(&taken.ports, &number, now) => {
                        errors.push(FieldError::invalid(path, &given.into(), "provided port is already allocated"));
                    }
                    Some(_) => {}
                }
                continue;
            }
            let same = old.and_then(|old| {
                let ports = old.pointer("/spec/ports").and_then(Value::as_array)?;
                ports.iter().find(|p| p.get("port") == port.get("port"))?.get("nodePort")?.as_i64()
            });
            if let Some(same) = same {
                set(port, "nodePort", same);
            } else if wanted {
                let first = *self.node_ports.start();
                let count = u32::try_from(self.node_ports.len()).unwrap_or(u32::MAX);
                let at = |n: u32| first + u16::try_from(n).unwrap_or_default();
                if let Some(number) = Taken::choose(&mut taken.ports, count, at, now) {
                    set(port, "nodePort", number);
                }
            }
        }
    }
}

fn address(service: &Value) -> Option<Ipv4Addr> {
    text(service, "/spec/clusterIP").parse().ok()
}

fn node_ports(service: &Value) -> Vec<i64> {
    let ports = items(&service["spec"], "ports").iter();
    ports.filter_map(|port| port.get("nodePort").and_then(Value::as_i64)).filter(|&port| port != 0).collect()
}

impl Strategy for Service {
    fn default(&self, service: &mut Value) {
        let spec = child(service, "spec");
        fill_text(spec, "sessionAffinity", "None");
        if text(spec, "/sessionAffinity") == "ClientIP" {
            fill_number(child(child(spec, "sessionAffinityConfig"), "clientIP"), "timeoutSeconds", 10800);
        }
        fill_text(spec, "type", "ClusterIP");
        for port in items_mut(spec, "ports") {
            fill_text(port, "protocol", "TCP");
            let number = port.get("port").cloned().unwrap_or_default();
            if port.get("targetPort").is_none_or(|target| target.is_null() || target == 0 || target == "") {
                set(port, "targetPort", number);
            }
        }
        let kind = text(spec, "/type").to_owned();
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
            fill_text(spec, "externalTrafficPolicy", "Cluster");
        }
        if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
            fill_text(spec, "internalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            fill(spec, "allocateLoadBalancerNodePorts", true);
        }
    }

    fn prepare_create(&self, cx: &WriteContext<'_>, service: &mut Value) -> Result<(), Status> {
        set(service, "status", json!({ "loadBalancer": {} }));
        self.allocate(cx, service, None)
    }

    fn prepare_update(&self, cx: &WriteContext<'_>, service: &mut Value, old: &Value) -> Result<(), Status> {
        if cx.subresource == "status" {
            return Ok(());
        }
        let was_external = text(old, "/spec/type") == "ExternalName";
        let spec = child(service, "spec");
        if text(spec, "/type") != "ExternalName" && !was_external {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if !has(spec, field) || spec[field] == "" {
                    carry(&old["spec"], spec, field);
                }
            }
        }
        self.allocate(cx, service, Some(old))
    }

    fn validate(&self, cx: &WriteContext<'_>, service: &Value, old: Option<&Value>) -> Vec<FieldError> {
        if cx.subresource == "status" {
            return Vec::new();
        }
        let spec = service.get("spec").unwrap_or(&Value::Null);
        let mut errors = Vec::new();
        let external = text(spec, "/type") == "ExternalName";
        match text(spec, "/type") {
            "ExternalName" => match text(spec, "/externalName").trim_end_matches('.') {
                "" => errors.push(FieldError::required("spec.externalName", "")),
                name => {
                    if let Err(message) = names::subdomain(name) {
                        errors.push(FieldError::invalid("spec.externalName", &name.into(), &message));
                    }
                }
            },
            "ClusterIP" | "NodePort" | "LoadBalancer" => {}
            other => {
                let supported = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
                errors.push(FieldError::not_supported("spec.type", &other.into(), &supported));
            }
        }
        let headless = text(spec, "/clusterIP") == "None";
        if headless && matches!(text(spec, "/type"), "NodePort" | "LoadBalancer") {
            let message = format!("may not be set to 'None' for {} services", text(spec, "/type"));
            errors.push(FieldError::invalid("spec.clusterIPs[0]", &"None".into(), &message));
        }
        if !matches!(text(spec, "/sessionAffinity"), "None" | "ClientIP") {
            let given = text(spec, "/sessionAffinity").into();
            errors.push(FieldError::not_supported("spec.sessionAffinity", &given, &["ClientIP", "None"]));
        }
        if items(spec, "ports").is_empty() && !headless && !external {
            errors.push(FieldError::required("spec.ports", ""));
        }
        ports(spec, &mut errors);
        for (key, value) in spec.get("selector").and_then(Value::as_object).into_iter().flatten() {
            let checked = names::label_key(key).and_then(|()| names::label_value(value.as_str().unwrap_or_default()));
            if let Err(message) = checked {
                errors.push(FieldError::invalid("spec.selector", value, &message));
            }
        }
        if let Some(old) = old {
            let (before, after) = (text(old, "/spec/clusterIP"), text(spec, "/clusterIP"));
            if !external && text(old, "/spec/type") != "ExternalName" && !before.is_empty() && before != after {
                errors.push(FieldError::invalid("spec.clusterIPs[0]", &spec["clusterIPs"], "may not change once set"));
            }
        }
        errors
    }

    fn observe(&self, old: Option<&Value>, new: Option<&Value>) {
        let mut taken = self.taken.lock();
        if let Some(service) = old {
            if let Some(address) = address(service) {
                taken.addresses.remove(&address);
            }
            for port in node_ports(service) {
                taken.ports.remove(&u16::try_from(port).unwrap_or_default());
            }
        }
        if let Some(service) = new {
            if let Some(address) = address(service) {
                taken.addresses.insert(address, Claim::Committed);
            }
            for port in node_ports(service) {
                taken.ports.insert(u16::try_from(port).unwrap_or_default(), Claim::Committed);
            }
        }
        // Reservations that were never used are dropped here, where the table is touched anyway.
        let now = Timestamp::now().as_second();
        taken.addresses.retain(|_, claim| !matches!(claim, Claim::Until(end) if *end <= now));
        taken.ports.retain(|_, claim| !matches!(claim, Claim::Until(end) if *end <= now));
    }
}

fn ports(spec: &Value, errors: &mut Vec<FieldError>) {
    let ports = items(spec, "ports");
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let name = text(port, "/name");
        let earlier = &ports[..index];
        if name.is_empty() {
            if ports.len() > 1 {
                errors.push(FieldError::required(format!("{path}.name"), ""));
            }
        } else if let Err(message) = names::label(name) {
            errors.push(FieldError::invalid(format!("{path}.name"), &name.into(), &message));
        } else if earlier.iter().any(|other| text(other, "/name") == name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &name.into()));
        }
        match port.get("port").and_then(Value::as_i64).unwrap_or_default() {
            1..=65535 => {}
            other => errors.push(port_range(format!("{path}.port"), other)),
        }
        if !matches!(text(port, "/protocol"), "TCP" | "UDP" | "SCTP") {
            let given = text(port, "/protocol").into();
            errors.push(FieldError::not_supported(format!("{path}.protocol"), &given, &["SCTP", "TCP", "UDP"]));
        }
        match port.get("targetPort") {
            Some(Value::Number(number)) if !(1..=65535).contains(&number.as_i64().unwrap_or_default()) => {
                errors.push(port_range(format!("{path}.targetPort"), number.as_i64().unwrap_or_default()));
            }
            Some(Value::String(name)) => {
                if let Err(message) = names::port_name(name) {
                    errors.push(FieldError::invalid(format!("{path}.targetPort"), &name.as_str().into(), &message));
                }
            }
            _ => {}
        }
        let same =
            |other: &&Value| other.get("port") == port.get("port") && other.get("protocol") == port.get("protocol");
        if earlier.iter().any(|other| same(&other)) {
            let value = json!({ "port": port["port"], "protocol": port["protocol"] });
            errors.push(FieldError::duplicate(path, &value));
        }
    }
}

#[cfg(test)]
mod tests;
