//! What does Envoy itself need for a change? A publisher of constant cost in the place of the control plane: the smallest
//! resources, changed one at a time, each until Envoy has acknowledged it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use ingress::envoy;
use ingress::model::{Cluster, Endpoints, Location, Table};
use ingress::{Admin, Bootstrap, Settings};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use xds::{Change, Kind, Resource, Server, Version, Xds};

use crate::figures::{ms, quantile};
use crate::ingress_scale::process;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many ingresses: a cluster, two route configurations and five scopes each; a run for each.
    #[arg(long, value_delimiter = ',', default_value = "10,1000,10000")]
    ingresses: Vec<usize>,
    /// How scopes are named; a run for each.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "keys,short")]
    names: Vec<Names>,
    /// Changes of each kind.
    #[arg(long, default_value_t = 30)]
    changes: usize,
    /// The gateway.
    #[arg(long, env = "ENVOY", default_value = "envoy")]
    envoy: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Names {
    /// As their keys.
    Keys,
    /// In 22 letters.
    Short,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Endpoints,
    Routes,
    Cluster,
    /// One more for routes that are there.
    Scope,
    /// Routes with their first scope.
    RoutesAndScope,
    /// All that a new Ingress has.
    Ingress,
}

struct Gateway {
    xds: Xds,
    names: Names,
    envoy: Child,
}

const SCOPES: [(&str, &str); 5] = [
    ("internal_services", "default"),
    ("internal_services", "default.svc"),
    ("internal_services", "default.svc.cluster.local"),
    ("internal_services", "default.example.com"),
    ("external_services", "default.example.com"),
];

pub(crate) async fn run(options: Options) -> Result<()> {
    println!(
        "| N | names | change | median ms | 90 % ms | Envoy main thread ms | Envoy CPU ms |\n|---|---|---|---|---|---|---|"
    );
    for names in &options.names {
        for count in &options.ingresses {
            let mut gateway = Gateway::start(&options, *names, *count).await?;
            for step in [Step::Endpoints, Step::Routes, Step::Cluster, Step::Scope, Step::RoutesAndScope, Step::Ingress]
            {
                println!("| {count} | {names:?} | {step:?} | {} |", gateway.measure(step, options.changes).await?);
            }
            gateway.envoy.kill().await?;
        }
    }
    Ok(())
}

// === impl Gateway ===

impl Gateway {
    async fn start(options: &Options, names: Names, count: usize) -> Result<Self> {
        let server = Server::bind(([127, 0, 0, 1], 0).into()).await?;
        let listen = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let admin = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let bootstrap = Bootstrap::new(server.address(), Admin::Tcp(admin));
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("envoy.json");
        std::fs::write(&config, bootstrap.render())?;
        let (xds, _) = Xds::new();
        tokio::spawn(server.run(xds.clone(), std::future::pending()));
        let envoy = Command::new(&options.envoy)
            .args(bootstrap.arguments(&config))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}; name Envoy with --envoy", options.envoy.display()))?;
        let gateway = Gateway { xds, names, envoy };
        let mut first = Change { set: vec![listener(listen)?], ..Change::default() };
        (0..count).for_each(|n| gateway.ingress(&format!("i{n}"), &mut first));
        gateway.settle(first).await?;
        Ok(gateway)
    }

    async fn measure(&mut self, step: Step, changes: usize) -> Result<String> {
        let pid = self.envoy.id().context("Envoy ended")?;
        let mut times = Vec::new();
        let before = process::cpu(pid)?;
        for n in 0..changes {
            let mut change = Change::default();
            let name = format!("{step:?}-{n}").to_lowercase();
            match step {
                Step::Endpoints => change.set.push(endpoints(&format!("default/i{}-00001", n % 10), n + 1)),
                Step::Routes => change.set.push(routes(&routes_of("internal_services", "i0"), n + 1)),
                Step::Cluster => cluster(&name, &mut change),
                Step::Scope => change.set.push(self.scope(SCOPES[0], &name, &routes_of("internal_services", "i0"))),
                Step::RoutesAndScope => {
                    let routes_name = routes_of("internal_services", &name);
                    change.set.push(self.scope(SCOPES[0], &name, &routes_name));
                    change.set.push(routes(&routes_name, 0));
                }
                Step::Ingress => self.ingress(&name, &mut change),
            }
            let started = Instant::now();
            self.settle(change).await?;
            times.push(started.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let after = process::cpu(pid)?;
        let per = |after: f64, before: f64| (after - before) / changes as f64;
        Ok(format!(
            "{} | {} | {:.2} | {:.2}",
            ms(quantile(&times, 0.5)),
            ms(quantile(&times, 0.9)),
            per(after.main, before.main),
            per(after.all, before.all)
        ))
    }

    async fn settle(&self, change: Change) -> Result<()> {
        let mut settled = self.xds.settled();
        let revision = self.xds.publish(change);
        let there = settled.wait_for(|settled| settled.gateways > 0 && settled.revision >= revision);
        tokio::time::timeout(Duration::from_secs(120), there).await.context("Envoy does not acknowledge")??;
        Ok(())
    }

    fn ingress(&self, name: &str, change: &mut Change) {
        cluster(&format!("default/{name}-00001"), change);
        for table in ["internal_services", "external_services"] {
            let routes_name = routes_of(table, name);
            change.set.push(routes(&routes_name, 0));
            for scope in SCOPES.into_iter().filter(|(of, _)| *of == table) {
                change.set.push(self.scope(scope, name, &routes_name));
            }
        }
    }

    fn scope(&self, (table, host): (&str, &str), name: &str, routes: &str) -> Resource {
        let key = format!("{table}/{name}.{host}");
        let name = match self.names {
            Names::Keys => key.clone(),
            Names::Short => format!("{}-----", Version::of(&key)).chars().chain("------".chars()).take(22).collect(),
        };
        let message = envoy::scope(&name, &key, routes);
        Resource::new(Kind::Scope, name, Version::of(&key), &message).requires(Kind::ScopedRoute, routes)
    }
}

fn listener(address: SocketAddr) -> Result<Resource> {
    let settings = Settings { access_log: false, ..Settings::default() };
    let (name, table) = ("listener".to_owned(), Table::Internal);
    let (addresses, chains) = (vec![address], Vec::new());
    let model = envoy::Listener { name, addresses, table, proxy_protocol: false, chains, scopes: true, settings };
    let message = envoy::listener(&model, envoy::Routes::Scopes).context("a listener has an address")?;
    let resource = Resource::new(Kind::Listener, "listener", Version::of(&model), &message);
    let form = resource.clone().requires(Kind::Scope, xds::ALL);
    Ok(resource.scoped(form))
}

fn cluster(name: &str, change: &mut Change) {
    let model = Cluster { name: name.to_owned(), http2: false, location: Location::Endpoints, tls: None };
    let resource = Resource::new(Kind::Cluster, name, Version::of(&model), &envoy::cluster(&model));
    change.set.extend([resource.requires(Kind::Endpoints, name), endpoints(name, 0)]);
}

fn endpoints(cluster: &str, version: usize) -> Resource {
    let port = if version.is_multiple_of(2) { 9 } else { 10 };
    let model = Endpoints { addresses: vec![("127.0.0.1".to_owned(), port)] };
    Resource::new(Kind::Endpoints, cluster, Version::of(&version), &envoy::endpoints(cluster, &model))
}

fn routes_of(table: &str, name: &str) -> String {
    format!("{table}/default/{name}")
}

fn routes(name: &str, version: usize) -> Resource {
    Resource::new(Kind::ScopedRoute, name, Version::of(&(name, version)), &envoy::scoped_routes(name))
}
