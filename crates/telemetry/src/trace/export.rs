//! Spans leave in batches, a while after the first of one, and when the process ends.

use std::{
    io::Write as _,
    sync::Weak,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prost::Message;
use serde_json::{Value, json};

use super::{SERVER, Tracer, WAITING, Way};
use crate::{
    calendar,
    otlp::wire::{ExportTraces, KeyValue, Resource, ResourceSpans, Scope, ScopeSpans, Span},
};

const BATCH: usize = 512;
const DELAY: Duration = Duration::from_millis(500);
/// After a collector could not be reached.
const AGAIN: Duration = Duration::from_secs(5);

/// Sends what is there; sleeps when there is nothing.
pub(super) async fn run(tracer: Weak<Tracer>) {
    let mut delay = DELAY;
    loop {
        let Some(current) = tracer.upgrade() else { return };
        let count = current.waiting.lock().len();
        if count == 0 {
            current.filled.notified().await;
        }
        if count < BATCH || delay > DELAY {
            drop(current);
            tokio::time::sleep(delay).await;
        }
        let Some(current) = tracer.upgrade() else { return };
        delay = if current.export().await { DELAY } else { AGAIN };
    }
}

// === impl Tracer ===

impl Tracer {
    /// Exports what waits; false if it has to wait on.
    pub async fn export(&self) -> bool {
        let spans = std::mem::take(&mut *self.waiting.lock());
        if spans.is_empty() {
            return true;
        }
        let exporter = match &self.way {
            Way::Otlp(exporter) => exporter,
            Way::Stdout => {
                let lines: String = spans.iter().map(|span| format!("{}\n", self.stub(span))).collect();
                let _ = std::io::stdout().lock().write_all(lines.as_bytes());
                return true;
            }
        };
        let count = spans.len();
        let resource = self.resource.iter().map(|(name, value)| KeyValue::text(name, value)).collect();
        let scope = Some(Scope { name: self.scope.to_owned(), version: String::new() });
        let message = ExportTraces {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource { attributes: resource }),
                scope_spans: vec![ScopeSpans { scope, spans }],
            }],
        };
        let Err(error) = exporter.send(message.encode_to_vec()).await else { return true };
        tracing::warn!(%error, count, kept = error.temporary, "spans were not exported");
        if error.temporary {
            let unsent = message.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
            let mut unsent: Vec<_> = unsent.flat_map(|scope| scope.spans).collect();
            let mut waiting = self.waiting.lock();
            unsent.append(&mut waiting);
            unsent.truncate(WAITING);
            *waiting = unsent;
        }
        !error.temporary
    }

    /// A span in the form of OpenTelemetry's exporter to standard output.
    fn stub(&self, span: &Span) -> Value {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let place = |id: String, trace: String, flags: &str, remote: bool| json!({"TraceID": trace, "SpanID": id, "TraceFlags": flags, "TraceState": "", "Remote": remote});
        let parent = if span.parent_span_id.is_empty() {
            place("0".repeat(16), "0".repeat(32), "00", false)
        } else {
            place(hex(&span.parent_span_id), hex(&span.trace_id), "01", span.kind == SERVER)
        };
        let attributes: Vec<_> = span.attributes.iter().map(attribute).collect();
        let resource: Vec<_> =
            self.resource.iter().map(|(name, value)| attribute(&KeyValue::text(name, value))).collect();
        let scope = json!({"Name": self.scope, "Version": "", "SchemaURL": "", "Attributes": null});
        json!({
            "Name": span.name,
            "SpanContext": place(hex(&span.span_id), hex(&span.trace_id), "01", false),
            "Parent": parent,
            "SpanKind": span.kind,
            "StartTime": calendar::rfc3339(at(span.start)),
            "EndTime": calendar::rfc3339(at(span.end)),
            "Attributes": attributes,
            "Events": null,
            "Links": null,
            "Status": {"Code": if span.status.is_some() { "Error" } else { "Unset" }, "Description": ""},
            "DroppedAttributes": 0,
            "DroppedEvents": 0,
            "DroppedLinks": 0,
            "ChildSpanCount": 0,
            "Resource": resource,
            "InstrumentationScope": scope,
            "InstrumentationLibrary": scope,
        })
    }
}

fn at(nanos: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos)
}

fn attribute(pair: &KeyValue) -> Value {
    let value = pair.value.as_ref();
    let value = match value.and_then(|value| value.number) {
        Some(number) => json!({"Type": "INT64", "Value": number}),
        None => json!({"Type": "STRING", "Value": value.and_then(|value| value.text.as_deref()).unwrap_or("")}),
    };
    json!({"Key": pair.key, "Value": value})
}
