//! The agent against a small stand-in for the API: real processes, real namespaces when run as root.

#[path = "agent/api.rs"]
mod api;
#[path = "agent/embedded.rs"]
mod embedded;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::Api;
use controller::{Context, Tasks};
use futures::TryStreamExt;
use pods::{Binary, Handle, LogOptions, NetworkMode, Options};
use serde_json::{Value, json};

struct World {
    api: Api,
    tasks: Tasks,
    handle: Handle,
    options: Clean,
    data: Option<tempfile::TempDir>,
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The example program, built beside the tests; a shell script's job otherwise.
fn hello() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.parent()?.parent()?.join("hello");
    path.is_file().then_some(path)
}

fn options(data: &Path, third: u8, network: NetworkMode) -> Options {
    let mut options = Options {
        node_name: "node".to_owned(),
        node_ip: [10, 247, third, 1].into(),
        pod_cidr: format!("10.247.{third}.0/24").parse().unwrap(),
        service_cidr: format!("10.246.{third}.0/24").parse().unwrap(),
        network,
        pool: 2,
        ..Options::new(data)
    };
    if let Some(hello) = hello() {
        options.binaries.insert("hello".to_owned(), Binary::new(hello));
    }
    options
}

impl World {
    async fn start(third: u8, network: NetworkMode) -> Self {
        let data = tempfile::tempdir().unwrap();
        let options = options(data.path(), third, network);
        let mut world = Self::with(Api::default(), options).await;
        world.data = Some(data);
        world
    }

    async fn with(api: Api, options: Options) -> Self {
        let tasks = Tasks::new();
        let ctx = Context::new(api.client(), tasks.clone());
        let handle = pods::run(ctx, options.clone()).await.unwrap();
        handle.synced().await;
        Self { api, tasks, handle, options: Clean(options), data: None }
    }

    async fn end(self) -> Api {
        self.handle.drain(Duration::from_secs(1)).await;
        self.tasks.shutdown().await;
        assert!(self.handle.network().interfaces().await.unwrap().is_empty());
        self.api
    }

    async fn log(&self, pod: &str, options: LogOptions) -> String {
        let stream = self.handle.logs("default", pod, "", options).unwrap();
        let blocks: Vec<_> = stream.try_collect().await.unwrap();
        String::from_utf8(blocks.concat()).unwrap()
    }
}

/// A failed test leaves nothing on the machine either.
struct Clean(Options);

impl Drop for Clean {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let options = self.0.clone();
            let clean = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(pods::network::cleanup(&options)).unwrap();
            });
            let _ = clean.join();
        }
    }
}

fn pod(name: &str, container: Value) -> Value {
    let mut container = container;
    container["name"] = json!("main");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": {"app": name}},
        "spec": {"nodeName": "node", "terminationGracePeriodSeconds": 5, "containers": [container]},
    })
}

fn sh(name: &str, script: &str) -> Value {
    pod(name, json!({"image": "dev.local/host", "command": ["/bin/sh", "-c", script]}))
}

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a str {
    let conditions = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|c| c["type"] == kind).and_then(|c| c["status"].as_str()).unwrap_or("absent")
}

fn ready(pod: &Value) -> bool {
    condition(pod, "Ready") == "True"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_ready_logs_and_ends() {
    let Some(_) = hello() else { return };
    let world = World::start(10, NetworkMode::Auto).await;
    for round in 0..3 {
        let name = format!("hello-{round}");
        let container = json!({
            "image": "dev.local/hello",
            "env": [{"name": "PORT", "value": "8080"}],
            "ports": [{"containerPort": 8080}],
            "readinessProbe": {"httpGet": {"port": 8080, "path": "/healthz"}},
        });
        let created = Instant::now();
        world.api.create("pods", pod(&name, container));
        let found = world.api.wait(&name, ready).await;
        println!("created to ready: {:?}", created.elapsed());
        assert_eq!(found["status"]["phase"], "Running");
        assert_eq!(found["status"]["containerStatuses"][0]["started"], true);
        assert!(found["status"]["podIP"].is_string());
        // Two, and one more if the machine is too busy to start a process within 30 ms.
        assert!(world.api.writes(&name) <= 3, "too many status writes");
    }
    let text = world.log("hello-0", LogOptions::default()).await;
    assert!(text.starts_with("hello: listening on port "), "{text}");
    assert!(text.contains("GET /healthz 200 OK"), "{text}");
    let follow =
        world.handle.logs("default", "hello-0", "", LogOptions { follow: true, ..Default::default() }).unwrap();
    world.api.delete("hello-0", 5);
    world.api.gone("hello-0").await;
    let rest: Vec<_> = follow.try_collect().await.unwrap();
    assert!(String::from_utf8_lossy(&rest.concat()).ends_with("hello: draining\n"));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_is_told_with_code_message_and_back_off() {
    let world = World::start(11, NetworkMode::Auto).await;
    let mut crash = sh("crash", "echo cannot start; exit 3");
    crash["spec"]["containers"][0]["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    world.api.create("pods", crash);
    let backing_off =
        |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let found = world.api.wait("crash", backing_off).await;
    let status = &found["status"]["containerStatuses"][0];
    assert_eq!(
        status["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=main pod=crash_default(uid-crash)"
    );
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(status["lastState"]["terminated"]["reason"], "Error");
    assert_eq!(status["lastState"]["terminated"]["message"], "cannot start\n");
    assert_eq!(status["restartCount"], 1);
    assert_eq!(found["status"]["phase"], "Running");
    let previous = world.log("crash", LogOptions { previous: true, ..Default::default() }).await;
    assert_eq!(previous, "cannot start\n");

    world.api.create("pods", pod("typo", json!({"image": "dev.local/host", "command": ["no-such-program"]})));
    let found = world.api.wait("typo", backing_off).await;
    let last = &found["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((last["exitCode"].as_i64(), last["reason"].as_str()), (Some(128), Some("StartError")));
    assert!(last["message"].as_str().unwrap().contains("executable file not found in $PATH"), "{last}");

    world.api.create("pods", pod("image", json!({"image": "docker.io/library/nginx"})));
    let failed = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImagePull";
    let found = world.api.wait("image", failed).await;
    assert_eq!(found["status"]["phase"], "Pending");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_environment_and_init_containers() {
    if !is_root() {
        return;
    }
    let world = World::start(12, NetworkMode::Namespaces).await;
    let secret = json!({"metadata": {"name": "s", "namespace": "default"}, "data": {"key": "dmFsdWU="}});
    let mut all =
        sh("all", "cat /etc/s/key /work/init /info/labels; hostname; cat /etc/resolv.conf; echo $IP; sleep 100");
    all["spec"]["containers"][0]["env"] =
        json!([{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
    all["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "s", "mountPath": "/etc/s"}, {"name": "w", "mountPath": "/work"}, {"name": "i", "mountPath": "/info"},
    ]);
    all["spec"]["initContainers"] = json!([{
        "name": "init", "image": "dev.local/host", "command": ["/bin/sh", "-c", "echo from-init > /work/init"],
        "volumeMounts": [{"name": "w", "mountPath": "/work"}],
    }]);
    all["spec"]["volumes"] = json!([
        {"name": "s", "secret": {"secretName": "s"}}, {"name": "w", "emptyDir": {}},
        {"name": "i", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
    ]);
    world.api.create("pods", all);
    // The Secret comes later than the pod.
    world.api.event("FailedMount").await;
    world.api.create("secrets", secret);
    let found = world.api.wait("all", ready).await;
    let ip = found["status"]["podIP"].as_str().unwrap().to_owned();
    assert_eq!(found["status"]["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    let follow = LogOptions { follow: true, ..LogOptions::default() };
    let mut text = String::new();
    let mut stream = Box::pin(world.handle.logs("default", "all", "main", follow).unwrap());
    while !text.contains(&format!("{ip}\n")) {
        text.push_str(&String::from_utf8_lossy(&stream.try_next().await.unwrap().unwrap()));
    }
    assert!(text.starts_with("valuefrom-init\napp=\"all\"all\nsearch default.svc.cluster.local"), "{text}");
    drop(stream);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_waits_for_the_hook_and_kills_at_the_end_of_grace() {
    let world = World::start(13, NetworkMode::Auto).await;
    let script = "trap 'echo got TERM' TERM; echo up; while true; do sleep 0.05; done";
    let mut stubborn = sh("stubborn", script);
    stubborn["spec"]["containers"][0]["lifecycle"] =
        json!({"preStop": {"exec": {"command": ["/bin/sh", "-c", "exit 0"]}}});
    world.api.create("pods", stubborn);
    world.api.wait("stubborn", ready).await;
    // Only then does it ignore the signal.
    let follow = LogOptions { follow: true, ..LogOptions::default() };
    let mut lines = Box::pin(world.handle.logs("default", "stubborn", "", follow).unwrap());
    assert_eq!(lines.try_next().await.unwrap().unwrap(), "up\n");
    drop(lines);
    let deleted = Instant::now();
    world.api.delete("stubborn", 1);
    let last = world.api.gone("stubborn").await;
    assert!(deleted.elapsed() >= Duration::from_secs(2), "every process gets two seconds");
    assert_eq!(last["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_agent_runs_the_pods_of_the_old_one_again() {
    let data = tempfile::tempdir().unwrap();
    let world = World::with(Api::default(), options(data.path(), 14, NetworkMode::Auto)).await;
    world.api.create("pods", sh("stays", "sleep 1000"));
    world.api.wait("stays", ready).await;
    let options = world.options.0.clone();
    let api = world.end().await;
    let world = World::with(api, options).await;
    let restarted = |pod: &Value| ready(pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 1;
    let found = world.api.wait("stays", restarted).await;
    assert!(found["status"]["containerStatuses"][0]["lastState"]["terminated"].is_null());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_privilege_each_pod_has_an_address_and_a_port() {
    let Some(_) = hello() else { return };
    let world = World::start(15, NetworkMode::Loopback).await;
    for name in ["one", "two"] {
        let container = json!({
            "image": "dev.local/hello",
            "env": [{"name": "PORT", "value": "8080"}],
            "readinessProbe": {"tcpSocket": {"port": 8080}},
        });
        world.api.create("pods", pod(name, container));
    }
    let one = world.api.wait("one", ready).await;
    let two = world.api.wait("two", ready).await;
    assert_ne!(one["status"]["podIP"], two["status"]["podIP"]);
    assert!(one["status"]["podIP"].as_str().unwrap().starts_with("127."));
    world.end().await;
}

/// What a killed agent is in the next test: this program again, in a process of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by another test"]
async fn agent_to_kill() {
    let Some(data) = std::env::var_os("POSTRIDER_TEST_DATA") else { return };
    let world = World::with(Api::default(), options(Path::new(&data), 17, NetworkMode::Auto)).await;
    let script = "(setsid sleep 2000 > /dev/null 2>&1 &); sleep 1000 & exec sleep 1000";
    world.api.create("pods", sh("orphan", script));
    world.api.wait("orphan", ready).await;
    std::fs::write(Path::new(&data).join("up"), "").unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agents_processes_are_gone_after_the_next_start() {
    if !is_root() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let _clean = Clean(options(data.path(), 17, NetworkMode::Auto));
    let mut agent = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "agent_to_kill", "--ignored"])
        .env("POSTRIDER_TEST_DATA", data.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !data.path().join("up").exists() {
        assert!(started.elapsed() < Duration::from_secs(60), "the agent did not start");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let netns: Vec<u64> = std::fs::read_dir(data.path().join("cells"))
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap().parse().unwrap())
        .collect();
    let mut found = Vec::new();
    while found.len() < 3 {
        assert!(started.elapsed() < Duration::from_secs(60), "the pod's processes did not start: {found:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
        found = inhabitants(&netns);
    }
    agent.kill().await.unwrap();
    agent.wait().await.unwrap();
    let world = World::with(Api::default(), options(data.path(), 17, NetworkMode::Auto)).await;
    // By number and start time: numbers of processes and namespaces are given again. A killed process may take a moment
    // more to be gone after it has left its namespace.
    let alive = || found.iter().filter(|(pid, started)| start_of(pid).as_ref() == Some(started)).count();
    let killed = Instant::now();
    while alive() > 0 {
        assert!(killed.elapsed() < Duration::from_secs(60), "{found:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    world.end().await;
}

/// Number and start time of the processes in these network namespaces.
fn inhabitants(netns: &[u64]) -> Vec<(String, String)> {
    use std::os::unix::fs::MetadataExt;
    let inside = |entry: &std::fs::DirEntry| {
        let meta = std::fs::metadata(entry.path().join("ns/net"));
        meta.is_ok_and(|meta| netns.contains(&meta.ino()))
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten().filter(inside);
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|pid| Some((pid.clone(), start_of(&pid)?)))
        .collect()
}

/// When a process started, if it is alive.
fn start_of(pid: &str) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    (fields[0] != "Z").then(|| fields[19].to_owned())
}
