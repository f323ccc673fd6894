//! Wire messages that our processes exchange with each other and with upstream's.
//!
//! The messages are protobuf (proto3, package `metrics`) and are written by hand as prost derives: there are
//! three of them, they have not changed in years, and this way no build needs `protoc`. Field numbers and types
//! are the contract; zero values are left out and unknown fields skipped, as proto3 asks.
//!
//! * `Stat` alone is the body of queue-proxy's `GET :9090/metrics`.
//! * `WireStatMessages` is one binary WebSocket frame, activator -> autoscaler and autoscaler -> autoscaler.

pub use prost::Message;

/// The content type of a `Stat` body; the scraper compares it for equality.
pub const CONTENT_TYPE: &str = "application/protobuf";

/// What one pod (or one activator, for one revision) saw in a reporting period.
#[derive(Clone, PartialEq, Message)]
pub struct Stat {
    /// The pod that reports: a pod of the revision, or an activator.
    #[prost(string, tag = "1")]
    pub pod_name: String,
    /// Average number of requests in flight, including those that came through an activator.
    #[prost(double, tag = "2")]
    pub average_concurrent_requests: f64,
    /// The part of the average that came through an activator, which has reported it already.
    #[prost(double, tag = "3")]
    pub average_proxied_concurrent_requests: f64,
    /// Requests that started in the period (per second where the period is not one second).
    #[prost(double, tag = "4")]
    pub request_count: f64,
    /// The part of the count that came through an activator.
    #[prost(double, tag = "5")]
    pub proxied_request_count: f64,
    /// Seconds since the reporting process started.
    #[prost(double, tag = "6")]
    pub process_uptime: f64,
    /// Unix seconds; 0 when the receiver is to set it.
    #[prost(int64, tag = "7")]
    pub timestamp: i64,
}

/// A `Stat` with the revision it belongs to.
#[derive(Clone, PartialEq, Message)]
pub struct WireStatMessage {
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// The name of the revision, which is also the name of its PodAutoscaler.
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, optional, tag = "3")]
    pub stat: Option<Stat>,
}

/// A batch: the payload of one WebSocket frame.
#[derive(Clone, PartialEq, Message)]
pub struct WireStatMessages {
    #[prost(message, repeated, tag = "1")]
    pub messages: Vec<WireStatMessage>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_before_the_first_period_is_what_upstream_sends() {
        // Captured from upstream's queue-proxy: only the pod name is set.
        let stat = Stat { pod_name: "echo-00001-deployment-75d66bffd7-7t7zj".into(), ..Stat::default() };
        let mut want = vec![0x0a, 0x26];
        want.extend_from_slice(stat.pod_name.as_bytes());
        assert_eq!(stat.encode_to_vec(), want);
    }

    #[test]
    fn fields_have_the_tags_of_the_contract_in_ascending_order() {
        let stat = Stat {
            pod_name: "p".into(),
            average_concurrent_requests: 1.0,
            average_proxied_concurrent_requests: 1.0,
            request_count: 1.0,
            proxied_request_count: 1.0,
            process_uptime: 1.0,
            timestamp: 1,
        };
        let one = 1f64.to_le_bytes();
        let mut want = vec![0x0a, 1, b'p'];
        for tag in [0x11, 0x19, 0x21, 0x29, 0x31] {
            want.push(tag);
            want.extend_from_slice(&one);
        }
        want.extend_from_slice(&[0x38, 1]);
        assert_eq!(stat.encode_to_vec(), want);

        let batch = WireStatMessages {
            messages: vec![WireStatMessage { namespace: "n".into(), name: "r".into(), stat: Some(Stat::default()) }],
        };
        assert_eq!(batch.encode_to_vec(), [0x0a, 8, 0x0a, 1, b'n', 0x12, 1, b'r', 0x1a, 0]);
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let bytes = [0x0a, 1, b'p', 0x7a, 2, 9, 9, 0x38, 5];
        let stat = Stat::decode(&bytes[..]).expect("field 15 is skipped");
        assert_eq!((stat.pod_name.as_str(), stat.timestamp), ("p", 5));
    }
}
