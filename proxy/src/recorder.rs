//! The one outlet of events: each is counted, told on the console and put on record, and nothing else in the
//! gate counts or writes records.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use outgate_dns::event::{Answered, Observer, Room, Said};
use outgate_rules::Reason;
use tokio::runtime::Handle;

use crate::audit::{Audit, AuditUnavailable, Lines, Unflushed};
use crate::console::Console;
use crate::metrics::Metrics;
use crate::network::Event;
use crate::record::dns::{LookupLabels, Pen};
use crate::record::{Closed, Decided, Lookup, PolicyRead, Verdict, write_line};
use crate::tally::Tally;

/// How often the metrics' samples are folded.
const UPKEEP: Duration = Duration::from_secs(5);

/// A record that has to wait for room.
#[derive(Debug)]
pub struct Unqueued(Vec<u8>);

/// Takes events and passes each to the three outlets.
#[derive(Debug)]
pub struct Recorder {
    metrics: Metrics,
    console: Console,
    audit: Audit,
    /// What was wanted, where somebody asks at the end.
    tally: Option<Arc<Tally>>,
}

impl Recorder {
    /// A recorder over these outlets.
    #[must_use]
    pub fn new(metrics: Metrics, console: Console, audit: Audit) -> Self {
        Self { metrics, console, audit, tally: None }
    }

    /// The same, which also keeps a tally.
    #[must_use]
    pub fn with_tally(self, tally: Arc<Tally>) -> Self {
        Self { tally: Some(tally), ..self }
    }

    /// A decision has fallen. Comes back when its record is written; before that nothing may pass.
    ///
    /// # Errors
    /// When it could not be written in time: what the decision allows is denied for
    /// [`outgate_rules::Reason::AuditUnavailable`], and a [`Closed`] says so once records are written again.
    pub async fn decided(&self, event: &Decided<'_>) -> Result<(), AuditUnavailable> {
        self.metrics.decided(event);
        self.tally(|tally| tally.decided(event));
        if event.verdict() == Verdict::Deny {
            self.console.denied(|| event.denial());
        }
        match with_line(|line| event.write_line(line), |line| self.audit.begin(line))? {
            None => Ok(()),
            Some(unwritten) => self.audit.end(unwritten).await,
        }
    }

    /// A flow that was allowed is over. Gives its record back where there is no room for it now, to be handed over by
    /// [`Recorder::hand_over`].
    #[must_use]
    pub fn closed(&self, event: &Closed<'_>) -> Option<Unqueued> {
        self.metrics.closed(event);
        self.tally(|tally| tally.closed(event));
        if event.is_refusal() {
            self.console.denied(|| event.denial());
        }
        let hand_over = |line: &[u8]| (!self.audit.hand_over_one_now(line)).then(|| Unqueued(line.to_vec()));
        // A vector takes every line.
        with_line(|line| event.write_line(line), hand_over).ok()?
    }

    /// Comes back when the record is queued, which may take as long as an outage of the audit file.
    pub async fn hand_over(&self, record: Unqueued) {
        self.audit.hand_over(record.0).await;
    }

    /// The policy was read. Comes back when its record is written.
    ///
    /// # Errors
    /// When it could not be written in time.
    pub async fn policy(&self, event: &PolicyRead<'_>) -> Result<(), AuditUnavailable> {
        self.metrics.policy_read(event);
        let mut line = Vec::new();
        write_line(event, &mut line).map_err(|_| AuditUnavailable)?;
        self.audit.write(&line).await
    }

    fn tally(&self, count: impl FnOnce(&Tally)) {
        if let Some(tally) = &self.tally {
            count(tally);
        }
    }

    /// What is measured where there is no event.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Where a person is told things.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Where the records go.
    #[must_use]
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// All metrics in the Prometheus text format.
    #[must_use]
    pub fn exposition(&self) -> String {
        self.metrics.exposition(self.audit.counts())
    }

    /// Keeps the metrics from growing while nobody reads them. Never comes back.
    pub async fn keep_up(&self) -> ! {
        loop {
            tokio::time::sleep(UPKEEP).await;
            self.metrics.upkeep();
        }
    }

    /// Takes no more events, and brings what is queued to the disk.
    ///
    /// # Errors
    /// When that was not done within `deadline`: says how many records are lost.
    pub async fn flush_and_close(&self, deadline: Duration) -> Result<(), Unflushed> {
        self.audit.flush_and_close(deadline).await
    }
}

/// Passes what the DNS server tells to the recorder. A lookup's record is written before its answer is sent.
#[derive(Clone, Debug)]
pub struct Lookups(pub Arc<Recorder>);

/// Lookups that a thread has heard of and not yet handed over.
#[derive(Debug, Default)]
struct Heard {
    lines: Lines,
    pen: Pen,
    /// Counted together: threads that share counters take them from each other with every count.
    counts: LookupCounts,
}

type LookupCounts = Vec<(LookupLabels, u64)>;

thread_local! {
    /// The room of the lines is used again and again.
    static HEARD: RefCell<Heard> = RefCell::default();
}

impl Observer for Lookups {
    fn answered(&self, event: &Answered) {
        let lookup = Lookup(event);
        HEARD.with_borrow_mut(|heard| {
            self.0.count(&lookup, &mut heard.counts);
            // A vector takes every line.
            _ = heard.lines.add(|line| heard.pen.write_line(&lookup, line));
        });
    }

    fn answered_again(&self, event: &Answered, said: &mut Said) {
        let lookup = Lookup(event);
        HEARD.with_borrow_mut(|heard| {
            self.0.count(&lookup, &mut heard.counts);
            _ = heard.lines.add(|line| heard.pen.write_line_again(&lookup, said, line));
        });
    }

    fn hand_over(&self) -> Option<Room> {
        HEARD.with_borrow_mut(|heard| {
            for (labels, count) in heard.counts.drain(..) {
                self.0.metrics.looked_up(labels, count);
            }
            let recorder = Arc::clone(&self.0);
            if let Ok(written) = recorder.audit.write_all_now(&heard.lines) {
                heard.lines.clear();
                let wait = |written| Box::pin(async move { recorder.audit.wait_for(written).await }) as Room;
                return written.map(wait);
            }
            let lines = std::mem::take(&mut heard.lines);
            Some(Box::pin(async move { recorder.audit.write_all(&lines).await }) as Room)
        })
    }

    fn dropped(&self, reason: Reason) {
        self.0.metrics.lookup_dropped(reason);
    }
}

impl Recorder {
    /// A lookup was answered: counts it, and tells the console.
    fn count(&self, event: &Lookup<'_>, counts: &mut LookupCounts) {
        self.tally(|tally| tally.looked_up(event.0));
        let labels = event.labels();
        match counts.iter_mut().find(|(counted, _)| *counted == labels) {
            Some((_, count)) => *count += 1,
            None => counts.push((labels, 1)),
        }
        if let Some(took) = event.resolved_in() {
            self.metrics.resolved(took);
        }
        if event.verdict() == Verdict::Deny {
            self.console.denied(|| event.denial());
        }
    }
}

impl Recorder {
    /// The kernel has passed or refused something. Comes back when the records are queued, which may take as long as
    /// an outage of the audit file. For a thread that is none of `runtime`'s.
    pub(crate) fn network(&self, events: &[Event], runtime: &Handle) {
        let mut lines = Lines::default();
        for event in events {
            self.network_event(event, &mut lines);
        }
        if !self.audit.hand_over_now(&lines) {
            runtime.block_on(self.audit.hand_over_all(&lines));
        }
    }

    fn network_event(&self, event: &Event, lines: &mut Lines) {
        // Lines are made of what serializes; see `write_line`.
        let written = match event {
            Event::Forwarded(event) => {
                self.metrics.forwarded(event);
                self.console.denied(|| event.denial());
                lines.add(|line| write_line(event, line))
            }
            Event::Closed(event) => {
                self.metrics.forwarded_bytes(event);
                lines.add(|line| write_line(event, line))
            }
            Event::Untold(event) => {
                self.metrics.untold(event.records);
                lines.add(|line| write_line(event, line))
            }
        };
        _ = written;
    }
}

thread_local! {
    /// The room of a line is used again and again.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Makes a record and hands it on. One that cannot be made cannot be written either.
fn with_line<T, E>(
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    hand_on: impl FnOnce(&[u8]) -> T,
) -> Result<T, AuditUnavailable> {
    LINE.with_borrow_mut(|line| {
        line.clear();
        write(line).map_err(|_| AuditUnavailable)?;
        Ok(hand_on(line))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::num::NonZeroU16;
    use std::path::Path;

    use outgate_rules::Reason;

    use super::*;
    use crate::audit::{AuditSettings, AuditTarget};
    use crate::console::tests::Heard;
    use crate::record::dns::tests::answered;
    use crate::record::tests::{connect, decide, time};
    use crate::record::{EndedBy, Verdict};

    pub(crate) const LONG: Duration = Duration::from_secs(600);
    pub(crate) const SHORT: Duration = Duration::from_millis(20);

    /// A recorder whose records go to `path`.
    pub(crate) fn recorder(path: &Path, heard: &Heard, deadline: Duration) -> Recorder {
        let keep = NonZeroU16::MIN;
        let target = AuditTarget::File { path: path.to_owned(), rotate: 1 << 30, keep };
        let settings = AuditSettings { deadline, ..AuditSettings::new(target) };
        let console = heard.console();
        let audit = Audit::open(settings, console.clone()).unwrap();
        Recorder::new(Metrics::new(), console, audit)
    }

    #[tokio::test]
    async fn one_event_reaches_all_three_outlets() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("audit.jsonl");
        let heard = Heard::default();
        let recorder = recorder(&path, &heard, LONG);
        let flow = connect("evil.example:443");
        let decision = decide("evil.example:443");
        recorder.decided(&Decided::by_rules(&flow, &decision, time())).await.unwrap();
        let record = fs::read_to_string(&path).unwrap();
        assert!(record.contains(r#""host":"evil.example""#) && record.contains(r#""reason":"no-rule""#));
        assert_eq!(
            heard.text(recorder.console()),
            "outgate: denied 10.1.0.4 -> evil.example:443: no rule allows it\n"
        );
        let counted = "outgate_decisions_total{kind=\"connect\",verdict=\"deny\",reason=\"no-rule\"} 1\n";
        assert!(recorder.exposition().contains(counted));
    }

    #[tokio::test]
    async fn what_is_allowed_is_not_told_and_what_is_refused_later_is() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("audit.jsonl");
        let heard = Heard::default();
        let recorder = recorder(&path, &heard, LONG);
        let flow = connect("pypi.org:443");
        let decision = decide("pypi.org:443");
        recorder.decided(&Decided::by_rules(&flow, &decision, time())).await.unwrap();
        assert_eq!(heard.text(recorder.console()), "");
        let closed = Closed {
            flow: &flow,
            time: time(),
            verdict: Verdict::Deny,
            reason: Reason::AddressLoopback,
            rule: None,
            enforcement: outgate_rules::Enforcement::Enforce,
            revision: Some(decision.revision),
            dialled: None,
            bytes_up: 0,
            bytes_down: 0,
            duration: Duration::ZERO,
            ended_by: EndedBy::Gate,
            status: None,
        };
        assert!(recorder.closed(&closed).is_none());
        recorder.flush_and_close(LONG).await.unwrap();
        let told = heard.text(recorder.console());
        assert_eq!(told, "outgate: denied 10.1.0.4 -> pypi.org:443: the address is loopback\n");
        let records = fs::read_to_string(&path).unwrap();
        let events: Vec<serde_json::Value> =
            records.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(events.len(), 2);
        assert_eq!(events[0]["session"], events[1]["session"]);
        assert_eq!([&events[0]["event"], &events[1]["event"]], ["decision", "close"]);
    }

    #[tokio::test]
    async fn a_lookup_is_counted_and_told_at_once_and_written_before_its_wait_is_over() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("audit.jsonl");
        let heard = Heard::default();
        let lookups = Lookups(Arc::new(recorder(&path, &heard, LONG)));
        let events = [answered(Reason::NoRule), answered(Reason::Rule)];
        events.iter().for_each(|event| lookups.answered(event));
        if let Some(wait) = lookups.hand_over() {
            wait.await;
        }
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
        assert!(lookups.hand_over().is_none(), "there is nothing to wait for");
        lookups.dropped(Reason::LookupRate);
        let told = heard.text(lookups.0.console());
        assert_eq!(told, "outgate: denied 10.1.0.4 -> pypi.org A: no rule allows it\n");
        let metrics = lookups.0.exposition();
        for line in [
            "outgate_decisions_total{kind=\"dns\",verdict=\"deny\",reason=\"no-rule\"} 1",
            "outgate_dns_answers_total{transport=\"udp\",answered_by=\"upstream\"} 2",
            "outgate_dns_dropped_total{reason=\"lookup-rate\"} 1",
        ] {
            assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
        }
    }

    #[tokio::test]
    async fn lookups_wait_for_an_audit_file_that_stands_still() {
        let heard = Heard::default();
        let lookups = Lookups(Arc::new(recorder(Path::new("/dev/full"), &heard, SHORT)));
        let events = vec![answered(Reason::NoRule); 100];
        let told = || {
            events.iter().for_each(|event| lookups.answered(event));
            lookups.hand_over()
        };
        // The queue holds 4 MiB: the last of these find no room. All waits end when the file is closed.
        let waits: Vec<_> = (0..1000).map(|_| tokio::spawn(told().unwrap())).collect();
        tokio::time::sleep(SHORT * 2).await;
        assert!(waits.iter().all(|wait| !wait.is_finished()));
        _ = lookups.0.flush_and_close(SHORT).await;
        for wait in waits {
            wait.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_decision_that_cannot_be_recorded_does_not_hold() {
        let heard = Heard::default();
        let recorder = recorder(Path::new("/dev/full"), &heard, SHORT);
        let flow = connect("pypi.org:443");
        let decision = decide("pypi.org:443");
        let decided = recorder.decided(&Decided::by_rules(&flow, &decision, time())).await;
        assert_eq!(Reason::from(decided.unwrap_err()), Reason::AuditUnavailable);
    }
}
