//! What a name means: the cluster's own from the caches, the rest from the forwarder.

use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::forward::Forwarder;
use super::wire::{A, AAAA, ANY, Answer, Code, Data, IN, Name, Query, Record, SRV};
use crate::caches::{Caches, SERVICE};

/// As CoreDNS answers for Kubernetes.
const TTL: u32 = 5;
/// Aliases to follow before giving up.
const MAX_CHAIN: usize = 8;

pub(super) struct Names {
    zone: Zone,
    forwarder: Forwarder,
}

/// The names below the cluster domain.
pub(super) struct Zone {
    caches: Caches,
    domain: String,
}

/// What the cluster knows about one name.
#[derive(Debug, PartialEq)]
enum Found {
    /// Not below the cluster domain.
    Elsewhere,
    Absent,
    /// Without any, the name exists and has none of this kind.
    Records(Vec<Record>),
    Alias(Name),
}

// === impl Names ===

impl Names {
    pub(super) fn new(zone: Zone, forwarder: Forwarder) -> Self {
        Self { zone, forwarder }
    }

    /// The answer if the caches have it, without waiting.
    pub(super) fn local(&self, query: &Query) -> Option<Answer> {
        if query.class != IN && query.class != ANY {
            return Some(Answer::of(Code::Refused));
        }
        match self.follow(&query.name, query.kind) {
            (records, None) => Some(records),
            (_, Some(_)) => None,
        }
    }

    /// The bytes of the answer to a query that needs somebody else.
    pub(super) async fn remote(&self, query: &Query, message: &[u8], limit: usize, tcp: bool) -> Vec<u8> {
        let (mut answer, outside) = self.follow(&query.name, query.kind);
        let Some(outside) = outside else { return query.answer(&answer, limit) };
        if answer.records.is_empty() {
            return match self.forwarder.forward(message, tcp).await {
                Some(bytes) => bytes,
                None => query.answer(&Answer::of(Code::ServerFailure), limit),
            };
        }
        // An alias of ours that leads out of the cluster: its end is asked for and put behind it.
        answer.authoritative = false;
        match self.forwarder.lookup(&outside, query.kind).await {
            Some(records) => answer.records.extend(records),
            None => answer = Answer::of(Code::ServerFailure),
        }
        query.answer(&answer, limit)
    }

    /// Follows aliases inside the cluster; a name that remains is outside.
    fn follow(&self, name: &str, kind: u16) -> (Answer, Option<Name>) {
        let mut answer = Answer { authoritative: true, ..Answer::of(Code::NoError) };
        let mut name = name.to_owned();
        for _ in 0..MAX_CHAIN {
            match self.zone.find(&name, kind) {
                Found::Elsewhere => return (answer, Some(name)),
                Found::Absent => {
                    if answer.records.is_empty() {
                        answer.code = Code::NameError;
                    }
                    answer.authority = vec![self.zone.soa()];
                    return (answer, None);
                }
                Found::Records(records) => {
                    if records.is_empty() {
                        answer.authority = vec![self.zone.soa()];
                    }
                    answer.additional = self.zone.glue(&records);
                    answer.records.extend(records);
                    return (answer, None);
                }
                Found::Alias(target) => {
                    answer.records.push(Record { name: name.clone(), ttl: TTL, data: Data::Cname(target.clone()) });
                    name = target;
                }
            }
        }
        (Answer::of(Code::ServerFailure), None)
    }
}

// === impl Zone ===

impl Zone {
    pub(super) fn new(caches: Caches, domain: &str) -> Self {
        Self { caches, domain: domain.trim_matches('.').to_ascii_lowercase() }
    }

    fn find(&self, name: &str, kind: u16) -> Found {
        if name == self.domain {
            return Found::Records(Vec::new());
        }
        let Some(rest) = name.strip_suffix(&self.domain).and_then(|rest| rest.strip_suffix('.')) else {
            return Found::Elsewhere;
        };
        let labels: Vec<&str> = rest.split('.').collect();
        match labels[..] {
            ["svc" | "pod"] => Found::Records(Vec::new()),
            [namespace, "svc" | "pod"] => {
                if self.caches.namespaces.get("", namespace).is_some() {
                    Found::Records(Vec::new())
                } else {
                    Found::Absent
                }
            }
            [address, _, "pod"] => match address.replace('-', ".").parse::<Ipv4Addr>() {
                Ok(ip) => Found::Records(addresses(name, kind, [IpAddr::V4(ip)])),
                Err(_) => Found::Absent,
            },
            [service, namespace, "svc"] => self.service(name, kind, namespace, service),
            [host, service, namespace, "svc"] => self.host(name, kind, namespace, service, host),
            [port, protocol, service, namespace, "svc"] => self.port(name, kind, namespace, service, port, protocol),
            _ => Found::Absent,
        }
    }

    fn service(&self, name: &str, kind: u16, namespace: &str, service: &str) -> Found {
        let Some(object) = self.caches.services.get(namespace, service) else { return Found::Absent };
        let Some(spec) = object.spec.as_ref() else { return Found::Absent };
        if spec.type_.as_deref() == Some("ExternalName") {
            let target = spec.external_name.as_deref().unwrap_or_default();
            if let Ok(ip) = target.parse::<IpAddr>() {
                return Found::Records(addresses(name, kind, [ip]));
            }
            return Found::Alias(target.trim_end_matches('.').to_ascii_lowercase());
        }
        if kind == SRV {
            let ports = spec.ports.as_deref().unwrap_or_default();
            return Found::Records(ports.iter().filter_map(|port| self.srv(name, namespace, service, port)).collect());
        }
        Found::Records(addresses(name, kind, self.addresses_of(&object, namespace, service)))
    }

    /// The cluster address, or for a headless Service those of the ready endpoints.
    fn addresses_of(&self, object: &Service, namespace: &str, service: &str) -> Vec<IpAddr> {
        let ip = object.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
        if let Ok(ip) = ip.parse() {
            return vec![ip];
        }
        let mut found: Vec<IpAddr> = self
            .slices(namespace, service)
            .iter()
            .flat_map(|slice| &slice.endpoints)
            .filter(|endpoint| endpoint.conditions.as_ref().is_none_or(|c| c.ready != Some(false)))
            .flat_map(|endpoint| &endpoint.addresses)
            .filter_map(|address| address.parse().ok())
            .collect();
        found.sort();
        found.dedup();
        found
    }

    /// A single pod behind a headless Service, by host name or by its address with dashes.
    fn host(&self, name: &str, kind: u16, namespace: &str, service: &str, host: &str) -> Found {
        if self.caches.services.get(namespace, service).is_none() {
            return Found::Absent;
        }
        let mut found: Vec<IpAddr> = Vec::new();
        for slice in self.slices(namespace, service) {
            for endpoint in &slice.endpoints {
                let named = endpoint.hostname.as_deref() == Some(host);
                let addresses = endpoint.addresses.iter();
                let matching = addresses.filter(|address| named || address.replace(['.', ':'], "-") == host);
                found.extend(matching.filter_map(|address| address.parse::<IpAddr>().ok()));
            }
        }
        found.sort();
        found.dedup();
        if found.is_empty() { Found::Absent } else { Found::Records(addresses(name, kind, found)) }
    }

    fn port(&self, name: &str, kind: u16, namespace: &str, service: &str, port: &str, protocol: &str) -> Found {
        let Some(object) = self.caches.services.get(namespace, service) else { return Found::Absent };
        let ports = object.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
        let wanted = ports.iter().find(|candidate| {
            let transport = candidate.protocol.as_deref().unwrap_or("TCP");
            Some(candidate.name.as_deref().unwrap_or_default()) == port.strip_prefix('_')
                && protocol.strip_prefix('_').is_some_and(|protocol| protocol.eq_ignore_ascii_case(transport))
        });
        match wanted {
            None => Found::Absent,
            Some(_) if kind != SRV && kind != ANY => Found::Records(Vec::new()),
            Some(port) => Found::Records(self.srv(name, namespace, service, port).into_iter().collect()),
        }
    }

    fn srv(&self, name: &str, namespace: &str, service: &str, port: &ServicePort) -> Option<Record> {
        let port = u16::try_from(port.port).ok()?;
        let target = format!("{service}.{namespace}.svc.{}", self.domain);
        Some(Record { name: name.to_owned(), ttl: TTL, data: Data::Srv { port, target } })
    }

    /// The addresses of the targets of service records.
    fn glue(&self, records: &[Record]) -> Vec<Record> {
        let mut glue = Vec::new();
        for record in records {
            if let Data::Srv { target, .. } = &record.data
                && !glue.iter().any(|known: &Record| known.name == *target)
                && let Found::Records(records) = self.find(target, A)
            {
                glue.extend(records);
            }
        }
        glue
    }

    fn soa(&self) -> Record {
        Record { name: self.domain.clone(), ttl: TTL, data: Data::Soa { zone: self.domain.clone() } }
    }

    fn slices(&self, namespace: &str, service: &str) -> Vec<std::sync::Arc<EndpointSlice>> {
        self.caches.slices.by_index(SERVICE, &format!("{namespace}/{service}"))
    }
}

fn addresses(name: &str, kind: u16, addresses: impl IntoIterator<Item = IpAddr>) -> Vec<Record> {
    let data = addresses.into_iter().filter_map(|ip| match ip {
        IpAddr::V4(ip) if kind == A || kind == ANY => Some(Data::A(ip)),
        IpAddr::V6(ip) if kind == AAAA || kind == ANY => Some(Data::Aaaa(ip)),
        _ => None,
    });
    data.map(|data| Record { name: name.to_owned(), ttl: TTL, data }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn service(namespace: &str, name: &str, spec: Value) -> Service {
        of(json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec}))
    }

    fn names() -> Names {
        let caches = Caches::detached();
        caches.services.apply(service(
            "default",
            "plain",
            json!({
                "clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}],
            }),
        ));
        caches.services.apply(service("default", "bare", json!({"clusterIP": "None"})));
        caches.services.apply(service(
            "default",
            "hello",
            json!({
                "type": "ExternalName", "externalName": "gateway.kourier-system.svc.cluster.local",
            }),
        ));
        caches.services.apply(service(
            "default",
            "out",
            json!({"type": "ExternalName", "externalName": "example.org"}),
        ));
        caches.services.apply(service(
            "default",
            "loop",
            json!({
                "type": "ExternalName", "externalName": "loop.default.svc.cluster.local",
            }),
        ));
        caches.services.apply(service("kourier-system", "gateway", json!({"clusterIP": "10.96.0.9"})));
        caches.slices.apply(of(json!({
            "metadata": {"namespace": "default", "name": "bare-1", "labels": {"kubernetes.io/service-name": "bare"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.244.0.3"], "conditions": {"ready": true}, "hostname": "db-0"},
                {"addresses": ["10.244.0.4"], "conditions": {"ready": false}},
            ],
        })));
        Names::new(Zone::new(caches, "cluster.local"), Forwarder::new(Vec::new()))
    }

    fn ask(name: &str, kind: u16) -> Option<(Code, Vec<Data>)> {
        let answer = names().local(&Query::new(1, name, kind).unwrap())?;
        Some((answer.code, answer.records.into_iter().map(|record| record.data).collect()))
    }

    fn ip(last: [u8; 4]) -> Data {
        Data::A(last.into())
    }

    #[test]
    fn services_of_each_sort() {
        let cases = [
            ("plain.default.svc.cluster.local", vec![ip([10, 96, 0, 7])]),
            ("PLAIN.default.svc.cluster.local", vec![ip([10, 96, 0, 7])]),
            ("bare.default.svc.cluster.local", vec![ip([10, 244, 0, 3])]),
            ("db-0.bare.default.svc.cluster.local", vec![ip([10, 244, 0, 3])]),
            ("10-244-0-9.default.pod.cluster.local", vec![ip([10, 244, 0, 9])]),
        ];
        for (name, expected) in cases {
            assert_eq!(ask(name, A), Some((Code::NoError, expected)), "{name}");
        }
    }

    #[test]
    fn an_external_name_is_followed_inside_and_left_to_the_forwarder_outside() {
        let alias = Data::Cname("gateway.kourier-system.svc.cluster.local".into());
        let expected = Some((Code::NoError, vec![alias, ip([10, 96, 0, 9])]));
        assert_eq!(ask("hello.default.svc.cluster.local", A), expected);
        assert_eq!(ask("out.default.svc.cluster.local", A), None);
        assert_eq!(ask("loop.default.svc.cluster.local", A), Some((Code::ServerFailure, vec![])));
    }

    #[test]
    fn what_is_not_there_and_what_has_no_such_record() {
        assert_eq!(ask("none.default.svc.cluster.local", A), Some((Code::NameError, vec![])));
        assert_eq!(ask("plain.default.svc.cluster.local", AAAA), Some((Code::NoError, vec![])));
        assert_eq!(ask("example.org", A), None);
        assert_eq!(ask("notcluster.local", A), None);
    }

    #[test]
    fn service_records_name_the_port() {
        let srv = Data::Srv { port: 80, target: "plain.default.svc.cluster.local".into() };
        assert_eq!(ask("_http._tcp.plain.default.svc.cluster.local", SRV), Some((Code::NoError, vec![srv])));
        assert_eq!(ask("_x._tcp.plain.default.svc.cluster.local", SRV), Some((Code::NameError, vec![])));
    }
}
