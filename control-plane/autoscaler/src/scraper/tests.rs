use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proto::Stat;

use super::{aggregate, candidates, sample_size};
use crate::pods::ReadyPod;

fn pod(name: &str, started: Timestamp) -> ReadyPod {
    ReadyPod { name: name.to_owned(), address: IpAddr::V4(Ipv4Addr::LOCALHOST), started: Some(started) }
}

#[test]
fn sample_sizes() {
    for (pods, sample) in [(0, 0), (1, 1), (3, 3), (5, 4), (10, 7), (100, 14), (1000, 16)] {
        assert_eq!(sample_size(pods), sample, "{pods} pods");
    }
}

#[test]
fn old_pods_are_asked_first() {
    let now = Timestamp::from_second(1_700_000_000).unwrap();
    let ago = |seconds| now - SignedDuration::from_secs(seconds);
    let pods = vec![pod("young", ago(5)), pod("old", ago(60)), pod("older", ago(600)), pod("new", ago(0))];
    let order = candidates(pods, 3, Duration::from_secs(60), now);
    let names: Vec<_> = order.iter().map(|pod| pod.name.as_str()).collect();
    assert_eq!(names[..2], ["old", "older"]);
}

#[test]
fn a_sample_is_scaled_to_all_pods() {
    let stat = Stat {
        pod_name: "a".into(),
        average_concurrent_requests: 2.0,
        average_proxied_concurrent_requests: 1.0,
        request_count: 10.0,
        proxied_request_count: 5.0,
        process_uptime: 100.0,
        timestamp: 7,
    };
    let sum = aggregate(&[stat.clone(), stat], 5);
    assert_eq!(
        sum,
        Stat {
            pod_name: "service-scraper".into(),
            average_concurrent_requests: 10.0,
            average_proxied_concurrent_requests: 5.0,
            request_count: 50.0,
            proxied_request_count: 25.0,
            ..Stat::default()
        }
    );
}
