//! The sidecar between a client and a tiny program on loopback, beside other proxies under the same load.
//!
//! What counts is the ratio to nginx and haproxy of the same run: they are about what the kernel allows. Rounds
//! alternate between the proxies, so that a noisy moment of the machine meets all of them; every figure is the
//! median of the rounds.

pub(crate) mod load;
pub(crate) mod process;
pub(crate) mod program;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::Args;

use self::{
    load::{Load, Protocol},
    process::{Kind, Running},
    program::Program,
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The sidecar; by default the one beside this program.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Another queue-proxy, started with the same environment.
    #[arg(long)]
    peer: Vec<PathBuf>,
    /// Seconds per measurement.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only the cases whose name contains this (`h1`, `50 conn`, `open`).
    #[arg(long, default_value = "")]
    only: String,
    /// Leave out nginx and haproxy.
    #[arg(long)]
    alone: bool,
}

struct Case {
    name: String,
    load: Load,
}

/// Medians are taken over these, by proxy and by figure, in the order of their first appearance.
#[derive(Default)]
pub(crate) struct Table {
    columns: Vec<String>,
    rows: Vec<String>,
    cells: BTreeMap<(String, String), Vec<f64>>,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let own = match &options.binary {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("queue-proxy"),
    };
    let mut kinds = vec![Kind::QueueProxy { name: "postrider".into(), path: own }];
    for (index, path) in options.peer.iter().enumerate() {
        kinds.push(Kind::QueueProxy { name: format!("peer {}", index + 1), path: path.clone() });
    }
    if !options.alone {
        kinds.extend([Kind::Nginx, Kind::Haproxy].into_iter().filter(Kind::is_installed));
    }
    let cases: Vec<_> = cases(options.seconds).into_iter().filter(|case| case.name.contains(&options.only)).collect();
    let program = Program::start().await?;
    let mut table = Table::default();
    for _ in 0..options.rounds {
        let mut direct = BTreeMap::new();
        for case in &cases {
            let figures = load::run(case.load, program.address(case.load.protocol)).await?;
            table.add("direct", &format!("{}: requests/s", case.name), figures.rate);
            direct.insert(case.name.clone(), figures);
        }
        for kind in &kinds {
            round(kind, &program, &cases, &direct, &mut table).await.with_context(|| kind.name().to_owned())?;
        }
    }
    table.print();
    Ok(())
}

async fn round(
    kind: &Kind,
    program: &Program,
    cases: &[Case],
    direct: &BTreeMap<String, load::Figures>,
    table: &mut Table,
) -> Result<()> {
    let name = kind.name();
    if let Some(size) = kind.size() {
        table.add(name, "binary, MiB", size);
    }
    let mut proxy: Option<(Protocol, Running)> = None;
    for case in cases {
        if !kind.speaks(case.load.protocol) {
            continue;
        }
        // One that was started for the other protocol, or none.
        if proxy.as_ref().is_none_or(|(protocol, _)| *protocol != case.load.protocol) {
            if let Some((_, running)) = proxy.take() {
                running.stop().await?;
            }
            let running = Running::start(kind, program, case.load.protocol).await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
            if case.load.protocol == Protocol::Http1 {
                table.add(name, "start to first answer, ms", running.started_in.as_secs_f64() * 1e3);
                table.add(name, "resident idle, MiB", running.resident());
                let before = running.context_switches();
                tokio::time::sleep(Duration::from_secs(2)).await;
                table.add(name, "idle context switches/s", (running.context_switches() - before) as f64 / 2.0);
            }
            proxy = Some((case.load.protocol, running));
        }
        let Some((_, running)) = &proxy else { continue };
        let before = running.cpu();
        let figures = load::run(case.load, running.address).await?;
        let cpu = running.cpu() - before;
        let label = &case.name;
        table.add(name, &format!("{label}: CPU/request, us"), cpu.as_secs_f64() * 1e6 / figures.requests as f64);
        table.add(name, &format!("{label}: requests/s"), figures.rate);
        for (what, share) in [("p50", 0.5), ("p99", 0.99)] {
            let added = figures.quantile(share) - direct[label].quantile(share);
            table.add(name, &format!("{label}: added {what}, us"), added * 1e6);
        }
        table.add(name, &format!("{label}: resident after, MiB"), running.resident());
    }
    if let Some((_, running)) = proxy {
        running.stop().await?;
    }
    Ok(())
}

fn cases(seconds: f64) -> Vec<Case> {
    let duration = Duration::from_secs_f64(seconds);
    let mut cases = Vec::new();
    for protocol in [Protocol::Http1, Protocol::Http2] {
        for connections in [1, 50, 500] {
            for body in [program::SMALL, program::LARGE] {
                let size = if body == program::SMALL { "12 B" } else { "64 KiB" };
                let name = format!("{protocol} {connections} conn {size} closed");
                cases.push(Case { name, load: Load { protocol, connections, body, rate: None, duration, fields: "" } });
            }
        }
        let rate = Some(1000.0);
        let name = format!("{protocol} 50 conn 12 B open 1000/s");
        let load = Load { protocol, connections: 50, body: program::SMALL, rate, duration, fields: "" };
        cases.push(Case { name, load });
    }
    cases
}

// === impl Table ===

impl Table {
    pub(crate) fn add(&mut self, column: &str, row: &str, value: f64) {
        for (list, name) in [(&mut self.columns, column), (&mut self.rows, row)] {
            if !list.iter().any(|known| known == name) {
                list.push(name.to_owned());
            }
        }
        self.cells.entry((column.to_owned(), row.to_owned())).or_default().push(value);
    }

    /// As Markdown, with the medians.
    pub(crate) fn print(&self) {
        println!("| | {} |", self.columns.join(" | "));
        println!("|---|{}", "---|".repeat(self.columns.len()));
        for row in &self.rows {
            let cells = self.columns.iter().map(|column| {
                self.cells.get(&(column.clone(), row.clone())).map_or_else(String::new, |cell| {
                    let mut sorted = cell.clone();
                    sorted.sort_by(f64::total_cmp);
                    format!("{:.1}", sorted[sorted.len() / 2])
                })
            });
            println!("| {row} | {} |", cells.collect::<Vec<_>>().join(" | "));
        }
    }
}
