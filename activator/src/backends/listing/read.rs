//! Reads what the API sends, skipping what is not used without keeping any of its text.

use std::{fmt, net::IpAddr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, SeqAccess, Visitor},
};

use super::{Group, Listed, Said, Slice, Source, Whole};
use crate::throttler::Uid;

/// An address; none if it is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ip(pub(super) Option<IpAddr>);

#[derive(Deserialize)]
struct Endpoints {
    metadata: ObjectMeta,
    subsets: Option<Vec<Subset>>,
    /// Instead of `subsets`; see `abridged`.
    #[serde(rename = "postrider.text")]
    text: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Subset {
    addresses: Option<Vec<Loose>>,
    not_ready_addresses: Option<Vec<Loose>>,
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Loose {
    ip: Ip,
    target_ref: Option<Target>,
}

/// An address that has only fields which are known.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Address {
    ip: Ip,
    #[serde(rename = "hostname")]
    _hostname: Option<Text<()>>,
    #[serde(rename = "nodeName")]
    _node_name: Option<Text<()>>,
    target_ref: Option<Reference>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Reference {
    #[serde(rename = "kind")]
    _kind: Option<Text<()>>,
    #[serde(rename = "namespace")]
    _namespace: Option<Text<()>>,
    #[serde(rename = "name")]
    _name: Option<Text<()>>,
    uid: Option<Text<Uid>>,
    #[serde(rename = "apiVersion")]
    _api_version: Option<Text<()>>,
    #[serde(rename = "resourceVersion")]
    _resource_version: Option<Text<()>>,
    #[serde(rename = "fieldPath")]
    _field_path: Option<Text<()>>,
}

#[derive(Deserialize)]
struct Target {
    uid: Option<Text<Uid>>,
}

#[derive(Deserialize)]
pub(super) struct Port {
    name: Option<Text<Protocol>>,
    port: Option<i32>,
}

#[derive(PartialEq, Eq, Clone, Copy)]
pub(super) enum Protocol {
    Http,
    Http2,
    Other,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointSlice {
    metadata: ObjectMeta,
    address_type: Text<Family>,
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<Port>>,
}

enum Family {
    Ip,
    Other,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    addresses: First,
    conditions: Option<Conditions>,
    target_ref: Option<Target>,
}

/// Of several addresses of one pod.
struct First(Ip);

#[derive(Deserialize, Default)]
struct Conditions {
    ready: Option<bool>,
    terminating: Option<bool>,
}

/// What a text stands for.
struct Text<T>(T);

struct Texts<T>(fn(&str) -> T);

struct Firsts;

/// The port of this name, of those that a group has.
pub(super) fn port(ports: &[Port], protocol: Protocol) -> Option<u16> {
    let named = ports.iter().find(|port| port.name.as_ref().is_some_and(|name| name.0 == protocol))?;
    u16::try_from(named.port?).ok().filter(|port| *port > 0)
}

fn uid(target: Option<Target>) -> Uid {
    target.and_then(|target| target.uid).map(|uid| uid.0).unwrap_or_default()
}

pub(super) fn listed(Address { ip, target_ref, .. }: Address, ready: bool) -> Listed {
    Listed { ip, uid: uid(target_ref.map(|target| Target { uid: target.uid })), ready }
}

// === impl Whole ===

impl Source for Whole {
    const IS_WHOLE: bool = true;
    const GROUP: &str = "";
    const KIND: &str = "Endpoints";
    const PLURAL: &str = "endpoints";

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<(ObjectMeta, Said), D::Error> {
        let Endpoints { metadata, subsets, text } = Endpoints::deserialize(from)?;
        if let Some(number) = text {
            return Ok((metadata, Said::Apart(number)));
        }
        let group = |subset: Subset| {
            let ports = subset.ports.unwrap_or_default();
            let listed = |ready| move |Loose { ip, target_ref }: Loose| Listed { ip, uid: uid(target_ref), ready };
            let ready = subset.addresses.into_iter().flatten().map(listed(true));
            let not_ready = subset.not_ready_addresses.into_iter().flatten().map(listed(false));
            let pods = ready.chain(not_ready).collect();
            Group { http: port(&ports, Protocol::Http), http2: port(&ports, Protocol::Http2), pods }
        };
        Ok((metadata, Said::Groups(subsets.into_iter().flatten().map(group).collect())))
    }
}

// === impl Slice ===

impl Source for Slice {
    const IS_WHOLE: bool = false;
    const GROUP: &str = "discovery.k8s.io";
    const KIND: &str = "EndpointSlice";
    const PLURAL: &str = "endpointslices";

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<(ObjectMeta, Said), D::Error> {
        let EndpointSlice { metadata, address_type, endpoints, ports } = EndpointSlice::deserialize(from)?;
        if matches!(address_type.0, Family::Other) {
            return Ok((metadata, Said::Groups(Vec::new())));
        }
        // A pod that ends gets nothing new, ready or not. What is not said is as good as ready.
        let listed = |endpoint: Endpoint| {
            let Conditions { ready, terminating } = endpoint.conditions.unwrap_or_default();
            let listed =
                Listed { ip: endpoint.addresses.0, uid: uid(endpoint.target_ref), ready: ready.unwrap_or(true) };
            (terminating != Some(true)).then_some(listed)
        };
        let pods = endpoints.into_iter().flatten().filter_map(listed).collect();
        let ports = ports.unwrap_or_default();
        let group = Group { http: port(&ports, Protocol::Http), http2: port(&ports, Protocol::Http2), pods };
        Ok((metadata, Said::Groups(vec![group])))
    }
}

// === impl Ip ===

impl<'de> Deserialize<'de> for Ip {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Texts(|text| Self(text.parse().ok())))
    }
}

// === impl First ===

impl<'de> Deserialize<'de> for First {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(Firsts)
    }
}

impl<'de> Visitor<'de> for Firsts {
    type Value = First;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("addresses")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<First, A::Error> {
        let first = all.next_element::<Ip>()?;
        while all.next_element::<IgnoredAny>()?.is_some() {}
        Ok(First(first.unwrap_or(Ip(None))))
    }
}

// === impl Text ===

impl<'de> Deserialize<'de> for Text<()> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Texts(|_| Self(())))
    }
}

impl<'de> Deserialize<'de> for Text<Uid> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Texts(|text| Self(Uid::from(text))))
    }
}

impl<'de> Deserialize<'de> for Text<Protocol> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Texts(|text| {
            Self(match text {
                "http" => Protocol::Http,
                "http2" => Protocol::Http2,
                _ => Protocol::Other,
            })
        }))
    }
}

impl<'de> Deserialize<'de> for Text<Family> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Texts(|text| {
            Self(if matches!(text, "IPv4" | "IPv6") { Family::Ip } else { Family::Other })
        }))
    }
}

impl<T> Visitor<'_> for Texts<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        Ok((self.0)(text))
    }
}
