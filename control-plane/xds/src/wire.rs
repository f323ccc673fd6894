//! The few protobuf messages that are written by hand, so that encoded resources are copied once, into the stream.

use bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::{
    core::{Protocol, Response},
    resource::Resource,
};

const ROUTE_VIRTUAL_HOSTS: u32 = 2;

/// The beginning of a virtual host as a field of its table, up to where `shared` follows. (Fields may come in any order,
/// and a message is the concatenation of its fields.)
pub(crate) fn host(own: &[u8], shared: &[u8]) -> Vec<u8> {
    let len = own.len() + shared.len();
    let mut field = Vec::with_capacity(field_len(ROUTE_VIRTUAL_HOSTS, len) - shared.len());
    put_header(&mut field, ROUTE_VIRTUAL_HOSTS, len);
    field.extend_from_slice(own);
    field
}

/// Writes a `DiscoveryResponse` or a `DeltaDiscoveryResponse`.
pub(crate) fn put_response(out: &mut impl BufMut, response: &Response) {
    put_bytes(out, 1, response.version.to_string().as_bytes());
    let url = response.kind.type_url().as_bytes();
    let nonce = response.nonce.to_string();
    match response.protocol {
        Protocol::Delta => {
            for resource in &response.resources {
                let version = resource.version.to_string();
                let any = any_len(resource, url);
                let len = field_len(3, resource.name.len()) + field_len(1, version.len()) + field_len(2, any);
                put_header(out, 2, len);
                put_bytes(out, 3, resource.name.as_bytes());
                put_bytes(out, 1, version.as_bytes());
                put_header(out, 2, any);
                put_any(out, resource, url);
            }
            put_bytes(out, 4, url);
            put_bytes(out, 5, nonce.as_bytes());
            for name in &response.removed {
                put_bytes(out, 6, name.as_bytes());
            }
        }
        Protocol::World => {
            for resource in &response.resources {
                put_header(out, 2, any_len(resource, url));
                put_any(out, resource, url);
            }
            put_bytes(out, 4, url);
            put_bytes(out, 5, nonce.as_bytes());
        }
    }
}

/// An upper bound that is close, to reserve the buffer once.
pub(crate) fn response_size(response: &Response) -> usize {
    let resources: usize = response.resources.iter().map(|r| r.body.len() + r.name.len() + 128).sum();
    let removed: usize = response.removed.iter().map(|name| name.len() + 6).sum();
    resources + removed + 160
}

fn put_any(out: &mut impl BufMut, resource: &Resource, url: &[u8]) {
    put_bytes(out, 1, url);
    put_header(out, 2, resource.body.len());
    resource.body.parts().iter().for_each(|part| out.put_slice(part));
}

fn any_len(resource: &Resource, url: &[u8]) -> usize {
    field_len(1, url.len()) + field_len(2, resource.body.len())
}

fn put_header(out: &mut impl BufMut, tag: u32, len: usize) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(len as u64, out);
}

fn put_bytes(out: &mut impl BufMut, tag: u32, bytes: &[u8]) {
    put_header(out, tag, bytes.len());
    out.put_slice(bytes);
}

fn field_len(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::{
        config::route::v3::{RouteConfiguration, VirtualHost},
        service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse},
    };
    use prost::Message;

    use super::*;
    use crate::resource::{Kind, Version};

    fn response(protocol: Protocol) -> Response {
        let table = RouteConfiguration { name: "t".into(), ..Default::default() };
        let resource = Resource::new(Kind::Route, "t", Version::of(&1), &table);
        Response {
            kind: Kind::Route,
            protocol,
            nonce: 7,
            version: Version::of(&2),
            resources: vec![resource.into()],
            removed: vec!["t/gone".into()],
        }
    }

    #[test]
    fn hand_written_messages_decode_as_the_generated_ones() {
        let mut out = Vec::new();
        put_response(&mut out, &response(Protocol::Delta));
        assert!(out.len() <= response_size(&response(Protocol::Delta)));
        let delta = DeltaDiscoveryResponse::decode(&*out).unwrap();
        assert_eq!(delta.type_url, Kind::Route.type_url());
        assert_eq!((delta.nonce.as_str(), delta.removed_resources.as_slice()), ("7", &["t/gone".to_owned()][..]));
        assert_eq!(delta.resources[0].name, "t");
        assert_eq!(delta.resources[0].version, Version::of(&1).to_string());
        let any = delta.resources[0].resource.as_ref().unwrap();
        assert_eq!(any.type_url, Kind::Route.type_url());
        assert_eq!(RouteConfiguration::decode(&*any.value).unwrap().name, "t");

        let mut out = Vec::new();
        put_response(&mut out, &response(Protocol::World));
        let world = DiscoveryResponse::decode(&*out).unwrap();
        assert_eq!((world.nonce.as_str(), world.resources.len()), ("7", 1));
        assert_eq!(world.version_info, Version::of(&2).to_string());
    }

    #[test]
    fn a_table_is_its_base_followed_by_its_hosts() {
        let base = RouteConfiguration { name: "t".into(), ..Default::default() };
        let whole = VirtualHost { name: "h".into(), domains: vec!["d".into()], ..Default::default() };
        let whole = Resource::new(Kind::VirtualHost, "t/h", Version::of(&1), &whole).requires(Kind::Cluster, "c");
        let own = VirtualHost { name: "i".into(), ..Default::default() }.encode_to_vec();
        let shared = VirtualHost { domains: vec!["e".into(); 50], ..Default::default() }.encode_to_vec().into();
        let parts = Resource::host("t/i", Version::of(&1), &own, &shared).requires(Kind::Cluster, "c");
        let table = Resource::new(Kind::Route, "t", Version::of(&1), &base).with_hosts([&whole, &parts].into_iter());
        assert_eq!(*table.requires, [(Kind::Cluster, "c".into())]);
        let bytes = table.body.to_vec();
        assert_eq!(bytes.len(), table.body.len());
        let table = RouteConfiguration::decode(&*bytes).unwrap();
        let hosts: Vec<_> = table.virtual_hosts.iter().map(|host| (&*host.name, host.domains.len())).collect();
        assert_eq!((table.name.as_str(), hosts), ("t", vec![("h", 1), ("i", 50)]));
    }
}
