//! A proxy as a process, and what the kernel knows of it.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

use super::{
    load::Protocol,
    program::{Program, SMALL},
};

/// Clock ticks of `/proc/PID/stat`, fixed on Linux.
const TICK: Duration = Duration::from_millis(10);

pub(crate) enum Kind {
    QueueProxy { name: String, path: PathBuf },
    Nginx,
    Haproxy,
}

pub(crate) struct Running {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) started_in: Duration,
    _folder: TempDir,
}

// === impl Kind ===

impl Kind {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::QueueProxy { name, .. } => name,
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }

    pub(crate) fn is_installed(&self) -> bool {
        self.path().is_file()
    }

    /// In MiB.
    pub(crate) fn size(&self) -> Option<f64> {
        Some(fs::metadata(self.path()).ok()?.len() as f64 / f64::from(1 << 20))
    }

    pub(crate) fn speaks(&self, protocol: Protocol) -> bool {
        // nginx has no HTTP/2 towards its upstreams.
        protocol == Protocol::Http1 || !matches!(self, Self::Nginx)
    }

    fn path(&self) -> &Path {
        match self {
            Self::QueueProxy { path, .. } => path,
            Self::Nginx => Path::new("/usr/sbin/nginx"),
            Self::Haproxy => Path::new("/usr/sbin/haproxy"),
        }
    }

    fn command(&self, folder: &Path, port: u16, program: SocketAddr, protocol: Protocol) -> Result<Command> {
        let mut command = Command::new(self.path());
        let file = folder.join("conf");
        match self {
            Self::QueueProxy { .. } => {
                command.env_clear().envs([
                    ("CONTAINER_CONCURRENCY", "0"),
                    ("QUEUE_SERVING_TLS_PORT", "8112"),
                    ("REVISION_TIMEOUT_SECONDS", "300"),
                    ("SERVING_LOGGING_CONFIG", ""),
                    ("SERVING_LOGGING_LEVEL", "error"),
                    ("SERVING_NAMESPACE", "default"),
                    ("SERVING_CONFIGURATION", "bench"),
                    ("SERVING_REVISION", "bench-00001"),
                    ("SERVING_POD", "bench-pod"),
                    ("SERVING_POD_IP", "127.0.0.1"),
                    ("OBSERVABILITY_CONFIG", "{}"),
                ]);
                command.env("QUEUE_SERVING_PORT", port.to_string()).env("USER_PORT", program.port().to_string());
            }
            Self::Nginx => {
                let folder = folder.display();
                let conf = format!(
                    "daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;\n\
                     events {{ worker_connections 4096; }}\n\
                     http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {folder}/a;\n\
                     proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d;\n\
                     scgi_temp_path {folder}/e;\n\
                     upstream program {{ server {program}; keepalive 1000; keepalive_requests 100000000; }}\n\
                     server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://program;\n\
                     proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host;\n\
                     proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }} }}\n"
                );
                fs::write(&file, conf)?;
                command.arg("-c").arg(&file).arg("-p").arg(folder.to_string());
            }
            Self::Haproxy => {
                let proto = if protocol == Protocol::Http2 { " proto h2" } else { "" };
                let conf = format!(
                    "global\n  nbthread 1\n  maxconn 4096\ndefaults\n  mode http\n  timeout connect 5s\n\
                     \x20 timeout client 60s\n  timeout server 60s\n  option forwardfor\n  http-reuse always\n\
                     frontend f\n  bind 127.0.0.1:{port}{proto}\n  default_backend b\n\
                     backend b\n  server s {program}{proto} pool-max-conn 1000\n"
                );
                fs::write(&file, conf)?;
                command.arg("-db").arg("-f").arg(&file);
            }
        }
        Ok(command)
    }
}

// === impl Running ===

impl Running {
    pub(crate) async fn start(kind: &Kind, program: &Program, protocol: Protocol) -> Result<Self> {
        let folder = TempDir::new()?;
        let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut command = kind.command(folder.path(), port, program.address(protocol), protocol)?;
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let before = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {}", kind.path().display()))?;
        while !answers(address, protocol).await {
            ensure!(before.elapsed() < Duration::from_secs(10), "no answer on {address}");
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        Ok(Self { child, address, started_in: before.elapsed(), _folder: folder })
    }

    /// A process that somebody else started.
    pub(crate) fn adopt(child: Child, address: SocketAddr, started_in: Duration) -> Result<Self> {
        Ok(Self { child, address, started_in, _folder: TempDir::new()? })
    }

    pub(crate) async fn stop(mut self) -> Result<()> {
        // A master process does not take its workers with it when it is killed.
        for pid in self.pids().into_iter().rev() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        self.child.wait().await?;
        Ok(())
    }

    /// User and system time.
    pub(crate) fn cpu(&self) -> Duration {
        let ticks = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
            [11, 12].iter().filter_map(|field| fields.get(*field)?.parse::<u32>().ok()).sum::<u32>()
        };
        TICK * self.pids().into_iter().map(ticks).sum()
    }

    /// In MiB.
    pub(crate) fn resident(&self) -> f64 {
        self.pids().into_iter().filter_map(crate::machine::resident).sum()
    }

    /// Of all threads, voluntary or not.
    pub(crate) fn context_switches(&self) -> u64 {
        let mut sum = 0;
        for pid in self.pids() {
            for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
                let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
                sum += lines.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok()).sum::<u64>();
            }
        }
        sum
    }

    /// The process and its children.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let Some(pid) = self.child.id() else { return Vec::new() };
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        std::iter::once(pid).chain(children.split_whitespace().filter_map(|child| child.parse().ok())).collect()
    }
}

async fn answers(address: SocketAddr, protocol: Protocol) -> bool {
    let Ok(mut stream) = TcpStream::connect(address).await else { return false };
    if protocol == Protocol::Http2 {
        return true;
    }
    let request = format!("GET /{SMALL} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let mut answer = [0; 12];
    stream.write_all(request.as_bytes()).await.is_ok()
        && stream.read_exact(&mut answer).await.is_ok()
        && answer.ends_with(b"200")
}
