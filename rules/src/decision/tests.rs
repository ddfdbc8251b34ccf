use super::*;
use crate::policy;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 4));

const POLICY: &str = "
outbound_rules:
  - {name: site, type: fqdn, destination: www.example.org}
  - {name: inner, type: fqdn, destination: db.example.org, resolves_to: private}
  - {name: near, type: fqdn, destination: near.example.org, resolves_to: [10.2.0.0/16, 9.9.9.0/24]}
  - {name: host, type: fqdn, destination: host.example.org, resolves_to: [10.3.0.7, 10.3.0.0/24, 127.0.0.0/8]}
  - {name: metadata, type: fqdn, destination: meta.example.org, resolves_to: [169.254.169.254]}
  - {name: around-metadata, type: fqdn, destination: around.example.org, resolves_to: [169.254.0.0/16, 168.63.0.0/16]}
  - {name: licence, type: address, destination: {addresses: [9.9.9.0/24], protocol: TCP, port_ranges: '443'}}
  - {name: sign-in, type: service_tag, destination: {service_tag: T, protocol: TCP, port_ranges: '443', address_prefixes: [8.8.4.0/24]}, names: [login.example.org]}
  - {name: not-there, action: deny, type: address, destination: {addresses: [9.9.9.66]}}
  - {name: not-by-ipv6, action: deny, type: address, destination: {addresses: ['2000::/3']}}
  - {name: not-that, action: deny, type: fqdn, destination: bad.example.org}
";

fn rules(text: &str) -> Arc<RuleSet> {
    let source = policy::Source { name: "policy.yaml".to_owned(), bytes: text.as_bytes().to_vec() };
    let compiled = policy::compile(&[source], &mut |_| Err("no such file".to_owned()), None, NOW);
    Arc::new(compiled.unwrap_or_else(|diagnostics| panic!("{diagnostics}")).rules)
}

fn decide(rules: &Arc<RuleSet>, destination: &str) -> Decision {
    let destination = Destination::parse(destination).unwrap();
    rules.decide(&Request { client: CLIENT, destination: &destination, protocol: Protocol::Tcp }, NOW)
}

fn permit(rules: &Arc<RuleSet>, destination: &str) -> Permit {
    decide(rules, destination).into_permit().unwrap_or_else(|denial| panic!("{destination}: {denial:?}"))
}

/// The gate's listener, which is on any address, and its host's one.
fn own() -> OwnAddresses {
    OwnAddresses {
        listeners: vec!["0.0.0.0:3128".parse().unwrap()],
        interfaces: vec!["10.3.0.7".parse().unwrap(), "10.3.0.8".parse().unwrap()],
    }
}

fn vet(permit: &Permit, address: &str) -> Result<(), Reason> {
    permit.vet(address.parse().unwrap(), &own(), NOW).map(|_| ()).map_err(|denial| denial.reason)
}

#[test]
fn an_address_is_admitted_by_the_rules_for_the_name_and_by_no_other() {
    let rules = rules(POLICY);
    let table = [
        ("www.example.org:443", "1.1.1.1", Ok(())),
        ("www.example.org:443", "10.2.0.1", Err(Reason::AddressPrivate)),
        ("www.example.org:443", "100.64.0.1", Err(Reason::AddressPrivate)),
        ("www.example.org:443", "fd00::1", Err(Reason::AddressPrivate)),
        ("www.example.org:443", "127.0.0.1", Err(Reason::AddressLoopback)),
        ("www.example.org:443", "::ffff:127.0.0.1", Err(Reason::AddressLoopback)),
        ("www.example.org:443", "169.254.1.1", Err(Reason::AddressLinkLocal)),
        ("www.example.org:443", "169.254.169.254", Err(Reason::AddressMetadata)),
        ("www.example.org:443", "168.63.129.16", Err(Reason::AddressMetadata)),
        ("www.example.org:443", "64:ff9b::a9fe:a9fe", Err(Reason::AddressMetadata)),
        ("www.example.org:443", "64:ff9b::a00:1", Err(Reason::AddressPrivate)),
        ("db.example.org:443", "10.2.0.1", Ok(())),
        ("db.example.org:443", "1.1.1.1", Err(Reason::AddressPublic)),
        ("db.example.org:443", "169.254.169.254", Err(Reason::AddressMetadata)),
        ("near.example.org:443", "10.2.0.1", Ok(())),
        ("near.example.org:443", "9.9.9.9", Ok(())),
        ("near.example.org:443", "10.4.0.1", Err(Reason::AddressNotInRule)),
        ("near.example.org:443", "1.1.1.1", Err(Reason::AddressNotInRule)),
        ("near.example.org:443", "127.0.0.1", Err(Reason::AddressLoopback)),
        ("meta.example.org:443", "169.254.169.254", Ok(())),
        ("around.example.org:443", "169.254.1.1", Ok(())),
        ("around.example.org:443", "169.254.169.254", Err(Reason::AddressMetadata)),
        ("around.example.org:443", "168.63.129.16", Err(Reason::AddressMetadata)),
    ];
    for (destination, address, vetted) in table {
        assert_eq!(vet(&permit(&rules, destination), address), vetted, "{destination} at {address}");
    }
}

#[test]
fn a_deny_rule_takes_an_address_in_whichever_form_it_stands_there() {
    let rules = rules(POLICY);
    let site = permit(&rules, "www.example.org:443");
    for address in [
        "9.9.9.66",
        "::ffff:9.9.9.66",
        "64:ff9b::909:942",
        "2002:909:942::1",
        "2002:808:808::1",
        "2606:4700::1",
    ] {
        assert_eq!(vet(&site, address), Err(Reason::DenyRule), "{address}");
    }
    for address in ["9.9.9.67", "8.8.8.8", "::ffff:9.9.9.67"] {
        assert_eq!(vet(&site, address), Ok(()), "{address}");
    }
    assert_eq!(decide(&rules, "9.9.9.66:443").reason, Reason::DenyRule);
    assert_eq!(decide(&rules, "9.9.9.9:443").reason, Reason::Rule);
}

#[test]
fn the_gates_own_address_needs_a_rule_that_lists_that_very_one() {
    let rules = rules(POLICY);
    let host = permit(&rules, "host.example.org:443");
    assert_eq!(vet(&host, "10.3.0.7"), Ok(()), "it is listed");
    assert_eq!(vet(&host, "10.3.0.8"), Err(Reason::AddressOwn), "a prefix round it is not its own");
    assert_eq!(vet(&host, "::ffff:10.3.0.8"), Err(Reason::AddressOwn), "in whatever form");
    assert_eq!(vet(&host, "10.3.0.9"), Ok(()), "another host's");
    assert_eq!(vet(&host, "127.0.0.1"), Ok(()), "loopback, and not the listener");
    let listener = decide(&rules, "host.example.org:3128").reason;
    assert_eq!(listener, Reason::PortNotInRule);
    let all_ports =
        self::rules(&POLICY.replace("host.example.org,", "host.example.org, ports: [443, 3128],"));
    assert_eq!(vet(&permit(&all_ports, "host.example.org:3128"), "127.0.0.1"), Err(Reason::AddressOwn));
    let internet = self::rules(&format!("isolation_mode: allow_internet_outbound{POLICY}"));
    assert_eq!(vet(&permit(&internet, "any.example:443"), "10.3.0.8"), Err(Reason::AddressOwn));
}

#[test]
fn no_mode_takes_more_than_public_addresses() {
    for mode in ["isolation_mode: allow_internet_outbound", "enforcement: report"] {
        let rules = rules(&format!("{mode}{POLICY}"));
        let any = permit(&rules, "any.example:22");
        assert_eq!(vet(&any, "1.1.1.1"), Ok(()), "{mode}");
        for (address, reason) in [
            ("10.2.0.1", Reason::AddressPrivate),
            ("127.0.0.1", Reason::AddressLoopback),
            ("169.254.169.254", Reason::AddressMetadata),
            ("192.0.2.1", Reason::AddressReserved),
        ] {
            assert_eq!(vet(&any, address), Err(reason), "{mode}: {address}");
        }
    }
    let internet = rules(&format!("isolation_mode: allow_internet_outbound{POLICY}"));
    assert_eq!(vet(&permit(&internet, "any.example:22"), "9.9.9.66"), Err(Reason::DenyRule));
}

#[test]
fn a_denied_request_has_no_permit() {
    let rules = rules(POLICY);
    for (destination, reason) in [
        ("bad.example.org:443", Reason::DenyRule),
        ("any.example:443", Reason::NoRule),
        ("www.example.org:22", Reason::PortNotInRule),
        ("1.1.1.1:443", Reason::NoRule),
    ] {
        assert_eq!(decide(&rules, destination).into_permit().unwrap_err().reason, reason, "{destination}");
    }
}

#[test]
fn a_name_seen_in_a_flow_to_an_address_must_be_one_that_the_rule_for_the_address_has() {
    let rules = rules(POLICY);
    let seen = |destination: &str, name: &str| {
        let seen = permit(&rules, destination).vet_seen_name(&DomainName::parse(name).unwrap(), NOW);
        seen.map(|_| ()).map_err(|denial| denial.reason)
    };
    assert_eq!(seen("9.9.9.9:443", "any.example"), Ok(()), "its rule is for no certain names");
    assert_eq!(seen("9.9.9.9:443", "bad.example.org"), Err(Reason::DenyRule));
    assert_eq!(seen("8.8.4.4:443", "login.example.org"), Ok(()));
    assert_eq!(seen("8.8.4.4:443", "any.example"), Err(Reason::SniNotInRule));
    assert_eq!(seen("8.8.4.4:443", "www.example.org"), Err(Reason::SniNotInRule), "another rule's name");
    assert_eq!(seen("8.8.4.4:443", "bad.example.org"), Err(Reason::DenyRule));
}

#[test]
fn a_hello_may_name_any_server_only_where_every_rule_or_the_mode_says_so() {
    let any = "outbound_rules:
  - {name: any, type: fqdn, destination: a.example, sni: any}
  - {name: also, type: fqdn, destination: '*.example', sni: any}
  - {name: strict, type: fqdn, destination: b.example}
  - {name: loose, type: fqdn, destination: b.example, sni: any}
  - {name: tls, type: fqdn, destination: b.example, ports: [22], tls_only: true}
";
    let terms = |text: &str, destination: &str| permit(&rules(text), destination).tls();
    assert_eq!(terms(any, "a.example:443"), TlsTerms { tls_only: false, any_name: true });
    assert_eq!(terms(any, "b.example:443"), TlsTerms { tls_only: false, any_name: false });
    assert_eq!(terms(any, "b.example:22"), TlsTerms { tls_only: true, any_name: false });
    let internet = format!("isolation_mode: allow_internet_outbound\n{any}");
    assert_eq!(terms(&internet, "b.example:443"), TlsTerms { tls_only: false, any_name: true });
    let report = "enforcement: report\n";
    assert_eq!(terms(report, "c.example:443"), TlsTerms { tls_only: false, any_name: false });
}
