//! One `postrider up` of the release build, and clients for it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::serving::v1::Service;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

pub(crate) struct Machine {
    child: Child,
    pub(crate) client: kube::Client,
    pub(crate) gateway: SocketAddr,
    /// From the start of the process to its word that it is ready.
    pub(crate) start: Duration,
    folder: TempDir,
}

/// What one request met.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) first_byte: Instant,
}

// === impl Machine ===

impl Machine {
    pub(crate) async fn start() -> Result<Self> {
        let folder = TempDir::new()?;
        let own = std::env::current_exe()?;
        let log = std::fs::File::create(folder.path().join("stderr.log"))?;
        let before = Instant::now();
        let mut child = Command::new(own.with_file_name("postrider"))
            .args(["up", "--data"])
            .arg(folder.path())
            // Decisions, which leave no other trace of their own.
            .env("RUST_LOG", "warn,autoscaler::multiscaler=debug")
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start postrider; build it with cargo build --release")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        loop {
            match tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await {
                Ok(Ok(Some(line))) if line.contains("ready") => break,
                Ok(Ok(Some(_))) => {}
                _ => bail!("postrider did not become ready; see {}", folder.keep().join("stderr.log").display()),
            }
        }
        let start = before.elapsed();
        let kubeconfig = Kubeconfig::read_from(folder.path().join("kubeconfig"))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { child, client: config.try_into()?, gateway: ([127, 0, 0, 1], 8080).into(), start, folder })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.path().join("stderr.log")
    }

    pub(crate) async fn stop(mut self) -> Result<()> {
        if let Some(pid) = self.child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        }
        self.child.wait().await?;
        Ok(())
    }

    pub(crate) async fn configure(&self, name: &str, data: serde_json::Value) -> Result<()> {
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), "knative-serving");
        maps.patch(name, &PatchParams::default(), &Patch::Merge(json!({"data": data}))).await?;
        Ok(())
    }

    pub(crate) fn services(&self) -> Api<Service> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Creates a Service of the example program.
    pub(crate) async fn create(&self, name: &str) -> Result<()> {
        let service = serde_json::from_value(json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"template": {"spec": {"containers": [{"image": "dev.local/hello"}]}}},
        }))?;
        self.services().create(&PostParams::default(), &service).await?;
        Ok(())
    }

    /// One request on a connection of its own.
    pub(crate) async fn get(&self, service: &str) -> Result<Answer> {
        let stream = TcpStream::connect(self.gateway).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let host = format!("{service}.default.example.com");
        let request = Request::get("/").header("host", host).body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let first_byte = Instant::now();
        let (head, body) = response.into_parts();
        body.collect().await?;
        drop(sender);
        driver.await??;
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, first_byte })
    }
}

/// Resident memory of a process in MiB, from the kernel.
pub(crate) fn resident(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

/// User and system time in hundredths of a second.
pub(crate) fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    [11, 12].iter().filter_map(|field| fields.get(*field)?.parse::<u64>().ok()).sum()
}
