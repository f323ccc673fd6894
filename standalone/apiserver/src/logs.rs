//! Where `/log` of a pod comes from: the node agent, behind a trait.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use http_body_util::{BodyExt, StreamBody};
use serde_json::Value;

use crate::errors::Status;
use crate::request::Query;

/// What part of which log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRequest {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    /// The container asked for, or the only one of the pod.
    pub container: String,
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    pub since_seconds: Option<i64>,
    /// RFC 3339
    pub since_time: Option<String>,
    pub limit_bytes: Option<u64>,
}

pub trait LogSource: Send + Sync {
    /// The lines, as a stream that ends with the log (or, with `follow`, with the container). Dropping the stream ends it.
    fn open(
        &self,
        request: LogRequest,
    ) -> BoxFuture<'static, Result<BoxStream<'static, std::io::Result<Bytes>>, Status>>;
}

/// ArcSwap wants a sized type.
pub(crate) struct LogHolder(pub(crate) Arc<dyn LogSource>);

// === impl LogRequest ===

impl LogRequest {
    /// Picks the container as kubectl's server does.
    pub(crate) fn parse(namespace: &str, pod: &Value, query: &Query) -> Result<Self, Status> {
        let name = crate::metadata::name(pod);
        let names = |list: &str| {
            let containers = pod["spec"][list].as_array().into_iter().flatten();
            containers.filter_map(|container| container["name"].as_str().map(str::to_owned)).collect::<Vec<_>>()
        };
        let (containers, init) = (names("containers"), names("initContainers"));
        let asked = query.get("container");
        let container = match (asked, containers.as_slice()) {
            ("", [only]) => only.clone(),
            ("", _) => {
                return Err(Status::bad_request(format!(
                    "a container name must be specified for pod {name}, choose one of: [{}]",
                    containers.join(" ")
                )));
            }
            (asked, _) if containers.iter().chain(&init).any(|known| known == asked) => asked.to_owned(),
            (asked, _) => return Err(Status::bad_request(format!("container {asked} is not valid for pod {name}"))),
        };
        let unsigned =
            |field: &str| query.number(field).map(|number| number.and_then(|number| u64::try_from(number).ok()));
        Ok(Self {
            namespace: namespace.to_owned(),
            pod: name.to_owned(),
            uid: crate::metadata::uid(pod).to_owned(),
            container,
            follow: query.flag("follow"),
            previous: query.flag("previous"),
            timestamps: query.flag("timestamps"),
            tail_lines: unsigned("tailLines")?,
            since_seconds: query.number("sinceSeconds")?,
            since_time: Some(query.get("sinceTime").to_owned()).filter(|time| !time.is_empty()),
            limit_bytes: unsigned("limitBytes")?,
        })
    }
}

/// The stream as an answer.
pub(crate) fn respond(lines: BoxStream<'static, std::io::Result<Bytes>>) -> http::Response<crate::body::Body> {
    let frames = lines.map(|line| line.map(http_body::Frame::data));
    let mut response = http::Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    response
}
