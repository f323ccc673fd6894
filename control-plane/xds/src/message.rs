//! Protobuf messages written field by field. What a change sends again and again is written like this: the generated types
//! would be built only to be read once, by code that is cold on a machine that does little else.

use prost::encoding::{WireType, encode_key, encode_varint};

/// A message under construction. Fields that have their default are left out, as always in proto3.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message(Vec<u8>);

// === impl Message ===

impl Message {
    pub fn number(&mut self, field: u32, value: u64) {
        if value == 0 {
            return;
        }
        encode_key(field, WireType::Varint, &mut self.0);
        encode_varint(value, &mut self.0);
    }

    pub fn text(&mut self, field: u32, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    pub fn bytes(&mut self, field: u32, value: &[u8]) {
        if value.is_empty() {
            return;
        }
        encode_key(field, WireType::LengthDelimited, &mut self.0);
        encode_varint(value.len() as u64, &mut self.0);
        self.0.extend_from_slice(value);
    }

    /// `fill` writes the fields of the inner message.
    pub fn message(&mut self, field: u32, fill: impl FnOnce(&mut Message)) {
        encode_key(field, WireType::LengthDelimited, &mut self.0);
        // Most are short: their length has one byte.
        let at = self.0.len();
        self.0.push(0);
        fill(self);
        let len = self.0.len() - at - 1;
        match u8::try_from(len) {
            Ok(short) if short < 0x80 => self.0[at] = short,
            _ => {
                let mut prefix = Vec::with_capacity(10);
                encode_varint(len as u64, &mut prefix);
                self.0.splice(at..=at, prefix);
            }
        }
    }

    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
    use prost::Message as _;

    use super::*;

    #[test]
    fn messages_of_any_length_are_as_the_generated_ones_write_them() {
        for length in [1, 50, 100, 110, 127, 128, 200, 16_370, 16_384, 40_000] {
            let domain = "d".repeat(length);
            let mut written = Message::default();
            written.text(1, "table");
            for name in ["one", "two"] {
                written.message(2, |host| {
                    host.text(1, name);
                    host.text(2, &domain);
                    host.number(14, 300);
                });
            }
            let host = |name: &str| VirtualHost {
                name: name.to_owned(),
                domains: vec![domain.clone()],
                include_request_attempt_count: true,
                ..VirtualHost::default()
            };
            let expected = RouteConfiguration {
                name: "table".to_owned(),
                virtual_hosts: vec![host("one"), host("two")],
                ..RouteConfiguration::default()
            };
            assert_eq!(RouteConfiguration::decode(&*written.finish()).expect("a message"), expected, "{length}");
        }
        let mut nothing = Message::default();
        nothing.text(1, "");
        nothing.number(14, 0);
        assert_eq!(nothing.finish(), VirtualHost::default().encode_to_vec());
    }
}
