//! Starts, drives and stops instances.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::http_client::{Answer, Client};

const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(60);

/// One running `postrider up`.
pub struct Machine {
    child: Child,
    folder: Folder,
    pub gateway: SocketAddr,
    kubeconfig: PathBuf,
}

/// The data folder: of this instance alone, or kept across restarts by the case.
enum Folder {
    Own(TempDir),
    Kept(PathBuf),
}

impl Machine {
    /// A fresh instance with short autoscaling times, for the cases that share one.
    pub fn start() -> Self {
        let machine = Self::launch(Folder::Own(TempDir::new().expect("a temporary folder")), &[]);
        machine.set_config(
            "config-autoscaler",
            &[
                ("stable-window", "6s"),
                ("scale-to-zero-grace-period", "1s"),
                ("scale-to-zero-pod-retention-period", "0s"),
            ],
        );
        machine
    }

    /// An instance on a folder that outlives it.
    pub fn on(folder: &Path, options: &[&str]) -> Self {
        Self::launch(Folder::Kept(folder.to_owned()), options)
    }

    fn launch(folder: Folder, options: &[&str]) -> Self {
        let data = folder.path();
        let mut child = command(data, options).stdout(Stdio::piped()).spawn().expect("postrider is built");
        let stdout = child.stdout.take().expect("piped");
        let (lines, first) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        let deadline = Instant::now() + START;
        loop {
            match first.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains("ready") => break,
                Ok(_) => {}
                Err(error) => {
                    let _ = child.kill();
                    panic!("postrider did not become ready ({error}); stderr:\n{}", log_of(data));
                }
            }
        }
        let kubeconfig = data.join("kubeconfig");
        Self { child, folder, gateway: ([127, 0, 0, 1], 8080).into(), kubeconfig }
    }

    pub fn data(&self) -> &Path {
        self.folder.path()
    }

    /// SIGINT, and waits for the end.
    pub fn stop(mut self) {
        self.signal(rustix::process::Signal::INT);
        let deadline = Instant::now() + STOP;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                break status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                panic!("postrider did not stop within {STOP:?}; stderr:\n{}", log_of(self.data()));
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(status.success(), "postrider ended with {status}; stderr:\n{}", log_of(self.data()));
    }

    /// SIGKILL, as a crash.
    pub fn kill(mut self) {
        self.child.kill().expect("a child of ours");
        self.child.wait().expect("a child of ours");
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("a child of ours");
    }

    // === kubectl ===

    /// Standard output of a kubectl that must succeed.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.try_kubectl(arguments);
        assert!(
            output.status.success(),
            "kubectl {arguments:?} failed: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("kubectl prints UTF-8")
    }

    pub fn try_kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_command(arguments).output().expect("kubectl is installed")
    }

    /// Standard error of a kubectl that must fail.
    pub fn kubectl_fails(&self, arguments: &[&str]) -> String {
        let output = self.try_kubectl(arguments);
        assert!(
            !output.status.success(),
            "kubectl {arguments:?} succeeded: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8(output.stderr).expect("kubectl prints UTF-8")
    }

    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        // A cache folder of its own, so that nothing of the user's is read or changed.
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--cache-dir").arg(self.data().join("kubectl-cache"));
        command.args(arguments).env_remove("KUBECONFIG");
        command
    }

    pub fn apply(&self, yaml: &str) -> String {
        let output = self.try_apply(yaml);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl apply failed: {stderr}\n{yaml}");
        String::from_utf8(output.stdout).expect("kubectl prints UTF-8")
    }

    pub fn try_apply(&self, yaml: &str) -> Output {
        let mut child = self
            .kubectl_command(&["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl is installed");
        child.stdin.take().expect("piped").write_all(yaml.as_bytes()).expect("kubectl reads");
        child.wait_with_output().expect("kubectl ends")
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.kubectl(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&text).expect("kubectl -o json prints JSON")
    }

    /// Applies a Service `name` of the example program with these template annotations and waits for Ready.
    pub fn hello(&self, name: &str, annotations: &[(&str, &str)], spec: &str) {
        self.apply(&hello_yaml(name, name, annotations, spec));
        self.wait_ready(name);
    }

    pub fn wait_ready(&self, name: &str) {
        let object = format!("ksvc/{name}");
        let output = self.try_kubectl(&["wait", "--for=condition=Ready", &object, "--timeout=60s"]);
        if !output.status.success() {
            let state = self.kubectl(&["get", "ksvc,rev,rt,king,sks,pa,deploy,pods", "-o", "wide"]);
            let events = self.kubectl(&["get", "events"]);
            panic!(
                "{name} did not become ready: {}\n{state}\n{events}\n{}",
                String::from_utf8_lossy(&output.stderr),
                log_of(self.data())
            );
        }
    }

    pub fn set_config(&self, name: &str, values: &[(&str, &str)]) {
        let data: serde_json::Map<_, _> = values.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect();
        let patch = serde_json::json!({"data": data}).to_string();
        self.kubectl(&["patch", "configmap", name, "-n", "knative-serving", "--type=merge", "-p", &patch]);
    }

    /// The pods of a service that are not going away.
    pub fn pods(&self, service: &str) -> Vec<Value> {
        let pods = self.json(&["get", "pods", "-l", &format!("serving.knative.dev/service={service}")]);
        let items = pods["items"].as_array().cloned().unwrap_or_default();
        items.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect()
    }

    pub fn delete(&self, name: &str) {
        self.kubectl(&["delete", "ksvc", name, "--ignore-not-found", "--wait=true", "--timeout=60s"]);
    }

    // === requests ===

    pub fn client(&self, service: &str) -> Client {
        Client::new(self.gateway, &format!("{service}.default.example.com"))
    }

    pub fn get(&self, service: &str, path: &str) -> Answer {
        self.client(service).get(path)
    }
}

impl Drop for Machine {
    /// A case that panicked must not leave an instance to the next one.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(rustix::process::Signal::TERM);
            let deadline = Instant::now() + Duration::from_secs(60);
            while Instant::now() < deadline {
                if let Ok(Some(_)) = self.child.try_wait() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Folder::Own(folder) => folder.path(),
            Folder::Kept(path) => path,
        }
    }
}

/// `postrider up` on a folder, its log in the folder.
pub fn command(data: &Path, options: &[&str]) -> Command {
    std::fs::create_dir_all(data).expect("a writable folder");
    let log = std::fs::OpenOptions::new().create(true).append(true).open(data.join("stderr.log")).expect("writable");
    let mut command = Command::new(binary("postrider"));
    command.arg("up").arg("--data").arg(data).args(options).stderr(log).stdin(Stdio::null());
    command
}

/// A binary built beside this test.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let folder = test.parent().and_then(Path::parent).expect("target/<profile>/deps");
    folder.join(name)
}

fn log_of(data: &Path) -> String {
    let log = std::fs::read_to_string(data.join("stderr.log")).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// A Service of the example program; `spec` is further YAML of the template's spec, indented by six.
pub fn hello_yaml(name: &str, target: &str, annotations: &[(&str, &str)], spec: &str) -> String {
    let annotations: String = annotations.iter().map(|(key, value)| format!("        {key}: \"{value}\"\n")).collect();
    let metadata = if annotations.is_empty() {
        String::new()
    } else {
        format!("    metadata:\n      annotations:\n{annotations}")
    };
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  template:\n{metadata}    \
         spec:\n{spec}      containers:\n      - image: dev.local/hello\n        env:\n        - name: TARGET\n          \
         value: {target}\n"
    )
}

/// Waits until `condition` holds; the deadline only ends a wait that is lost.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "never saw {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
