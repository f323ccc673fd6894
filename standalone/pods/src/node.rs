//! The Node object: what the scheduler may put here, and a lease that says the agent lives.

use std::net::Ipv4Addr;
use std::time::Duration;

use controller::Context;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::Options;

const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_SECONDS: u32 = 40;
const RENEW_EVERY: Duration = Duration::from_secs(10);
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
const PODS: u32 = 1000;

/// What this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) millicpu: u64,
    pub(crate) memory: u64,
}

// === impl Machine ===

impl Machine {
    pub(crate) fn read(options: &Options) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
        let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kibibytes = total.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        Self {
            millicpu: options.allocatable_millicpu.unwrap_or(cpus * 1000),
            memory: kibibytes.unwrap_or(1 << 20) * 1024,
        }
    }
}

/// Registers the node and keeps its lease until cancelled.
pub(crate) async fn keep(ctx: Context, options: Options, machine: Machine, ip: Ipv4Addr) {
    let mut wait = RETRY.0;
    while let Err(error) = register(&ctx, &options, machine, ip).await {
        tracing::warn!(node = options.node_name, %error, "node not registered; trying again");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY.1);
    }
    let mut every = tokio::time::interval(RENEW_EVERY);
    loop {
        every.tick().await;
        if let Err(error) = renew(&ctx, &options).await {
            tracing::debug!(%error, "node lease not renewed");
        }
    }
}

async fn register(ctx: &Context, options: &Options, machine: Machine, ip: Ipv4Addr) -> Result<(), kube::Error> {
    let api = Api::<Node>::all(ctx.client.clone());
    let name = &options.node_name;
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let labels = json!({
        "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": arch,
        "node-role.kubernetes.io/control-plane": "",
    });
    let meta = json!({"metadata": {"name": name, "labels": labels}});
    if api.get_opt(name).await?.is_none() {
        let node: Node = serde_json::from_value(meta.clone()).map_err(kube::Error::SerdeError)?;
        match api.create(&PostParams::default(), &node).await {
            Err(kube::Error::Api(error)) if error.code == 409 => {}
            created => drop(created?),
        }
    } else {
        api.patch(name, &PatchParams::default(), &Patch::Merge(&meta)).await?;
    }
    let status = json!({"status": status(options, machine, ip, arch, Timestamp::now())});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

fn status(options: &Options, machine: Machine, ip: Ipv4Addr, arch: &str, now: Timestamp) -> Value {
    let now = format!("{now:.0}");
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": message,
               "lastHeartbeatTime": now, "lastTransitionTime": now})
    };
    let resources = json!({
        "cpu": if machine.millicpu.is_multiple_of(1000) { format!("{}", machine.millicpu / 1000) } else { format!("{}m", machine.millicpu) },
        "memory": format!("{}Ki", machine.memory / 1024),
        "pods": PODS.to_string(),
    });
    let uname = rustix::system::uname();
    let id = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    json!({
        "capacity": resources, "allocatable": resources,
        "addresses": [
            {"type": "InternalIP", "address": ip.to_string()},
            {"type": "Hostname", "address": options.node_name},
        ],
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
        "nodeInfo": {
            "architecture": arch, "operatingSystem": "linux", "osImage": os_name(),
            "kernelVersion": uname.release().to_string_lossy(),
            "containerRuntimeVersion": concat!("process://", env!("CARGO_PKG_VERSION")),
            "kubeletVersion": concat!("v", env!("CARGO_PKG_VERSION"), "+postrider"), "kubeProxyVersion": "",
            "machineID": id("/etc/machine-id"), "systemUUID": id("/etc/machine-id"),
            "bootID": id("/proc/sys/kernel/random/boot_id"),
        },
    })
}

fn os_name() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

async fn renew(ctx: &Context, options: &Options) -> Result<(), kube::Error> {
    let api = Api::<Lease>::namespaced(ctx.client.clone(), LEASE_NAMESPACE);
    let now = format!("{:.6}", Timestamp::now());
    let spec = json!({"holderIdentity": options.node_name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now});
    let patch = json!({"spec": spec});
    match api.patch(&options.node_name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(kube::Error::Api(error)) if error.code == 404 => {
            let lease = json!({"metadata": {"name": options.node_name, "namespace": LEASE_NAMESPACE}, "spec": spec});
            let lease: Lease = serde_json::from_value(lease).map_err(kube::Error::SerdeError)?;
            api.create(&PostParams::default(), &lease).await.map(drop)
        }
        patched => patched.map(drop),
    }
}
