//! The workloads: what is done to a proxy, and which figures come of it.

use std::io;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::load::{Asked, BEFORE, Done, Load, Timed, Way};
use crate::origin::Origin;
use crate::proxies::{Kind, Names, Proxy};
use crate::report::Report;
use crate::usage;

/// Clients at once where tunnels are opened and requests sent: enough that the proxy's core is never idle.
pub const CLIENTS: usize = 64;
/// Tunnels that are open and silent.
const IDLE: usize = 3000;
/// Tunnels a second where the time for one is measured: some tenth of what the proxies can do.
const RATE: u64 = 1000;
/// Clients that may wait at a fixed rate.
const WAITING: usize = 256;
/// How often tunnels are timed without and with a pull beside them, each round.
const PAIRS: usize = 3;
/// Clients at once beyond the capacity.
const CROWD: usize = 512;

/// What all workloads have in common.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The list that all proxies have.
    pub names: Names,
    /// What clients ask for.
    pub allowed: Arc<[Asked]>,
    /// What they must not get.
    pub denied: Arc<[Asked]>,
    /// The origin.
    pub origin: Origin,
    /// How long figures are taken.
    pub window: Duration,
}

/// Before figures are taken.
const WARM: Duration = Duration::from_millis(700);

impl Bench {
    /// A load on a proxy; none of it denied.
    #[must_use]
    pub fn load(&self, proxy: &Proxy, way: Way) -> Load {
        let (allowed, denied) = (Arc::clone(&self.allowed), Arc::clone(&self.denied));
        Load { way, proxy: proxy.address(way), allowed, denied, denied_share: 0 }
    }

    /// Tunnels opened and closed, or requests; and the same with a share of denied names, of a thousand.
    pub fn operations(&self, report: &mut Report, proxy: &Proxy, way: Way, denied_share: u64) {
        let load = Load { denied_share, ..self.load(proxy, way) };
        let burst = self.burst(&load, proxy, CLIENTS);
        let (allowed, workload) = (workload(way, 0), workload(way, denied_share));
        let name = proxy.kind.name();
        report.against(&workload, allowed);
        report.add(&workload, name, "CPU µs each", burst.cpu_each());
        report.add(&workload, name, "a second", burst.rate());
        if burst.failures > 0 {
            let (failures, operations) = (burst.failures, burst.operations);
            report
                .note(format!("{workload}: {name} failed {failures} times beside {operations} that it did"));
        }
    }

    /// A closed loop, with its processor time.
    pub fn burst(&self, load: &Load, proxy: &Proxy, clients: usize) -> Burst {
        load.closed_loop(clients, |done: &dyn Fn() -> Done| {
            sleep(WARM);
            let (before, cpu) = (done(), usage::cpu(proxy.pid()));
            sleep(self.window);
            let (after, cpu_after) = (done(), usage::cpu(proxy.pid()));
            Burst {
                operations: after.operations - before.operations,
                failures: after.failures - before.failures,
                time: after.time - before.time,
                cpu: cpu_after - cpu,
            }
        })
    }

    /// Bytes from the origin.
    pub fn down(&self, report: &mut Report, proxy: &Proxy, tunnels: usize) -> io::Result<()> {
        let figures = self.tunnels(proxy).down(tunnels, |count| self.moved(proxy, count))?;
        add_moved(report, &format!("Bulk down, {}", count(tunnels)), proxy, figures);
        Ok(())
    }

    /// Bytes to the origin.
    pub fn up(&self, report: &mut Report, proxy: &Proxy, tunnels: usize) -> io::Result<()> {
        let figures = self.tunnels(proxy).up(tunnels, || self.moved(proxy, &|| self.origin.sunk()))?;
        add_moved(report, &format!("Bulk up, {}", count(tunnels)), proxy, figures);
        Ok(())
    }

    /// Gigabytes and processor seconds in the window.
    fn moved(&self, proxy: &Proxy, count: &dyn Fn() -> u64) -> (f64, f64, f64) {
        sleep(WARM);
        let (before, cpu, started) = (count(), usage::cpu(proxy.pid()), Instant::now());
        sleep(self.window);
        let (after, cpu_after, time) = (count(), usage::cpu(proxy.pid()), started.elapsed());
        ((after - before) as f64 / 1e9, (cpu_after - cpu).as_secs_f64(), time.as_secs_f64())
    }

    /// Small messages to and fro.
    pub fn ping_pong(&self, report: &mut Report, proxy: &Proxy, tunnels: usize) -> io::Result<()> {
        let ((count, cpu), times) = self.tunnels(proxy).ping_pong(tunnels, |count| {
            sleep(WARM);
            let (before, cpu) = (count(), usage::cpu(proxy.pid()));
            sleep(self.window);
            (count() - before, usage::cpu(proxy.pid()) - cpu)
        })?;
        let (workload, name) = (format!("Ping-pong, {}", self::count(tunnels)), proxy.kind.name());
        report.add(&workload, name, "CPU µs a round trip", micros(cpu) / count as f64);
        report.add(&workload, name, "p50 µs", micros(percentile(&times, 50.0)));
        report.add(&workload, name, "p99 µs", micros(percentile(&times, 99.0)));
        Ok(())
    }

    /// Memory of tunnels that are open and silent. For a proxy that has just been started.
    pub fn idle(&self, report: &mut Report, proxy: &Proxy) -> io::Result<()> {
        let load = self.tunnels(proxy);
        drop(load.idle(200)?);
        sleep(WARM);
        let before = (usage::memory(proxy.pid()), usage::kernel_memory());
        let tunnels = load.idle(IDLE)?;
        sleep(WARM);
        let after = (usage::memory(proxy.pid()), usage::kernel_memory());
        let each = |after: u64, before: u64| (after as f64 - before as f64) / tunnels.len() as f64 / 1024.0;
        let (workload, name) = (format!("Idle, {IDLE} tunnels"), proxy.kind.name());
        report.add(&workload, name, "user KiB each", each(after.0, before.0));
        report.add(&workload, name, "kernel KiB each, with both ends", each(after.1, before.1));
        Ok(())
    }

    /// How long a tunnel takes from the time at which it was due, at a rate that the proxy can serve.
    pub fn latency(&self, report: &mut Report, proxy: &Proxy, way: Way) {
        let workload = format!("{} at {RATE} a second", way.name());
        let Timed { times, failures, .. } = self.load(proxy, way).fixed_rate(RATE, WAITING, self.window);
        let name = proxy.kind.name();
        report.add(&workload, name, "p50 µs", micros(percentile(&times, 50.0)));
        report.add(&workload, name, "p99 µs", micros(percentile(&times, 99.0)));
        report.add(&workload, name, "p99.9 µs", micros(percentile(&times, 99.9)));
        if failures > 0 {
            report.note(format!("{workload}: {name} failed {failures} times"));
        }
    }

    /// A load of tunnels by the first way that the proxy has.
    fn tunnels(&self, proxy: &Proxy) -> Load {
        self.load(proxy, if proxy.kind.ways().contains(&Way::Connect) { Way::Connect } else { Way::Sni })
    }

    /// The same tunnels with longer lists, each for a proxy of its own.
    pub fn rules(
        &self,
        report: &mut Report,
        kind: Kind,
        lists: &[(usize, Vec<String>)],
        cores: &[usize],
    ) -> io::Result<()> {
        for (rules, others) in lists {
            let names = Names { others: others.clone(), ..self.names.clone() };
            let started = Instant::now();
            let proxy = Proxy::start(kind, &names, cores)?;
            let (start, memory) = (started.elapsed(), usage::memory(proxy.pid()));
            let way = self.tunnels(&proxy).way;
            let burst = self.burst(&self.load(&proxy, way), &proxy, CLIENTS);
            let subject = format!("{} {rules}", kind.name());
            let workload = "Rules: tunnels with a longer list";
            report.add(workload, &subject, "CPU µs each", burst.cpu_each());
            report.add(workload, &subject, "MiB after the start", memory as f64 / f64::from(1 << 20));
            report.add(workload, &subject, "start s", start.as_secs_f64());
        }
        Ok(())
    }

    /// Tunnels on one core and on two.
    pub fn cores(&self, report: &mut Report, kind: Kind, way: Way, cores: &[usize]) -> io::Result<()> {
        let workload = format!("Cores: tunnels by {}", way.name());
        let mut one = None;
        for cores in [&cores[..1], cores] {
            let proxy = Proxy::start(kind, &self.names, cores)?;
            let burst = self.burst(&self.load(&proxy, way), &proxy, 2 * CLIENTS);
            let subject = format!("{} {}", kind.name(), cores.len());
            let busy = burst.cpu.as_secs_f64() / burst.time.as_secs_f64();
            report.add(&workload, &subject, "a second", burst.rate());
            report.add(&workload, &subject, "CPU µs each", burst.cpu_each());
            report.add(&workload, &subject, "cores busy", busy);
            // What so many cores would do if the load kept them busy: the load has two cores of its own, and a
            // fast proxy leaves it behind.
            let each = *one.get_or_insert(burst.cpu_each());
            report.add(
                &workload,
                &subject,
                "times as much, by CPU",
                cores.len() as f64 * each / burst.cpu_each(),
            );
        }
        Ok(())
    }

    /// Twice as much as it can do: what is still done, and what a denial costs then.
    pub fn overload(&self, report: &mut Report, proxy: &Proxy, way: Way) {
        let load = self.load(proxy, way);
        let (workload, name) = (format!("Overload by {}", way.name()), proxy.kind.name());
        let peak = self.burst(&load, proxy, CLIENTS);
        let offered = 2 * peak.rate() as u64;
        let (Timed { times, failures, in_time }, cpu) = std::thread::scope(|scope| {
            let timed = scope.spawn(|| load.fixed_rate_after(offered, CROWD, WARM, self.window));
            sleep(BEFORE + WARM);
            let cpu = usage::cpu(proxy.pid());
            sleep(self.window);
            let cpu = usage::cpu(proxy.pid()) - cpu;
            (timed.join().unwrap(), cpu)
        });
        let goodput = in_time as f64 / self.window.as_secs_f64();
        report.add(&workload, name, "goodput / peak at twice the peak offered", goodput / peak.rate());
        report.add(&workload, name, "peak a second", peak.rate());
        report.add(&workload, name, "CPU µs each, peak", peak.cpu_each());
        report.add(&workload, name, "CPU µs each, twice", micros(cpu) / in_time as f64);
        report.add(&workload, name, "core busy, peak", peak.cpu.as_secs_f64() / peak.time.as_secs_f64());
        report.add(&workload, name, "core busy, twice", cpu.as_secs_f64() / self.window.as_secs_f64());
        report.add(&workload, name, "p99 ms", micros(percentile(&times, 99.0)) / 1000.0);
        report.add(&workload, name, "failed", failures as f64);
        let denied = Load { denied_share: 1000, ..load };
        let (few, many) = (self.burst(&denied, proxy, CLIENTS), self.burst(&denied, proxy, CROWD));
        report.add(&workload, name, "CPU µs a denial, 64 clients", few.cpu_each());
        report.add(&workload, name, "CPU µs a denial, 512 clients", many.cpu_each());
    }

    /// The time for a tunnel while somebody else pulls as much as goes through.
    pub fn fairness(&self, report: &mut Report, proxy: &Proxy) -> io::Result<()> {
        let load = self.tunnels(proxy);
        let measure = || load.fixed_rate(RATE / 2, WAITING, self.window).times;
        let (workload, name) = ("Fairness: tunnels beside one bulk pull", proxy.kind.name());
        let p99 = |times: &[Duration]| micros(percentile(times, 99.0));
        // One stand-still of the machine is more than one in a hundred of a window: the median of several is not.
        for _ in 0..PAIRS {
            let alone = measure();
            let (beside, pulled) = load.down(1, |count| {
                sleep(WARM);
                let (before, started) = (count(), Instant::now());
                let beside = measure();
                (beside, (count() - before) as f64 / 1e9 / started.elapsed().as_secs_f64())
            })?;
            report.add(workload, name, "p99 with / without", p99(&beside) / p99(&alone));
            report.add(workload, name, "p99 µs without", p99(&alone));
            report.add(workload, name, "p99 µs with", p99(&beside));
            report.add(workload, name, "p50 µs without", micros(percentile(&alone, 50.0)));
            report.add(workload, name, "p50 µs with", micros(percentile(&beside, 50.0)));
            report.add(workload, name, "pull GB a second", pulled);
        }
        Ok(())
    }

    /// Memory of the proxy over a time in which tunnels come and go: seconds, and MiB of the process.
    pub fn churn(
        &self,
        report: &mut Report,
        proxy: &Proxy,
        way: Way,
        time: Duration,
    ) -> Vec<(f64, Vec<f64>)> {
        const POINTS: u32 = 60;
        let load = Load { denied_share: 100, ..self.load(proxy, way) };
        let (points, done) = load.closed_loop(CLIENTS, |done| {
            let points: Vec<(f64, Vec<f64>)> = (0..POINTS)
                .map(|_| {
                    sleep(time / POINTS);
                    (done().time.as_secs_f64(), vec![usage::memory(proxy.pid()) as f64 / f64::from(1 << 20)])
                })
                .collect();
            (points, done())
        });
        let at = |part: usize| {
            points.get(points.len() * part / 10).or(points.last()).map_or(0.0, |(_, values)| values[0])
        };
        let (workload, name) = ("Churn: tunnels come and go, a tenth denied", proxy.kind.name());
        report.add(workload, name, "MiB at the end", at(10));
        report.add(workload, name, "MiB after a tenth of the time", at(1));
        report.add(workload, name, "MiB after half", at(5));
        report.add(workload, name, "seconds", time.as_secs_f64());
        report.add(workload, name, "tunnels", done.operations as f64);
        points
    }

    /// From SIGHUP to the first decision by a list with one more name, while others open tunnels.
    pub fn reload(
        &self,
        report: &mut Report,
        rules: usize,
        others: Vec<String>,
        cores: &[usize],
    ) -> io::Result<()> {
        let mut names = Names { others, ..self.names.clone() };
        let fresh: Vec<String> = (0..8).map(|round| format!("round-{round}.example")).collect();
        names.resolved.clone_from(&fresh);
        let proxy = Proxy::start(Kind::Outgate, &names, cores)?;
        let load = self.load(&proxy, Way::Connect);
        let subject = format!("outgate {rules}");
        for (round, name) in fresh.into_iter().enumerate() {
            names.others.push(name.clone());
            let list = names.list();
            let asker = Load { allowed: [Asked::new(&name)].into(), ..load.clone() };
            let (new, old) = (proxy.folder().join("names.new"), proxy.folder().join("names.txt"));
            std::fs::write(&new, list)?;
            // The first half by signal, the second by the watch of the file alone.
            let by_signal = round < 4;
            let enforced = || -> io::Result<Duration> {
                std::fs::rename(&new, &old)?;
                let told = Instant::now();
                if by_signal {
                    proxy.signal(Signal::HUP)?;
                }
                let deadline = told + Duration::from_secs(30);
                while asker.tunnel(0).is_err() {
                    if Instant::now() > deadline {
                        return Err(io::Error::other(format!("{name} is never allowed")));
                    }
                }
                Ok(told.elapsed())
            };
            let window = Duration::from_millis(if rules > 500_000 { 4000 } else { 1500 });
            let quiet = load.fixed_rate(RATE / 4, WAITING, window);
            let (time, Timed { times, failures, .. }) = std::thread::scope(|scope| {
                let others = scope.spawn(|| load.fixed_rate(RATE / 4, WAITING, window));
                sleep(Duration::from_millis(300));
                (enforced(), others.join().unwrap())
            });
            let figure = if by_signal { "SIGHUP to enforced ms" } else { "rename to enforced ms" };
            report.add("Reload", &subject, figure, time?.as_secs_f64() * 1000.0);
            let longest = |times: &[Duration]| micros(percentile(times, 100.0)) / 1000.0;
            let more = (longest(&times) - longest(&quiet.times)).max(0.0);
            report.add("Reload", &subject, "longest wait of others, ms more", more);
            report.add("Reload", &subject, "longest wait of others ms", longest(&times));
            report.add("Reload", &subject, "failures of others", failures as f64);
            report.add("Reload", &subject, "MiB", usage::memory(proxy.pid()) as f64 / f64::from(1 << 20));
        }
        Ok(())
    }
}

/// What a closed loop did in the window.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    operations: u64,
    failures: u64,
    time: Duration,
    cpu: Duration,
}

impl Burst {
    fn cpu_each(&self) -> f64 {
        micros(self.cpu) / self.operations.max(1) as f64
    }

    fn rate(&self) -> f64 {
        self.operations as f64 / self.time.as_secs_f64()
    }
}

fn workload(way: Way, denied_share: u64) -> String {
    let what = way.name();
    match (denied_share, way) {
        (0, Way::Http) => format!("{what}: requests on kept connections"),
        (0, Way::Connect | Way::Sni) => format!("{what}: tunnels opened and closed"),
        (1000, _) => format!("{what}, denied"),
        (share, _) => format!("{what}, {}.{} % denied", share / 10, share % 10),
    }
}

fn add_moved(report: &mut Report, workload: &str, proxy: &Proxy, (gigabytes, cpu, time): (f64, f64, f64)) {
    report.add(workload, proxy.kind.name(), "CPU s a GB", cpu / gigabytes);
    report.add(workload, proxy.kind.name(), "GB a second", gigabytes / time);
}

fn count(tunnels: usize) -> String {
    format!("{tunnels} tunnel{}", if tunnels == 1 { "" } else { "s" })
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Of sorted times; zero of none.
fn percentile(times: &[Duration], percent: f64) -> Duration {
    let at = (times.len() as f64 * percent / 100.0) as usize;
    times.get(at.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}
