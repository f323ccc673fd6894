//! What a proxy adds to the latency of the path, under loads that leave some of the machine idle.
//!
//! It is a difference of small figures on a machine whose state changes from second to second: how deep cores sleep,
//! which threads share one, and what else its host does. So all proxies run at once, each is measured for a fraction
//! of a second in its turn, over connections that stay open, again and again, and what is told is the median of the
//! slices. In each slice the same load is measured with and without the proxy; where the load has a rate, also beside
//! requests that go past the proxy meanwhile.

use std::{fmt, net::SocketAddr, thread, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{BUSY, Options};
use crate::{
    paced::Pacer,
    queue_proxy::{
        Table,
        load::{Figures, Load, Protocol},
        process::Running,
        program::SMALL,
    },
};

const SLICE: Duration = Duration::from_millis(250);
/// Connections to each address.
const CONNECTIONS: usize = 50;

/// How requests come.
#[derive(Clone, Copy)]
enum Shape {
    /// So many in a second, whatever becomes of those before.
    Rate(f64),
    /// So many at a time: each connection's next one when it is answered.
    Closed(usize),
}

/// What is summed up over the slices, because the kernel counts it in ticks.
#[derive(Clone, Default)]
struct Sums {
    idle: f64,
    all: f64,
    cpu: Duration,
    requests: usize,
}

pub(super) fn measure(
    proxies: &[(String, Running)],
    without: SocketAddr,
    options: &Options,
    table: &mut Table,
) -> Result<()> {
    ensure!(options.closed.iter().all(|count| (1..=CONNECTIONS).contains(count)), "--closed: 1 to {CONNECTIONS}");
    let addresses: Vec<_> = proxies.iter().map(|(_, proxy)| proxy.address).chain([without]).collect();
    let (body, fields, duration) = (SMALL, BUSY, SLICE);
    let load = Load { protocol: Protocol::Http1, connections: CONNECTIONS, body, rate: None, duration, fields };
    let shapes = options.closed.iter().map(|count| Shape::Closed(*count));
    let mut shapes = shapes.chain(options.rates.iter().map(|rate| Shape::Rate(*rate)));
    let drive = || {
        shapes.try_for_each(|shape| {
            let mut pacer = Pacer::open(load, &addresses)?;
            shape.measure(&mut pacer, proxies, options.slices, table)
        })
    };
    // The thread's timers are the finest from here on.
    thread::scope(|scope| scope.spawn(drive).join()).ok().context("the load's thread panicked")?
}

// === impl Shape ===

impl Shape {
    fn measure(self, pacer: &mut Pacer, proxies: &[(String, Running)], slices: usize, table: &mut Table) -> Result<()> {
        let past = proxies.len();
        let mut sums = vec![Sums::default(); proxies.len()];
        for _ in 0..slices {
            for (way, (name, proxy)) in proxies.iter().enumerate() {
                let alone = self.run(pacer, past)?;
                let (before, cpu) = (machine()?, proxy.cpu());
                let through = self.run(pacer, way).with_context(|| name.clone())?;
                let (after, sum) = (machine()?, &mut sums[way]);
                sum.idle += after.0 - before.0;
                sum.all += after.1 - before.1;
                sum.cpu += proxy.cpu() - cpu;
                sum.requests += through.requests;
                compare(name, &self.to_string(), &through, &alone, table);
                if let Self::Rate(rate) = self {
                    let [through, beside] = pacer.beside(way, past, rate).with_context(|| name.clone())?;
                    compare(name, &format!("{self}, beside others"), &through, &beside, table);
                }
            }
        }
        for ((name, _), Sums { idle, all, cpu, requests }) in proxies.iter().zip(sums) {
            table.add(name, &format!("{self}: idle share of the machine, %"), idle / all * 100.0);
            table.add(name, &format!("{self}: CPU/request, us"), cpu.as_secs_f64() * 1e6 / requests as f64);
            table.add(name, &format!("{self}: requests/s"), requests as f64 / SLICE.as_secs_f64() / slices as f64);
        }
        Ok(())
    }

    fn run(self, pacer: &mut Pacer, way: usize) -> Result<Figures> {
        match self {
            Self::Rate(rate) => pacer.run(way, rate),
            Self::Closed(connections) => pacer.closed(way, connections),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate(rate) => write!(f, "{rate}/s over {CONNECTIONS} conn"),
            Self::Closed(connections) => write!(f, "{connections} at a time"),
        }
    }
}

fn compare(name: &str, label: &str, with: &Figures, without: &Figures, table: &mut Table) {
    for (what, share) in [("p50", 0.5), ("p99", 0.99)] {
        let (with, without) = (with.quantile(share), without.quantile(share));
        table.add(name, &format!("{label}: {what} of the whole path, us"), with * 1e6);
        table.add(name, &format!("{label}: added {what}, us"), (with - without) * 1e6);
    }
}

/// Idle and all time of all cores, in ticks.
fn machine() -> Result<(f64, f64)> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).take(8).filter_map(|text| text.parse().ok()).collect();
    ensure!(ticks.len() == 8, "/proc/stat begins with {line:?}");
    Ok((ticks[3] + ticks[4], ticks.iter().sum()))
}
