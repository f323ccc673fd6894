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
}

// === impl Certificates ===

impl Certificates {
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
        changed
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
    pub(super) fn chains(&self, pick: impl Fn(&ServerNames) -> &BTreeSet<String>) -> Vec<Chain> {
        let mut taken = BTreeSet::new();
        let mut chains = Vec::new();
        for (secret, users) in &self.used {
            let names = users.values().flat_map(&pick);
            let server_names: BTreeSet<String> = names.filter(|name| taken.insert((*name).clone())).cloned().collect();
            if !server_names.is_empty() {
                chains.push(Chain { secret: secret.to_string(), server_names });
            }
        }
        chains
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
                .map(|chain| (chain.secret, chain.server_names.len()))
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
}
