//! Upload limits: what one connection, and what one client in an hour, may send over a rule.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outgate_rules::{Reason, Rule};

/// The hour is sixty slots of a minute: an upload is forgotten an hour after its minute began.
const SLOTS: usize = 60;
const SLOT: Duration = Duration::from_secs(60);
/// Most (client, rule) pairs remembered at once. Beyond it the longest unused hour is forgotten first, which
/// takes as many clients as this to bring about.
const MAX_HOURS: usize = 65_536;

/// What clients have sent over rules that limit the hour. It outlives reloads: a changed policy does not
/// give an hour back.
#[derive(Debug)]
pub struct Hours {
    started: Instant,
    hours: Mutex<HashMap<HourKey, Arc<Mutex<Hour>>>>,
}

/// Whose hour over which rule. A rule is known by its file and name, which survive a reload.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct HourKey {
    client: IpAddr,
    file: Arc<str>,
    rule: Arc<str>,
}

/// Bytes sent in each of the last sixty minutes.
#[derive(Debug)]
struct Hour {
    slots: [u64; SLOTS],
    /// The minute, from the start of the process, that was charged last.
    minute: u64,
}

impl Hours {
    /// No upload yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { started: now, hours: Mutex::default() }
    }

    /// The meter of one flow that a rule admitted.
    pub fn meter(
        self: &Arc<Self>,
        client: IpAddr,
        rule: Option<&Rule>,
        connection: Option<Arc<AtomicU64>>,
    ) -> Meter {
        let meter = Meter {
            hours: Arc::clone(self),
            sent: AtomicU64::new(0),
            connection,
            limit: AtomicU64::new(u64::MAX),
            hourly: Mutex::new(None),
        };
        meter.set_rule(client, rule);
        meter
    }

    fn hour(&self, key: HourKey) -> Arc<Mutex<Hour>> {
        let mut hours = self.hours.lock().unwrap_or_else(PoisonError::into_inner);
        if hours.len() >= MAX_HOURS && !hours.contains_key(&key) {
            forget_one(&mut hours);
        }
        Arc::clone(hours.entry(key).or_insert_with(|| Arc::new(Mutex::new(Hour::new()))))
    }

    fn minute(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs() / SLOT.as_secs()
    }
}

fn forget_one(hours: &mut HashMap<HourKey, Arc<Mutex<Hour>>>) {
    let charged = |hour: &Arc<Mutex<Hour>>| hour.lock().unwrap_or_else(PoisonError::into_inner).minute;
    let unused = hours.iter().filter(|(_, hour)| Arc::strong_count(hour) == 1);
    if let Some(key) = unused.min_by_key(|(_, hour)| charged(hour)).map(|(key, _)| key.clone()) {
        hours.remove(&key);
    }
}

impl Hour {
    fn new() -> Self {
        Self { slots: [0; SLOTS], minute: 0 }
    }

    /// Takes at most `wanted` bytes out of what `limit` leaves in the hour that ends with `minute`.
    fn take(&mut self, wanted: u64, limit: u64, minute: u64) -> u64 {
        self.advance(minute);
        let used: u64 = self.slots.iter().sum();
        let granted = wanted.min(limit.saturating_sub(used));
        if let Some(slot) = self.slots.get_mut(minute as usize % SLOTS) {
            *slot += granted;
        }
        granted
    }

    /// Empties the slots of the minutes that went by without a charge.
    fn advance(&mut self, minute: u64) {
        let passed = minute.saturating_sub(self.minute).min(SLOTS as u64);
        for back in 0..passed {
            if let Some(slot) = self.slots.get_mut((minute - back) as usize % SLOTS) {
                *slot = 0;
            }
        }
        self.minute = self.minute.max(minute);
    }
}

/// Counts what one flow sends, and says how much more it may send.
#[derive(Debug)]
pub struct Meter {
    hours: Arc<Hours>,
    /// Bytes that the flow has sent.
    sent: AtomicU64,
    /// Bytes sent so far on the connection that the flow belongs to, over this rule; none where the flow is all that it
    /// carries.
    connection: Option<Arc<AtomicU64>>,
    limit: AtomicU64,
    hourly: Mutex<Option<Hourly>>,
}

/// The hour that a flow draws from, and how large it is.
#[derive(Debug, Clone)]
struct Hourly {
    hour: Arc<Mutex<Hour>>,
    limit: u64,
}

impl Meter {
    /// Puts the flow of `client` under the limits of `rule`: the one that admitted it, or the one that a reload put
    /// in its place. What was sent stays sent.
    pub fn set_rule(&self, client: IpAddr, rule: Option<&Rule>) {
        let limit = rule.and_then(|rule| rule.terms.max_upload).unwrap_or(u64::MAX);
        self.limit.store(limit, Ordering::Relaxed);
        let hourly = rule.and_then(|rule| {
            let limit = rule.terms.max_upload_per_hour?;
            let (file, name) = (Arc::clone(&rule.place.file), Arc::clone(&rule.name));
            let key = HourKey { client, file, rule: name };
            Some(Hourly { hour: self.hours.hour(key), limit })
        });
        *self.hourly.lock().unwrap_or_else(PoisonError::into_inner) = hourly;
    }

    /// Asks to send `wanted` more bytes; what is granted counts as sent. The time is asked for only where an hour is
    /// limited.
    pub fn take(&self, wanted: u64, now: impl FnOnce() -> Instant) -> Grant {
        let sent = self.connection.as_deref().unwrap_or(&self.sent).load(Ordering::Relaxed);
        let left = self.limit.load(Ordering::Relaxed).saturating_sub(sent);
        let bytes = self.take_from_hour(wanted.min(left), now);
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        if let Some(connection) = &self.connection {
            connection.fetch_add(bytes, Ordering::Relaxed);
        }
        let stop = match bytes {
            bytes if bytes == wanted => None,
            bytes if bytes == left => Some(Reason::UploadLimit),
            _ => Some(Reason::UploadLimitHourly),
        };
        Grant { bytes, stop }
    }

    /// Bytes that the flow has sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Whether not one byte could be sent now: then the flow is not worth opening. The time is asked for only where an
    /// hour is limited.
    ///
    /// # Errors
    /// The limit that is used up.
    pub fn check(&self, now: impl FnOnce() -> Instant) -> Result<(), Reason> {
        let hourly = self.hourly.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(Hourly { hour, limit }) = hourly else { return Ok(()) };
        let mut hour = hour.lock().unwrap_or_else(PoisonError::into_inner);
        hour.advance(self.hours.minute(now()));
        if hour.slots.iter().sum::<u64>() >= limit { Err(Reason::UploadLimitHourly) } else { Ok(()) }
    }

    fn take_from_hour(&self, wanted: u64, now: impl FnOnce() -> Instant) -> u64 {
        let hourly = self.hourly.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(Hourly { hour, limit }) = hourly else { return wanted };
        hour.lock().unwrap_or_else(PoisonError::into_inner).take(wanted, limit, self.hours.minute(now()))
    }
}

/// What may be sent of what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// This many bytes, which now count as sent.
    pub bytes: u64,
    /// Where that is less than was asked for: the limit that is used up. The flow ends behind these bytes.
    pub stop: Option<Reason>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_given_back_minute_by_minute() {
        let mut hour = Hour::new();
        assert_eq!(hour.take(60, 100, 0), 60);
        assert_eq!(hour.take(60, 100, 30), 40);
        assert_eq!(hour.take(60, 100, 59), 0);
        assert_eq!(hour.take(80, 100, 60), 60, "the first minute is an hour ago");
        assert_eq!(hour.take(80, 100, 90), 40, "and so is the thirtieth");
        assert_eq!(hour.take(500, 100, 1000), 100, "all of it is long ago");
    }

    #[test]
    fn the_clock_does_not_run_back() {
        let mut hour = Hour::new();
        assert_eq!(hour.take(100, 100, 70), 100);
        assert_eq!(hour.take(1, 100, 69), 0);
    }

    #[test]
    fn a_connection_gets_what_is_left_and_then_the_reason() {
        let now = Instant::now();
        let meter = Arc::new(Hours::new(now)).meter([10, 0, 0, 1].into(), None, None);
        meter.limit.store(10, Ordering::Relaxed);
        let stopped = |bytes| Grant { bytes, stop: Some(Reason::UploadLimit) };
        assert_eq!(meter.take(7, || now), Grant { bytes: 7, stop: None });
        assert_eq!(meter.take(7, || now), stopped(3));
        assert_eq!(meter.take(7, || now), stopped(0));
        meter.limit.store(12, Ordering::Relaxed);
        assert_eq!(meter.take(7, || now), stopped(2), "a raised limit holds for an open flow");
        meter.limit.store(5, Ordering::Relaxed);
        assert_eq!(meter.take(1, || now), stopped(0), "and so does a lowered one");
    }

    #[test]
    fn remembered_hours_are_bounded() {
        let mut hours = HashMap::new();
        for number in 0..3_u8 {
            let key = HourKey { client: [10, 0, 0, number].into(), file: "f".into(), rule: "r".into() };
            hours.insert(key, Arc::new(Mutex::new(Hour { slots: [0; SLOTS], minute: u64::from(number) })));
        }
        forget_one(&mut hours);
        assert_eq!(hours.len(), 2);
        assert!(hours.keys().all(|key| key.client != IpAddr::from([10, 0, 0, 0])), "the oldest went");
    }
}
