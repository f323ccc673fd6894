//! With real namespaces; an ordinary user's run checks only what it may do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::io::AsyncReadExt;

use super::*;
use crate::groups::{Group, Groups, Limits};
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
    grouped(cell, root, None, script).await
}

async fn grouped(cell: &network::Cell, root: &Root, group: Option<Arc<Group>>, script: &str) -> (Option<i32>, String) {
    let launch = Launch {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        working_dir: "/".into(),
        root: Some(root.clone()),
        group,
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
        groups: Vec::new(),
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

#[tokio::test(flavor = "multi_thread")]
async fn a_container_keeps_to_its_limits_and_leaves_the_kernel_alone() {
    if !is_root() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let options = options(data.path(), 4);
    let network = network::prepare(&options).await.unwrap();
    let cell = network.take().await.unwrap();
    let groups = Groups::prepare(&options.tag(), true);
    let limits = Limits { memory: Some(48 << 20), cpu: Some(500), share: None };
    let group = groups.group("test", &limits).unwrap();
    let scratch = data.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let views = group.iter().flat_map(|group| group.views());
    let root = Root {
        scratch,
        host: Arc::new(HostMounts::read(&[data.path().to_owned()]).unwrap()),
        files: Vec::new(),
        mounts: Vec::new(),
        groups: views.map(|(dir, at)| (dir.to_owned(), at.to_owned())).collect(),
        read_only: false,
    };
    let run = async |script: &str| grouped(&cell, &root, group.clone(), script).await;
    let (_, text) = run("for f in /proc/sys/kernel/hostname /sys/kernel/mm/ksm/run; do cat $f > /tmp/v && \
        cat /tmp/v > $f && echo written; done; test -e /dev/console && echo console")
    .await;
    assert!(!text.contains("written") && !text.contains("console"), "{text}");
    if let Some(group) = &group {
        let (_, text) = run("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; \
            for f in /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu*/cpu.cfs_quota_us; do \
            test -e $f && cat $f && echo 1 > $f && echo written; done")
        .await;
        assert!(text.contains("50331648") && text.contains("50000") && !text.contains("written"), "{text}");
        // tail keeps what it reads.
        let (code, text) = run("head -c 200m /dev/zero | tail").await;
        assert_eq!((code, group.killed()), (Some(137), 1), "{text}");
    }
    let dirs: Vec<_> = group.iter().flat_map(|group| group.views()).map(|(dir, _)| dir.to_owned()).collect();
    drop(group);
    network.release(cell).await;
    network.remove().await;
    groups.remove();
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
}
