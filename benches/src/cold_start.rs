//! Sleeping services are asked at once.
//!
//! Times are from the moment the request is sent. Steps inside the system are stamped when a watcher outside it sees
//! them, the start of the program and the opening of its port by the program itself (its `x-started-at` and
//! `x-listening-at` headers, microseconds since 1970), the decision by the autoscaler's log.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use clap::Args;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use serde_json::json;

use crate::figures::{ms, quantile};
use crate::machine::{Answer, Machine, cpu_ticks};
use crate::timeline::{Step, Timeline};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many services are asked at once; a table for each.
    #[arg(long, value_delimiter = ',', default_value = "1,50")]
    services: Vec<usize>,
    /// Wake-ups of each service.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// One wake-up.
struct Wake {
    /// By row of the table.
    steps: Vec<(&'static str, Option<Duration>)>,
    sent: SystemTime,
    total: Duration,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let machine = Machine::start().await?;
    machine
        .configure(
            "config-autoscaler",
            json!({"stable-window": "6s", "scale-to-zero-grace-period": "1s", "scale-to-zero-pod-retention-period": "0s"}),
        )
        .await?;
    let most = options.services.iter().copied().max().unwrap_or(1);
    let names: Vec<String> = (0..most).map(|n| format!("cold-{n:02}")).collect();
    for name in &names {
        machine.create(name).await?;
    }
    let timeline = Timeline::follow(&machine.client).await?;
    for count in &options.services {
        let mut wakes = Vec::new();
        let mut ticks = 0;
        for _ in 0..options.rounds {
            asleep(&machine).await?;
            timeline.clear();
            let all = names[..*count].iter().map(|name| wake(&machine, &timeline, name));
            let (began, before) = (SystemTime::now(), cpu_ticks(machine.pid()));
            let mut round = try_join_all(all).await?;
            ticks += cpu_ticks(machine.pid()).saturating_sub(before);
            let decisions = decisions(&std::fs::read_to_string(machine.log())?, began);
            for (wake, name) in round.iter_mut().zip(&names) {
                wake.steps[0].1 = decisions.get(name).and_then(|at| at.duration_since(wake.sent).ok());
            }
            wakes.extend(round);
        }
        print(*count, &wakes);
        println!("CPU time of postrider: {} ms a wake-up", ticks * 10 / wakes.len() as u64);
    }
    machine.stop().await
}

/// Waits until no pod is left.
async fn asleep(machine: &Machine) -> Result<()> {
    let pods = Api::<Pod>::namespaced(machine.client.clone(), "default");
    let deadline = Instant::now() + Duration::from_secs(180);
    while !pods.list(&ListParams::default()).await?.items.is_empty() {
        ensure!(Instant::now() < deadline, "pods are still there; see {}", machine.log().display());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // What follows a scale to zero (endpoints, routes) settles within this.
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}

async fn wake(machine: &Machine, timeline: &Timeline, name: &str) -> Result<Wake> {
    let (sent, sent_wall) = (Instant::now(), SystemTime::now());
    let answer = machine.get(name).await?;
    ensure!(answer.status == 200, "{name} answered {}", answer.status);
    let total = answer.first_byte - sent;
    // The watcher may be a little behind the answer.
    for _ in 0..100 {
        if timeline.at(name, Step::ReadinessSeen).is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let watched = |step| timeline.at(name, step).map(|at| at.saturating_duration_since(sent));
    let told = |header| wall(&answer, header).and_then(|at| at.duration_since(sent_wall).ok());
    Ok(Wake {
        steps: vec![
            // Put in when all have been answered.
            ("decision", None),
            ("scale written", watched(Step::ScaleWritten)),
            ("pod created", watched(Step::PodCreated)),
            ("program's process started", told("x-started-at")),
            ("program's port open", told("x-listening-at")),
            ("containers reported running", watched(Step::ProcessStarted)),
            ("readiness seen", watched(Step::ReadinessSeen)),
            ("first byte", Some(total)),
        ],
        sent: sent_wall,
        total,
    })
}

/// When each service was first decided to have pods, from lines such as
/// `2026-01-02T03:04:05.678901Z DEBUG ...: decided key=default/cold-00-00001 ... decision=Decision { desired: 1, ...`.
fn decisions(log: &str, since: SystemTime) -> HashMap<String, SystemTime> {
    let mut found = HashMap::new();
    for line in log.lines() {
        let part = |before: &str, end: char| Some(line.split_once(before)?.1.split(end).next()?.to_owned());
        let Some(revision) = part("decided key=default/", ' ') else { continue };
        let wanted = part("Decision { desired: ", ',').and_then(|desired| desired.parse::<i32>().ok());
        let at = line.split(' ').next().and_then(|at| at.parse::<jiff::Timestamp>().ok()).map(SystemTime::from);
        let (Some(at), Some((service, _)), Some(1..)) = (at, revision.rsplit_once('-'), wanted) else { continue };
        if at >= since {
            found.entry(service.to_owned()).or_insert(at);
        }
    }
    found
}

fn wall(answer: &Answer, header: &str) -> Option<SystemTime> {
    let micros = answer.headers.get(header)?.to_str().ok()?.parse().ok()?;
    Some(UNIX_EPOCH + Duration::from_micros(micros))
}

fn print(count: usize, wakes: &[Wake]) {
    println!("\n{count} sleeping at once, {} wake-ups; ms from the request:\n", wakes.len());
    println!("| step | median | p90 | slowest |\n|---|---|---|---|");
    let rows = wakes.first().map_or(0, |wake| wake.steps.len());
    for row in 0..rows {
        let sample: Vec<_> = wakes.iter().filter_map(|wake| wake.steps[row].1).collect();
        let [median, p90, slowest] = [0.5, 0.9, 1.0].map(|share| ms(quantile(&sample, share)));
        println!("| {} | {median} | {p90} | {slowest} |", wakes[0].steps[row].0);
    }
    let program: Vec<_> =
        wakes.iter().filter_map(|wake| Some(wake.steps[4].1?.saturating_sub(wake.steps[3].1?))).collect();
    let totals: Vec<_> = wakes.iter().map(|wake| wake.total).collect();
    let ours = quantile(&totals, 0.5).saturating_sub(quantile(&program, 0.5));
    println!("\nthe program itself: {} ms; ours at the median: {} ms", ms(quantile(&program, 0.5)), ms(ours));
}
