//! What is counted, under names that begin with `outgate_`.
//!
//! The path counts through handles that are held; nothing is looked up by name there. Every label is from a
//! closed set: kind, verdict, reason, listener, side. Host names and client addresses are never labels.

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use nix::sys::resource::{Resource, getrlimit};
use outgate_dns::event::Transport;
use outgate_rules::{Reason, Revision};

use crate::audit::AuditCounts;
use crate::record::dns::LookupLabels;
use crate::record::{
    Closed, Decided, EndedBy, Forwarded, ForwardedClosed, Kind, PolicyRead, ReloadResult, Verdict,
};

/// Upper bounds in seconds: a dial inside a region takes a millisecond, the default deadline is ten seconds.
const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Who may have given an answer.
const ANSWERED_BY: &[&str] = &["gate", "fixed", "cache", "stale", "upstream", "nobody"];

const DECISIONS: &str = "outgate_decisions_total";
const CLOSES: &str = "outgate_closes_total";

/// What each metric says, in its own words.
const COUNTERS: &[(&str, &str)] = &[
    (DECISIONS, "Decisions by kind, verdict and reason; in report mode what they would have been."),
    (CLOSES, "Flows that were allowed and are over, by kind, verdict, reason and the side that ended them."),
    ("outgate_bytes_total", "Bytes of flows that are over: up is from client to origin."),
    ("outgate_sessions_total", "Connections accepted, by listener."),
    ("outgate_accept_pauses_total", "Times that accepting paused for want of file descriptors or memory."),
    ("outgate_dns_answers_total", "Lookups answered, by transport and who gave the answer."),
    (
        "outgate_dns_dropped_total",
        "DNS packets and connections left without an answer and a record, by reason.",
    ),
    (
        "outgate_network_untold_total",
        "Packets and flows that the kernel decided on and no record tells of, at least.",
    ),
    ("outgate_reloads_total", "Times that the policy was read, by result."),
    ("outgate_audit_records_total", "Audit records written."),
    ("outgate_audit_dropped_total", "Audit records lost."),
    ("outgate_audit_write_errors_total", "Attempts to write audit records that failed."),
    ("outgate_audit_rotations_total", "Audit files that were full."),
];
const GAUGES: &[(&str, &str)] = &[
    ("outgate_sessions_open", "Connections that are open."),
    ("outgate_flows_open", "Tunnels and requests in progress."),
    ("outgate_policy_rules", "Rules in force."),
    ("outgate_policy_loaded_timestamp_seconds", "When the policy in force was read."),
    ("outgate_audit_queue_records", "Audit records that wait to be written."),
    ("outgate_audit_queue_bytes", "Their bytes."),
    ("outgate_build_info", "The version that runs."),
    ("process_resident_memory_bytes", "Resident memory."),
    ("process_open_fds", "Open file descriptors."),
    ("process_max_fds", "The limit of open file descriptors."),
    ("process_start_time_seconds", "When the process started."),
];
const HISTOGRAMS: &[(&str, &str)] = &[
    ("outgate_dial_seconds", "Time to connect to an origin, whether or not it succeeded."),
    ("outgate_resolve_seconds", "Time to resolve a name, whether or not it succeeded."),
];

/// Every metric of the gate.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    decisions: Cells,
    closes: Cells,
    bytes_up: Vec<Counter>,
    bytes_down: Vec<Counter>,
    reloads: Vec<Counter>,
    lookups: Cells,
    lookups_dropped: Cells,
    untold: Counter,
    dial: Histogram,
    resolve: Histogram,
    sessions_open: Arc<AtomicU64>,
    flows_open: Arc<AtomicU64>,
    in_force: Mutex<Option<Revision>>,
    rules: Gauge,
    loaded: Gauge,
    scraped: Scraped,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics that stand at zero.
    #[must_use]
    pub fn new() -> Self {
        // It fails for want of a bound, and there are some.
        let builder = PrometheusBuilder::new().set_buckets(SECONDS);
        let recorder = builder.unwrap_or_else(|_| PrometheusBuilder::new()).build_recorder();
        describe(&recorder);
        gauge(&recorder, "outgate_build_info", &[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        gauge(&recorder, "process_start_time_seconds", &[]).set(unix_seconds(SystemTime::now()));
        let bytes = |direction| -> Vec<Counter> {
            let of = |kind: &Kind| {
                counter(&recorder, "outgate_bytes_total", &[("kind", kind.name()), ("direction", direction)])
            };
            // A lookup has no bytes of its own; its kind is the last.
            Kind::ALL.iter().filter(|kind| **kind != Kind::Dns).map(of).collect()
        };
        let reload =
            |result: &ReloadResult| counter(&recorder, "outgate_reloads_total", &[("result", result.name())]);
        Self {
            handle: recorder.handle(),
            decisions: Cells::new(Kind::ALL.len() * Reason::ALL.len()),
            closes: Cells::new(Kind::ALL.len() * Reason::ALL.len() * EndedBy::ALL.len() * 2),
            bytes_up: bytes("up"),
            bytes_down: bytes("down"),
            lookups: Cells::new(Transport::ALL.len() * ANSWERED_BY.len()),
            lookups_dropped: Cells::new(Reason::ALL.len()),
            untold: counter(&recorder, "outgate_network_untold_total", &[]),
            reloads: ReloadResult::ALL.iter().map(reload).collect(),
            dial: histogram(&recorder, "outgate_dial_seconds"),
            resolve: histogram(&recorder, "outgate_resolve_seconds"),
            sessions_open: Arc::default(),
            flows_open: Arc::default(),
            in_force: Mutex::new(None),
            rules: gauge(&recorder, "outgate_policy_rules", &[]),
            loaded: gauge(&recorder, "outgate_policy_loaded_timestamp_seconds", &[]),
            scraped: Scraped::new(&recorder),
            recorder,
        }
    }

    /// The counters of one listener, to be held by its accept loop.
    #[must_use]
    pub fn listener(&self, name: &'static str) -> ListenerMetrics {
        ListenerMetrics {
            sessions: counter(&self.recorder, "outgate_sessions_total", &[("listener", name)]),
            pauses: counter(&self.recorder, "outgate_accept_pauses_total", &[("listener", name)]),
            open: Arc::clone(&self.sessions_open),
        }
    }

    /// A tunnel or request is in progress until the value returned is dropped.
    #[must_use]
    pub fn flow_opened(&self) -> Open {
        Open::new(&self.flows_open)
    }

    /// A dial took this long, whether or not it succeeded.
    pub fn dialed(&self, took: Duration) {
        self.dial.record(took);
    }

    /// A name took this long to resolve, whether or not it did.
    pub fn resolved(&self, took: Duration) {
        self.resolve.record(took);
    }

    /// The number of open sessions.
    #[must_use]
    pub fn sessions_open(&self) -> u64 {
        self.sessions_open.load(Ordering::Relaxed)
    }

    /// The number of tunnels and requests in progress.
    #[must_use]
    pub fn flows_open(&self) -> u64 {
        self.flows_open.load(Ordering::Relaxed)
    }

    /// Folds the histograms' samples into their buckets. Without this, called every few seconds, they grow
    /// as long as nobody reads the metrics.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// Everything in the Prometheus text format, with the process and the audit file as they are now.
    #[must_use]
    pub fn exposition(&self, audit: AuditCounts) -> String {
        self.scraped.set(self.sessions_open(), self.flows_open(), audit);
        let mut text = self.handle.render();
        if let Some(revision) = *self.in_force.lock().unwrap_or_else(PoisonError::into_inner) {
            // Not a gauge of the recorder, which would keep one for every revision there ever was.
            _ = write!(
                text,
                "# HELP outgate_policy_info The revision in force.\n# TYPE outgate_policy_info gauge\n\
                 outgate_policy_info{{revision=\"{revision}\"}} 1\n"
            );
        }
        text
    }

    pub(crate) fn decided(&self, event: &Decided<'_>) {
        let Decided { flow, reason, .. } = event;
        let at = flow.kind as usize * Reason::ALL.len() + *reason as usize;
        self.decisions.count(at, || {
            let labels =
                [("kind", flow.kind.name()), ("verdict", event.verdict().name()), ("reason", reason.code())];
            counter(&self.recorder, DECISIONS, &labels)
        });
    }

    /// So many lookups were answered.
    pub(crate) fn looked_up(&self, labels: LookupLabels, count: u64) {
        let LookupLabels { reason, transport, answered_by } = labels;
        self.decisions.add(Kind::Dns as usize * Reason::ALL.len() + reason as usize, count, || {
            let verdict = Verdict::of(reason).name();
            let labels = [("kind", Kind::Dns.name()), ("verdict", verdict), ("reason", reason.code())];
            counter(&self.recorder, DECISIONS, &labels)
        });
        let by = ANSWERED_BY.iter().position(|known| *known == answered_by).unwrap_or_default();
        self.lookups.add(transport as usize * ANSWERED_BY.len() + by, count, || {
            let labels = [("transport", transport.name()), ("answered_by", answered_by)];
            counter(&self.recorder, "outgate_dns_answers_total", &labels)
        });
    }

    pub(crate) fn forwarded(&self, event: &Forwarded) {
        let (kind, reason) = (Kind::Network, event.reason);
        self.decisions.count(kind as usize * Reason::ALL.len() + reason as usize, || {
            let labels =
                [("kind", kind.name()), ("verdict", event.verdict().name()), ("reason", reason.code())];
            counter(&self.recorder, DECISIONS, &labels)
        });
    }

    pub(crate) fn forwarded_bytes(&self, event: &ForwardedClosed) {
        add(&self.bytes_up, Kind::Network as usize, event.bytes_up.unwrap_or(0));
        add(&self.bytes_down, Kind::Network as usize, event.bytes_down.unwrap_or(0));
    }

    pub(crate) fn untold(&self, records: u64) {
        self.untold.increment(records);
    }

    pub(crate) fn lookup_dropped(&self, reason: Reason) {
        self.lookups_dropped.count(reason as usize, || {
            counter(&self.recorder, "outgate_dns_dropped_total", &[("reason", reason.code())])
        });
    }

    pub(crate) fn closed(&self, event: &Closed<'_>) {
        let Closed { flow, verdict, reason, ended_by, .. } = event;
        let at = flow.kind as usize * Reason::ALL.len() + *reason as usize;
        let at = (at * EndedBy::ALL.len() + *ended_by as usize) * 2 + usize::from(*verdict == Verdict::Deny);
        self.closes.count(at, || {
            let labels = [
                ("kind", flow.kind.name()),
                ("verdict", verdict.name()),
                ("reason", reason.code()),
                ("ended_by", ended_by.name()),
            ];
            counter(&self.recorder, CLOSES, &labels)
        });
        add(&self.bytes_up, flow.kind as usize, event.bytes_up);
        add(&self.bytes_down, flow.kind as usize, event.bytes_down);
    }

    pub(crate) fn policy_read(&self, event: &PolicyRead<'_>) {
        add(&self.reloads, event.result as usize, 1);
        match event.result {
            ReloadResult::Applied => {
                *self.in_force.lock().unwrap_or_else(PoisonError::into_inner) = event.revision;
                self.rules.set(event.rules as f64);
                self.loaded.set(event.time.as_duration().as_secs_f64());
            }
            ReloadResult::Unchanged | ReloadResult::Rejected => {}
        }
    }
}

/// The counters of one listener.
#[derive(Clone)]
pub struct ListenerMetrics {
    sessions: Counter,
    pauses: Counter,
    open: Arc<AtomicU64>,
}

impl std::fmt::Debug for ListenerMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ListenerMetrics").finish_non_exhaustive()
    }
}

impl ListenerMetrics {
    /// A connection was accepted; it is open until the value returned is dropped.
    #[must_use]
    pub fn session_opened(&self) -> Open {
        self.sessions.increment(1);
        Open::new(&self.open)
    }

    /// Accepting pauses for want of file descriptors or memory.
    pub fn accept_paused(&self) {
        self.pauses.increment(1);
    }
}

/// Something that is counted as open until this is dropped, however its task ends.
#[derive(Debug)]
pub struct Open(Arc<AtomicU64>);

impl Open {
    fn new(count: &Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counters of one metric whose labels are numbered. One that was never counted is not shown, so that the
/// exposition is not a page of zeros.
struct Cells(Vec<OnceLock<Counter>>);

impl Cells {
    fn new(cells: usize) -> Self {
        Self((0..cells).map(|_| OnceLock::new()).collect())
    }

    fn count(&self, at: usize, register: impl FnOnce() -> Counter) {
        self.add(at, 1, register);
    }

    fn add(&self, at: usize, count: u64, register: impl FnOnce() -> Counter) {
        if let Some(cell) = self.0.get(at) {
            cell.get_or_init(register).increment(count);
        }
    }
}

fn add(counters: &[Counter], at: usize, count: u64) {
    if let Some(counter) = counters.get(at) {
        counter.increment(count);
    }
}

/// What is looked at when the metrics are read, and not before.
struct Scraped {
    sessions_open: Gauge,
    flows_open: Gauge,
    queue_records: Gauge,
    queue_bytes: Gauge,
    written: Counter,
    dropped: Counter,
    write_errors: Counter,
    rotations: Counter,
    memory: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
}

impl Scraped {
    fn new(recorder: &PrometheusRecorder) -> Self {
        let gauge = |name| gauge(recorder, name, &[]);
        let counter = |name| counter(recorder, name, &[]);
        Self {
            sessions_open: gauge("outgate_sessions_open"),
            flows_open: gauge("outgate_flows_open"),
            queue_records: gauge("outgate_audit_queue_records"),
            queue_bytes: gauge("outgate_audit_queue_bytes"),
            written: counter("outgate_audit_records_total"),
            dropped: counter("outgate_audit_dropped_total"),
            write_errors: counter("outgate_audit_write_errors_total"),
            rotations: counter("outgate_audit_rotations_total"),
            memory: gauge("process_resident_memory_bytes"),
            open_fds: gauge("process_open_fds"),
            max_fds: gauge("process_max_fds"),
        }
    }

    fn set(&self, sessions_open: u64, flows_open: u64, audit: AuditCounts) {
        self.sessions_open.set(sessions_open as f64);
        self.flows_open.set(flows_open as f64);
        self.queue_records.set(audit.queued_records as f64);
        self.queue_bytes.set(audit.queued_bytes as f64);
        self.written.absolute(audit.written);
        self.dropped.absolute(audit.dropped);
        self.write_errors.absolute(audit.write_errors);
        self.rotations.absolute(audit.rotations);
        let looked_at = [
            (&self.memory, resident_memory()),
            (&self.open_fds, open_fds()),
            (&self.max_fds, getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft)),
        ];
        for (gauge, value) in looked_at {
            // What the system does not tell stays at what it last told.
            value.into_iter().for_each(|value| gauge.set(value as f64));
        }
    }
}

/// In bytes (proc_pid_status(5), `VmRSS`).
fn resident_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// From Linux 6.2 on the folder's size is the count; before, it is 0 and the entries are counted.
fn open_fds() -> Option<u64> {
    match fs::metadata("/proc/self/fd").ok()?.len() {
        0 => Some(fs::read_dir("/proc/self/fd").ok()?.count() as u64),
        count => Some(count),
    }
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn describe(recorder: &PrometheusRecorder) {
    for (name, text) in COUNTERS {
        recorder.describe_counter((*name).into(), None, (*text).into());
    }
    for (name, text) in GAUGES {
        recorder.describe_gauge((*name).into(), None, (*text).into());
    }
    for (name, text) in HISTOGRAMS {
        recorder.describe_histogram((*name).into(), None, (*text).into());
    }
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

fn counter(
    recorder: &PrometheusRecorder,
    name: &'static str,
    labels: &[(&'static str, &'static str)],
) -> Counter {
    recorder.register_counter(&key(name, labels), &METADATA)
}

fn gauge(
    recorder: &PrometheusRecorder,
    name: &'static str,
    labels: &[(&'static str, &'static str)],
) -> Gauge {
    recorder.register_gauge(&key(name, labels), &METADATA)
}

fn histogram(recorder: &PrometheusRecorder, name: &'static str) -> Histogram {
    recorder.register_histogram(&key(name, &[]), &METADATA)
}

fn key(name: &'static str, labels: &[(&'static str, &'static str)]) -> Key {
    let labels: Vec<Label> = labels.iter().map(|(key, value)| Label::from_static_parts(key, value)).collect();
    Key::from_parts(name, labels)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::record::Lookup;
    use crate::record::tests::{connect, time};

    #[test]
    fn every_kind_and_reason_has_a_counter_of_its_own() {
        let metrics = Metrics::new();
        for kind in Kind::ALL {
            for reason in Reason::ALL {
                let flow = crate::record::Flow { kind: *kind, ..connect("pypi.org:443") };
                metrics.decided(&Decided::by_gate(&flow, *reason, None, time()));
            }
        }
        let text = metrics.exposition(AuditCounts::default());
        for kind in Kind::ALL {
            for reason in Reason::ALL {
                let verdict = if reason.allows() { "allow" } else { "deny" };
                let line = format!(
                    "{DECISIONS}{{kind=\"{}\",verdict=\"{verdict}\",reason=\"{}\"}} 1",
                    kind.name(),
                    reason.code()
                );
                assert_eq!(text.lines().filter(|found| *found == line).count(), 1, "{line}\n{text}");
            }
        }
    }

    #[test]
    fn every_way_to_close_has_a_counter_of_its_own() {
        let metrics = Metrics::new();
        let flow = connect("pypi.org:443");
        let mut lines = HashSet::new();
        for reason in Reason::ALL {
            for ended_by in EndedBy::ALL {
                for verdict in [Verdict::Allow, Verdict::Deny] {
                    metrics.closed(&closed(&flow, verdict, *reason, *ended_by));
                    lines.insert(format!(
                        "{CLOSES}{{kind=\"connect\",verdict=\"{}\",reason=\"{}\",ended_by=\"{}\"}} 1",
                        verdict.name(),
                        reason.code(),
                        ended_by.name()
                    ));
                }
            }
        }
        let text = metrics.exposition(AuditCounts::default());
        let found: HashSet<String> =
            text.lines().filter(|line| line.starts_with(CLOSES)).map(str::to_owned).collect();
        assert_eq!(found, lines);
        let bytes = 2 * lines.len();
        assert!(
            text.contains(&format!("outgate_bytes_total{{kind=\"connect\",direction=\"up\"}} {bytes}\n"))
        );
    }

    #[test]
    fn what_is_open_is_counted_however_its_task_ends() {
        let metrics = Metrics::new();
        let listener = metrics.listener("proxy");
        let (first, second) = (listener.session_opened(), listener.session_opened());
        let flow = metrics.flow_opened();
        assert_eq!((metrics.sessions_open(), metrics.flows_open()), (2, 1));
        _ = std::panic::catch_unwind(move || {
            let _open = (first, flow);
            std::panic::resume_unwind(Box::new(()));
        });
        assert_eq!((metrics.sessions_open(), metrics.flows_open()), (1, 0));
        drop(second);
        let text = metrics.exposition(AuditCounts::default());
        assert!(text.contains("outgate_sessions_total{listener=\"proxy\"} 2\n"), "{text}");
        assert!(text.contains("outgate_sessions_open 0\n"), "{text}");
    }

    #[test]
    fn durations_are_buckets_and_survive_upkeep() {
        let metrics = Metrics::new();
        metrics.dialed(Duration::from_millis(3));
        metrics.upkeep();
        metrics.dialed(Duration::from_secs(60));
        metrics.resolved(Duration::from_micros(10));
        let text = metrics.exposition(AuditCounts::default());
        for line in [
            "outgate_dial_seconds_bucket{le=\"0.0025\"} 0",
            "outgate_dial_seconds_bucket{le=\"0.005\"} 1",
            "outgate_dial_seconds_bucket{le=\"10\"} 1",
            "outgate_dial_seconds_bucket{le=\"+Inf\"} 2",
            "outgate_resolve_seconds_bucket{le=\"0.001\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn only_the_revision_in_force_is_shown() {
        let metrics = Metrics::new();
        assert!(!metrics.exposition(AuditCounts::default()).contains("outgate_policy_info"));
        for (revision, result) in
            [(1, ReloadResult::Applied), (2, ReloadResult::Applied), (3, ReloadResult::Rejected)]
        {
            metrics.policy_read(&PolicyRead {
                time: time(),
                trigger: crate::record::Trigger::File,
                result,
                revision: Some(Revision::new([revision; 6])),
                previous: None,
                rules: usize::from(revision),
                errors: &[],
                revoked: 0,
                draining: 0,
            });
        }
        let text = metrics.exposition(AuditCounts::default());
        assert_eq!(text.matches("outgate_policy_info{").count(), 1);
        assert!(text.contains("outgate_policy_info{revision=\"020202020202\"} 1\n"), "{text}");
        assert!(text.contains("outgate_policy_rules 2\n"), "{text}");
        assert!(text.contains("outgate_reloads_total{result=\"applied\"} 2\n"), "{text}");
        assert!(text.contains("outgate_reloads_total{result=\"rejected\"} 1\n"), "{text}");
    }

    #[test]
    fn the_process_and_the_audit_file_are_looked_at_when_read() {
        let metrics = Metrics::new();
        let text =
            metrics.exposition(AuditCounts { dropped: 7, queued_records: 3, ..AuditCounts::default() });
        assert!(text.contains("outgate_audit_dropped_total 7\n"), "{text}");
        assert!(text.contains("outgate_audit_queue_records 3\n"), "{text}");
        for name in ["process_resident_memory_bytes", "process_open_fds", "process_max_fds"] {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
            assert!(value.parse::<f64>().unwrap() > 0.0, "{name}");
        }
    }

    #[test]
    fn every_metric_is_described() {
        let metrics = Metrics::new();
        _ = metrics.listener("proxy").session_opened();
        metrics.dialed(Duration::ZERO);
        metrics.resolved(Duration::ZERO);
        let flow = connect("pypi.org:443");
        metrics.decided(&Decided::by_gate(&flow, Reason::NoRule, None, time()));
        metrics.closed(&closed(&flow, Verdict::Allow, Reason::Rule, EndedBy::Client));
        metrics.looked_up(Lookup(&crate::record::dns::tests::answered(Reason::Rule)).labels(), 1);
        metrics.lookup_dropped(Reason::LookupRate);
        let text = metrics.exposition(AuditCounts::default());
        let names = |prefix: &str| -> HashSet<String> {
            let name = |line: &str| line.strip_prefix(prefix)?.split(' ').next().map(str::to_owned);
            text.lines().filter_map(name).collect()
        };
        assert_eq!(names("# HELP "), names("# TYPE "));
        assert_eq!(names("# TYPE ").len(), COUNTERS.len() + GAUGES.len() + HISTOGRAMS.len());
    }

    fn closed(flow: &crate::record::Flow, verdict: Verdict, reason: Reason, ended_by: EndedBy) -> Closed<'_> {
        Closed {
            flow,
            time: time(),
            verdict,
            reason,
            rule: None,
            enforcement: outgate_rules::Enforcement::Enforce,
            revision: None,
            dialled: None,
            bytes_up: 2,
            bytes_down: 0,
            duration: Duration::ZERO,
            ended_by,
            status: None,
        }
    }
}
