use super::*;
use crate::testing::{lines, question, response};
use crate::{TYPE_A, TYPE_AAAA, TYPE_HTTPS, TYPE_SVCB};

const CAP: u32 = 60;
const SOA: &str = "example 300 SOA ns.example. root.example. 1 2 3 4 30";

fn read(asked: &Question, code: ResponseCode, answers: &[&str]) -> Result<Step, Unusable> {
    Chain::new(asked, CAP).unwrap().read(&response(asked, code, answers), &|_| true)
}

/// The reply, where one message tells everything.
fn told(asked: &Question, code: ResponseCode, answers: &[&str]) -> Reply {
    match read(asked, code, answers).unwrap() {
        Step::Done(reply) => reply,
        Step::Follow(_, next) => panic!("follows {next:?}"),
    }
}

fn kept(asked: &Question, answers: &[&str]) -> Vec<String> {
    lines(&told(asked, ResponseCode::NoError, answers).records)
}

#[test]
fn only_the_chain_from_the_asked_name_is_kept() {
    let asked = question("a.example", TYPE_A);
    let table: &[(&str, &[&str], &[&str])] = &[
        ("an address", &["a.example 50 A 9.9.9.9"], &["a.example 50 A 9.9.9.9"]),
        ("letter case", &["A.eXample 50 A 9.9.9.9"], &["a.example 50 A 9.9.9.9"]),
        (
            "a chain in any order gets the order of its links and the lowest TTL",
            &["C.example 20 A 9.9.9.9", "b.example 40 CNAME C.example.", "a.example 30 CNAME b.example."],
            &["a.example 20 CNAME b.example.", "b.example 20 CNAME c.example.", "c.example 20 A 9.9.9.9"],
        ),
        (
            "another name's records are unsolicited",
            &["a.example 50 A 9.9.9.9", "bank.example 50 A 6.6.6.6", "b.a.example 50 A 6.6.6.6"],
            &["a.example 50 A 9.9.9.9"],
        ),
        (
            "so are another type's",
            &["a.example 50 A 9.9.9.9", "a.example 50 AAAA 2001:db8::1", "a.example 50 TXT x"],
            &["a.example 50 A 9.9.9.9"],
        ),
        (
            "and a link beside the records",
            &["a.example 50 A 9.9.9.9", "a.example 50 CNAME b.example.", "b.example 50 A 6.6.6.6"],
            &["a.example 50 A 9.9.9.9"],
        ),
        (
            "the same twice",
            &["a.example 50 A 9.9.9.9", "a.example 50 A 9.9.9.9"],
            &["a.example 50 A 9.9.9.9"],
        ),
        ("a long TTL is capped", &["a.example 86400 A 9.9.9.9"], &["a.example 60 A 9.9.9.9"]),
        (
            "a TTL with its highest bit set is zero",
            &["a.example 2147483648 A 9.9.9.9"],
            &["a.example 0 A 9.9.9.9"],
        ),
    ];
    for (case, answers, expected) in table {
        assert_eq!(kept(&asked, answers), *expected, "{case}");
    }
}

#[test]
fn records_of_another_class_and_without_data_are_not_there() {
    let asked = question("a.example", TYPE_A);
    let mut message =
        response(&asked, ResponseCode::NoError, &["a.example 50 A 9.9.9.9", "a.example 50 A 9.9.9.8"]);
    message.answers[0].dns_class = DNSClass::CH;
    message.answers[1].data = RData::Update0(RecordType::A);
    let step = Chain::new(&asked, CAP).unwrap().read(&message, &|_| true).unwrap();
    assert!(matches!(step, Step::Done(reply) if reply.records.is_empty()));
}

#[test]
fn a_message_that_is_no_answer_says_why() {
    let asked = question("a.example", TYPE_A);
    let long: Vec<String> = (0..=MAX_LINKS)
        .map(|link| match link {
            0 => "a.example 9 CNAME x1.example.".to_owned(),
            link => format!("x{link}.example 9 CNAME x{}.example.", link + 1),
        })
        .collect();
    let long: Vec<&str> = long.iter().map(String::as_str).collect();
    let table: &[(ResponseCode, &[&str], Unusable)] = &[
        (ResponseCode::ServFail, &["a.example 9 A 9.9.9.9"], Unusable::Rcode),
        (ResponseCode::Refused, &[], Unusable::Rcode),
        (ResponseCode::NoError, &["a.example 9 CNAME a.example."], Unusable::Loop),
        (ResponseCode::NoError, &["a.example 9 CNAME A.Example."], Unusable::Loop),
        (
            ResponseCode::NoError,
            &["a.example 9 CNAME b.example.", "b.example 9 CNAME c.example.", "c.example 9 CNAME b.example."],
            Unusable::Loop,
        ),
        (
            ResponseCode::NoError,
            &["a.example 9 CNAME b.example.", "a.example 9 CNAME c.example."],
            Unusable::Ambiguous,
        ),
        (ResponseCode::NoError, &["a.example 9 CNAME 192.0.2.1."], Unusable::NotAName),
        (ResponseCode::NoError, &["--", "example 9 NS ns.elsewhere.example."], Unusable::Referral),
        (ResponseCode::NoError, &long, Unusable::TooManyLinks),
    ];
    for (code, answers, error) in table {
        assert_eq!(read(&asked, *code, answers).unwrap_err(), *error, "{answers:?}");
    }
    assert!(read(&asked, ResponseCode::NoError, &long[..MAX_LINKS]).is_ok(), "eleven links are not too many");
}

#[test]
fn negative_answers_hold_as_long_as_their_soa_says() {
    let asked = question("a.example", TYPE_A);
    let elsewhere = "other.example 300 SOA ns.example. root.example. 1 2 3 4 30";
    let table: &[(ResponseCode, &[&str], Rcode, u32, bool)] = &[
        (ResponseCode::NXDomain, &["--", SOA], Rcode::NxDomain, 30, true),
        (ResponseCode::NoError, &["--", SOA], Rcode::NoError, 30, true),
        (ResponseCode::NXDomain, &[], Rcode::NxDomain, WITHOUT_SOA, false),
        (ResponseCode::NoError, &[], Rcode::NoError, WITHOUT_SOA, false),
        (ResponseCode::NoError, &["--", elsewhere], Rcode::NoError, WITHOUT_SOA, false),
        (ResponseCode::NXDomain, &["a.example 2 CNAME b.example."], Rcode::NxDomain, 2, false),
        (
            ResponseCode::NXDomain,
            &["--", "example 0 SOA a.example. b.example. 1 2 3 4 30"],
            Rcode::NxDomain,
            0,
            true,
        ),
        (ResponseCode::NXDomain, &["a.example 20 CNAME b.example.", "--", SOA], Rcode::NxDomain, 20, true),
        (ResponseCode::NXDomain, &["a.example 20 A 6.6.6.6", "--", SOA], Rcode::NxDomain, 30, true),
    ];
    for (code, answers, rcode, ttl, with_soa) in table {
        let reply = told(&asked, *code, answers);
        assert_eq!((reply.rcode, reply.ttl, reply.soa.is_some()), (*rcode, *ttl, *with_soa), "{answers:?}");
        assert!(!reply.records.iter().any(|record| record.record_type() == RecordType::A), "{answers:?}");
    }
}

#[test]
fn a_chain_into_another_zone_is_asked_for_there() {
    let asked = question("a.example", TYPE_A);
    let chain = Chain::new(&asked, CAP).unwrap();
    let message = response(
        &asked,
        ResponseCode::NoError,
        &["a.example 30 CNAME x.corp.example.", "x.corp.example 40 A 6.6.6.6"],
    );
    let foreign = |name: &DomainName| !name.as_str().ends_with("corp.example");
    let Step::Follow(chain, next) = chain.read(&message, &foreign).unwrap() else { panic!("not followed") };
    assert_eq!(next, question("x.corp.example", TYPE_A));

    let message = response(&next, ResponseCode::NoError, &["x.corp.example 50 A 10.9.9.9"]);
    let Step::Done(reply) = chain.read(&message, &|_| true).unwrap() else { panic!("not done") };
    assert_eq!(lines(&reply.records), ["a.example 30 CNAME x.corp.example.", "x.corp.example 30 A 10.9.9.9"]);
}

#[test]
fn a_chain_that_stops_short_is_followed_and_a_loop_over_several_messages_is_seen() {
    let asked = question("a.example", TYPE_A);
    let Ok(Step::Follow(chain, next)) =
        read(&asked, ResponseCode::NoError, &["a.example 30 CNAME b.example."])
    else {
        panic!("not followed")
    };
    assert_eq!(next, question("b.example", TYPE_A));
    let back = response(&next, ResponseCode::NoError, &["b.example 30 CNAME a.example."]);
    assert_eq!(chain.read(&back, &|_| true).unwrap_err(), Unusable::Loop);
}

#[test]
fn more_records_than_any_service_has_are_cut() {
    let asked = question("a.example", TYPE_A);
    let answers: Vec<String> =
        (0..4 * MAX_RECORDS).map(|i| format!("a.example 9 A 9.9.{}.{}", i / 256, i % 256)).collect();
    let answers: Vec<&str> = answers.iter().map(String::as_str).collect();
    assert_eq!(kept(&asked, &answers).len(), MAX_RECORDS);
}

#[test]
fn https_records_lead_no_client_past_the_gate() {
    let asked = question("a.example", TYPE_HTTPS);
    let table: &[(&str, &str, Option<&str>)] = &[
        ("plain", "1 . alpn=h2,http/1.1", Some("1 . alpn=h2,http/1.1")),
        ("ech", "1 . alpn=h2 ech=AEX+DQBBtQAgACA=", Some("1 . alpn=h2")),
        ("only ech", "1 . ech=AEX+DQBBtQAgACA=", Some("1 .")),
        ("h3 among others", "1 . alpn=h3,h2,h3-29", Some("1 . alpn=h2")),
        ("h3 alone leaves the default protocol", "1 . alpn=h3", Some("1 .")),
        ("h3 alone and no default leaves nothing", "1 . alpn=h3 no-default-alpn=", None),
        ("mandatory ech", "1 . mandatory=ech alpn=h2 ech=AEX+DQBBtQAgACA=", Some("1 . alpn=h2")),
        (
            "mandatory port",
            "1 . mandatory=port,ech port=8443 ech=AEX+DQBBtQAgACA=",
            Some("1 . mandatory=port port=8443"),
        ),
        (
            "hints wait for the client's vetting",
            "1 . ipv4hint=9.9.9.9,10.0.0.1",
            Some("1 . ipv4hint=9.9.9.9,10.0.0.1"),
        ),
        ("its own name as target", "1 A.example. alpn=h2", Some("1 a.example. alpn=h2")),
        ("another target", "1 cdn.example. alpn=h2", None),
        ("AliasMode", "0 cdn.example.", None),
        ("AliasMode to itself", "0 .", None),
    ];
    for (case, data, expected) in table {
        let data = data.replace(" no-default-alpn=", "");
        let no_default = case.contains("no default");
        let mut message = response(&asked, ResponseCode::NoError, &[&format!("a.example 30 HTTPS {data}")]);
        if no_default && let RData::HTTPS(HTTPS(service)) = &mut message.answers[0].data {
            service.svc_params.push((SvcParamKey::NoDefaultAlpn, SvcParamValue::NoDefaultAlpn));
        }
        let Ok(Step::Done(reply)) = Chain::new(&asked, CAP).unwrap().read(&message, &|_| true) else {
            panic!("{case}: not done")
        };
        let expected: Vec<Record> = expected
            .iter()
            .map(|data| crate::testing::record(&format!("a.example 30 HTTPS {data}")))
            .collect();
        assert_eq!(*reply.records, *expected, "{case}");
        assert_eq!((reply.rcode, reply.ttl), (Rcode::NoError, 30), "{case}");
    }
}

#[test]
fn svcb_records_may_name_another_server_which_is_decided_by_itself() {
    let asked = question("_8443._foo.a.example", TYPE_SVCB);
    let answers = [
        "_8443._foo.a.example 30 SVCB 1 b.example. alpn=h3,h2 ech=AEX+DQBBtQAgACA=",
        "_8443._foo.a.example 30 SVCB 0 c.example.",
    ];
    assert_eq!(
        kept(&asked, &answers),
        lines(&[crate::testing::record("_8443._foo.a.example 30 SVCB 1 b.example. alpn=h2")])
    );
}

#[test]
fn what_a_client_may_not_learn_is_withheld_from_it_alone() {
    use crate::reply::vetted;
    use outgate_rules::Reason;
    let mut vet = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(address) if address.is_private() => Err(Reason::AddressPrivate),
        std::net::IpAddr::V6(address) if address.is_unique_local() => Err(Reason::AddressPrivate),
        std::net::IpAddr::V4(_) | std::net::IpAddr::V6(_) => Ok(()),
    };
    let table: &[(u16, &[&str], &[&str], usize)] = &[
        (TYPE_A, &["a.example 30 A 9.9.9.9"], &["a.example 30 A 9.9.9.9"], 0),
        (TYPE_A, &["a.example 30 A 10.0.0.1"], &[], 1),
        (TYPE_A, &["a.example 30 A 10.0.0.1", "a.example 30 A 9.9.9.9"], &["a.example 30 A 9.9.9.9"], 1),
        (TYPE_A, &["a.example 30 CNAME b.example.", "b.example 30 A 10.0.0.1"], &[], 1),
        (TYPE_AAAA, &["a.example 30 AAAA fd00::1", "a.example 30 AAAA fd00::2"], &[], 2),
        (
            TYPE_HTTPS,
            &["a.example 30 HTTPS 1 . ipv4hint=10.0.0.1,9.9.9.9"],
            &["a.example 30 HTTPS 1 . ipv4hint=9.9.9.9"],
            1,
        ),
        (
            TYPE_HTTPS,
            &["a.example 30 HTTPS 1 . mandatory=ipv4hint ipv4hint=10.0.0.1 ipv6hint=fd00::1"],
            &["a.example 30 HTTPS 1 ."],
            2,
        ),
    ];
    for (record_type, answers, expected, withheld) in table {
        let reply = told(&question("a.example", *record_type), ResponseCode::NoError, answers);
        let (records, gone) = vetted(&reply.records, &mut vet);
        let expected: Vec<Record> = expected.iter().map(|line| crate::testing::record(line)).collect();
        assert_eq!(*records, *expected, "{answers:?}");
        assert_eq!(gone.len(), *withheld, "{answers:?}");
        assert!(gone.iter().all(|(_, reason)| *reason == Reason::AddressPrivate));
    }
}
