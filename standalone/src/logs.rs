//! Pod logs: from the node agent's files to the API's `/log`.

use std::sync::Arc;

use apiserver::Status;
use apiserver::logs::{LogRequest, LogSource};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use pods::LogOptions;

struct AgentLogs(pods::Handle);

/// The agent's logs as the API server wants them.
pub fn source(pods: &pods::Handle) -> Arc<dyn LogSource> {
    Arc::new(AgentLogs(pods.clone()))
}

impl LogSource for AgentLogs {
    fn open(
        &self,
        request: LogRequest,
    ) -> BoxFuture<'static, Result<BoxStream<'static, std::io::Result<Bytes>>, Status>> {
        let stream = options(&request).and_then(|options| {
            let lines = self.0.logs(&request.namespace, &request.pod, &request.container, options);
            lines.map(StreamExt::boxed).map_err(|error| Status::bad_request(error.to_string()))
        });
        Box::pin(async move { stream })
    }
}

fn options(request: &LogRequest) -> Result<LogOptions, Status> {
    let ago = request.since_seconds.map(|seconds| jiff::Timestamp::now() - jiff::SignedDuration::from_secs(seconds));
    let since = match &request.since_time {
        None => ago,
        Some(text) => {
            Some(text.parse().map_err(|error| Status::bad_request(format!("sinceTime {text:?} is no time: {error}")))?)
        }
    };
    Ok(LogOptions {
        follow: request.follow,
        tail: request.tail_lines.and_then(|lines| usize::try_from(lines).ok()),
        since,
        previous: request.previous,
        timestamps: request.timestamps,
        limit_bytes: request.limit_bytes,
    })
}
