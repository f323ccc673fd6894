//! With real namespaces; an ordinary user's run checks only what it may do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::io::AsyncReadExt;

use super::*;
use crate::{NetworkMode, Options, network};

fn options(data: &Path, third: u8) -> Options {
    Options {
        node_ip: [10, 249, third, 1].into(),
        pod_cidr: format!("10.249.{third}.0/24").parse().unwrap(),
        service_cidr: format!("10.248.{third}.0/24").parse().unwrap(),
        network: NetworkMode::Namespaces,
        pool: 2,
        ..Options::new(data)
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

async fn output(cell: &network::Cell, root: &Root, script: &str) -> (Option<i32>, String) {
    let launch = Launch {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        working_dir: "/".into(),
        root: Some(root.clone()),
        ..Launch::default()
    };
    let mut launched = cell.sandbox.run(move |inside| inside.launch(&launch)).await.unwrap().unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    launched.child.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
    launched.child.stderr.take().unwrap().read_to_string(&mut err).await.unwrap();
    let exit = launched.child.wait().await;
    (Some(exit.code()), out + &err)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_sees_its_own_files_and_network_and_leaves_no_trace() {
    if !is_root() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let options = options(data.path(), 1);
    let network = network::prepare(&options).await.unwrap();
    let before = Instant::now();
    let cell = network.take().await.unwrap();
    println!("cell made in {:?}", before.elapsed());

    let (scratch, volume) = (data.path().join("scratch"), data.path().join("volume"));
    std::fs::create_dir(&scratch).unwrap();
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("key"), "value").unwrap();
    std::fs::write(data.path().join("log"), "").unwrap();
    std::fs::write(data.path().join("secret"), "hidden").unwrap();
    let mount =
        |source: PathBuf, target: &str, read_only| Mount { source, sub_path: None, target: target.into(), read_only };
    let root = Root {
        scratch,
        host: Arc::new(HostMounts::read(&[data.path().to_owned()]).unwrap()),
        files: vec![("/etc/resolv.conf".into(), "nameserver 10.96.0.10\n".to_owned())],
        mounts: vec![
            mount(volume.clone(), "/var/run/secrets/a", true),
            Mount { sub_path: Some("x/y".to_owned()), ..mount(volume.clone(), "/srv/data", false) },
            mount(data.path().join("log"), "/dev/termination-log", false),
        ],
        read_only: false,
    };
    let before = Instant::now();
    let (code, text) = output(
        &cell,
        &root,
        "cat /etc/resolv.conf /var/run/secrets/a/key; echo; cat /proc/net/dev | grep -c eth0; \
         echo bye > /dev/termination-log; echo ok > /dev/null; echo kept > /srv/data/file; touch /etc/leak /leak; \
         touch /var/run/secrets/a/no 2>/dev/null || echo read-only; test -d /usr/bin && exit 3",
    )
    .await;
    println!("ran in {:?}", before.elapsed());
    assert_eq!((code, text.as_str()), (Some(3), "nameserver 10.96.0.10\nvalue\n1\nread-only\n"));
    assert_eq!(std::fs::read_to_string(data.path().join("log")).unwrap(), "bye\n");
    assert_eq!(std::fs::read_to_string(volume.join("x/y/file")).unwrap(), "kept\n");
    assert!(!Path::new("/etc/leak").exists() && !Path::new("/leak").exists() && !Path::new("/run/secrets/a").exists());
    let (_, text) = output(&cell, &root, &format!("cat {}/secret", data.path().display())).await;
    assert!(text.contains("No such file"), "{text}");
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mountinfo.contains(data.path().to_str().unwrap()), "a mount leaked to the host");

    // The host reaches the pod and the pod reaches the host, another pod and every service address.
    let other = network.take().await.unwrap();
    let host = tokio::net::TcpListener::bind((options.node_ip, 0)).await.unwrap();
    let service = tokio::net::TcpListener::bind(("10.248.1.77", 0)).await.unwrap();
    let listener = other.sandbox.run(|_| std::net::TcpListener::bind("0.0.0.0:7000").unwrap()).await.unwrap();
    let targets = [
        host.local_addr().unwrap(),
        service.local_addr().unwrap(),
        (other.ip, listener.local_addr().unwrap().port()).into(),
    ];
    for target in targets {
        let connected = cell
            .sandbox
            .run(move |_| std::net::TcpStream::connect_timeout(&target, std::time::Duration::from_secs(2)))
            .await
            .unwrap();
        assert!(connected.is_ok(), "{target}: {connected:?}");
    }
    std::net::TcpStream::connect((other.ip, 7000)).unwrap();

    drop(listener);
    network.release(cell).await;
    network.release(other).await;
    network.remove().await;
    assert!(network.interfaces().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_of_a_killed_agent_are_found_by_their_namespace() {
    if !is_root() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let options = options(data.path(), 2);
    let network = network::prepare(&options).await.unwrap();
    let cell = network.take().await.unwrap();
    // A grandchild that nothing ties to the agent.
    let launch = Launch {
        argv: ["/bin/sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 & echo $!"].map(str::to_owned).into(),
        working_dir: "/".into(),
        ..Launch::default()
    };
    let mut launched = cell.sandbox.run(move |inside| inside.launch(&launch)).await.unwrap().unwrap();
    let mut pid = String::new();
    launched.child.stdout.take().unwrap().read_to_string(&mut pid).await.unwrap();
    launched.child.wait().await;
    let alive = || Path::new("/proc").join(pid.trim()).join("ns/net").metadata().is_ok();
    assert!(alive());

    // As if the agent were started again.
    network::prepare(&options).await.unwrap();
    assert!(!alive());
    drop(cell);
    network::cleanup(&options).await.unwrap();
    assert!(network.interfaces().await.unwrap().is_empty());
}

/// Prints what the parts of a start cost: `cargo test -p pods --lib cost -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn cost_of_a_start() {
    if !is_root() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let options = options(data.path(), 3);
    let network = network::prepare(&options).await.unwrap();
    let mut cells = Vec::new();
    for _ in 0..5 {
        let before = Instant::now();
        cells.push(network.take().await.unwrap());
        println!("cell {:?}", before.elapsed());
    }
    let before = Instant::now();
    let many = futures::future::join_all((0..50).map(|_| network.take())).await;
    println!("50 cells at once {:?}", before.elapsed());
    let scratch = data.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let root = Root {
        scratch,
        host: Arc::new(HostMounts::read(&[data.path().to_owned()]).unwrap()),
        files: vec![("/etc/resolv.conf".into(), String::new())],
        mounts: Vec::new(),
        read_only: false,
    };
    for cell in &cells {
        let root = root.clone();
        let (built, spawned) = cell
            .sandbox
            .run(move |inside| {
                let launch =
                    Launch { argv: vec!["/bin/true".to_owned()], working_dir: "/".into(), ..Launch::default() };
                let before = Instant::now();
                drop(inside.launch(&launch).unwrap());
                let spawned = before.elapsed();
                let launch = Launch { root: Some(root), ..launch };
                let before = Instant::now();
                drop(inside.launch(&launch).unwrap());
                (before.elapsed().saturating_sub(spawned), spawned)
            })
            .await
            .unwrap();
        println!("root {built:?}, fork and exec {spawned:?}");
    }
    let before = Instant::now();
    for cell in cells.into_iter().chain(many.into_iter().flatten()) {
        network.release(cell).await;
    }
    println!("55 cells released {:?}", before.elapsed());
    network.remove().await;
}
