//! Medians, ranges and ratios.

use std::collections::BTreeMap;

use crate::load::{Asked, Busy, Run};
use crate::servers::Kind;

/// What was measured.
#[derive(Default)]
pub(crate) struct Table {
    runs: BTreeMap<(Asked, Kind), Vec<Run>>,
    busy: BTreeMap<(Kind, usize), Vec<Busy>>,
    memory: BTreeMap<(Kind, usize), u64>,
}

impl Table {
    pub(crate) fn add(&mut self, kind: Kind, asked: Asked, run: Run) {
        self.runs.entry((asked, kind)).or_default().push(run);
    }

    pub(crate) fn add_busy(&mut self, kind: Kind, cores: usize, busy: Busy) {
        self.busy.entry((kind, cores)).or_default().push(busy);
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

    /// Cached answers of two cores against one.
    pub(crate) fn print_cores(&self, kinds: &[Kind]) {
        println!("\n| Cached, busy | a second, one core | two cores | times | cores used |");
        println!("| --- | ---: | ---: | ---: | ---: |");
        for kind in kinds {
            let figure = |cores: usize, figure: fn(&Busy) -> f64| {
                self.busy.get(&(*kind, cores)).map(|runs| by(runs, figure).median)
            };
            let (Some(one), Some(two)) = (figure(1, |busy| busy.rate), figure(2, |busy| busy.rate)) else {
                continue;
            };
            let used = [1, 2].map(|cores| figure(cores, |busy| busy.cores).unwrap_or_default());
            println!(
                "| {} | {one:.0} | {two:.0} | {:.2} | {:.2}, {:.2} |",
                kind.name(),
                two / one,
                used[0],
                used[1]
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

fn by<R>(runs: &[R], figure: impl Fn(&R) -> f64) -> Spread {
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
