//! What the API lists of a revision's pods, and as little of it as is used.
//!
//! Either its whole Endpoints come with every change, or its EndpointSlices, of which one changes at a time and has a
//! hundred pods at most. Objects are read into addresses and nothing else: names, nodes and zones of pods are skipped as
//! they are read. Of Endpoints with many pods only what is different from those before is read (see `text`), before they
//! come to where objects are read (see `abridged`).

mod abridged;
mod read;
mod text;

use std::{
    borrow::Cow,
    fmt::Debug,
    marker::PhantomData,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use serde::{Deserialize, Deserializer};

pub(crate) use self::abridged::Texts;
use self::{read::Ip, text::Text};
use crate::throttler::{Endpoint, Uid};

/// What one object lists.
#[derive(Debug, Clone)]
pub(crate) enum Groups {
    Read(Arc<[Group]>),
    Text(Arc<Text>),
}

/// What an object says that it lists, or under which number that was put aside; see [`Texts`].
pub(crate) enum Said {
    Groups(Vec<Group>),
    Apart(u64),
}

/// An object that lists pods; of its metadata only what is used.
#[derive(Debug, Clone)]
pub(crate) struct Listing<S> {
    pub(crate) metadata: ObjectMeta,
    pub(crate) groups: Groups,
    apart: Option<u64>,
    kind: PhantomData<S>,
}

/// Which kind of object it is.
pub(crate) trait Source: Debug + Clone + Send + Sync + 'static {
    const GROUP: &str;
    const KIND: &str;
    const PLURAL: &str;
    /// Whether one object lists all pods, however many there are.
    const IS_WHOLE: bool;
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<(ObjectMeta, Said), D::Error>;
}

/// Endpoints: all pods of a Service.
#[derive(Debug, Clone)]
pub(crate) enum Whole {}

/// An EndpointSlice: some of them.
#[derive(Debug, Clone)]
pub(crate) enum Slice {}

/// Pods with the same ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    http: Option<u16>,
    http2: Option<u16>,
    pods: Vec<Listed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listed {
    ip: Ip,
    uid: Uid,
    ready: bool,
}

/// One more or one less: a pod, listed as ready or not, and whether it was not listed so before.
pub(super) type Change = (Endpoint, bool, bool);

/// The port of a revision's Services that leads to its pods.
pub(crate) fn port_name(protocol: &str) -> &'static str {
    if protocol == api::keys::PROTOCOL_H2C { "http2" } else { "http" }
}

/// What the port of this name leads to now and did not before, and the reverse, in the order of the pods.
pub(super) fn changes(before: &Groups, now: &Groups, port: &str) -> Vec<Change> {
    if let (Groups::Text(before), Groups::Text(now)) = (before, now)
        && let Some(changes) = now.changes(before, port)
    {
        return changes;
    }
    let listed = |groups: &[Group]| -> Vec<_> { groups.iter().flat_map(|group| group.endpoints(port)).collect() };
    let (before, now) = (listed(&before.read()), listed(&now.read()));
    // Most of it is the same, in the same order.
    let same = before.iter().zip(&now).take_while(|(one, other)| one == other).count();
    let (before, now) = (&before[same..], &now[same..]);
    let same = before.iter().rev().zip(now.iter().rev()).take_while(|(one, other)| one == other).count();
    added_and_removed(before[..before.len() - same].to_vec(), now[..now.len() - same].to_vec())
}

/// What is in `now` more often than in `before`, and the reverse.
fn added_and_removed(mut before: Vec<(Endpoint, bool)>, mut now: Vec<(Endpoint, bool)>) -> Vec<Change> {
    before.sort_unstable();
    now.sort_unstable();
    let (mut before, mut now) = (before.into_iter().peekable(), now.into_iter().peekable());
    let mut changes = Vec::new();
    loop {
        let next = match (before.peek(), now.peek()) {
            (None, None) => return changes,
            (Some(old), Some(new)) if old == new => {
                before.next();
                now.next();
                continue;
            }
            (Some(old), new) if new.is_none_or(|new| old < new) => before.next().map(|old| (old, false)),
            _ => now.next().map(|new| (new, true)),
        };
        changes.extend(next.map(|((endpoint, ready), is_new)| (endpoint, ready, is_new)));
    }
}

// === impl Groups ===

impl Groups {
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Read(groups) if groups.is_empty())
    }

    pub(super) fn read(&self) -> Cow<'_, [Group]> {
        match self {
            Self::Read(groups) => Cow::Borrowed(groups),
            Self::Text(text) => Cow::Owned(text.groups()),
        }
    }

    /// Whether an address may be listed, which costs less than to look.
    pub(super) fn may_list(&self, ip: IpAddr) -> bool {
        match self {
            // There are several ways to write others.
            Self::Text(text) if ip.is_ipv4() => text.has(&format!("\"{ip}\"")),
            _ => true,
        }
    }
}

impl Default for Groups {
    fn default() -> Self {
        Self::Read(Arc::default())
    }
}

impl FromIterator<Group> for Groups {
    fn from_iter<T: IntoIterator<Item = Group>>(groups: T) -> Self {
        Self::Read(groups.into_iter().collect())
    }
}

// === impl Group ===

impl Group {
    pub(super) fn has(&self, port: &str) -> bool {
        self.port(port).is_some()
    }

    /// The addresses of ready pods.
    pub(super) fn ready(&self) -> impl Iterator<Item = IpAddr> {
        self.pods.iter().filter(|pod| pod.ready).filter_map(|pod| pod.ip.0)
    }

    fn endpoints(&self, port: &str) -> impl Iterator<Item = (Endpoint, bool)> {
        let port = self.port(port);
        self.pods.iter().filter_map(move |pod| pod.endpoint(port))
    }

    fn port(&self, name: &str) -> Option<u16> {
        if name == "http2" { self.http2 } else { self.http }
    }
}

// === impl Listed ===

impl Listed {
    fn endpoint(&self, port: Option<u16>) -> Option<(Endpoint, bool)> {
        let address = SocketAddr::new(self.ip.0?, port?);
        Some((Endpoint { address, uid: self.uid }, self.ready))
    }
}

// === impl Listing ===

impl<S> Listing<S> {
    /// Puts in place what came apart from the object.
    pub(crate) fn complete(&mut self, texts: &Texts) {
        if let Some(number) = self.apart.take() {
            self.groups = texts.take(number);
        }
    }
}

impl<'de, S: Source> Deserialize<'de> for Listing<S> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let (metadata, said) = S::read(from)?;
        let (groups, apart) = match said {
            Said::Groups(groups) => (groups.into_iter().collect(), None),
            Said::Apart(number) => (Groups::default(), Some(number)),
        };
        Ok(Self { metadata, groups, apart, kind: PhantomData })
    }
}

impl<S: Source> Resource for Listing<S> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        S::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        S::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        S::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Pods as a test lists them.
#[cfg(test)]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) ready: std::collections::BTreeSet<Endpoint>,
    pub(crate) not_ready: std::collections::BTreeSet<Endpoint>,
}

#[cfg(test)]
impl Addresses {
    pub(crate) fn groups(&self) -> Groups {
        let listed = |ready| {
            move |endpoint: &Endpoint| Group {
                http: Some(endpoint.address.port()),
                http2: None,
                pods: vec![Listed { ip: Ip(Some(endpoint.address.ip())), uid: endpoint.uid, ready }],
            }
        };
        self.ready.iter().map(listed(true)).chain(self.not_ready.iter().map(listed(false))).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn endpoint(address: &str, uid: &str) -> Endpoint {
        Endpoint { address: address.parse().expect("an address"), uid: uid.into() }
    }

    /// Everything that `port` leads to, sorted.
    fn of<S: Source>(json: &Value, port: &str) -> Vec<(Endpoint, bool)> {
        let listing: Listing<S> = serde_json::from_str(&json.to_string()).expect("valid");
        assert_eq!(listing.metadata.name.as_deref(), Some("rev-private"));
        changes(&Groups::default(), &listing.groups, port)
            .into_iter()
            .map(|(endpoint, ready, _)| (endpoint, ready))
            .collect()
    }

    #[test]
    fn endpoints_list_the_port_of_the_protocol() {
        let json = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "rev-private"}, "subsets": [
            {"addresses": [{"ip": "10.0.0.1", "nodeName": "n", "targetRef": {"kind": "Pod", "uid": "one"}}],
             "notReadyAddresses": [{"ip": "10.0.0.2"}, {"ip": "nonsense"}],
             "ports": [{"name": "http-autometric", "port": 9090}, {"name": "http", "port": 8012, "protocol": "TCP"}]},
            {"addresses": [{"ip": "10.0.0.3"}], "ports": [{"port": 80}, {"name": "http2", "port": 8013}]},
            {"addresses": null, "ports": null},
        ]});
        let (one, two) = (endpoint("10.0.0.1:8012", "one"), endpoint("10.0.0.2:8012", ""));
        assert_eq!(of::<Whole>(&json, "http"), [(one, true), (two, false)]);
        assert_eq!(of::<Whole>(&json, "http2"), [(endpoint("10.0.0.3:8013", ""), true)]);
        assert!(of::<Whole>(&json!({"metadata": {"name": "rev-private"}}), "http").is_empty());
    }

    #[test]
    fn a_slice_lists_pods_that_do_not_end() {
        let slice = |family: &str| {
            json!({"metadata": {"name": "rev-private"}, "addressType": family,
            "ports": [{"name": "http-usermetric", "port": 9091}, {"name": "http", "port": 8012}],
            "endpoints": [
                {"addresses": ["10.0.0.1", "10.0.0.9"], "conditions": {"ready": true, "serving": true,
                 "terminating": false}, "targetRef": {"uid": "one"}, "zone": "a"},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": false}},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.0.0.4"], "conditions": {}},
                {"addresses": ["10.0.0.5"]},
                {"addresses": []},
            ]})
        };
        let expected = [
            (endpoint("10.0.0.1:8012", "one"), true),
            (endpoint("10.0.0.2:8012", ""), false),
            (endpoint("10.0.0.4:8012", ""), true),
            (endpoint("10.0.0.5:8012", ""), true),
        ];
        assert_eq!(of::<Slice>(&slice("IPv4"), "http"), expected);
        assert!(of::<Slice>(&slice("IPv4"), "http2").is_empty());
        assert!(of::<Slice>(&slice("FQDN"), "http").is_empty());
    }

    #[test]
    fn changes_are_what_differs_however_it_is_listed() {
        let group = |pods: &[(u8, bool)]| {
            let listed = |(number, ready): &(u8, bool)| Listed {
                ip: Ip(Some([10, 0, 0, *number].into())),
                uid: Uid::default(),
                ready: *ready,
            };
            Group { http: Some(80), http2: None, pods: pods.iter().map(listed).collect() }
        };
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..2000 {
            let mut list =
                || -> Vec<(u8, bool)> { (0..random.usize(..6)).map(|_| (random.u8(..6), random.bool())).collect() };
            let (before, now) = (list(), list());
            let halves = [group(&now[..now.len() / 2]), group(&now[now.len() / 2..])];
            let changes = changes(&[group(&before)].into_iter().collect(), &halves.into_iter().collect(), "http");
            assert!(changes.is_sorted());
            // Applied to what was there they give what is there.
            let mut counted = std::collections::BTreeMap::<_, i32>::new();
            before.iter().for_each(|entry| *counted.entry(*entry).or_default() += 1);
            for (endpoint, ready, is_new) in &changes {
                let std::net::IpAddr::V4(ip) = endpoint.address.ip() else { unreachable!() };
                *counted.entry((ip.octets()[3], *ready)).or_default() += if *is_new { 1 } else { -1 };
            }
            now.iter().for_each(|entry| *counted.entry(*entry).or_default() -= 1);
            assert!(counted.values().all(|count| *count == 0), "{before:?} {now:?} {changes:?}");
            let most = before.len() + now.len();
            assert!(changes.len() <= most && (before != now || changes.is_empty()));
        }
    }
}
