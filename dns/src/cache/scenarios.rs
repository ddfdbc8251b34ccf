//! Runs `tests/scenarios/*.txt`: what the cache knows at which second. A line is
//! `SECONDS VERB [NAME [TYPE]] [WORD=VALUE…] [=> WHAT IS EXPECTED]`; the verbs are in [`Scenario::play`].

use std::path::Path;

use super::*;
use crate::testing::{question, record};

struct Scenario {
    cache: Cache,
    start: Instant,
}

impl Scenario {
    /// What happens at one moment, in words.
    fn play(&self, at: u64, verb: &str, words: &[&str]) -> String {
        let now = self.start + Duration::from_secs(at);
        let asked = question(words[0], words[1].parse::<hickory_proto::rr::RecordType>().unwrap().into());
        match verb {
            "get" => said(&self.cache.get(&asked.name, asked.record_type, now)),
            "use" => {
                let times: usize = value(words, "times").parse().unwrap();
                let get = |_| said(&self.cache.get(&asked.name, asked.record_type, now));
                (0..times).map(get).fold(String::new(), |_, last| last)
            }
            "put" => {
                self.cache.put(&asked, &reply(words), now);
                String::new()
            }
            "fail" => match self.cache.fail(&asked, Failure::Timeout, now) {
                Some(reply) => format!("leaves {}", shown(&reply)),
                None => "leaves nothing".to_owned(),
            },
            "count" => format!("{} entries", self.cache.len()),
            other => panic!("no such verb: {other}"),
        }
    }
}

fn said(found: &Found) -> String {
    match found {
        Found::Fresh { reply, age, prefetch } => {
            format!("fresh {} age={age}{}", shown(reply), if *prefetch { " prefetch" } else { "" })
        }
        Found::Expired(reply) => format!("expired {}", shown(reply)),
        Found::Stale(reply) => format!("stale {}", shown(reply)),
        Found::Failed(_) => "failed".to_owned(),
        Found::Missing => "missing".to_owned(),
    }
}

fn shown(reply: &Reply) -> String {
    match reply.records.first() {
        Some(record) => record.data.to_string(),
        None => format!("{:?}", reply.rcode).to_lowercase(),
    }
}

fn value<'w>(words: &[&'w str], key: &str) -> &'w str {
    found(words, key).unwrap_or_else(|| panic!("no {key}"))
}

fn found<'w>(words: &[&'w str], key: &str) -> Option<&'w str> {
    words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn reply(words: &[&str]) -> Reply {
    let ttl: u32 = value(words, "ttl").parse().unwrap();
    let bare = Reply { ttl, ..Reply::no_data() };
    match words.iter().find_map(|word| word.strip_prefix("records=")) {
        Some(number) => {
            let records = (0..number.parse().unwrap())
                .map(|i| record(&format!("x {ttl} A 9.9.{}.{}", i / 256, i % 256)));
            Reply { records: records.collect(), ..bare }
        }
        None if words.contains(&"nxdomain") => Reply { ttl, ..Reply::no_such_name() },
        None if words.contains(&"nodata") => bare,
        None => {
            Reply { records: Arc::from([record(&format!("x {ttl} A {}", value(words, "address")))]), ..bare }
        }
    }
}

fn settings(words: &[&str]) -> CacheSettings {
    CacheSettings {
        entries: value(words, "entries").parse().unwrap(),
        memory: found(words, "memory").map_or(usize::MAX, |bytes| bytes.parse().unwrap()),
        max_ttl: Duration::from_secs(60),
        stale: Duration::from_secs(value(words, "stale").parse().unwrap()),
    }
}

fn run(path: &Path) {
    let text = std::fs::read_to_string(path).unwrap();
    let mut scenario = Scenario { cache: Cache::new(CacheSettings::default()), start: Instant::now() };
    for (number, line) in
        text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
    {
        let (action, expected) = line.split_once("=>").unwrap_or((line, ""));
        let words: Vec<&str> = action.split_ascii_whitespace().collect();
        if words[0] == "limits" {
            scenario = Scenario { cache: Cache::new(settings(&words)), start: Instant::now() };
            continue;
        }
        let told = scenario.play(words[0].parse().unwrap(), words[1], &words[2..]);
        assert_eq!(told, expected.trim(), "{}:{}: {line}", path.display(), number + 1);
    }
}

#[test]
fn every_scenario_plays_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 10, "the scenarios are not where they were");
    paths.iter().for_each(|path| run(path));
}
