//! What a name is answered with, whatever the transport.

use super::*;

#[tokio::test]
async fn a_denied_name_asks_nobody_whatever_the_type() {
    let world = World::new(|_| {}).await;
    let secret = "mfrggzdfmy.evil.example";
    for record_type in [1, 2, 5, 6, 12, 15, 16, 28, 33, 43, 64, 65, 251, 252, 255, 257, 65535] {
        let message = world.ask(secret, record_type).await;
        assert_eq!(code(&message), ResponseCode::NXDomain, "type {record_type}");
        assert_eq!(message.all_sections().count(), 0, "type {record_type}");
        assert_eq!(extended_error(&message), Some((15, "no rule allows it".to_owned())));
    }
    assert_eq!(world.upstream.asked(), 0);
    let event = world.told.last();
    assert_eq!((event.reason, event.rcode, event.from), (Reason::NoRule, ResponseCode::NXDomain, None));
    assert_eq!(event.question.unwrap().name.to_string(), secret);
}

#[tokio::test]
async fn a_denial_names_its_rule_and_is_for_the_client_that_it_is_for() {
    let world = World::new(|_| {}).await;
    let message = world.ask("gist.github.com", 1).await;
    let text = "a rule denies it (rule \"no-gists\")".to_owned();
    assert_eq!(extended_error(&message), Some((15, text)));
    assert_eq!(code(&world.ask("elsewhere.example", 1).await), ResponseCode::NXDomain, "another client's");
    assert_eq!(world.upstream.asked(), 0);
}

#[tokio::test]
async fn who_sends_no_opt_gets_a_denial_of_the_size_of_the_question() {
    let world = World::new(|_| {}).await;
    let client = Client::new().await;
    let query = plain_query("evil.example", 1);
    client.send(&query, world.address).await;
    assert_eq!(client.receive().await.0.len(), query.len());
}

#[tokio::test]
async fn an_allowed_name_is_answered_once_by_the_upstream_and_then_from_the_cache() {
    let world = World::new(|_| {}).await;
    let (client, asked) = (Client::new().await, with_id(plain_query("PyPI.oRg", 1), 0xbeef));
    for from_upstream in [true, false] {
        client.send(&asked, world.address).await;
        let (bytes, _) = client.receive().await;
        assert_eq!(bytes[12..12 + 14], question("PyPI.oRg", 1), "the client's own letter case");
        let message = Message::from_vec(&bytes).unwrap();
        assert_eq!((message.metadata.id, code(&message)), (0xbeef, ResponseCode::NoError));
        assert_eq!(addresses(&message), ["151.101.0.223".parse::<IpAddr>().unwrap()]);
        let event = world.told.last();
        assert_eq!(event.reason, Reason::Rule);
        assert_eq!(&*event.rule.unwrap().name, "pypi");
        assert_eq!(event.addresses.to_vec(), addresses(&message));
        let from =
            if from_upstream { AnsweredBy::Upstream(world.upstream.address) } else { AnsweredBy::Cache };
        assert_eq!(event.from, Some(from));
    }
    assert_eq!(world.upstream.asked(), 1);
}

#[tokio::test]
async fn a_name_above_an_allowed_one_exists() {
    let world = World::new(|_| {}).await;
    for (above, expected) in [
        ("org", ResponseCode::NoError),
        ("files.example", ResponseCode::NoError),
        ("example", ResponseCode::NoError),
        ("github.com", ResponseCode::NoError),
        ("", ResponseCode::NoError),
        ("xample", ResponseCode::NXDomain),
    ] {
        let message = world.ask(above, 1).await;
        assert_eq!(code(&message), expected, "{above:?}");
        assert!(message.answers.is_empty());
    }
    assert_eq!(world.upstream.asked(), 0);
}

#[tokio::test]
async fn a_denial_looks_as_it_is_configured() {
    let refused = World::new(|settings| settings.denied = Denied::Refused).await;
    assert_eq!(code(&refused.ask("evil.example", 1).await), ResponseCode::Refused);
    let gate = World::new(|settings| settings.denied = Denied::Gate).await;
    let message = gate.ask("evil.example", 1).await;
    assert_eq!(addresses(&message), [gate.address.ip()]);
    assert_eq!(extended_error(&message).unwrap().0, 15);
    assert_eq!(gate.told.last().addresses.to_vec(), [gate.address.ip()]);
    let other_family = gate.ask("evil.example", 28).await;
    assert_eq!((code(&other_family), other_family.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(gate.upstream.asked() + refused.upstream.asked(), 0);
}

#[tokio::test]
async fn a_name_that_is_no_host_name_is_denied_with_what_is_wrong() {
    let world = World::new(|_| {}).await;
    let client = Client::new().await;
    for (wire, reason, shown) in [
        (&b"\x03a.b\x04pypi\x03org\0"[..], Reason::HostCharacter, "a\\.b.pypi.org"),
        (b"\x05pypi\0\x03org\0", Reason::HostControlByte, "pypi\\000.org"),
        (b"\x03com\x03127\0", Reason::HostNumeric, "com.127"),
    ] {
        client.send(&packet(RD, [1, 0, 0, 0], &[wire, &[0, 1, 0, 1]]), world.address).await;
        assert_eq!(code(&client.message().await), ResponseCode::NXDomain);
        let event = world.told.last();
        assert_eq!((event.reason, event.question.unwrap().name.to_string().as_str()), (reason, shown));
    }
    assert_eq!(world.upstream.asked(), 0);
}

#[tokio::test]
async fn types_beside_addresses_and_services_are_served_where_a_rule_lists_them() {
    let world = World::new(|_| {}).await;
    let listed = world.ask("mail.example", 16).await;
    assert_eq!(listed.answers[0].record_type(), RecordType::TXT);
    let asked = world.upstream.asked();
    for (name, record_type, expected) in [
        ("pypi.org", 16, ResponseCode::NoError),
        ("mail.example", 33, ResponseCode::NoError),
        ("pypi.org", 252, ResponseCode::Refused),
        ("pypi.org", 250, ResponseCode::Refused),
    ] {
        let message = world.ask(name, record_type).await;
        assert_eq!((code(&message), message.answers.len()), (expected, 0), "{name} {record_type}");
        assert_eq!(world.told.last().reason, Reason::DnsType);
    }
    let any = world.ask("pypi.org", 255).await;
    assert_eq!(
        any.answers.iter().map(|record| record.record_type()).collect::<Vec<_>>(),
        [RecordType::HINFO]
    );
    assert_eq!(world.upstream.asked(), asked);
}

#[tokio::test]
async fn an_answer_is_the_same_whether_it_had_to_be_asked_for_or_not() {
    let table: &[(&str, u16)] = &[
        ("PyPI.org", 1),
        ("pypi.org", 28),
        ("pypi.org", 65),
        ("a.files.example", 1),
        ("gone.files.example", 1),
        ("rebind.files.example", 1),
        ("mail.example", 16),
    ];
    let edns = [None, Some(opt(1232, 0, 0, &[])), Some(opt(512, 0, 0x8000, &[0, 12, 0, 4, 0, 0, 0, 0]))];
    for edns in edns {
        let world = World::new(|_| {}).await;
        for (name, record_type) in table {
            let count = u16::from(edns.is_some());
            let rest: &[&[u8]] = &[&question(name, *record_type), edns.as_deref().unwrap_or_default()];
            let query = packet(RD | 0x0010, [1, 0, 0, count], rest);
            let client = Client::new().await;
            let mut replies = Vec::new();
            for _ in 0..2 {
                client.send(&query, world.address).await;
                replies.push(client.receive().await.0);
            }
            let question = query.get(12..12 + rest[0].len());
            assert!(replies.iter().all(|reply| reply.get(12..12 + rest[0].len()) == question), "{name}");
            let [asked, known] = [&replies[0], &replies[1]].map(|reply| Message::from_vec(reply).unwrap());
            // A second may have passed.
            let untimed = |records: &[hickory_proto::rr::Record]| -> Vec<_> {
                records.iter().map(|record| (record.name.clone(), record.data.clone())).collect()
            };
            assert_eq!(asked.metadata, known.metadata, "{name}");
            assert_eq!(asked.edns, known.edns, "{name}");
            assert_eq!(untimed(&asked.answers), untimed(&known.answers), "{name}");
            assert_eq!(untimed(&asked.authorities), untimed(&known.authorities), "{name}");
        }
    }
}

#[tokio::test]
async fn an_answer_with_private_addresses_is_withheld_unless_the_rule_says_so() {
    let world = World::new(|_| {}).await;
    let message = world.ask("rebind.files.example", 1).await;
    assert!(message.answers.is_empty());
    assert_eq!(extended_error(&message), Some((15, Reason::AddressPrivate.sentence().to_owned())));
    let event = world.told.last();
    assert_eq!((event.reason, event.enforcement), (Reason::AddressPrivate, Enforcement::Enforce));
    assert_eq!(event.withheld.len(), 2);
    let now = std::time::Instant::now();
    assert!(world.ledger.names("127.0.0.1".parse().unwrap(), "10.0.0.1".parse().unwrap(), now).is_empty());
    assert_eq!(addresses(&world.ask("inside.example", 1).await), ["10.7.0.4".parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn what_a_client_was_told_is_in_the_ledger() {
    let world = World::new(|_| {}).await;
    world.ask("pypi.org", 28).await;
    let (client, now) = ("127.0.0.1".parse().unwrap(), std::time::Instant::now());
    let told: Vec<DomainName> = world.ledger.names(client, "2a04:4e42::223".parse().unwrap(), now);
    assert_eq!(told, [name("pypi.org")]);
    assert!(world.ledger.names(client, "151.101.0.223".parse().unwrap(), now).is_empty());
}

#[tokio::test]
async fn special_names_are_negative_even_where_a_denial_is_an_address() {
    let world = World::new(|settings| settings.denied = Denied::Gate).await;
    assert_eq!(code(&world.ask("use-application-dns.net", 1).await), ResponseCode::NXDomain);
    assert_eq!(world.ask("_dns.resolver.arpa", 64).await.answers.len(), 0);
    assert_eq!(world.told.last().reason, Reason::SpecialName);
}

#[tokio::test]
async fn a_reload_holds_from_the_next_query_on() {
    let world = World::new(|_| {}).await;
    assert_eq!(world.ask("pypi.org", 1).await.answers.len(), 1);
    world.rules.store(rules("outbound_rules: []"));
    assert_eq!(code(&world.ask("pypi.org", 1).await), ResponseCode::NXDomain);
}

#[tokio::test]
async fn in_report_mode_a_denied_name_is_answered_and_recorded() {
    let world = World::new(|_| {}).await;
    world.rules.store(rules("enforcement: report\noutbound_rules: []"));
    assert_eq!(world.ask("pypi.org", 1).await.answers.len(), 1);
    let event = world.told.last();
    assert_eq!((event.reason, event.enforcement), (Reason::NoRule, Enforcement::Report));
}
