//! Who uses which certificate for which server names.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use controller::ObjectKey;
use xds::{Change, Kind, Name, Resource, Version};

use crate::{
    certificate::Pair,
    envoy::{self, Chain},
    translate::ServerNames,
};

#[derive(Debug, Default)]
pub(super) struct Certificates {
    /// By Secret, then by Ingress.
    used: BTreeMap<ObjectKey, BTreeMap<ObjectKey, ServerNames>>,
    /// The Ingresses that name a Secret, whether it can be used or not.
    named: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    published: BTreeMap<Name, Version>,
    /// Published for a whole table.
    whole: BTreeSet<Name>,
    by_name: Option<ByName>,
}

/// Certificates under the names of servers, for listeners that ask for them one by one.
#[derive(Debug, Default)]
struct ByName {
    ingresses: HashMap<ObjectKey, Named>,
    /// How many have names of each kind.
    external: usize,
    local: usize,
}

#[derive(Debug, Default)]
struct Named {
    names: BTreeSet<Name>,
    external: bool,
    local: bool,
    /// Some name is a pattern, under which nobody asks: it needs a chain.
    patterns: bool,
}

// === impl Certificates ===

impl Certificates {
    pub(super) fn new(on_demand: bool) -> Self {
        Certificates { by_name: on_demand.then(ByName::default), ..Certificates::default() }
    }

    pub(super) fn watch(&mut self, ingress: &ObjectKey, old: &BTreeSet<ObjectKey>, new: &BTreeSet<ObjectKey>) {
        for secret in old.difference(new) {
            if let Some(named) = self.named.get_mut(secret) {
                named.remove(ingress);
                if named.is_empty() {
                    self.named.remove(secret);
                }
            }
        }
        for secret in new {
            self.named.entry(secret.clone()).or_default().insert(ingress.clone());
        }
    }

    pub(super) fn named_by(&self, secret: &ObjectKey) -> BTreeSet<ObjectKey> {
        self.named.get(secret).cloned().unwrap_or_default()
    }

    /// Who uses the certificate that gateways know by this name.
    pub(super) fn users_of(&self, name: &str) -> BTreeSet<ObjectKey> {
        let Some((namespace, name)) = name.split_once('/') else { return BTreeSet::new() };
        let used = self.used.get(&ObjectKey::new(namespace, name));
        used.map(|users| users.keys().cloned().collect()).unwrap_or_default()
    }

    /// Replaces what an Ingress uses. True if listeners have other server names now.
    pub(super) fn assign(
        &mut self,
        ingress: &ObjectKey,
        old: &BTreeSet<ObjectKey>,
        new: BTreeMap<ObjectKey, (Pair, ServerNames)>,
        change: &mut Change,
    ) -> bool {
        let by_name = self.assign_names(ingress, &new, change);
        let mut changed = false;
        for secret in old.iter().filter(|secret| !new.contains_key(secret)) {
            let Some(users) = self.used.get_mut(secret) else { continue };
            changed |= users.remove(ingress).is_some();
            if users.is_empty() {
                self.used.remove(secret);
                let name: Name = secret.to_string().into();
                if !self.whole.contains(&name) && self.published.remove(&name).is_some() {
                    change.remove.push((Kind::Secret, name));
                }
            }
        }
        for (secret, (pair, names)) in new {
            self.publish(&secret.to_string(), &pair, false, change);
            let users = self.used.entry(secret).or_default();
            if users.get(ingress) != Some(&names) {
                users.insert(ingress.clone(), names);
                changed = true;
            }
        }
        // Beside a certificate for a whole table there is a chain for each of the others after all.
        by_name.filter(|_| self.whole.is_empty()).unwrap_or(changed)
    }

    /// The same by server name, where that is wanted. True if there are other listeners because of it.
    fn assign_names(
        &mut self,
        ingress: &ObjectKey,
        new: &BTreeMap<ObjectKey, (Pair, ServerNames)>,
        change: &mut Change,
    ) -> Option<bool> {
        let by_name = self.by_name.as_mut()?;
        let before = by_name.kinds();
        let old = by_name.forget(ingress);
        let mut pairs: BTreeMap<&str, &Pair> = BTreeMap::new();
        let mut named = Named::default();
        for (pair, names) in new.values() {
            named.external |= !names.external.is_empty();
            named.local |= !names.local.is_empty();
            for name in names.external.union(&names.local) {
                pairs.entry(name).or_insert(pair);
                named.patterns |= name.contains('*');
            }
        }
        named.names = pairs.keys().map(|name| Name::from(*name)).collect();
        let patterns = old.patterns || named.patterns;
        let gone: Vec<Name> = old.names.difference(&named.names).cloned().collect();
        by_name.keep(ingress, named);
        let changed = patterns || by_name.kinds() != before;
        for name in gone {
            if self.published.remove(&name).is_some() {
                change.remove.push((Kind::Secret, name));
            }
        }
        for (name, pair) in pairs {
            self.publish(name, pair, false, change);
        }
        Some(changed)
    }

    /// The certificates of whole tables: what is published for them, by the Secrets' keys.
    pub(super) fn assign_whole(&mut self, pairs: &BTreeMap<ObjectKey, Pair>, cryptomb: bool, change: &mut Change) {
        let old = std::mem::take(&mut self.whole);
        for (secret, pair) in pairs {
            let name = whole_name(secret, cryptomb);
            self.publish(&name, pair, cryptomb, change);
            self.whole.insert(name.into());
        }
        for name in old.difference(&self.whole) {
            if self.users_of(name).is_empty() && self.published.remove(name).is_some() {
                change.remove.push((Kind::Secret, name.clone()));
            }
        }
    }

    fn publish(&mut self, name: &str, pair: &Pair, cryptomb: bool, change: &mut Change) {
        let version = Version::of(&(pair, cryptomb));
        if self.published.get(name) != Some(&version) {
            let message = envoy::certificate(name, &pair.chain, &pair.key, cryptomb);
            let resource = Resource::new(Kind::Secret, name, version, &message);
            self.published.insert(resource.name.clone(), version);
            change.set.push(resource);
        }
    }

    /// One chain per Secret. A server name that two Secrets claim stays with the first, because Envoy refuses a
    /// listener with both.
    pub(super) fn each(&self, pick: impl Fn(&ServerNames) -> &BTreeSet<String>) -> Vec<Chain> {
        let mut taken = BTreeSet::new();
        let mut chains = Vec::new();
        for (secret, users) in &self.used {
            let names = users.values().flat_map(&pick);
            let server_names: BTreeSet<String> = names.filter(|name| taken.insert((*name).clone())).cloned().collect();
            if !server_names.is_empty() {
                chains.push(Chain { secret: Some(secret.to_string()), server_names });
            }
        }
        chains
    }

    /// What there is for a kind of names: a chain per Secret, or one for all that asks by server name.
    pub(super) fn chains(&self, pick: fn(&ServerNames) -> &BTreeSet<String>) -> Vec<Chain> {
        let mut chains = self.each(pick);
        if self.by_name.is_some() && !chains.is_empty() {
            for chain in &mut chains {
                chain.server_names.retain(|name| name.contains('*'));
            }
            chains.retain(|chain| !chain.server_names.is_empty());
            chains.push(Chain { secret: None, server_names: BTreeSet::new() });
        }
        chains
    }
}

// === impl ByName ===

impl ByName {
    /// Which kinds of names there are.
    fn kinds(&self) -> (bool, bool) {
        (self.external > 0, self.local > 0)
    }

    fn keep(&mut self, ingress: &ObjectKey, named: Named) {
        if !named.names.is_empty() {
            self.external += usize::from(named.external);
            self.local += usize::from(named.local);
            self.ingresses.insert(ingress.clone(), named);
        }
    }

    fn forget(&mut self, ingress: &ObjectKey) -> Named {
        let named = self.ingresses.remove(ingress).unwrap_or_default();
        self.external -= usize::from(named.external);
        self.local -= usize::from(named.local);
        named
    }
}

/// The name of a certificate for a whole table; with CryptoMB it is another secret than without.
pub(super) fn whole_name(secret: &ObjectKey, cryptomb: bool) -> String {
    format!("{secret}{}", if cryptomb { ";cryptomb" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(external: &[&str]) -> ServerNames {
        ServerNames { external: external.iter().map(|name| (*name).to_owned()).collect(), ..Default::default() }
    }

    fn pair(text: &str) -> Pair {
        Pair { chain: text.as_bytes().to_vec(), key: Vec::new() }
    }

    #[test]
    fn a_name_belongs_to_one_chain_and_the_last_user_takes_the_secret_away() {
        let mut certificates = Certificates::default();
        let mut change = Change::default();
        let (one, two) = (ObjectKey::new("a", "one"), ObjectKey::new("a", "two"));
        let (x, y) = (ObjectKey::new("s", "x"), ObjectKey::new("s", "y"));
        let mut assign = |ingress: &ObjectKey, old: &[&ObjectKey], new: Vec<(&ObjectKey, &str, ServerNames)>| {
            let new = new.into_iter().map(|(key, text, names)| (key.clone(), (pair(text), names))).collect();
            let old = old.iter().map(|key| (*key).clone()).collect();
            let changed = certificates.assign(ingress, &old, new, &mut change);
            let chains: Vec<(String, usize)> = certificates
                .chains(|names| &names.external)
                .into_iter()
                .map(|chain| (chain.secret.unwrap(), chain.server_names.len()))
                .collect();
            (changed, chains, std::mem::take(&mut change))
        };
        let (changed, chains, published) = assign(&one, &[], vec![(&x, "1", names(&["a", "b"]))]);
        assert!(changed && published.set.len() == 1);
        assert_eq!(chains, [("s/x".to_owned(), 2)]);
        let (_, chains, _) = assign(&two, &[], vec![(&y, "1", names(&["b", "c"]))]);
        assert_eq!(chains, [("s/x".to_owned(), 2), ("s/y".to_owned(), 1)]);
        let (changed, _, published) = assign(&one, &[&x], vec![(&x, "2", names(&["a", "b"]))]);
        assert!(!changed && published.set.len() == 1, "a renewed certificate is a secret only");
        let (changed, chains, published) = assign(&one, &[&x], vec![]);
        assert!(changed && published.remove.len() == 1);
        assert_eq!(chains, [("s/y".to_owned(), 2)]);
    }
    #[test]
    fn by_server_name_listeners_change_with_the_first_and_the_last() {
        let mut certificates = Certificates::new(true);
        let mut change = Change::default();
        let (one, two, x) = (ObjectKey::new("a", "one"), ObjectKey::new("a", "two"), ObjectKey::new("s", "x"));
        let mut assign = |ingress: &ObjectKey, used: &[&str]| {
            let new = (!used.is_empty()).then(|| (x.clone(), (pair("1"), names(used)))).into_iter().collect();
            let changed = certificates.assign(ingress, &[x.clone()].into(), new, &mut change);
            let chains = certificates.chains(|names| &names.external);
            let asked = chains.iter().filter(|chain| chain.secret.is_none()).count();
            let gone = change.remove.drain(..).map(|(_, name)| name.to_string()).collect::<Vec<_>>();
            change.set.clear();
            (changed, chains.len(), asked, gone)
        };
        assert_eq!(assign(&one, &["a", "b"]), (true, 1, 1, Vec::new()));
        assert_eq!(assign(&two, &["c"]), (false, 1, 1, Vec::new()));
        assert_eq!(assign(&two, &["c", "*.d"]), (true, 2, 1, Vec::new()), "a pattern needs a chain");
        assert_eq!(assign(&two, &["c"]), (true, 1, 1, vec!["*.d".to_owned()]));
        assert_eq!(assign(&one, &["b"]), (false, 1, 1, vec!["a".to_owned()]));
        assert_eq!(assign(&one, &[]), (false, 1, 1, vec!["b".to_owned()]));
        assert_eq!(assign(&two, &[]), (true, 0, 0, vec!["c".to_owned(), "s/x".to_owned()]));
    }
}
