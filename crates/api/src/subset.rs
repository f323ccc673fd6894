//! Consistent choice of a subset: which activators serve a revision, which replica owns a key.
//!
//! Every process must choose the same members, so the hash and the walk are upstream's, bit for bit.

use std::collections::{BTreeMap, BTreeSet};

const UNIVERSE: u64 = 2048;

/// `n` of `names` for `target`, sorted. All of them when there are no more than `n`.
pub fn choose(names: &BTreeSet<String>, target: &str, n: usize) -> BTreeSet<String> {
    if n >= names.len() {
        return names.clone();
    }
    let mut ring = BTreeMap::new();
    for name in names {
        let mut buffer = format!("{name}{target}");
        let mut hash = fnv1a(buffer.as_bytes());
        while ring.contains_key(&(hash % UNIVERSE)) {
            buffer.push_str(&format!("{hash:x}"));
            hash = fnv1a(buffer.as_bytes());
        }
        ring.insert(hash % UNIVERSE, name);
    }
    let ring: Vec<(u64, &String)> = ring.into_iter().collect();
    let mut angle = fnv1a(format!("{target}start-angle-salt").as_bytes()) % UNIVERSE;
    let step = fnv1a(format!("{target}step-angle-salt").as_bytes()) % UNIVERSE;

    let mut chosen = BTreeSet::new();
    while chosen.len() < n {
        let mut index = ring.partition_point(|(hash, _)| *hash < angle) % ring.len();
        while chosen.contains(ring[index].1) {
            index = (index + 1) % ring.len();
        }
        chosen.insert(ring[index].1.clone());
        angle = (angle + step) % UNIVERSE;
    }
    chosen
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(names: &[&str], target: &str, n: usize) -> Vec<String> {
        choose(&names.iter().map(|n| (*n).to_owned()).collect(), target, n).into_iter().collect()
    }

    #[test]
    fn buckets_match_the_known_owners() {
        let bucket = |i| format!("controller.knative.dev.serving.pkg.reconciler.route.reconciler.{i}-of-03");
        let names = [bucket("00"), bucket("01"), bucket("02")];
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        for (key, owner) in [("default/hello", 1), ("default/world", 1), ("/default", 0), ("prod/api-00001", 0)] {
            assert_eq!(pick(&names, key, 1), [names[owner]], "{key}");
        }
    }

    #[test]
    fn activators_match_the_known_subsets() {
        let ips: Vec<String> = (1..=8).map(|i| format!("10.0.0.{i}")).collect();
        let ips: Vec<_> = ips.iter().map(String::as_str).collect();
        assert_eq!(pick(&ips, "hello-00001", 2), ["10.0.0.4", "10.0.0.8"]);
        assert_eq!(pick(&ips, "hello-00001", 3), ["10.0.0.4", "10.0.0.6", "10.0.0.8"]);
        assert_eq!(pick(&ips, "world-00002", 2), ["10.0.0.2", "10.0.0.8"]);
        assert_eq!(pick(&ips, "x", 9).len(), 8);
    }
}
