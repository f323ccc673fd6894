//! The gateway's listeners: which there are follows from the settings and from the certificates in use.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use xds::{Change, Kind, Name, Resource, Version};

use super::certificates::{Certificates, whole_name};
use crate::{
    envoy::{self, Chain, Routes},
    model::Table,
    options::{Options, Settings},
    translate::ServerNames,
};

#[derive(Debug, Default)]
pub(super) struct Listeners {
    published: BTreeMap<Name, Version>,
    /// Clusters that listeners need.
    clusters: BTreeMap<Name, Version>,
    /// The external authorizer's certificate is signed by a trust bundle.
    pub(super) bundled: bool,
}

/// The table that a listener serves.
pub(super) fn table(kind: Kind, name: &str) -> Option<Table> {
    if kind != Kind::Listener {
        return None;
    }
    Some(match name {
        "listener_8080" | "listener_8090" => Table::External,
        "listener_8081" => Table::Internal,
        "listener_8443" | "listener_9443" => Table::ExternalTls,
        "listener_8444" => Table::InternalTls,
        _ => return None,
    })
}

// === impl Listeners ===

impl Listeners {
    pub(super) fn update(
        &mut self,
        options: &Options,
        settings: &Settings,
        certificates: &Certificates,
        scopes: bool,
        change: &mut Change,
    ) {
        self.clusters(settings, change);
        let chains = |names: fn(&ServerNames) -> &BTreeSet<String>, whole: &Option<controller::ObjectKey>| {
            let Some(secret) = whole else { return certificates.chains(names) };
            let mut chains = certificates.each(names);
            let secret = Some(whole_name(secret, settings.cryptomb));
            chains.push(Chain { secret, server_names: BTreeSet::new() });
            chains
        };
        let external = chains(|names| &names.external, &settings.certificate);
        let local = chains(|names| &names.local, &settings.cluster_certificate);
        let probe: &[SocketAddr] = if options.external_tls_listen.is_empty() { &[] } else { &options.probe_tls_listen };
        let plain = || Some(Vec::new());
        let secured = |chains: &Vec<Chain>| (!chains.is_empty()).then(|| chains.clone());
        // In-cluster clients and probes never speak the PROXY protocol.
        let proxied = settings.proxy_protocol;
        let wanted = [
            ("listener_8080", options.external_listen.as_slice(), Table::External, proxied, plain()),
            ("listener_8081", &options.internal_listen, Table::Internal, false, plain()),
            ("listener_8090", &options.probe_listen, Table::External, false, plain()),
            ("listener_8443", &options.external_tls_listen, Table::ExternalTls, proxied, secured(&external)),
            ("listener_8444", &options.internal_tls_listen, Table::InternalTls, false, secured(&local)),
            ("listener_9443", probe, Table::ExternalTls, false, secured(&external)),
        ];
        for (name, addresses, table, proxy_protocol, chains) in wanted {
            let model = chains.map(|chains| envoy::Listener {
                name: name.to_owned(),
                addresses: on(addresses, settings),
                table,
                proxy_protocol,
                chains,
                scopes,
                settings: settings.clone(),
            });
            let model = model.filter(|model| !model.addresses.is_empty());
            let Some(model) = model else {
                if self.published.remove(name).is_some() {
                    change.remove.push((Kind::Listener, name.into()));
                }
                continue;
            };
            let version = Version::of(&model);
            if self.published.get(name) == Some(&version) {
                continue;
            }
            let mut resource = self.resource(&model, Routes::Table, version).requires(Kind::Route, table.name());
            if scopes {
                let form = self.resource(&model, Routes::Scopes, version);
                resource = resource.scoped(form.requires(Kind::Scope, xds::ALL));
            }
            self.published.insert(name.into(), version);
            change.set.push(resource);
        }
    }

    fn resource(&self, model: &envoy::Listener, routes: Routes, version: Version) -> Resource {
        let message = envoy::listener(model, routes).expect("it has an address");
        let mut resource = Resource::new(Kind::Listener, model.name.as_str(), version, &message);
        let secrets = model.chains.iter().filter_map(|chain| chain.secret.as_deref());
        let clusters = self.clusters.keys().map(|cluster| (Kind::Cluster, cluster.clone()));
        resource.requires = secrets.map(|secret| (Kind::Secret, secret.into())).chain(clusters).collect();
        resource
    }

    fn clusters(&mut self, settings: &Settings, change: &mut Change) {
        let authorization = settings.authorization.as_ref();
        let tracing = settings.tracing.as_ref();
        let bundled = self.bundled;
        let asked = |a| (Version::of(&(a, bundled)), envoy::authorization_cluster(a, bundled));
        let wanted = [
            (envoy::AUTHORIZATION_CLUSTER, authorization.map(asked)),
            (envoy::TRACING_CLUSTER, tracing.map(|t| (Version::of(t), envoy::tracing_cluster(t)))),
        ];
        for (name, wanted) in wanted {
            match wanted {
                Some((version, message)) if self.clusters.get(name) != Some(&version) => {
                    let mut resource = Resource::new(Kind::Cluster, name, version, &message);
                    if name == envoy::AUTHORIZATION_CLUSTER && bundled {
                        resource = resource.requires(Kind::Secret, envoy::AUTHORIZER_TRUST);
                    }
                    change.set.push(resource);
                    self.clusters.insert(name.into(), version);
                }
                Some(_) => {}
                None => {
                    if self.clusters.remove(name).is_some() {
                        change.remove.push((Kind::Cluster, name.into()));
                    }
                }
            }
        }
    }
}

/// The addresses of a listener; `listen-ip-addresses` replaces the IPs and keeps the port.
fn on(addresses: &[SocketAddr], settings: &Settings) -> Vec<SocketAddr> {
    match addresses.first() {
        Some(first) if !settings.listen_ips.is_empty() => {
            settings.listen_ips.iter().map(|ip| SocketAddr::new(*ip, first.port())).collect()
        }
        _ => addresses.to_vec(),
    }
}
