//! Envoy as a child: started with a bootstrap of ours, started again if it dies, drained before it is stopped.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use controller::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::supervise;

/// How long requests in flight may take to finish when everything stops.
const DRAIN: Duration = Duration::from_secs(10);
const READY: Duration = Duration::from_secs(20);

#[derive(Debug, Clone)]
pub struct Options {
    pub envoy: PathBuf,
    /// The bootstrap, already rendered for [`Options::admin`].
    pub bootstrap: String,
    /// Where bootstrap, log and admin socket go.
    pub folder: PathBuf,
}

/// A running Envoy.
#[derive(Debug)]
pub struct Gateway {
    admin: PathBuf,
    stop: CancellationToken,
    state: watch::Receiver<State>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Running,
    /// It ended by itself at least once: how it did.
    Ended(String),
    /// For good.
    Stopped,
}

// === impl Options ===

impl Options {
    /// The admin interface is a socket in the folder: no port to choose, nothing for others to reach.
    pub fn admin(folder: &Path) -> PathBuf {
        folder.join("admin.sock")
    }
}

// === impl Gateway ===

impl Gateway {
    /// Starts Envoy and keeps it running. Must be called from the thread that lives as long as the process.
    pub fn start(options: &Options, tasks: &Tasks) -> Result<Self> {
        std::fs::create_dir_all(&options.folder)?;
        let bootstrap = options.folder.join("bootstrap.json");
        std::fs::write(&bootstrap, &options.bootstrap)?;
        let admin = Options::admin(&options.folder);
        let first = spawn(options, &bootstrap, &admin)?;
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let (report, state) = watch::channel(State::Running);
        let (options, socket) = (options.clone(), admin.clone());
        tasks.spawn_graceful("gateway", async move {
            keep_running(first, &options, &bootstrap, &socket, &stopping, &report).await;
            report.send_replace(State::Stopped);
        });
        Ok(Self { admin, stop, state })
    }

    /// Waits until Envoy has its first complete configuration. An Envoy that ends instead is an error at once.
    pub async fn ready(&self) -> Result<()> {
        let poll = async {
            while !matches!(get(&self.admin, "GET", "/ready").await, Ok(answer) if answer.contains("LIVE")) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let mut state = self.state.clone();
        let ended = async {
            match state.wait_for(|state| *state != State::Running).await.as_deref() {
                Ok(State::Ended(how)) => how.clone(),
                _ => "it was stopped".to_owned(),
            }
        };
        let log = self.log();
        tokio::select! {
            () = poll => Ok(()),
            how = ended => {
                let last = last_line(&std::fs::read_to_string(&log).unwrap_or_default());
                bail!("Envoy ended before it was ready ({how}: {last}); its log is {}", log.display())
            }
            () = tokio::time::sleep(READY) => {
                bail!("Envoy did not become ready within {READY:?}; its log is {}", log.display())
            }
        }
    }

    /// Lets requests in flight finish, then ends Envoy.
    pub async fn stop(mut self) {
        let _ = get(&self.admin, "POST", "/drain_listeners?graceful&skip_exit").await;
        let drained = async {
            while active_requests(&self.admin).await > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(DRAIN, drained).await;
        self.stop.cancel();
        let _ = self.state.wait_for(|state| *state == State::Stopped).await;
    }

    fn log(&self) -> PathBuf {
        self.admin.with_file_name("envoy.log")
    }
}

/// A gateway that nobody holds any more ends, without draining.
impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn last_line(log: &str) -> String {
    log.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("its log is empty").to_owned()
}

fn spawn(options: &Options, bootstrap: &Path, admin: &Path) -> Result<Child> {
    let _ = std::fs::remove_file(admin);
    let log = std::fs::OpenOptions::new().create(true).append(true).open(options.folder.join("envoy.log"))?;
    let mut command: Command = supervise::command(options.envoy.as_os_str())?;
    command
        .arg("--config-path")
        .arg(bootstrap)
        .args(["--concurrency", "2", "--log-level", "warning", "--disable-hot-restart"])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true);
    command.spawn().with_context(|| format!("cannot start Envoy ({})", options.envoy.display()))
}

async fn keep_running(
    mut child: Child,
    options: &Options,
    bootstrap: &Path,
    admin: &Path,
    stopping: &CancellationToken,
    report: &watch::Sender<State>,
) {
    let mut pause = Duration::from_millis(50);
    loop {
        tokio::select! {
            () = stopping.cancelled() => {
                terminate(&mut child).await;
                return;
            }
            status = child.wait() => {
                let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                tracing::error!(how, "Envoy ended by itself; it is started again");
                report.send_replace(State::Ended(how));
            }
        }
        child = loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(Duration::from_secs(5));
            match spawn(options, bootstrap, admin) {
                Ok(child) => break child,
                Err(error) => tracing::error!("{error:#}"),
            }
        };
    }
}

async fn terminate(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(Duration::from_secs(5), child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

async fn active_requests(admin: &Path) -> u64 {
    let Ok(answer) = get(admin, "GET", "/stats?filter=downstream_rq_active$").await else { return 0 };
    let gateway = answer.lines().filter(|line| !line.contains("http.admin"));
    gateway.filter_map(|line| line.rsplit_once(": ")?.1.trim().parse::<u64>().ok()).sum()
}

/// One request to the admin socket; small enough to need no HTTP client.
async fn get(admin: &Path, method: &str, path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(admin).await?;
    let request = format!("{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(1 << 20).read_to_string(&mut answer).await?;
    Ok(answer)
}
