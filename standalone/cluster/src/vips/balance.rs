//! Which endpoints may take a connection, in the order to try them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;

/// The ready endpoints of a port, beginning with the `start`-th; if none is ready, those that still serve while they
/// end.
pub(super) fn candidates(slices: &[Arc<EndpointSlice>], port: &str, start: usize) -> Vec<SocketAddr> {
    let ready = collect(slices, port, |ready, _| ready);
    let mut found = if ready.is_empty() { collect(slices, port, |_, serving| serving) } else { ready };
    found.sort();
    found.dedup();
    if !found.is_empty() {
        let by = start % found.len();
        found.rotate_left(by);
    }
    found
}

fn collect(slices: &[Arc<EndpointSlice>], port: &str, take: fn(bool, bool) -> bool) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for slice in slices {
        let mut ports = slice.ports.iter().flatten();
        let number = ports.find(|p| p.name.as_deref().unwrap_or_default() == port).and_then(|p| p.port);
        let Some(number) = number.and_then(|number| u16::try_from(number).ok()) else { continue };
        for endpoint in &slice.endpoints {
            let conditions = endpoint.conditions.as_ref();
            let ready = conditions.is_none_or(|c| c.ready != Some(false));
            // Told only by slices of pods; unknown means as ready.
            let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
            if take(ready, serving) {
                let addresses = endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
                found.extend(addresses.map(|address| SocketAddr::new(address, number)));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn slice(endpoints: Value) -> Vec<Arc<EndpointSlice>> {
        let slice = json!({
            "addressType": "IPv4", "metadata": {},
            "ports": [{"name": "http", "port": 8012}],
            "endpoints": endpoints,
        });
        vec![Arc::new(serde_json::from_value(slice).unwrap())]
    }

    #[test]
    fn ready_ones_in_turn() {
        let slices = slice(json!([
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.0.0.3"]},
        ]));
        let (one, three) = ("10.0.0.1:8012".parse().unwrap(), "10.0.0.3:8012".parse().unwrap());
        assert_eq!(candidates(&slices, "http", 0), [one, three]);
        assert_eq!(candidates(&slices, "http", 1), [three, one]);
        assert_eq!(candidates(&slices, "other", 0), []);
    }

    #[test]
    fn ending_ones_when_there_is_no_other() {
        let ending = json!({"ready": false, "serving": true, "terminating": true});
        let slices = slice(json!([{"addresses": ["10.0.0.2"], "conditions": ending}]));
        assert_eq!(candidates(&slices, "http", 0), ["10.0.0.2:8012".parse().unwrap()]);
    }
}
