//! `config-leader-election`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::data::{Data, SECOND, duration};

#[derive(Clone, Debug, PartialEq)]
pub struct LeaderElection {
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
    pub buckets: u32,
    /// `component.package.reconciler` to the prefix its leases get instead.
    pub lease_name_prefixes: BTreeMap<String, String>,
}

// === impl LeaderElection ===

impl Default for LeaderElection {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(60),
            renew_deadline: Duration::from_secs(40),
            retry_period: Duration::from_secs(10),
            buckets: 1,
            lease_name_prefixes: BTreeMap::new(),
        }
    }
}

impl LeaderElection {
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let reader = Data(data);
        let (mut lease, mut renew, mut retry) = (60 * SECOND, 40 * SECOND, 10 * SECOND);
        let mut config = Self::default();
        reader.nanos(&["leaseDuration", "lease-duration"], &mut lease)?;
        reader.nanos(&["renewDeadline", "renew-deadline"], &mut renew)?;
        reader.nanos(&["retryPeriod", "retry-period"], &mut retry)?;
        reader.u32(&["buckets"], &mut config.buckets)?;
        if !(1..=10).contains(&config.buckets) {
            return Err(format!("buckets: value must be between 1 <= {} <= 10", config.buckets));
        }
        config.lease_duration = duration(lease);
        config.renew_deadline = duration(renew);
        config.retry_period = duration(retry);
        config.lease_name_prefixes = data
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix("map-lease-prefix.")?.to_owned(), value.clone())))
            .collect();
        Ok(config)
    }
}
