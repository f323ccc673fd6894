//! The few protobuf messages that are written by hand, so that encoded resources are copied once, into the stream.

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::{
    core::{Protocol, Response},
    resource::Resource,
};

const ROUTE_VIRTUAL_HOSTS: u32 = 2;

pub(crate) fn append_hosts<'a>(base: &Bytes, hosts: impl Iterator<Item = &'a Bytes> + Clone) -> Bytes {
    let size: usize = hosts.clone().map(|host| field_len(ROUTE_VIRTUAL_HOSTS, host.len())).sum();
    let mut body = BytesMut::with_capacity(base.len() + size);
    body.put_slice(base);
    for host in hosts {
        put_bytes(&mut body, ROUTE_VIRTUAL_HOSTS, host);
    }
    body.freeze()
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
    put_bytes(out, 2, &resource.body);
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
        let host = VirtualHost { name: "h".into(), ..Default::default() };
        let resource = Resource::new(Kind::VirtualHost, "t/h", Version::of(&1), &host);
        Response {
            kind: Kind::VirtualHost,
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
        assert_eq!(delta.type_url, Kind::VirtualHost.type_url());
        assert_eq!((delta.nonce.as_str(), delta.removed_resources.as_slice()), ("7", &["t/gone".to_owned()][..]));
        assert_eq!(delta.resources[0].name, "t/h");
        assert_eq!(delta.resources[0].version, Version::of(&1).to_string());
        let any = delta.resources[0].resource.as_ref().unwrap();
        assert_eq!(any.type_url, Kind::VirtualHost.type_url());
        assert_eq!(VirtualHost::decode(&*any.value).unwrap().name, "h");

        let mut out = Vec::new();
        put_response(&mut out, &response(Protocol::World));
        let world = DiscoveryResponse::decode(&*out).unwrap();
        assert_eq!((world.nonce.as_str(), world.resources.len()), ("7", 1));
        assert_eq!(world.version_info, Version::of(&2).to_string());
    }

    #[test]
    fn a_table_is_its_base_followed_by_its_hosts() {
        let base = RouteConfiguration { name: "t".into(), ..Default::default() }.encode_to_vec().into();
        let host: Bytes = VirtualHost { name: "h".into(), ..Default::default() }.encode_to_vec().into();
        let table = RouteConfiguration::decode(append_hosts(&base, [&host, &host].into_iter())).unwrap();
        assert_eq!((table.name.as_str(), table.virtual_hosts.len()), ("t", 2));
    }
}
