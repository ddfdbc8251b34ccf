//! Medians, ranges and ratios.

use std::collections::BTreeMap;

use crate::load::{Asked, Run};
use crate::servers::Kind;

/// What was measured.
#[derive(Default)]
pub(crate) struct Table {
    runs: BTreeMap<(Asked, Kind), Vec<Run>>,
    two_cores: BTreeMap<Kind, Vec<Run>>,
    memory: BTreeMap<(Kind, usize), u64>,
}

impl Table {
    pub(crate) fn add(&mut self, kind: Kind, asked: Asked, run: Run) {
        self.runs.entry((asked, kind)).or_default().push(run);
    }

    pub(crate) fn add_two_cores(&mut self, kind: Kind, run: Run) {
        self.two_cores.entry(kind).or_default().push(run);
    }

    pub(crate) fn add_memory(&mut self, kind: Kind, names: usize, bytes: u64) {
        self.memory.insert((kind, names), bytes);
    }

    /// Processor time for a query on one core.
    pub(crate) fn print_time(&self, kinds: &[Kind]) {
        let floor = self.cpu(Asked::Cached, Kind::Reflector);
        for asked in Asked::ALL {
            let best = |logs: bool| {
                let peers = kinds.iter().filter(|kind| kind.is_peer(logs));
                peers.filter_map(|kind| self.cpu(asked, *kind)).min_by(f64::total_cmp)
            };
            println!(
                "\n| {asked:?} | µs a query | range | × reflector | × best peer | × best that logs | queries a second | lost |"
            );
            println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
            for kind in kinds {
                let Some(runs) = self.runs.get(&(asked, *kind)) else { continue };
                let (cpu, rate) = (by(runs, |run| run.cpu), by(runs, |run| run.rate));
                let of_names = Some(cpu.median).filter(|_| kind.has_names());
                println!(
                    "| {} | {:.2} | {:.2} to {:.2} | {} | {} | {} | {:.0} | {:.3} % |",
                    kind.name(),
                    cpu.median,
                    cpu.least,
                    cpu.most,
                    ratio(Some(cpu.median), floor),
                    ratio(of_names, best(false)),
                    ratio(of_names, best(true)),
                    rate.median,
                    by(runs, |run| run.lost).median,
                );
            }
        }
    }

    /// Cached answers with two cores against one.
    pub(crate) fn print_cores(&self, kinds: &[Kind]) {
        // dnsperf on two cores asks as much as one core of the reflector answers, so the rates alone say little.
        println!(
            "\n| Cached | a second, one core | two cores | µs a query, one core | two cores | capacity |"
        );
        println!("| --- | ---: | ---: | ---: | ---: | ---: |");
        for kind in kinds {
            let (Some(one), Some(two)) = (self.runs.get(&(Asked::Cached, *kind)), self.two_cores.get(kind))
            else {
                continue;
            };
            let rates = (by(one, |run| run.rate).median, by(two, |run| run.rate).median);
            let cpu = (by(one, |run| run.cpu).median, by(two, |run| run.cpu).median);
            println!(
                "| {} | {:.0} | {:.0} | {:.2} | {:.2} | {:.2} × |",
                kind.name(),
                rates.0,
                rates.1,
                cpu.0,
                cpu.1,
                2.0 * cpu.0 / cpu.1
            );
        }
    }

    /// Memory with so many names.
    pub(crate) fn print_memory(&self, kinds: &[Kind], names: &[usize]) {
        let columns: Vec<String> = names.iter().map(|names| format!("{names} names")).collect();
        println!("\n| MiB (PSS) | {} |\n| --- |{}", columns.join(" | "), " ---: |".repeat(names.len()));
        for kind in kinds.iter().filter(|kind| kind.has_names()) {
            let cells: Vec<String> = names
                .iter()
                .map(|names| self.memory.get(&(*kind, *names)))
                .map(|bytes| {
                    bytes.map_or("–".to_owned(), |bytes| format!("{:.0}", *bytes as f64 / 1048576.0))
                })
                .collect();
            println!("| {} | {} |", kind.name(), cells.join(" | "));
        }
    }

    fn cpu(&self, asked: Asked, kind: Kind) -> Option<f64> {
        self.runs.get(&(asked, kind)).map(|runs| by(runs, |run| run.cpu).median)
    }
}

/// Median and range of one figure.
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

fn by(runs: &[Run], figure: impl Fn(&Run) -> f64) -> Spread {
    let mut figures: Vec<f64> = runs.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    Spread { least: figures[0], median: figures[figures.len() / 2], most: figures[figures.len() - 1] }
}

fn ratio(figure: Option<f64>, base: Option<f64>) -> String {
    match (figure, base) {
        (Some(figure), Some(base)) => format!("{:.2}", figure / base),
        (None, _) | (_, None) => "–".to_owned(),
    }
}
