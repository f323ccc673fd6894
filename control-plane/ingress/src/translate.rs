//! An Ingress as virtual hosts, one per host and table.
//!
//! Differs from upstream in that the object is never modified: the hash is always taken from the real spec, and the
//! probe routes are made here, before the routes they duplicate.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use api::{
    keys::networking::{CLUSTER_LOCAL_VISIBILITY, EXTERNAL_IP},
    networking::v1alpha1::{HttpIngressPath, Ingress, IngressBackendSplit, IngressRule, IngressSpec, IngressTls},
};
use controller::ObjectKey;
use kube::ResourceExt;

use crate::{
    backend::{Port, Reference},
    fleets::Part,
    hash::ingress_hash,
    model::{Access, Action, Headers, Route, Table, VirtualHost, Weighted},
    validate::{self, STATUS_HOST},
};

const DISABLE_HTTP2: &str = "kourier.knative.dev/disable-http2";
const HASH_HEADER: &str = "K-Network-Hash";
const HASH_OVERRIDE: &str = "override";
const REDIRECTED: &str = "Redirected";
/// Who issues certificates must reach this in plain text and without permission.
const ACME: &str = "/.well-known/acme-challenge/";

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Translation {
    pub hosts: BTreeMap<Table, Vec<VirtualHost>>,
    /// What requests are sent to, and whether any share of them is.
    pub backends: BTreeMap<Reference, bool>,
    /// Hosts that no other Ingress may have.
    pub domains: BTreeSet<String>,
    /// The Secrets that TLS needs, and for which server names.
    pub certificates: BTreeMap<ObjectKey, ServerNames>,
}

/// Of one certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerNames {
    pub external: BTreeSet<String>,
    pub local: BTreeSet<String>,
}

/// What does not come from the Ingress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Context {
    /// `Redirected` is honoured (not so with `KOURIER_HTTPOPTION_DISABLED`).
    pub redirects: bool,
    /// There is one certificate for all external hosts.
    pub certificate: bool,
    /// There is one certificate for all cluster-local hosts.
    pub cluster_certificate: bool,
    /// Somebody is asked before requests go on.
    pub authorization: bool,
    /// The rules that these gateways carry.
    pub part: Part,
}

/// The spec with upstream's defaults in place: hash and routes are made from this.
pub fn defaulted(spec: &IngressSpec) -> IngressSpec {
    let mut spec = spec.clone();
    for rule in &mut spec.rules {
        if rule.visibility.is_empty() {
            rule.visibility = EXTERNAL_IP.to_owned();
        }
        for path in rule.http.iter_mut().flat_map(|http| &mut http.paths) {
            if let [split] = path.splits.as_mut_slice()
                && split.percent == 0
            {
                split.percent = 100;
            }
        }
    }
    spec
}

/// `cluster` names the cluster of a backend.
pub fn translate(
    ingress: &Ingress,
    context: Context,
    cluster: impl Fn(&Reference) -> String,
) -> Result<Translation, String> {
    let namespace = ingress.namespace().unwrap_or_default();
    let name = ingress.name_any();
    let spec = defaulted(&ingress.spec);
    validate::check(&spec)?;
    let hash = ingress_hash(&spec, &namespace, &name);
    let http1_only = ingress.annotations().get(DISABLE_HTTP2).is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let mut out = Translation::default();
    for rule in &spec.rules {
        let Some(http) = &rule.http else {
            let hosts = rule.hosts.join(", ");
            return Err(format!(
                "failed to add knative probe header: rule is missing HTTP block: the rule of {hosts} needs http.paths"
            ));
        };
        out.domains.extend(hosts_of(rule));
        if !context.part.has(rule) {
            continue;
        }
        let first = rule.hosts.first().map_or("*", String::as_str);
        let routes = |headers: &dyn Fn(&HttpIngressPath) -> (Headers, Headers)| -> Result<Vec<Route>, String> {
            let mut routes = Vec::new();
            for path in http.paths.iter().filter(|path| !path.splits.is_empty()) {
                let (matched, set_headers) = headers(path);
                let prefix = if path.path.is_empty() { "/" } else { &path.path };
                routes.push(Route {
                    name: format!("({namespace}/{name}).Domain[{first}].Paths[{prefix}]"),
                    prefix: prefix.to_owned(),
                    headers: matched,
                    set_headers,
                    action: split(path, http1_only, &cluster)?,
                    open: context.authorization && prefix.starts_with(ACME),
                });
            }
            Ok(routes)
        };
        let exact = |path: &HttpIngressPath| -> Headers {
            path.headers.iter().map(|(name, value)| (name.clone(), value.exact.clone())).collect()
        };
        let mut real = routes(&|path| {
            let mut matched = exact(path);
            matched.insert(HASH_HEADER.to_owned(), HASH_OVERRIDE.to_owned());
            let mut set = path.append_headers.clone();
            set.insert(HASH_HEADER.to_owned(), hash.clone());
            (matched, set)
        })?;
        real.extend(routes(&|path| (exact(path), path.append_headers.clone()))?);
        if real.is_empty() {
            continue;
        }
        longest_first(&mut real);
        let real = Arc::new(real);
        for path in &http.paths {
            for split in &path.splits {
                let used = out.backends.entry(reference(path, split, http1_only)).or_default();
                *used |= split.percent > 0;
            }
        }
        let external = rule.visibility != CLUSTER_LOCAL_VISIBILITY;
        let mut plain = real.clone();
        if external && spec.http_option == REDIRECTED && context.redirects {
            for route in Arc::make_mut(&mut plain).iter_mut().filter(|route| !route.open) {
                route.action = Action::RedirectToHttps;
                route.set_headers.clear();
            }
        }
        let covered = certificates(&spec, rule, external, &namespace, &mut out.certificates);
        let authorization = match context.authorization {
            true => Access::Asked(words(ingress, &rule.visibility)),
            false => Access::Unsaid,
        };
        for host in hosts_of(rule) {
            let mut add = |table: Table, routes: &Arc<Vec<Route>>| {
                let hosts = out.hosts.entry(table).or_default();
                let name = format!("({namespace}/{name}).Domain[{host}]");
                match hosts.iter_mut().find(|known| known.name == name) {
                    Some(known) => {
                        let known = Arc::make_mut(&mut known.routes);
                        known.extend_from_slice(routes);
                        longest_first(known);
                    }
                    None => hosts.push(VirtualHost {
                        name,
                        domains: vec![host.clone(), format!("{host}:*")],
                        routes: routes.clone(),
                        authorization: authorization.clone(),
                    }),
                }
            };
            add(Table::Internal, &plain);
            if external {
                add(Table::External, &plain);
            }
            if external && (context.certificate || !spec.tls.is_empty()) {
                add(Table::ExternalTls, &real);
            }
            if context.cluster_certificate || (!external && covered) {
                add(Table::InternalTls, &real);
            }
        }
    }
    Ok(out)
}

/// What is equally long keeps its order.
fn longest_first(routes: &mut [Route]) {
    routes.sort_by_key(|route| std::cmp::Reverse(route.prefix.len()));
}

/// Tells the gateway's readiness to Kubernetes.
pub fn status_host(authorization: bool) -> VirtualHost {
    VirtualHost {
        name: STATUS_HOST.to_owned(),
        domains: vec![STATUS_HOST.to_owned()],
        routes: Arc::new(vec![Route {
            name: "gateway_ready".to_owned(),
            prefix: "/ready".to_owned(),
            headers: Headers::new(),
            set_headers: Headers::new(),
            action: Action::Status,
            open: false,
        }]),
        authorization: if authorization { Access::Open } else { Access::Unsaid },
    }
}

/// Notes the certificates of the `tls` entries that cover the whole rule; whether there is one.
fn certificates(
    spec: &IngressSpec,
    rule: &IngressRule,
    external: bool,
    namespace: &str,
    out: &mut BTreeMap<ObjectKey, ServerNames>,
) -> bool {
    for tls in covering(spec, rule) {
        let namespace = if tls.secret_namespace.is_empty() { namespace } else { &tls.secret_namespace };
        let names = out.entry(ObjectKey::new(namespace, tls.secret_name.clone())).or_default();
        let names = if external { &mut names.external } else { &mut names.local };
        names.extend(tls.hosts.iter().cloned());
    }
    is_covered(spec, rule)
}

/// The `tls` entries with all hosts of a rule.
fn covering<'a>(spec: &'a IngressSpec, rule: &'a IngressRule) -> impl Iterator<Item = &'a IngressTls> {
    let covers = |tls: &&IngressTls| rule.hosts.iter().all(|host| tls.hosts.contains(host));
    spec.tls.iter().filter(covers).filter(|_| !rule.hosts.is_empty())
}

/// Whether a rule is served with TLS because of its Ingress.
pub fn is_covered(spec: &IngressSpec, rule: &IngressRule) -> bool {
    covering(spec, rule).next().is_some()
}

/// What the authorizer is told about requests for an Ingress.
fn words(ingress: &Ingress, visibility: &str) -> Headers {
    let mut words: Headers = ingress.labels().clone();
    words.insert("client".to_owned(), "kourier".to_owned());
    words.insert("visibility".to_owned(), visibility.to_owned());
    words
}

/// In lower case, as gateways compare them: two spellings of a host are one host.
fn hosts_of(rule: &IngressRule) -> impl Iterator<Item = String> {
    let any = rule.hosts.is_empty().then(|| "*".to_owned());
    rule.hosts.iter().map(|host| host.to_ascii_lowercase()).chain(any)
}

fn reference(path: &HttpIngressPath, split: &IngressBackendSplit, http1_only: bool) -> Reference {
    Reference {
        namespace: split.service_namespace.clone(),
        name: split.service_name.clone(),
        port: Port::from(&split.service_port),
        http1_only,
        rewritten: !path.rewrite_host.is_empty(),
    }
}

fn split(path: &HttpIngressPath, http1_only: bool, cluster: &impl Fn(&Reference) -> String) -> Result<Action, String> {
    let mut backends = Vec::with_capacity(path.splits.len());
    let mut total: u64 = 0;
    for split in &path.splits {
        let weight = u32::try_from(split.percent).map_err(|_| {
            format!("the split to {} has the percent {}, which must be 0 to 100", split.service_name, split.percent)
        })?;
        total += u64::from(weight);
        let cluster = cluster(&reference(path, split, http1_only));
        backends.push(Weighted { cluster, weight, set_headers: split.append_headers.clone() });
    }
    if total == 0 || total > u64::from(u32::MAX) {
        let path = if path.path.is_empty() { "/" } else { &path.path };
        return Err(format!("the splits of path {path} add up to {total} percent, which must be 100"));
    }
    let rewrite_host = (!path.rewrite_host.is_empty()).then(|| path.rewrite_host.clone());
    Ok(Action::Split { backends, rewrite_host })
}
