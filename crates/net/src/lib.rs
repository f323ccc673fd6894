//! Shared parts of the proxies: connections, pools, breaker, probes, drain.
