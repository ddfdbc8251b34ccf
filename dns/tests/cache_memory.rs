//! What a million names take of memory: a process of its own, so that nothing else is measured.

#![allow(clippy::unwrap_used)] // a test's own helpers may stop it

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record};
use outgate_dns::cache::{Cache, CacheSettings, Found};
use outgate_dns::{Question, Rcode, Reply, TYPE_A};
use outgate_rules::DomainName;

const MILLION: u32 = 1_000_000;
const LIMIT: usize = 100 << 20;

/// Names of up to 24 letters: more than those that are asked for have on average.
fn question(number: u32) -> Question {
    let name = DomainName::parse(&format!("n{number}.packages.example")).unwrap();
    Question { name, record_type: TYPE_A }
}

fn reply(question: &Question, number: u32) -> Reply {
    let owner = Name::from_ascii(format!("{}.", question.name)).unwrap();
    let record = Record::from_rdata(owner, 60, RData::A(A(Ipv4Addr::from(number))));
    Reply { rcode: Rcode::NoError, records: Arc::from([record]), soa: None, ttl: 60 }
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn a_million_names_take_no_more_than_100_mib_and_no_more_than_is_said() {
    let settings = CacheSettings { entries: MILLION as usize, ..CacheSettings::default() };
    let (cache, now) = (Cache::new(settings), Instant::now());
    // What the first of anything takes is taken.
    let asked = question(0);
    cache.put(&asked, &reply(&asked, 0), now);
    let before = resident();
    for number in 0..MILLION {
        let asked = question(number);
        cache.put(&asked, &reply(&asked, number), now);
    }
    let taken = resident() - before;
    // The hash divides a million names among the shards nearly evenly.
    assert!(cache.len() > MILLION as usize * 98 / 100, "{} entries", cache.len());
    assert!(taken <= LIMIT, "{taken} bytes");
    assert!(cache.bytes() <= LIMIT && taken <= cache.bytes() * 21 / 20, "{taken} of {} bytes", cache.bytes());
    let known = (0..MILLION).step_by(97).filter(|number| {
        let asked = question(*number);
        let found = cache.get(&asked.name, TYPE_A, now);
        matches!(found, Found::Fresh { reply: found, .. } if *found == reply(&asked, *number))
    });
    assert!(known.count() > 10_000, "what is kept is found");
}
