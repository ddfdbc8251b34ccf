//! Putting a policy in force, at start and again: by a signal, a changed file, `outgate reload`, or because a
//! rule expired.
//!
//! A reload is a swap of an immutable rule set. A policy with a mistake in it changes nothing, loudly. Open
//! flows are decided again by the rules that now hold.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use notify::{RecursiveMode, Watcher};
use outgate_rules::document::{Diagnostic, Diagnostics, Severity};
use outgate_rules::policy::{Compiled, Tags};
use outgate_rules::{Enforcement, Isolation, OwnAddresses, Revision, RuleSet};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::admin::GateState;
use crate::appliance::Appliance;
use crate::flow::Revoked;
use crate::gate::Gate;
use crate::own;
use crate::policy::{PolicyFiles, Stamp};
use crate::record::{PolicyRead, ReloadResult, Trigger};
use crate::systemd;

/// How long a change is given to be followed by others: an editor writes, renames and sets modes.
const SETTLE: Duration = Duration::from_millis(200);
/// How often the files are looked at even if nothing was told: not every file system tells.
const POLL: Duration = Duration::from_secs(30);
/// The longest sleep until an expiry: the wall clock may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Puts policies in force.
#[derive(Debug)]
pub struct Reloader {
    gate: Arc<Gate>,
    state: Arc<GateState>,
    files: PolicyFiles,
    /// The listeners, for the addresses that lead back here.
    listeners: Vec<std::net::SocketAddr>,
    /// The kernel's part of the rules, where the gate is a router.
    appliance: Option<Arc<Appliance>>,
    loaded: Mutex<Loaded>,
    /// Told when other rules are in force: expiries and files may be others.
    changed: watch::Sender<()>,
}

/// What is remembered of the policy in force.
#[derive(Debug)]
struct Loaded {
    tags: Tags,
    files: Vec<String>,
    /// The files as they were before they were read: a change while they are being read is one to come.
    seen: Vec<Stamp>,
}

/// What came of a reload, for who asked.
#[derive(Debug)]
pub struct Report {
    /// Whether the policy on disk is now in force.
    pub in_force: bool,
    /// In words, of one or more lines.
    pub text: String,
}

impl Reloader {
    /// Puts a policy that was compiled at start in force and records that. `before` are the stamps of its files
    /// from before they were read.
    pub async fn start(
        gate: Arc<Gate>,
        state: Arc<GateState>,
        files: PolicyFiles,
        listeners: Vec<std::net::SocketAddr>,
        appliance: Option<Arc<Appliance>>,
        compiled: Compiled,
        before: Vec<Stamp>,
    ) -> Arc<Self> {
        let seen = since(before, files.stamps(&compiled.files), &compiled.files);
        let loaded = Mutex::new(Loaded { tags: compiled.tags, files: compiled.files, seen });
        let rules = Arc::new(compiled.rules);
        let changed = watch::Sender::new(());
        let reloader = Self { gate, state, files, listeners, appliance, loaded, changed };
        reloader.gate.set_own(reloader.own());
        let loaded = reloader.loaded.lock().await;
        reloader.applied(&rules, Trigger::Start, None, &loaded.files).await;
        drop(loaded);
        Arc::new(reloader)
    }

    /// Reads the policy again and puts it in force, if there is no mistake in it.
    pub async fn reload(&self, trigger: Trigger) -> Report {
        let mut loaded = self.loaded.lock().await;
        // The service manager hears of one reload after the other: the end of this one must not pass for that of the
        // next, whose files may be others.
        if trigger == Trigger::Signal {
            systemd::reloading();
        }
        let report = self.read_again(&mut loaded, trigger).await;
        match trigger {
            Trigger::Signal => systemd::ready(&report.text),
            Trigger::Start | Trigger::File | Trigger::Command | Trigger::Expiry => {
                systemd::status(&report.text);
            }
        }
        report
    }

    async fn read_again(&self, loaded: &mut Loaded, trigger: Trigger) -> Report {
        let (files, tags) = (self.files.clone(), loaded.tags.clone());
        loaded.seen = self.files.stamps(&loaded.files);
        let compiled = tokio::task::spawn_blocking(move || files.load(Some(&tags), Timestamp::now())).await;
        match compiled {
            Ok(Ok(compiled)) => {
                loaded.tags = compiled.tags;
                loaded.files = compiled.files;
                loaded.seen =
                    since(std::mem::take(&mut loaded.seen), self.files.stamps(&loaded.files), &loaded.files);
                let previous = self.gate.rules().settings().revision;
                let rules = Arc::new(compiled.rules);
                if let Err(error) = self.enforce_in_kernel(&rules).await {
                    return self.rejected(trigger, std::slice::from_ref(&error), &error).await;
                }
                let text = self.applied(&rules, trigger, Some(previous), &loaded.files).await;
                Report { in_force: true, text: with_warnings(text, &compiled.diagnostics) }
            }
            Ok(Err(diagnostics)) => {
                let mistakes = diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error);
                let errors: Vec<String> = mistakes.map(one_line).collect();
                self.rejected(trigger, &errors, &diagnostics.to_string()).await
            }
            Err(_) => self.rejected(trigger, &["the policy could not be compiled".to_owned()], "").await,
        }
    }

    async fn applied(
        &self,
        rules: &Arc<RuleSet>,
        trigger: Trigger,
        previous: Option<Revision>,
        files: &[String],
    ) -> String {
        let revision = rules.settings().revision;
        let result = if previous == Some(revision) { ReloadResult::Unchanged } else { ReloadResult::Applied };
        let own = self.own();
        self.gate.set_own(own.clone());
        self.gate.set_rules(Arc::clone(rules));
        let mut revoked = self.gate.flows.decide_again(rules, &own, Timestamp::now());
        revoked.closed += self.cut_in_kernel(rules).await;
        self.changed.send_replace(());
        self.tell(trigger, result, previous, revoked, &[], files).await;
        let text = in_force(rules, files.len());
        let revoked = told_revoked(revoked);
        if trigger != Trigger::Start && (result == ReloadResult::Applied || !revoked.is_empty()) {
            self.gate.recorder.console().notice(format!("{text}{revoked}"));
        }
        match result {
            ReloadResult::Unchanged => format!("unchanged: {text}{revoked}"),
            ReloadResult::Applied | ReloadResult::Rejected => format!("{text}{revoked}"),
        }
    }

    /// The kernel's part comes first: where it is refused, nothing has changed.
    async fn enforce_in_kernel(&self, rules: &Arc<RuleSet>) -> Result<(), String> {
        let Some(appliance) = self.appliance.clone() else { return Ok(()) };
        if let Some(why) = appliance.unkept(rules).into_iter().next() {
            return Err(why);
        }
        let rules = Arc::clone(rules);
        let enforced = tokio::task::spawn_blocking(move || appliance.enforce(&rules)).await;
        match enforced {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err("the kernel's rules could not be made".to_owned()),
        }
    }

    /// Cuts what the kernel let pass and no longer may. Says how many open flows that were.
    async fn cut_in_kernel(&self, rules: &Arc<RuleSet>) -> usize {
        let Some(appliance) = self.appliance.clone() else { return 0 };
        let (rules, ledger) = (Arc::clone(rules), Arc::clone(&self.gate.ledger));
        match tokio::task::spawn_blocking(move || appliance.cut(&rules, &ledger)).await {
            Ok(Ok(cut)) => cut.flows,
            Ok(Err(error)) => {
                // New packets meet the new rules in any case; answers of what is open may still come in.
                self.gate.recorder.console().notice(format!("flows in the kernel were not cut: {error}"));
                0
            }
            Err(_) => 0,
        }
    }

    async fn rejected(&self, trigger: Trigger, errors: &[String], text: &str) -> Report {
        let kept = self.gate.rules().settings().revision;
        self.tell(trigger, ReloadResult::Rejected, Some(kept), Revoked::default(), errors, &[]).await;
        let text = format!("{text}\nthe policy was not taken; revision {kept} stays in force");
        self.gate.recorder.console().notice(text.clone());
        Report { in_force: false, text }
    }

    async fn tell(
        &self,
        trigger: Trigger,
        result: ReloadResult,
        previous: Option<Revision>,
        revoked: Revoked,
        errors: &[String],
        files: &[String],
    ) {
        let rules = self.gate.rules();
        let event = PolicyRead {
            time: Timestamp::now(),
            trigger,
            result,
            revision: Some(rules.settings().revision),
            previous,
            rules: rules.len(),
            errors,
            revoked: revoked.closed,
            draining: revoked.draining,
        };
        self.state.policy_read(&event, files);
        // The policy is in force either way; that it went unrecorded is counted and told by the recorder.
        let _ = self.gate.recorder.policy(&event).await;
    }

    /// Open flows are decided again when a rule expires; the rules themselves already look at the clock.
    async fn expire(&self) {
        let rules = self.gate.rules();
        if let Err(error) = self.enforce_in_kernel(&rules).await {
            self.gate.recorder.console().notice(format!("an expired rule is still in the kernel: {error}"));
        }
        let mut revoked = self.gate.flows.decide_again(&rules, &self.gate.own(), Timestamp::now());
        revoked.closed += self.cut_in_kernel(&rules).await;
        let revision = Some(rules.settings().revision);
        self.tell(
            Trigger::Expiry,
            ReloadResult::Applied,
            revision,
            revoked,
            &[],
            &self.loaded.lock().await.files,
        )
        .await;
        self.gate.recorder.console().notice(format!("a rule has expired{}", told_revoked(revoked)));
    }

    /// Told from now on whenever other rules are in force.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Waits for expiries, one after the other.
    pub async fn watch_expiries(&self) {
        let mut changed = self.changed.subscribe();
        loop {
            let next = self.gate.rules().next_expiry(Timestamp::now());
            let sleep_for = next.map_or(LONGEST_SLEEP, |next| until(next).min(LONGEST_SLEEP));
            tokio::select! {
                () = sleep(sleep_for) => {}
                _ = changed.changed() => continue,
            }
            if next.is_some_and(|next| next <= Timestamp::now()) {
                self.expire().await;
            }
        }
    }

    /// Reloads when a file of the policy changes. Any event is only a hint: what the files say decides, and
    /// they are looked at now and then without one.
    pub async fn watch_files(&self) {
        let (tell, mut told) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |_| {
            // A hint that finds another one waiting adds nothing to it.
            let _ = tell.try_send(());
        })
        .ok();
        let mut watched: Vec<PathBuf> = Vec::new();
        let mut changed = self.changed.subscribe();
        loop {
            let folders = self.files.folders(&self.loaded.lock().await.files);
            if let Some(watcher) = &mut watcher {
                watch_folders(watcher, &mut watched, folders);
            }
            // Only now: what changed before the folders were watched is told by nobody.
            if self.has_changed().await {
                self.reload(Trigger::File).await;
            }
            tokio::select! {
                _ = told.recv() => settle(&mut told).await,
                () = sleep(POLL) => self.gate.set_own(self.own()),
                // Other rules may have other files.
                _ = changed.changed() => {}
            }
        }
    }

    async fn has_changed(&self) -> bool {
        let loaded = self.loaded.lock().await;
        self.files.stamps(&loaded.files) != loaded.seen
    }

    fn own(&self) -> OwnAddresses {
        OwnAddresses { listeners: self.listeners.clone(), interfaces: own::interfaces() }
    }
}

/// The stamps of the files that were read: from before that, except for those that nobody knew of before.
fn since(before: Vec<Stamp>, after: Vec<Stamp>, read: &[String]) -> Vec<Stamp> {
    let earlier = |path: &Path| before.iter().find(|(known, _)| known == path).cloned();
    let was_read = |path: &Path| read.iter().any(|file| Path::new(file) == path);
    after.into_iter().filter_map(|stamp| earlier(&stamp.0).or(was_read(&stamp.0).then_some(stamp))).collect()
}

/// Waits until no further hint comes for a while, but not for ever.
async fn settle(told: &mut mpsc::Receiver<()>) {
    let latest = Instant::now() + 5 * SETTLE;
    while Instant::now() < latest && timeout(SETTLE, told.recv()).await.is_ok() {}
}

fn watch_folders(watcher: &mut impl Watcher, watched: &mut Vec<PathBuf>, folders: Vec<PathBuf>) {
    if *watched == folders {
        return;
    }
    for gone in watched.iter().filter(|folder| !folders.contains(folder)) {
        // A folder that no longer exists is not watched either way.
        let _ = watcher.unwatch(gone);
    }
    for new in folders.iter().filter(|folder| !watched.contains(folder)) {
        // Where this fails, the poll remains.
        let _ = watcher.watch(new, RecursiveMode::NonRecursive);
    }
    *watched = folders;
}

/// `enforcing revision 1a2b3c4d5e6f: 12 rules from 1 file`
#[must_use]
pub fn in_force(rules: &RuleSet, files: usize) -> String {
    let settings = rules.settings();
    let verb = match settings.enforcement {
        Enforcement::Enforce => "enforcing",
        Enforcement::Report => "reporting, not enforcing,",
    };
    let mode = match settings.isolation {
        Isolation::AllowOnlyApprovedOutbound => "",
        Isolation::AllowInternetOutbound => ", the internet allowed",
    };
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    format!(
        "{verb} revision {}: {} from {}{mode}",
        settings.revision,
        plural(rules.len(), "rule"),
        plural(files, "file")
    )
}

fn told_revoked(revoked: Revoked) -> String {
    let counts = [
        (revoked.closed, "closed"),
        (revoked.draining, "draining"),
        (revoked.kept, "kept though no longer allowed"),
    ];
    let told: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    if told.is_empty() { String::new() } else { format!("; open flows: {}", told.join(", ")) }
}

fn with_warnings(text: String, diagnostics: &Diagnostics) -> String {
    if diagnostics.is_empty() { text } else { format!("{diagnostics}\n{text}") }
}

/// A diagnostic as a record has it: `policy.yaml:3: unknown key …`.
fn one_line(diagnostic: &Diagnostic) -> String {
    match &diagnostic.place {
        Some(place) => format!("{}:{}: {}", place.file, place.line, diagnostic.message),
        None => diagnostic.message.clone(),
    }
}

fn until(time: Timestamp) -> Duration {
    // A millisecond more, so that the moment has passed when the sleep ends.
    Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or_default() + Duration::from_millis(1)
}
