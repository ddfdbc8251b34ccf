use std::time::Instant;

use nix::errno::Errno;

use super::super::namespace::{inside, run};
use super::super::table::{Contents, Set, Table, ToldLimits, UDP};
use super::super::tests::{address, ranges, set, table, told};
use super::super::{Kept, apply};
use super::*;

const SETS: [&str; 2] = ["told4", "told6"];
const MINUTE: Duration = Duration::from_secs(60);

fn both() -> Table {
    table(vec![set("told4", told(Family::V4)), set("told6", told(Family::V6))], vec![])
}

fn flow(client: &str, to: &str, port: u16) -> Flow {
    Flow { client: address(client), address: address(to), protocol: UDP, port }
}

fn element(flow: Flow, name: &str) -> Element {
    Element { flow, name: DomainName::parse(name).expect("a name") }
}

fn names(sets: &mut ToldSets) -> Vec<(Flow, String)> {
    let standing = sets.dump().expect("dumped").into_iter();
    let mut names: Vec<_> =
        standing.map(|standing| (standing.flow, standing.name.expect("a name").to_string())).collect();
    names.sort();
    names
}

fn open_sets() -> ToldSets {
    apply(&both(), &Kept::none()).expect("applied");
    ToldSets::open("outgate", SETS).expect("open")
}

#[test]
fn a_dump_gives_back_what_was_added_with_its_name() {
    inside(|| {
        let mut sets = open_sets();
        let longest = ["a".repeat(63), "b".repeat(63)].join(".");
        let elements = [
            element(flow("10.1.0.4", "203.0.113.7", 5432), "db.partner.example"),
            element(flow("10.1.0.5", "203.0.113.7", 65535), &longest),
            element(flow("fd00:2::4", "2001:db8::7", 123), "time.example"),
        ];
        sets.add(&elements, MINUTE).expect("added");
        let expected: Vec<_> =
            elements.iter().map(|element| (element.flow, element.name.to_string())).collect();
        assert_eq!(names(&mut sets), expected);
        let left: Vec<_> = sets.dump().expect("dumped").iter().map(|standing| standing.left).collect();
        assert!(left.iter().all(|left| *left <= MINUTE && *left > MINUTE / 2), "{left:?}");
    });
}

#[test]
fn a_name_too_long_to_be_kept_is_no_other_name() {
    inside(|| {
        let mut sets = open_sets();
        let longer = ["a".repeat(63), "b".repeat(62), "c".to_owned()].join(".");
        let longest = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        for (port, name) in [(1, longer), (2, longest)] {
            sets.add(&[element(flow("fd00:2::4", "2001:db8::7", port), &name)], MINUTE).expect("added");
        }
        let standing = sets.dump().expect("dumped");
        assert_eq!(standing.iter().map(|standing| &standing.name).collect::<Vec<_>>(), [&None, &None]);
    });
}

#[test]
fn nft_shows_an_element_and_the_name_beside_it() {
    inside(|| {
        let mut sets = open_sets();
        sets.add(&[element(flow("10.1.0.4", "203.0.113.7", 5432), "db.partner.example")], MINUTE)
            .expect("added");
        let listed = run("nft", &["list", "set", "inet", "outgate", "told4"]);
        assert!(listed.contains("10.1.0.4 . 203.0.113.7 . udp . 5432 timeout 1m"), "{listed}");
        assert!(listed.contains("comment \"db.partner.example\""), "{listed}");
    });
}

#[test]
fn adding_again_begins_the_time_anew_and_takes_the_new_name() {
    inside(|| {
        let mut sets = open_sets();
        let flow = flow("10.1.0.4", "203.0.113.7", 5432);
        for (timeout, name) in
            [(MINUTE, "one.example"), (10 * MINUTE, "two.example"), (2 * MINUTE, "three.example")]
        {
            sets.add(&[element(flow, name)], timeout).expect("added");
            let standing = sets.dump().expect("dumped");
            let [Standing { left, .. }] = standing.as_slice() else { panic!("{standing:?}") };
            assert!(*left <= timeout && *left > timeout * 9 / 10, "{left:?} of {timeout:?}");
            assert_eq!(names(&mut sets), [(flow, name.to_owned())]);
        }
    });
}

#[test]
fn one_flow_added_twice_at_once_stands_once() {
    inside(|| {
        let mut sets = open_sets();
        let flow = flow("10.1.0.4", "203.0.113.7", 5432);
        sets.add(&[element(flow, "one.example"), element(flow, "two.example")], MINUTE).expect("added");
        assert_eq!(names(&mut sets), [(flow, "two.example".to_owned())]);
    });
}

#[test]
fn what_has_run_out_is_not_there_any_more() {
    inside(|| {
        let mut sets = open_sets();
        let (short, long) = (flow("10.1.0.4", "203.0.113.7", 1), flow("10.1.0.4", "203.0.113.7", 2));
        sets.add(&[element(short, "short.example")], Duration::from_millis(100)).expect("added");
        sets.add(&[element(long, "long.example")], MINUTE).expect("added");
        let start = Instant::now();
        while names(&mut sets).len() > 1 {
            assert!(start.elapsed() < Duration::from_secs(10), "it still stands");
        }
        assert_eq!(names(&mut sets), [(long, "long.example".to_owned())]);
    });
}

#[test]
fn what_is_deleted_goes_and_what_never_was_there_is_no_error() {
    inside(|| {
        let mut sets = open_sets();
        let [one, two, three] = [1, 2, 3].map(|port| flow("10.1.0.4", "203.0.113.7", port));
        sets.add(&[element(one, "a.example"), element(two, "b.example")], MINUTE).expect("added");
        sets.delete(&[three, one, flow("fd00::1", "2001:db8::1", 1), one]).expect("deleted");
        assert_eq!(names(&mut sets), [(two, "b.example".to_owned())]);
    });
}

#[test]
fn a_flow_between_families_is_left_out() {
    inside(|| {
        let mut sets = open_sets();
        sets.add(&[element(flow("10.1.0.4", "2001:db8::1", 1), "a.example")], MINUTE).expect("nothing added");
        assert_eq!(names(&mut sets), []);
    });
}

#[test]
fn more_than_one_transaction_holds_all_come_in() {
    inside(|| {
        let mut sets = open_sets();
        let flows = || (1..=5000).map(|port| flow("10.1.0.4", "203.0.113.7", port));
        let elements: Vec<_> = flows().map(|flow| element(flow, "many.example")).collect();
        sets.add(&elements, MINUTE).expect("added");
        assert_eq!(sets.dump().expect("dumped").len(), 5000);
        sets.delete(&flows().collect::<Vec<_>>()).expect("deleted");
        assert_eq!(sets.dump().expect("dumped"), []);
    });
}

#[test]
fn a_full_set_says_so() {
    inside(|| {
        let limits = ToldLimits { size: 2, clear_every: MINUTE };
        let small: Vec<Set> = vec![
            set("told4", Contents::Told(Family::V4, limits)),
            set("told6", Contents::Told(Family::V6, limits)),
        ];
        apply(&table(small, vec![]), &Kept::none()).expect("applied");
        let mut sets = ToldSets::open("outgate", SETS).expect("open");
        let elements = [1, 2, 3].map(|port| element(flow("10.1.0.4", "203.0.113.7", port), "a.example"));
        let error = sets.add(&elements, MINUTE).expect_err("full");
        assert!(error.to_string().contains("the set is full"), "{error}");
        assert_eq!(names(&mut sets), []);
        sets.add(&elements[..2], MINUTE).expect("two fit");
        sets.add(&elements[..2], MINUTE).expect("and may be added again");
    });
}

#[test]
fn without_a_table_nothing_is_added_or_deleted() {
    inside(|| {
        let mut sets = ToldSets::open("outgate", SETS).expect("open");
        let flow = flow("10.1.0.4", "203.0.113.7", 1);
        for done in
            [sets.add(&[element(flow, "a.example")], MINUTE), sets.delete(&[flow]), sets.dump().map(|_| ())]
        {
            assert!(matches!(done, Err(Error::Refused { errno: Errno::ENOENT, .. })), "{done:?}");
        }
    });
}

#[test]
fn elements_stay_when_the_table_is_replaced_and_go_when_they_are_not_kept() {
    inside(|| {
        let mut sets = open_sets();
        let (v4, v6) = (flow("10.1.0.4", "203.0.113.7", 1), flow("fd00::4", "2001:db8::7", 2));
        sets.add(&[element(v4, "a.example"), element(v6, "b.example")], MINUTE).expect("added");
        let expected = [(v4, "a.example".to_owned()), (v6, "b.example".to_owned())];
        apply(&both(), &Kept::sets(SETS)).expect("applied");
        assert_eq!(names(&mut sets), expected);
        // A table that does not mention them, as one that is closed.
        apply(&table(vec![], vec![]), &Kept::sets(SETS)).expect("applied");
        assert_eq!(names(&mut sets), expected);
        apply(&both(), &Kept::sets(["told6"])).expect("applied");
        assert_eq!(names(&mut sets), expected[1..]);
    });
}

#[test]
fn an_element_is_added_in_well_under_a_millisecond_beside_a_hundred_thousand_prefixes() {
    inside(|| {
        let prefix = |index: u32| {
            let start = 0x2000_0000 + index * 1024;
            IpAddr::from(Ipv4Addr::from_bits(start))..=Ipv4Addr::from_bits(start + 255).into()
        };
        let mut big = both();
        big.sets.push(set("nets", Contents::Addresses(Family::V4, (0..100_000).map(prefix).collect())));
        big.sets.push(set("nets6", Contents::Addresses(Family::V6, ranges(&["fd00::/8"]))));
        apply(&big, &Kept::none()).expect("applied");
        let mut sets = ToldSets::open("outgate", SETS).expect("open");
        let mut times: Vec<_> = (1..=500)
            .map(|port| {
                let element = element(flow("10.1.0.4", "203.0.113.7", port), "db.partner.example");
                let start = Instant::now();
                sets.add(&[element], MINUTE).expect("added");
                start.elapsed()
            })
            .collect();
        times.sort();
        println!("median {:?}, worst {:?}", times[250], times[499]);
        assert!(times[250] < Duration::from_millis(1), "median {:?}", times[250]);
    });
}
