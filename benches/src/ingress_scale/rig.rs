//! The processes of one run.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::Conditioned;
use futures::{StreamExt, TryStreamExt};
use ingress::{Admin, Bootstrap};
use kube::api::ListParams;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use super::client::{Client, backend};
use super::objects::{Objects, host};
use super::{Routes, peer, process};

pub(crate) struct Rig {
    pub(crate) count: usize,
    pub(crate) objects: Objects,
    pub(crate) backends: [SocketAddr; 2],
    pub(crate) gateway: SocketAddr,
    pub(crate) control: Child,
    pub(crate) envoy: Child,
    admin: SocketAddr,
    server: apiserver::Server,
    started: Instant,
    listening: Duration,
    _folder: TempDir,
}

const DEADLINE: Duration = Duration::from_secs(180);
const CRD: &str = include_str!("../../../charts/crds/ingresses.networking.internal.knative.dev.yaml");

// === impl Rig ===

impl Rig {
    /// Everything is created before the control plane and Envoy start, both at the same time.
    pub(crate) async fn start(envoy: &Path, routes: Routes, count: usize, peer: Option<&str>) -> Result<Self> {
        let server = apiserver::Server::open(apiserver::Options::default()).await?;
        server.apply_manifest(CRD)?;
        let client = server.client();
        let objects = Objects::new(&client);
        // Upstream looks at addresses only to see whether endpoints changed.
        let one = backend("one", ([127, 0, 0, 1], 0).into()).await?;
        let backends = [one, backend("two", ([127, 0, 0, 2], one.port()).into()).await?];
        objects.create_all(count, backends[0]).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let api = format!("http://{}", listener.local_addr()?);
        server.serve(listener, None, "");

        let [mut xds, mut external, mut internal, mut probe, admin] = free_ports().await?;
        if peer.is_some() {
            peer::install(&client).await?;
            [xds, external, internal, probe] = peer::addresses();
        }
        let folder = TempDir::new()?;
        let bootstrap = Bootstrap {
            state_of_the_world: routes == Routes::World,
            scopes: routes == Routes::Scopes,
            ..Bootstrap::new(xds, Admin::Tcp(admin))
        };
        let config = folder.path().join("envoy.json");
        std::fs::write(&config, bootstrap.render())?;
        let log = |name: &str| -> Result<std::fs::File> { Ok(std::fs::File::create(log_folder().join(name))?) };
        let started = Instant::now();
        let mut control = match peer {
            Some(peer) => peer::command(peer, &api, folder.path())?,
            None => own_role(&api, [xds, external, internal, probe])?,
        };
        let mut control = control
            .stdout(if peer.is_some() { Stdio::null() } else { Stdio::piped() })
            .stderr(log("ingress-scale-control.log")?)
            .kill_on_drop(true)
            .spawn()?;
        let envoy = Command::new(envoy)
            .args(bootstrap.arguments(&config))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log("ingress-scale-envoy.log")?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}; name Envoy with --envoy", envoy.display()))?;
        if let Some(output) = control.stdout.take() {
            let line = tokio::time::timeout(DEADLINE, BufReader::new(output).lines().next_line()).await??;
            anyhow::ensure!(line.is_some(), "the control plane ended; see {}", log_folder().display());
        } else {
            while TcpStream::connect(xds).await.is_err() {
                let ended = control.try_wait()?.is_some() || started.elapsed() > DEADLINE;
                anyhow::ensure!(!ended, "{xds} does not answer; see {}", log_folder().display());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let listening = started.elapsed();
        Ok(Self {
            count,
            objects,
            backends,
            gateway: external,
            control,
            envoy,
            admin,
            server,
            started,
            listening,
            _folder: folder,
        })
    }

    pub(crate) fn control_pid(&self) -> u32 {
        self.control.id().unwrap_or_default()
    }

    pub(crate) fn envoy_pid(&self) -> u32 {
        self.envoy.id().unwrap_or_default()
    }

    /// Waits until all serve, then until all are Ready; a line of the table.
    pub(crate) async fn cold_start(&self) -> Result<String> {
        let last = host(&format!("i{}", self.count - 1));
        let mut client = Client::new(self.gateway);
        while !client.get(&last, "/").await.is_ok_and(|answer| answer.status == 200) {
            self.check_deadline("the last ingress serves")?;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // The others came with it or earlier, so this pass costs its requests only, unless one is missing.
        let serving = self.started.elapsed();
        let envoy = process::cpu(self.envoy_pid())?;
        let chunks = (0..4).map(|part| async move {
            let mut client = Client::new(self.gateway);
            let mut missed = false;
            for n in (part..self.count).step_by(4) {
                while !client.get(&host(&format!("i{n}")), "/").await.is_ok_and(|answer| answer.status == 200) {
                    missed = true;
                    self.check_deadline("all ingresses serve")?;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            anyhow::Ok(missed)
        });
        let missed = futures::stream::iter(chunks).buffer_unordered(4).try_collect::<Vec<bool>>().await?;
        let serving = if missed.contains(&true) { self.started.elapsed() } else { serving };
        loop {
            let all = self.objects.ingresses.list(&ListParams::default()).await?;
            if all.items.iter().all(Conditioned::is_ready) {
                break;
            }
            self.check_deadline("all ingresses are Ready")?;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        let ready = self.started.elapsed();
        let control = process::cpu(self.control_pid())?;
        let (down, _) = self.bytes().await?;
        let (memory, peak) = process::memory(self.control_pid());
        Ok(format!(
            "| {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {memory:.0} ({peak:.0}) | {:.0} |",
            self.count,
            self.listening.as_secs_f64(),
            serving.as_secs_f64(),
            ready.as_secs_f64(),
            control.all / 1000.0,
            envoy.all / 1000.0,
            down / 1048576.0,
            process::memory(self.envoy_pid()).0,
        ))
    }

    pub(crate) fn memory(&self) -> String {
        let (control, peak) = process::memory(self.control_pid());
        format!("control plane {control:.0} MiB (peak {peak:.0}), Envoy {:.0} MiB", process::memory(self.envoy_pid()).0)
    }

    fn check_deadline(&self, what: &str) -> Result<()> {
        if self.started.elapsed() > DEADLINE {
            bail!("waited in vain until {what}; see the logs in {}", log_folder().display());
        }
        Ok(())
    }

    /// Bytes that Envoy read from and wrote to its control plane.
    pub(crate) async fn bytes(&self) -> Result<(f64, f64)> {
        let stats = Client::new(self.admin).get("admin", "/stats?filter=xds_cluster.upstream_cx_").await?.body;
        let value = |name: &str| {
            let line = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.and_then(|value| value.parse::<f64>().ok()).with_context(|| format!("Envoy does not count {name}"))
        };
        Ok((
            value("cluster.xds_cluster.upstream_cx_rx_bytes_total")?,
            value("cluster.xds_cluster.upstream_cx_tx_bytes_total")?,
        ))
    }

    pub(crate) async fn stop(mut self) -> Result<()> {
        self.envoy.kill().await?;
        self.control.kill().await?;
        self.server.shutdown().await?;
        Ok(())
    }
}

/// The ingress role as a process of its own.
fn own_role(api: &str, [xds, external, internal, probe]: [SocketAddr; 4]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["ingress-role", "--server", api])
        .args(["--xds", &xds.to_string(), "--external", &external.to_string()])
        .args(["--internal", &internal.to_string(), "--probe", &probe.to_string()]);
    Ok(command)
}

fn log_folder() -> PathBuf {
    std::env::temp_dir()
}

async fn free_ports<const N: usize>() -> Result<[SocketAddr; N]> {
    let mut listeners = Vec::new();
    for _ in 0..N {
        listeners.push(TcpListener::bind("127.0.0.1:0").await?);
    }
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
    addresses.try_into().map_err(|_| anyhow::anyhow!("one address for each listener"))
}
