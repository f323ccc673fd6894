//! Bodies and media types: what comes in becomes JSON, what goes out is JSON or a stream.

use std::convert::Infallible;
use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::errors::Status;
use crate::protobuf;

/// What a response carries.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

pub(crate) const LIMIT: usize = 3 << 20;
const ACCEPTED: [&str; 3] = ["application/json", "application/yaml", protobuf::MEDIA_TYPE];

/// A decoded request body.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) value: Value,
    /// Fields that were given twice, as `spec.a`.
    pub(crate) duplicates: Vec<String>,
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub(crate) fn json(code: StatusCode, value: &Value) -> Response<Body> {
    json_bytes(code, Bytes::from(value.to_string()))
}

pub(crate) fn json_bytes(code: StatusCode, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

pub(crate) fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(text));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

pub(crate) fn failure(status: &Status) -> Response<Body> {
    if status.plain {
        return text(status.code, status.message.clone());
    }
    let mut response = json(status.code, &status.to_value());
    let retry = status.details.as_ref().and_then(|details| details["retryAfterSeconds"].as_u64());
    if let Some(seconds) = retry {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds `Warning: 299 - "..."` headers, which kubectl prints.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let quoted: String = warning.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// The media type without parameters, "" when there is none.
pub(crate) fn media_type(headers: &HeaderMap) -> &str {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    given.split(';').next().unwrap_or_default().trim()
}

/// Reads the whole body, at most [`LIMIT`] bytes.
pub(crate) async fn read<B>(body: B) -> Result<Bytes, Status>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: fmt::Display,
{
    let mut body = std::pin::pin!(body);
    let mut first: Option<Bytes> = None;
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::bad_request(format!("the request body ended early: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.as_ref().map_or(0, Bytes::len) + rest.len() + data.len() > LIMIT {
            return Err(Status::too_large());
        }
        match (&first, rest.is_empty()) {
            (None, _) => first = Some(data),
            (Some(start), true) => {
                rest.extend_from_slice(start);
                rest.extend_from_slice(&data);
                first = Some(Bytes::new());
            }
            (Some(_), false) => rest.extend_from_slice(&data),
        }
    }
    Ok(if rest.is_empty() { first.unwrap_or_default() } else { rest.into() })
}

/// Decodes JSON, YAML or protobuf; an empty body is an empty object.
pub(crate) fn decode(media_type: &str, bytes: &[u8]) -> Result<Decoded, Status> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Decoded { value: Value::Object(Map::new()), duplicates: Vec::new() });
    }
    match media_type {
        "" | "application/json" | "*/*" => decode_json(bytes),
        "application/yaml" | "text/yaml" => {
            let text = std::str::from_utf8(bytes).map_err(|_| Status::bad_request("the body is not UTF-8"))?;
            let value =
                yaml(text).map_err(|error| Status::bad_request(format!("error converting YAML to JSON: {error}")))?;
            Ok(Decoded { value, duplicates: Vec::new() })
        }
        protobuf::MEDIA_TYPE => Ok(Decoded { value: protobuf::decode(bytes)?, duplicates: Vec::new() }),
        _ => Err(Status::unsupported_media_type(&ACCEPTED)),
    }
}

/// One YAML document.
pub(crate) fn yaml(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}

pub(crate) fn decode_json(bytes: &[u8]) -> Result<Decoded, Status> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Node { path: String::new(), duplicates: &mut duplicates }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| Status::bad_request(format!("couldn't parse the body as JSON: {error}")))?;
    Ok(Decoded { value, duplicates })
}

/// Reads a JSON value and notes fields that come twice (the last wins), which serde_json alone hides.
struct Node<'a> {
    path: String,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        // 1.0 and 1e3 are the integers they stand for, as Go's decoder has it.
        #[allow(clippy::cast_possible_truncation)]
        let whole = value as i64;
        #[allow(clippy::cast_precision_loss, clippy::float_cmp)]
        let exact = whole as f64 == value && whole.unsigned_abs() < (1 << 53);
        Ok(if exact { whole.into() } else { value.into() })
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Node {
            path: format!("{}[{}]", self.path, list.len()),
            duplicates: &mut *self.duplicates,
        })? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            let path = if self.path.is_empty() { name.clone() } else { format!("{}.{name}", self.path) };
            let value = fields.next_value_seed(Node { path: path.clone(), duplicates: &mut *self.duplicates })?;
            if object.insert(name, value).is_some() {
                self.duplicates.push(path);
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_noted_and_the_last_wins() {
        let decoded = decode_json(br#"{"spec":{"a":1,"b":[{"c":1,"c":2}],"a":3.0}}"#).expect("parses");
        assert_eq!(decoded.value, serde_json::json!({"spec":{"a":3,"b":[{"c":2}]}}));
        assert_eq!(decoded.duplicates, ["spec.b[0].c", "spec.a"]);
    }

    #[test]
    fn yaml_becomes_json() {
        let decoded = decode("application/yaml", b"a: 1\nb: 'x'\nc: [true, null]\n").expect("parses");
        assert_eq!(decoded.value, serde_json::json!({"a":1,"b":"x","c":[true,null]}));
        assert!(decode("application/vnd.kubernetes.protobuf", b"k8s\0").is_err());
    }
}
