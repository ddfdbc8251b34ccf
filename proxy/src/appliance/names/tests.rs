use arc_swap::ArcSwap;

use super::super::{Appliance, Openings};
use super::*;
use crate::config::{self, Gates};
use crate::console::Console;
use crate::kernel::namespace::inside;
use crate::kernel::plan::{Ports, TOLD};

fn clients() -> PrefixSet {
    ["10.1.0.0/16", "fd00:1::/64"].iter().map(|prefix| prefix.parse().unwrap()).collect()
}

fn rules(text: &str) -> Arc<RuleSet> {
    let source =
        outgate_rules::policy::Source { name: "policy.yaml".to_owned(), bytes: text.as_bytes().to_vec() };
    let compiled = outgate_rules::policy::compile(
        &[source],
        &mut |_| Err("no such file".to_owned()),
        None,
        Timestamp::UNIX_EPOCH,
    );
    Arc::new(compiled.unwrap_or_else(|diagnostics| panic!("{diagnostics}")).rules)
}

const POLICY: &str = r#"
sources: {training: [10.1.0.0/24, "fd00:1::/65"], one: [10.1.0.7/32], abroad: [10.9.0.0/16]}
outbound_rules:
  - {name: time, type: fqdn, destination: time.example.org, protocol: UDP, ports: [123], sources: [training]}
  - {name: web, type: fqdn, destination: www.example.org, sources: [one]}
  - {name: database, type: fqdn, destination: db.example.org, ports: [5432]}
"#;
const DENIED: &str =
    "  - {name: no, action: deny, type: fqdn, destination: time.example.org, sources: [one, abroad]}\n";

fn ranges(alike: &[Alike]) -> Vec<(bool, Vec<String>)> {
    let text = |alike: &Alike| {
        let ranges = alike.group.clients.iter().map(|range| format!("{}-{}", range.start(), range.end()));
        (alike.datagrams, ranges.collect())
    };
    alike.iter().map(text).collect()
}

#[test]
fn clients_are_split_by_the_sources_that_decide_on_names() {
    let group =
        |datagrams, ranges: &[&str]| (datagrams, ranges.iter().map(|text| text.to_string()).collect());
    assert_eq!(
        ranges(&groups(&rules(POLICY), &clients())),
        [
            group(false, &["10.1.1.0-10.1.255.255", "fd00:1:0:0:8000::-fd00:1::ffff:ffff:ffff:ffff"]),
            group(true, &["10.1.0.0-10.1.0.255", "fd00:1::-fd00:1::7fff:ffff:ffff:ffff"]),
        ]
    );
    assert_eq!(
        ranges(&groups(&rules(&format!("{POLICY}{DENIED}")), &clients()))[1..],
        [
            group(
                true,
                &["10.1.0.0-10.1.0.6", "10.1.0.8-10.1.0.255", "fd00:1::-fd00:1::7fff:ffff:ffff:ffff"]
            ),
            group(true, &["10.1.0.7-10.1.0.7"]),
        ],
        "who is denied is a group of its own"
    );
}

#[test]
fn every_client_is_in_one_part_with_those_that_are_in_the_same_sets() {
    let set = |prefixes: &[&str]| Arc::new(prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect());
    let sets: [Arc<PrefixSet>; 4] = [
        set(&["10.1.0.0/24", "10.1.4.0/22"]),
        set(&["10.0.0.0/8"]),
        set(&["10.1.0.255/32", "10.1.255.255/32", "255.255.255.255/32"]),
        set(&["::/0", "fd00:1::8/125"]),
    ];
    let parts = parts(&clients(), &sets);
    let of = |address: IpAddr| sets.iter().map(|set| set.contains(address)).collect::<Vec<_>>();
    let all = (0..=u16::MAX).map(|low| IpAddr::from([10, 1, (low >> 8) as u8, low as u8]));
    let all = all.chain((0..64).map(|low| IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, low])));
    for address in all {
        let is_in = |part: &&Vec<RangeInclusive<IpAddr>>| part.iter().any(|range| range.contains(&address));
        let found: Vec<_> = parts.iter().filter(is_in).collect();
        let [part] = found[..] else { panic!("{address} is in {found:?}") };
        assert_eq!(of(*part[0].start()), of(address), "{address}");
    }
    assert!(parts.iter().flatten().all(|range| clients().contains(*range.start())), "and nobody else");
}

#[test]
fn a_group_that_changes_has_sets_of_another_name() {
    let sets = |text: &str| -> BTreeSet<[String; 2]> {
        groups(&rules(text), &clients()).into_iter().map(|alike| alike.group.sets).collect()
    };
    let (before, after) = (sets(POLICY), sets(&format!("{POLICY}{DENIED}")));
    assert_eq!(before, sets(&POLICY.replace("ports: [123]", "ports: [124]")), "other ports, same clients");
    assert_eq!(before.intersection(&after).count(), 1, "those who are not in training");
}

#[test]
fn a_name_opens_ways_to_the_groups_that_its_rule_is_for() {
    let rules = rules(&format!("{POLICY}{DENIED}"));
    let name = DomainName::parse("time.example.org").unwrap();
    let (address, private) = ("9.9.9.9".parse().unwrap(), "10.1.0.9".parse().unwrap());
    let lasts = Duration::from_secs(9);
    let opened: Vec<(String, Vec<Way>)> = groups(&rules, &clients())
        .iter()
        .map(|alike| {
            let ways = alike.ways(&rules, &[(&name, address, lasts), (&name, private, lasts)]);
            (alike.client.to_string(), ways.into_keys().collect())
        })
        .collect();
    let way = Way { address, protocol: UDP, port: 123 };
    assert_eq!(
        opened,
        [
            ("10.1.1.0".to_owned(), vec![]),
            ("10.1.0.0".to_owned(), vec![way]),
            ("10.1.0.7".to_owned(), vec![]),
        ]
    );
}

#[test]
fn of_two_names_for_one_way_the_longer_one_holds() {
    let rules = rules(
        "outbound_rules:
  - {name: a, type: fqdn, destination: [a.example.org, b.example.org], protocol: UDP, ports: [123]}
",
    );
    let [a, b] = ["a.example.org", "b.example.org"].map(|name| DomainName::parse(name).unwrap());
    let address = "9.9.9.9".parse().unwrap();
    let of = |name, seconds| (name, address, Duration::from_secs(seconds));
    let alike = groups(&rules, &clients());
    let way = Way { address, protocol: UDP, port: 123 };
    assert_eq!(alike[0].ways(&rules, &[of(&a, 9), of(&b, 5)])[&way], (Duration::from_secs(9), &a));
    assert_eq!(alike[0].ways(&rules, &[of(&a, 5), of(&b, 9)])[&way], (Duration::from_secs(9), &b));
}

#[test]
fn more_names_or_groups_than_a_gate_can_keep_are_said() {
    let names: Vec<String> = (0..=MOST_NAMES).map(|index| format!("n{index}.example.org")).collect();
    let rule = |names: &[String]| {
        let names = names.join(", ");
        format!("outbound_rules:\n  - {{name: a, type: fqdn, destination: [{names}], ports: [22]}}\n")
    };
    assert_eq!(too_many(&rules(&rule(&names[1..])), &clients()), None);
    assert!(too_many(&rules(&rule(&names)), &clients()).unwrap().contains("1025 names"));
    let each = (0..=MOST_GROUPS).map(|index| {
        let client = format!("10.1.{}.{}", index / 256, index % 256);
        format!("  - {{name: r{index}, type: fqdn, destination: a.example.org, ports: [22], sources: [{client}/32]}}\n")
    });
    let said = too_many(&rules(&format!("outbound_rules:\n{}", each.collect::<String>())), &clients());
    assert!(said.unwrap().contains("257 groups"));
}

/// What is open in the kernel to the groups of these rules.
fn open_ways(rules: &Arc<RuleSet>) -> Vec<(String, Way)> {
    let of = |alike: &Alike| standing(alike).unwrap().1;
    let standing =
        groups(rules, &clients()).iter().filter(|alike| alike.datagrams).flat_map(of).collect::<Vec<_>>();
    standing.into_iter().map(|standing| (standing.name.unwrap().to_string(), standing.flow)).collect()
}

#[test]
fn what_names_open_outlives_the_gate_and_ends_with_their_rule() {
    inside(|| {
        let config = config::Appliance { clients: clients(), gates: Gates::Several, ..Default::default() };
        let gate = || Appliance::new(&config, Ports::default());
        let name = DomainName::parse("time.example.org").unwrap();
        let (address, client) = ("9.9.9.9".parse().unwrap(), "10.1.0.4".parse().unwrap());
        let way = Way { address, protocol: UDP, port: 123 };
        let first = gate();
        let (rules, other) = (rules(POLICY), rules(&POLICY.replace("time.example.org", "clock.example.org")));

        first.close().unwrap();
        let names = first.names().unwrap();
        names.lock().note(&Ledger::default(), &name, address, Duration::from_secs(60), Instant::now());
        names.open(&rules).unwrap();
        first.enforce(&rules).unwrap();
        assert_eq!(open_ways(&rules), [(name.to_string(), way)]);
        first.close().unwrap();
        assert_eq!(open_ways(&rules), [(name.to_string(), way)], "for when the gate is back");

        let (next, ledger) = (gate(), Ledger::default());
        next.remember(&rules, &ledger).unwrap();
        assert_eq!(ledger.names(client, address, Instant::now()), std::slice::from_ref(&name));
        next.enforce(&rules).unwrap();
        assert_eq!(open_ways(&rules), [(name.to_string(), way)]);

        next.enforce(&other).unwrap();
        assert_eq!(
            next.cut(&other, &ledger).unwrap().told,
            1,
            "the clients are the same, the name is another"
        );
        assert_eq!(open_ways(&other), []);
        next.enforce(&rules).unwrap();
        assert_eq!(open_ways(&rules), [(name.to_string(), way)], "it is still known");
    });
}

#[test]
fn what_a_client_was_told_before_a_restart_lasts_no_longer_for_it() {
    inside(|| {
        let gate =
            Appliance::new(&config::Appliance { clients: clients(), ..Default::default() }, Ports::default());
        let rules = rules(POLICY);
        let name = DomainName::parse("time.example.org").unwrap();
        let (client, address) = ("10.1.0.4".parse().unwrap(), "9.9.9.9".parse().unwrap());
        let flow = Flow { client, address, protocol: UDP, port: 123 };
        let left = Duration::from_secs(60);
        gate.close().unwrap();
        let mut told = <ToldSets>::open(TABLE, TOLD).unwrap();
        told.add(&[Element { flow, name: name.clone() }], left).unwrap();

        let console = Console::on(std::io::sink(), false, left).unwrap();
        let opener = Openings::new(Arc::new(ArcSwap::from(Arc::clone(&rules))), console).unwrap();
        let ledger = Ledger::with_opener(Arc::new(opener));
        assert_eq!(gate.remember(&rules, &ledger).unwrap(), 1);

        let now = Instant::now();
        assert_eq!(ledger.names(client, address, now), [name]);
        assert_eq!(ledger.names(client, address, now + left), []);
        let standing = told.dump().unwrap();
        assert!(
            standing.iter().all(|standing| standing.flow == flow && standing.left <= left),
            "{standing:?}"
        );
    });
}
