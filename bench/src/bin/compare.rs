//! Outgate, its peers and the floor side by side: one command, a network of its own, a table and plots.
//!
//! `cargo run --release -p outgate-bench --bin compare -- --help`
// What a benchmark prints is its purpose; and it stops with the sentence of the place that noticed.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::indexing_slicing)]

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

use clap::{Parser, ValueEnum};
use outgate_bench::floor::{self, Door, Means, Opening};
use outgate_bench::load::{Asked, Way};
use outgate_bench::origin::Origin;
use outgate_bench::proxies::{Kind, Names, ORIGIN, Proxy, hosts};
use outgate_bench::report::{Report, curve};
use outgate_bench::rows::Bench;
use outgate_bench::{goals, list, namespace};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Names that clients ask for.
const ASKED: usize = 100;

/// Measures outgate beside its peers. ENVOY and SMOKESCREEN name their binaries, OUTGATE_BIN the gate's.
#[derive(Parser)]
struct Flags {
    /// How often all of it is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each figure is taken, in milliseconds.
    #[arg(long, default_value_t = 3000)]
    window: u64,
    /// Only these proxies, by name.
    #[arg(long, value_delimiter = ',')]
    proxies: Vec<String>,
    /// Only these workloads.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Row>,
    /// How long memory is watched under churn, in seconds.
    #[arg(long, default_value_t = 120)]
    churn: u64,
    /// Where the table and the plots go.
    #[arg(long, default_value = "target/compare")]
    out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Row {
    Connect,
    Sni,
    Http,
    Denied,
    Mixed,
    Bulk,
    Pingpong,
    Idle,
    Latency,
    Rules,
    Reload,
    Cores,
    Overload,
    Fairness,
    Churn,
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "floor") {
        return run_floor(&arguments[1..]);
    }
    let flags = Flags::parse();
    let names = Names {
        asked: (0..ASKED).map(|number| format!("host-{number:03}.example.com")).collect(),
        others: Vec::new(),
        resolved: Vec::new(),
    };
    namespace::enter(&hosts(&names))?;
    open_files()?;
    let cores = std::thread::available_parallelism()?.get();
    assert!(cores >= 4, "two cores for the proxy and two for the load, at least");
    // The load keeps off the cores that a proxy may have.
    pin(2..cores)?;
    let origin = Origin::start(SocketAddr::from((ORIGIN, 443)), SocketAddr::from((ORIGIN, 80)), 2)?;
    let bench = Bench {
        allowed: names.asked.iter().map(|name| Asked::new(name)).collect(),
        denied: (0..ASKED).map(|number| Asked::new(&format!("other-{number:03}.example.net"))).collect(),
        names,
        origin,
        window: Duration::from_millis(flags.window),
    };
    let mut report = Report::default();
    let kinds = chosen(&flags, &mut report);
    fs::create_dir_all(&flags.out)?;
    for round in 1..=flags.rounds {
        eprintln!("round {round} of {}", flags.rounds);
        pin(1..cores)?;
        side_by_side(&flags, &bench, &kinds, &mut report)?;
        alone(&flags, &bench, &kinds, &mut report)?;
        if flags.wants(Row::Cores) {
            pin(2..cores)?;
            let kinds =
                kinds.iter().filter(|kind| matches!(kind, Kind::Outgate | Kind::Nginx | Kind::Haproxy));
            for kind in kinds {
                let ways = kind.ways().iter().filter(|way| **way != Way::Http);
                ways.for_each(|way| {
                    noted(&mut report, *kind, |report| bench.cores(report, *kind, *way, &[0, 1]))
                });
            }
        }
        write(&flags, &report)?;
    }
    pin(1..cores)?;
    if flags.wants(Row::Churn) && kinds.contains(&Kind::Outgate) {
        noted(&mut report, Kind::Outgate, |report| churn(&flags, &bench, report));
    }
    write(&flags, &report)?;
    println!("{}\n{}", goals::markdown(&report), report.markdown());
    Ok(())
}

impl Flags {
    fn wants(&self, row: Row) -> bool {
        self.only.is_empty() || self.only.contains(&row)
    }
}

/// The proxies that are asked for and there.
fn chosen(flags: &Flags, report: &mut Report) -> Vec<Kind> {
    let wanted =
        |kind: &Kind| flags.proxies.is_empty() || flags.proxies.iter().any(|name| name == kind.name());
    let kinds = Kind::ALL.into_iter().filter(wanted);
    kinds
        .filter(|kind| match kind.program() {
            Ok(_) => true,
            Err(hint) => {
                report.note(format!("{} is not measured: {hint}", kind.name()));
                false
            }
        })
        .collect()
}

/// All proxies run; one after the other is under load, workload by workload.
fn side_by_side(flags: &Flags, bench: &Bench, kinds: &[Kind], report: &mut Report) -> io::Result<()> {
    let mut proxies = Vec::new();
    for kind in kinds {
        match Proxy::start(*kind, &bench.names, &[0]) {
            Ok(proxy) => proxies.push(proxy),
            Err(error) => report.note(format!("{} is not measured: {error}", kind.name())),
        }
    }
    for (row, way) in [(Row::Connect, Way::Connect), (Row::Sni, Way::Sni), (Row::Http, Way::Http)] {
        let shares = [(0, row), (1000, Row::Denied), (100, Row::Mixed)];
        for (share, _) in shares.into_iter().filter(|(_, row)| flags.wants(*row)) {
            if share > 0 && !flags.wants(row) || share == 100 && way == Way::Http {
                continue;
            }
            for proxy in proxies.iter().filter(|proxy| proxy.kind.ways().contains(&way)) {
                if share == 0 || proxy.kind.denies() {
                    bench.operations(report, proxy, way, share);
                }
            }
        }
    }
    let each =
        |report: &mut Report, wanted: bool, measure: &dyn Fn(&mut Report, &Proxy) -> io::Result<()>| {
            for proxy in proxies.iter().filter(|_| wanted) {
                noted(report, proxy.kind, |report| measure(report, proxy));
            }
        };
    each(report, flags.wants(Row::Bulk), &|report, proxy| bench.down(report, proxy, 8));
    each(report, flags.wants(Row::Bulk), &|report, proxy| bench.down(report, proxy, 1));
    each(report, flags.wants(Row::Bulk), &|report, proxy| bench.up(report, proxy, 8));
    each(report, flags.wants(Row::Pingpong), &|report, proxy| bench.ping_pong(report, proxy, 1));
    each(report, flags.wants(Row::Pingpong), &|report, proxy| bench.ping_pong(report, proxy, 16));
    for way in [Way::Connect, Way::Sni] {
        each(report, flags.wants(Row::Latency), &|report, proxy| {
            if proxy.kind.ways().contains(&way) {
                bench.latency(report, proxy, way);
            }
            Ok(())
        });
    }
    each(report, flags.wants(Row::Fairness), &|report, proxy| bench.fairness(report, proxy));
    for proxy in proxies.iter().filter(|proxy| flags.wants(Row::Overload) && proxy.kind.denies()) {
        let ways = proxy.kind.ways().iter().filter(|way| **way != Way::Http);
        ways.for_each(|way| bench.overload(report, proxy, *way));
    }
    Ok(())
}

/// Workloads that want a proxy of their own.
fn alone(flags: &Flags, bench: &Bench, kinds: &[Kind], report: &mut Report) -> io::Result<()> {
    for kind in kinds.iter().filter(|_| flags.wants(Row::Idle)) {
        noted(report, *kind, |report| bench.idle(report, &Proxy::start(*kind, &bench.names, &[0])?));
    }
    if flags.wants(Row::Rules) {
        let [short, long, longest] =
            [0, 100_000, 1_000_000].map(|rules: usize| (rules.max(ASKED), list(rules.saturating_sub(ASKED))));
        for kind in kinds.iter().filter(|kind| kind.denies()) {
            let mut lists = vec![short.clone(), long.clone()];
            if *kind == Kind::Outgate {
                lists.push(longest.clone());
            }
            noted(report, *kind, |report| bench.rules(report, *kind, &lists, &[0]));
        }
    }
    if flags.wants(Row::Reload) && kinds.contains(&Kind::Outgate) {
        for rules in [100_000, 1_000_000] {
            noted(report, Kind::Outgate, |report| bench.reload(report, rules, list(rules - ASKED), &[0]));
        }
    }
    Ok(())
}

fn churn(flags: &Flags, bench: &Bench, report: &mut Report) -> io::Result<()> {
    let proxy = Proxy::start(Kind::Outgate, &bench.names, &[0])?;
    let points = bench.churn(report, &proxy, Way::Connect, Duration::from_secs(flags.churn));
    fs::write(flags.out.join("churn.svg"), curve("Memory under churn", "MiB", &["outgate, PSS"], &points))
}

/// What fails is said in the table; the rest goes on.
fn noted(report: &mut Report, kind: Kind, measure: impl FnOnce(&mut Report) -> io::Result<()>) {
    if let Err(error) = measure(report) {
        let note = format!("a figure of {} is missing: {error}", kind.name());
        eprintln!("{note}");
        report.note(note);
    }
}

fn write(flags: &Flags, report: &Report) -> io::Result<()> {
    fs::write(flags.out.join("goals.md"), goals::markdown(report))?;
    fs::write(flags.out.join("table.md"), report.markdown())?;
    fs::write(flags.out.join("plot.svg"), report.plot())
}

/// `floor MEANS CONNECT SNI HTTP ORIGIN`: the relay without policy, in a process of its own.
fn run_floor(arguments: &[String]) -> io::Result<()> {
    let [means, connect, sni, http, origin] = arguments else {
        return Err(io::Error::other("floor: five arguments"));
    };
    let means = if means == "splice" { Means::Splice } else { Means::Copy };
    let door = |address: &str, opening, port: u16| -> io::Result<Door> {
        let origin = SocketAddr::new(origin.parse().map_err(io::Error::other)?, port);
        Ok(Door { listener: TcpListener::bind(address)?, opening, origin })
    };
    let doors = vec![
        door(connect, Opening::Connect, 443)?,
        door(sni, Opening::Straight, 443)?,
        door(http, Opening::Straight, 80)?,
    ];
    floor::run(doors, means)
}

/// As many files as the system lets the process have.
fn open_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let wanted = 200_000;
    let raised = Rlimit { current: Some(wanted), maximum: Some(wanted.max(limit.maximum.unwrap_or(wanted))) };
    Ok(setrlimit(Resource::Nofile, raised).or_else(|_| {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    })?)
}

/// Keeps this thread, and those that it starts, on these cores.
fn pin(cores: std::ops::Range<usize>) -> io::Result<()> {
    let mut set = CpuSet::new();
    cores.for_each(|core| set.set(core));
    Ok(sched_setaffinity(None, &set)?)
}
