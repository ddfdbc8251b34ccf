//! Medians, ranges and ratios.

use std::collections::BTreeMap;

use crate::load::{Asked, Clients, Run};
use crate::servers::Kind;

/// What was measured.
#[derive(Default)]
pub(crate) struct Table {
    runs: BTreeMap<(Asked, Clients, Kind), Vec<Run>>,
    cores: BTreeMap<(Kind, usize), Vec<Run>>,
    memory: BTreeMap<(Kind, usize), u64>,
}

impl Table {
    pub(crate) fn add(&mut self, kind: Kind, asked: Asked, clients: Clients, run: Run) {
        self.runs.entry((asked, clients, kind)).or_default().push(run);
    }

    pub(crate) fn add_cores(&mut self, kind: Kind, cores: usize, run: Run) {
        self.cores.entry((kind, cores)).or_default().push(run);
    }

    pub(crate) fn add_memory(&mut self, kind: Kind, names: usize, bytes: u64) {
        self.memory.insert((kind, names), bytes);
    }

    /// Processor time for a query on one core, asked by dnsperf.
    pub(crate) fn print_time(&self, kinds: &[Kind]) {
        for asked in Asked::ALL {
            println!(
                "\n| {asked:?} | µs a query | range | × reflector | × best peer | × best that logs | queries a second | lost |"
            );
            println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
            for kind in kinds {
                let Some(own) = self.runs(asked, Clients::Dnsperf, *kind) else { continue };
                let (least, most) = range(own, cpu);
                println!(
                    "| {} | {:.2} | {least:.2} to {most:.2} | {} | {:.0} | {:.3} % |",
                    kind.name(),
                    median(own, cpu),
                    self.ratios(kinds, asked, Clients::Dnsperf, *kind),
                    median(own, |run| run.rate),
                    median(own, |run| run.lost),
                );
            }
        }
    }

    /// The same of outgate and the reflector for all who ask.
    pub(crate) fn print_clients(&self, kinds: &[Kind]) {
        println!(
            "\n| asked | by | reflector, µs | outgate, µs | × reflector | × best peer | × best that logs | lost |"
        );
        println!("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |");
        for asked in Asked::AT_ONCE {
            for clients in Clients::ALL {
                let Some(own) = self.runs(asked, clients, Kind::Outgate) else { continue };
                let reflector = self.runs(asked, clients, Kind::Reflector);
                println!(
                    "| {asked:?} | {} | {} | {:.2} | {} | {:.3} % |",
                    clients.name(),
                    reflector.map_or("–".to_owned(), |runs| format!("{:.2}", median(runs, cpu))),
                    median(own, cpu),
                    self.ratios(kinds, asked, clients, Kind::Outgate),
                    median(own, |run| run.lost),
                );
            }
        }
    }

    fn runs(&self, asked: Asked, clients: Clients, kind: Kind) -> Option<&[Run]> {
        self.runs.get(&(asked, clients, kind)).map(Vec::as_slice)
    }

    /// A server beside the reflector, the best peer, and the best of those that log.
    fn ratios(&self, kinds: &[Kind], asked: Asked, clients: Clients, kind: Kind) -> String {
        let own = self.runs(asked, clients, kind).unwrap_or_default();
        let best = |logs: bool| {
            let peers = kinds.iter().filter(|peer| kind.has_names() && peer.is_peer(logs));
            let runs = peers.filter_map(|peer| self.runs(asked, clients, *peer));
            runs.min_by(|one, other| median(one, cpu).total_cmp(&median(other, cpu)))
        };
        let bases = [self.runs(asked, clients, Kind::Reflector), best(false), best(true)];
        bases.map(|base| base.map_or("–".to_owned(), |base| ratio(own, base))).join(" | ")
    }

    /// Cached answers of two cores against one; last by what a core does in the time that it works.
    pub(crate) fn print_cores(&self, kinds: &[Kind]) {
        println!(
            "\n| Cached, two cores | a second, one core | two cores | times | cores used | times by CPU |"
        );
        println!("| --- | ---: | ---: | ---: | ---: | ---: |");
        for kind in kinds {
            let figure = |cores: usize, figure: fn(&Run) -> f64| {
                self.cores.get(&(*kind, cores)).map(|runs| median(runs, figure)).unwrap_or_default()
            };
            if !self.cores.contains_key(&(*kind, 2)) {
                continue;
            }
            let [one, two] = [1, 2].map(|cores| figure(cores, |run| run.rate));
            println!(
                "| {} | {one:.0} | {two:.0} | {:.2} | {:.2}, {:.2} | {:.2} |",
                kind.name(),
                two / one,
                figure(1, |run| run.cores),
                figure(2, |run| run.cores),
                2.0 * figure(1, cpu) / figure(2, cpu),
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
}

fn cpu(run: &Run) -> f64 {
    run.cpu
}

fn median(runs: &[Run], figure: fn(&Run) -> f64) -> f64 {
    middle(runs.iter().map(figure).collect())
}

fn range(runs: &[Run], figure: fn(&Run) -> f64) -> (f64, f64) {
    let figures = || runs.iter().map(figure);
    (figures().fold(f64::INFINITY, f64::min), figures().fold(0.0, f64::max))
}

/// The processor time of these runs beside that of others, each beside the one of its round.
fn ratio(runs: &[Run], base: &[Run]) -> String {
    let ratios = runs.iter().zip(base).map(|(own, base)| own.cpu / base.cpu).collect();
    format!("{:.2}", middle(ratios))
}

fn middle(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
