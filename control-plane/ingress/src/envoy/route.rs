//! Route tables and their virtual hosts.
//!
//! What a change of a route sends is written by hand: field numbers are those of Envoy's `config.route.v3`, and the tests
//! compare it with the generated types.

#[cfg(test)]
mod tests;

use std::{borrow::Cow, time::Duration};

use envoy_types::pb::envoy::config::{
    core::v3::header_value_option::HeaderAppendAction,
    route::v3::{
        RouteConfiguration, ScopedRouteConfiguration,
        scoped_route_configuration::{
            Key,
            key::{Fragment, fragment},
        },
    },
};
use xds::Message;

use super::{bool_value, filters, scopes::SCOPE_HEADER};
use crate::model::{self, Access, Action, Headers, Table};

/// The static cluster of the bootstrap that leads to the gateway's admin interface.
const ADMIN_CLUSTER: &str = "service_stats";

/// The numbers of fields, by message.
mod of_table {
    pub(super) const NAME: u32 = 1;
    pub(super) const VALIDATE_CLUSTERS: u32 = 7;
    pub(super) const REQUEST_HEADERS_TO_REMOVE: u32 = 8;
}
mod of_host {
    pub(super) const NAME: u32 = 1;
    pub(super) const DOMAINS: u32 = 2;
    pub(super) const ROUTES: u32 = 3;
    pub(super) const TYPED_PER_FILTER_CONFIG: u32 = 15;
}
mod of_route {
    pub(super) const MATCH: u32 = 1;
    pub(super) const ROUTE: u32 = 2;
    pub(super) const REDIRECT: u32 = 3;
    pub(super) const REQUEST_HEADERS_TO_ADD: u32 = 9;
    pub(super) const TYPED_PER_FILTER_CONFIG: u32 = 13;
    pub(super) const NAME: u32 = 14;
}
mod of_match {
    pub(super) const PREFIX: u32 = 1;
    pub(super) const HEADERS: u32 = 6;
}
mod of_matcher {
    pub(super) const NAME: u32 = 1;
    pub(super) const PRESENT_MATCH: u32 = 7;
    pub(super) const STRING_MATCH: u32 = 13;
    /// Of the string matcher.
    pub(super) const EXACT: u32 = 1;
}
mod of_action {
    pub(super) const WEIGHTED_CLUSTERS: u32 = 3;
    pub(super) const HOST_REWRITE_LITERAL: u32 = 6;
    pub(super) const TIMEOUT: u32 = 8;
    pub(super) const UPGRADE_CONFIGS: u32 = 25;
    /// Of an upgrade.
    pub(super) const UPGRADE_TYPE: u32 = 1;
    pub(super) const ENABLED: u32 = 2;
    /// Of a redirection.
    pub(super) const HTTPS_REDIRECT: u32 = 4;
}
mod of_clusters {
    pub(super) const CLUSTERS: u32 = 1;
    pub(super) const NAME: u32 = 1;
    pub(super) const WEIGHT: u32 = 2;
    pub(super) const REQUEST_HEADERS_TO_ADD: u32 = 4;
}
mod of_header {
    pub(super) const HEADER: u32 = 1;
    pub(super) const APPEND_ACTION: u32 = 3;
    /// Of the header.
    pub(super) const KEY: u32 = 1;
    pub(super) const VALUE: u32 = 2;
}
/// Of a map's entry, and of an `Any`.
mod of_entry {
    pub(super) const KEY: u32 = 1;
    pub(super) const VALUE: u32 = 2;
}

/// The only field of a wrapped value, the first of a duration.
const VALUE: u32 = 1;

/// A table without its hosts.
pub fn table(table: Table) -> RouteConfiguration {
    RouteConfiguration { name: table.name().to_owned(), validate_clusters: bool_value(true), ..Default::default() }
}

/// What a host does not share with others that route alike.
pub fn host_domains(name: &str, domains: &[String]) -> Vec<u8> {
    let mut out = Message::default();
    out.text(of_host::NAME, name);
    for domain in domains {
        out.text(of_host::DOMAINS, domain);
    }
    out.finish()
}

/// What it shares: the rest of the message.
pub fn host_routes(host: &model::VirtualHost) -> Vec<u8> {
    let mut out = Message::default();
    for route in host.routes.iter() {
        out.message(of_host::ROUTES, |out| put_route(out, route));
    }
    put_access(&mut out, of_host::TYPED_PER_FILTER_CONFIG, &host.authorization);
    out.finish()
}

/// Which routes requests take whose scope header is this.
pub fn scope(name: &str, key: &str, routes: &str) -> ScopedRouteConfiguration {
    ScopedRouteConfiguration {
        name: name.to_owned(),
        route_configuration_name: routes.to_owned(),
        key: Some(Key { fragments: vec![Fragment { r#type: Some(fragment::Type::StringKey(key.to_owned())) }] }),
        ..Default::default()
    }
}

/// The routes of some hosts, without these.
pub fn scoped_routes(name: &str) -> Vec<u8> {
    let mut out = Message::default();
    out.text(of_table::NAME, name);
    out.message(of_table::VALIDATE_CLUSTERS, |out| out.number(VALUE, 1));
    out.text(of_table::REQUEST_HEADERS_TO_REMOVE, SCOPE_HEADER);
    out.finish()
}

fn put_route(out: &mut Message, route: &model::Route) {
    out.message(of_route::MATCH, |out| {
        out.text(of_match::PREFIX, &route.prefix);
        for (name, value) in &route.headers {
            out.message(of_match::HEADERS, |out| put_matcher(out, name, value));
        }
    });
    match &route.action {
        Action::Split { backends, rewrite_host } => out.message(of_route::ROUTE, |out| {
            put_action(out, backends, rewrite_host.as_deref(), Duration::ZERO);
        }),
        Action::Status => out.message(of_route::ROUTE, |out| {
            let admin = model::Weighted { cluster: ADMIN_CLUSTER.to_owned(), weight: 100, set_headers: Headers::new() };
            put_action(out, &[admin], None, Duration::from_secs(1));
        }),
        Action::RedirectToHttps => {
            out.message(of_route::REDIRECT, |out| out.number(of_action::HTTPS_REDIRECT, 1));
        }
    }
    put_headers(out, of_route::REQUEST_HEADERS_TO_ADD, &route.set_headers);
    put_access(out, of_route::TYPED_PER_FILTER_CONFIG, if route.open { &Access::Open } else { &Access::Unsaid });
    out.text(of_route::NAME, &route.name);
}

fn put_matcher(out: &mut Message, name: &str, value: &str) {
    out.text(of_matcher::NAME, name);
    match value {
        "" => out.number(of_matcher::PRESENT_MATCH, 1),
        value => out.message(of_matcher::STRING_MATCH, |out| out.text(of_matcher::EXACT, value)),
    }
}

/// No retries and no time limit: those are the application's business, and what upstream does.
fn put_action(out: &mut Message, backends: &[model::Weighted], rewrite_host: Option<&str>, timeout: Duration) {
    out.message(of_action::WEIGHTED_CLUSTERS, |out| {
        for backend in backends {
            out.message(of_clusters::CLUSTERS, |out| {
                out.text(of_clusters::NAME, &backend.cluster);
                out.message(of_clusters::WEIGHT, |out| out.number(VALUE, backend.weight.into()));
                put_headers(out, of_clusters::REQUEST_HEADERS_TO_ADD, &backend.set_headers);
            });
        }
    });
    if let Some(host) = rewrite_host {
        out.text(of_action::HOST_REWRITE_LITERAL, host);
    }
    out.message(of_action::TIMEOUT, |out| out.number(VALUE, timeout.as_secs()));
    out.message(of_action::UPGRADE_CONFIGS, |out| {
        out.text(of_action::UPGRADE_TYPE, "websocket");
        out.message(of_action::ENABLED, |out| out.number(VALUE, 1));
    });
}

/// Set semantics: what the client sent under the name is replaced. A value is text: what Envoy would read as a command
/// in it is escaped.
fn put_headers(out: &mut Message, field: u32, headers: &Headers) {
    for (key, value) in headers {
        let value = match value.contains('%') {
            true => Cow::Owned(value.replace('%', "%%")),
            false => Cow::Borrowed(&**value),
        };
        out.message(field, |out| {
            out.message(of_header::HEADER, |out| {
                out.text(of_header::KEY, key);
                out.text(of_header::VALUE, &value);
            });
            out.number(of_header::APPEND_ACTION, HeaderAppendAction::OverwriteIfExistsOrAdd as u64);
        });
    }
}

fn put_access(out: &mut Message, field: u32, access: &Access) {
    if *access == Access::Unsaid {
        return;
    }
    for (filter, config) in filters::access(access) {
        out.message(field, |out| {
            out.text(of_entry::KEY, &filter);
            out.message(of_entry::VALUE, |out| {
                out.text(of_entry::KEY, &config.type_url);
                out.bytes(of_entry::VALUE, &config.value);
            });
        });
    }
}
