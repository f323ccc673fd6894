//! Changes one after another, each until the gateway shows it, with requests to other ingresses all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures::{StreamExt, TryStreamExt};

use super::client::Client;
use super::objects::host;
use super::process;
use super::rig::Rig;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Endpoints,
    Route,
    Ingress,
}

/// Averages per change, except the latencies.
pub(crate) struct Row {
    pub(crate) latencies: Vec<Duration>,
    pub(crate) control_cpu: f64,
    /// Of that, until the gateway shows the change: what comes after is mostly the status.
    pub(crate) control_shown: f64,
    pub(crate) envoy_main: f64,
    pub(crate) envoy_cpu: f64,
    pub(crate) down: f64,
    pub(crate) up: f64,
    pub(crate) failed: usize,
    pub(crate) asked: usize,
}

const BYSTANDERS: usize = 5;
const DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at the gateway.
const PAUSE: Duration = Duration::from_micros(500);
/// After a change, so that writing its status is part of its cost and not of the next one's.
const SETTLE: Duration = Duration::from_millis(60);

pub(crate) async fn run(rig: &mut Rig, kind: Kind, changes: usize) -> Result<Row> {
    // What the cold start left to do is not the cost of a change.
    quiet(rig).await?;
    let (stop, asked, failed) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let bystander = {
        let (stop, asked, failed) = (stop.clone(), asked.clone(), failed.clone());
        let mut client = Client::new(rig.gateway);
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                for n in 0..BYSTANDERS {
                    let good = client.get(&host(&format!("i{n}")), "/").await.is_ok_and(|a| a.status == 200);
                    asked.fetch_add(1, Ordering::Relaxed);
                    failed.fetch_add(usize::from(!good), Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        })
    };
    // The question is work for Envoy, with many clusters: not part of what is counted.
    let bytes = rig.bytes().await?;
    let (control, envoy) = (process::cpu(rig.control_pid())?, process::cpu(rig.envoy_pid())?);
    let mut latencies = Vec::new();
    let mut shown = 0.0;
    let mut client = Client::new(rig.gateway);
    for step in 1..=changes {
        let before = process::cpu(rig.control_pid())?.all;
        latencies.push(change(rig, kind, step, &mut client).await?);
        shown += process::cpu(rig.control_pid())?.all - before;
        tokio::time::sleep(SETTLE).await;
    }
    let (control_after, envoy_after) = (process::cpu(rig.control_pid())?, process::cpu(rig.envoy_pid())?);
    let bytes_after = rig.bytes().await?;
    stop.store(true, Ordering::Relaxed);
    bystander.await?;
    let per = |after: f64, before: f64| (after - before) / changes as f64;
    Ok(Row {
        latencies,
        control_cpu: per(control_after.all, control.all),
        control_shown: shown / changes as f64,
        envoy_main: per(envoy_after.main, envoy.main),
        envoy_cpu: per(envoy_after.all, envoy.all),
        down: per(bytes_after.0, bytes.0) / 1024.0,
        up: per(bytes_after.1, bytes.1) / 1024.0,
        failed: failed.load(Ordering::Relaxed),
        asked: asked.load(Ordering::Relaxed),
    })
}

/// As many new Ingresses as there are, until the last one serves, and away again until it does not.
pub(crate) async fn churn(rig: &Rig, count: usize) -> Result<()> {
    let name = |n: usize| format!("passing-{n}");
    let mut client = Client::new(rig.gateway);
    for there in [true, false] {
        let work = (0..count).map(|n| async move {
            match there {
                true => rig.objects.create(&name(n), rig.backends[0]).await,
                false => rig.objects.delete(&name(n)).await,
            }
        });
        futures::stream::iter(work).buffer_unordered(32).try_collect::<Vec<()>>().await?;
        let started = Instant::now();
        let last = host(&name(count - 1));
        while client.get(&last, "/").await.is_ok_and(|answer| answer.status == 200) != there {
            if started.elapsed() > 4 * DEADLINE {
                bail!("the gateway never showed that {last} {}", if there { "came" } else { "went" });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    quiet(rig).await
}

/// Waits until the control plane has nothing to do any more.
async fn quiet(rig: &Rig) -> Result<()> {
    loop {
        let before = process::cpu(rig.control_pid())?.all;
        tokio::time::sleep(Duration::from_millis(500)).await;
        if process::cpu(rig.control_pid())?.all - before < 2.0 {
            return Ok(());
        }
    }
}

/// Makes one change and returns how long it took until the gateway showed it.
async fn change(rig: &Rig, kind: Kind, step: usize, client: &mut Client) -> Result<Duration> {
    // Not a bystander.
    let name = format!("i{}", BYSTANDERS + step * 7919 % (rig.count - BYSTANDERS));
    let started = Instant::now();
    let (name, expected) = match kind {
        Kind::Endpoints => {
            let now = client.get(&host(&name), "/").await?.body;
            let (next, backend) =
                if now.starts_with("one") { ("two", rig.backends[1]) } else { ("one", rig.backends[0]) };
            rig.objects.move_endpoints(&name, backend).await?;
            (name, next.to_owned())
        }
        Kind::Route => {
            rig.objects.change_route(&name, step).await?;
            (name, format!(" {step}"))
        }
        Kind::Ingress => {
            let name = format!("new-{step}");
            rig.objects.create(&name, rig.backends[0]).await?;
            (name, "one".to_owned())
        }
    };
    let host = host(&name);
    loop {
        let answer = client.get(&host, "/").await;
        let shown = |body: &str| body.starts_with(&*expected) || body.ends_with(&*expected);
        if answer.is_ok_and(|answer| answer.status == 200 && shown(&answer.body)) {
            return Ok(started.elapsed());
        }
        if started.elapsed() > DEADLINE {
            bail!("the gateway never showed the change of {name}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
