//! Lookups side by side: outgate, its peers as filtering forwarders, and a reflector that does nothing but send
//! back what it receives. Each on the same core, with the same allowed names, asked from other cores by dnsperf and by
//! clients that never sleep; one after the other, three rounds.
//!
//! `cargo run --release -p outgate-bench --bin dns [-- SERVER...]`, as root, in a network namespace of its own
//! that it makes itself. From Debian: dnsperf, knot, unbound, dnsdist, dnsmasq-base. `OUTGATE_BIN` names another
//! outgate than the one that was built beside this program; `ROUNDS` and `SECONDS` say how often and how long, and
//! with `NO_MEMORY` memory is left out.
// What a benchmark prints is its purpose; and it stops with the sentence of the place that noticed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod flood;
mod load;
mod reflector;
mod servers;
mod table;

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use load::{Asked, Clients, Load};
use servers::{Authority, Kind, Place, Records, Running};
use table::Table;

/// Allowed names in the runs that measure time.
const NAMES: usize = 100_000;
/// Allowed names in the runs that measure memory.
const MEMORY: [usize; 3] = [100, 100_000, 1_000_000];

/// The cores of each part. A server's second core is the authority's, which rests while answers are cached.
mod cores {
    pub(crate) const SERVER: &str = "0";
    pub(crate) const SERVER_TWICE: &str = "0,1";
    pub(crate) const AUTHORITY: &str = "1";
    pub(crate) const LOAD: [usize; 2] = [2, 3];
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let texts: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match texts.as_slice() {
        ["reflect", port, batch, threads] => {
            reflector::run(port.parse().unwrap(), batch.parse().unwrap(), threads.parse().unwrap());
        }
        ["inside", servers @ ..] => measure(&kinds(servers)),
        servers => enter_namespace(&kinds(servers)),
    }
}

/// The servers of these names; all of them where none is named.
fn kinds(names: &[&str]) -> Vec<Kind> {
    let known = |name: &&str| Kind::ALL.into_iter().find(|kind| kind.name() == *name);
    let kinds: Vec<Kind> =
        names.iter().map(|name| known(name).unwrap_or_else(|| panic!("{name} is no server"))).collect();
    if kinds.is_empty() { Kind::ALL.to_vec() } else { kinds }
}

/// Begins again where there is no network but a loopback, and nobody else's packets.
fn enter_namespace(kinds: &[Kind]) {
    servers::check_programs(kinds);
    let error = Command::new("unshare")
        .args(["--net", "--", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .arg("inside")
        .args(kinds.iter().map(|kind| kind.name()))
        .exec();
    panic!("unshare: {error}");
}

fn measure(kinds: &[Kind]) {
    let rounds = number("ROUNDS", 3);
    let place = Place::new(NAMES);
    let load = Load::new(&place.names);
    let mut table = Table::default();
    {
        let _authority = Authority::start(&place, cores::AUTHORITY);
        for round in 1..=rounds {
            for kind in kinds {
                eprintln!("round {round}: {}", kind.name());
                one_core(*kind, &place, &load, &mut table);
                busy_cores(*kind, &place, &load, &mut table);
            }
        }
    }
    table.print_time(kinds);
    table.print_clients(kinds);
    table.print_cores(kinds);
    if std::env::var_os("NO_MEMORY").is_some() {
        return;
    }
    for names in MEMORY {
        let place = Place::new(names);
        let load = Load::new(&place.names);
        let _authority = Authority::start(&place, cores::AUTHORITY);
        for kind in kinds.iter().filter(|kind| kind.has_names()) {
            eprintln!("memory with {names} names: {}", kind.name());
            memory(*kind, names, &place, &load, &mut table);
        }
    }
    table.print_memory(kinds, &MEMORY);
}

/// Misses first, for they need an empty cache.
fn one_core(kind: Kind, place: &Place, load: &Load, table: &mut Table) {
    let server = Running::start(kind, place, cores::SERVER, 1, Records::Rotated);
    server.wait_until_ready();
    let mut ask = |asked, clients| {
        let run = load.run(&server, asked, clients, &cores::LOAD);
        eprintln!("    {asked:?}, {}: {run}", clients.name());
        table.add(kind, asked, clients, run);
    };
    if kind.has_names() {
        ask(Asked::Missing, Clients::Dnsperf);
        load.warm_up(&cores::LOAD);
        // Until what it writes goes where it has written before.
        load.run(&server, Asked::Cached, Clients::Busy, &cores::LOAD);
    }
    for asked in Asked::AT_ONCE {
        let clients: &[Clients] = if kind.scales() { &Clients::ALL } else { &[Clients::Dnsperf] };
        clients.iter().for_each(|clients| ask(asked, *clients));
    }
}

/// Cached answers of one core and of two, which are kept busy.
fn busy_cores(kind: Kind, place: &Place, load: &Load, table: &mut Table) {
    if !kind.scales() {
        return;
    }
    for (threads, cores) in [(1, cores::SERVER), (2, cores::SERVER_TWICE)] {
        let server = Running::start(kind, place, cores, threads, Records::InOneFile);
        server.wait_until_ready();
        load.warm_up(&cores::LOAD);
        let run = load.run(&server, Asked::Cached, Clients::Busy, &cores::LOAD);
        eprintln!("    {threads} busy: {run}");
        table.add_cores(kind, threads, run);
    }
}

fn memory(kind: Kind, names: usize, place: &Place, load: &Load, table: &mut Table) {
    let server = Running::start(kind, place, cores::SERVER, 1, Records::Rotated);
    // A million names take some of them minutes.
    if !server.is_ready_soon() {
        eprintln!("    not ready in time");
        return;
    }
    load.warm_up(&cores::LOAD);
    table.add_memory(kind, names, outgate_bench::usage::memory(server.pid()));
}

/// A number from the environment.
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}
