//! Addresses: which answers are dialled, and that only a vetted one ever is.

use outgate_tests::dns::addresses_of;
use outgate_tests::origin::{greet, listen_only, page};
use outgate_tests::policy::{allow, allow_one, allow_with};
use outgate_tests::program::skip;
use outgate_tests::{Answer, Client, World, wait_until};

use crate::assert_denied;

/// Answers for an allowed name that must not be dialled, and why.
const FORBIDDEN: [(&str, &str); 27] = [
    ("10.0.0.1", "address-private"),
    ("172.16.0.1", "address-private"),
    ("192.168.1.1", "address-private"),
    ("100.64.0.1", "address-private"),
    ("fd00::1", "address-private"),
    ("127.0.0.1", "address-loopback"),
    ("127.8.8.8", "address-loopback"),
    ("::1", "address-loopback"),
    ("169.254.1.1", "address-link-local"),
    ("fe80::1", "address-link-local"),
    ("169.254.169.254", "address-metadata"),
    ("168.63.129.16", "address-metadata"),
    ("fd00:ec2::254", "address-metadata"),
    ("224.0.0.1", "address-multicast"),
    ("ff02::1", "address-multicast"),
    ("0.0.0.0", "address-unspecified"),
    ("0.1.2.3", "address-unspecified"),
    ("255.255.255.255", "address-reserved"),
    ("fec0::1", "address-reserved"),
    ("64:ff9b:1::a00:1", "address-reserved"),
    ("::ffff:10.0.0.1", "address-private"),
    ("::ffff:169.254.169.254", "address-metadata"),
    ("::127.0.0.1", "address-loopback"),
    ("64:ff9b::7f00:1", "address-loopback"),
    ("64:ff9b::a9fe:a9fe", "address-metadata"),
    ("2002:7f00:1::1", "address-loopback"),
    ("2001:0:4136:e378:8000:63bf:f5ff:fffe", "address-private"),
];

/// A rule without `resolves_to`: public addresses alone.
fn public_only() -> &'static str {
    "  - {name: rule-1, type: fqdn, destination: \"*.example\", ports: [443, 80]}\n"
}

fn assert_forbidden_addresses_stay_unreached(policy: &str) {
    let world = World::new();
    let gate = world.gate(policy).start();
    for (number, (address, reason)) in FORBIDDEN.into_iter().enumerate() {
        let name = format!("n{number}.example");
        world.dns.set(&name, &[address]);
        let response = gate.client().connect(&format!("{name}:443"));
        assert_denied(&response, 403, "destination_ip_prohibited", &name);
        let close = gate.close(&name);
        assert_eq!((&close["verdict"], &close["reason"]), (&"deny".into(), &reason.into()), "{address}");
    }
}

#[test]
fn an_answer_that_is_not_public_is_refused_with_its_own_reason() {
    assert_forbidden_addresses_stay_unreached(&format!("outbound_rules:\n{}", public_only()));
}

#[test]
fn report_mode_does_not_suspend_vetting() {
    assert_forbidden_addresses_stay_unreached("enforcement: report\noutbound_rules: []\n");
}

#[test]
fn the_internet_mode_does_not_suspend_vetting() {
    assert_forbidden_addresses_stay_unreached("isolation_mode: allow_internet_outbound\n");
}

#[test]
fn plain_http_is_vetted_alike() {
    let world = World::new();
    let gate = world.gate(format!("outbound_rules:\n{}", public_only())).start();
    for (number, (address, reason)) in FORBIDDEN.into_iter().enumerate() {
        let name = format!("n{number}.example");
        world.dns.set(&name, &[address]);
        let response = gate.client().get(&format!("http://{name}/"));
        assert_denied(&response, 403, "destination_ip_prohibited", &name);
        assert_eq!(gate.close(&name)["reason"], reason, "{address}");
    }
}

#[test]
fn an_answer_that_changes_after_vetting_is_not_dialled() {
    let world = World::new();
    let good = world.origin("good.example", 7000, greet("good"));
    let bad = world.origin("bad.example", 7000, greet("bad"));
    let (good_address, bad_address) = (world.address_of("good.example"), world.address_of("bad.example"));
    let policy = format!(
        "outbound_rules:\n  - {{name: rule-1, type: fqdn, destination: rebind.example, ports: [7000], \
         resolves_to: [{good_address}/32]}}\n"
    );
    let gate = world.gate(policy).start();
    let answers = [addresses_of(&[&good_address.to_string()]), addresses_of(&[&bad_address.to_string()])];
    world.dns.script("rebind.example", answers);

    assert_eq!(gate.tunnel("rebind.example:7000").exactly(4), b"good");
    let response = gate.client().connect("rebind.example:7000");

    assert_denied(
        &response,
        403,
        "destination_ip_prohibited",
        "rebind.example:7000: the address is loopback",
    );
    let first = gate.record("the first flow's end", |r| r["event"] == "close" && r["verdict"] == "allow");
    assert_eq!(first["address"], good_address.to_string());
    assert_eq!((good.connections(), bad.connections()), (1, 0));
}

#[test]
fn one_look_up_serves_one_dial() {
    let world = World::new();
    let _origin = world.origin("once.example", 7000, greet("hello"));
    let gate = world.gate(allow_one("once.example", &[7000])).start();

    assert_eq!(gate.tunnel("once.example:7000").exactly(5), b"hello");

    let asked = world.dns.asked().len();
    assert!(asked <= 2, "one A and one AAAA question at most, not {asked}");
}

#[test]
fn of_mixed_answers_only_the_good_one_is_dialled() {
    let world = World::new();
    let good = world.origin("mixed.example", 7000, greet("good"));
    let bad = world.origin("bad.example", 7000, greet("bad"));
    let (good_address, bad_address) = (world.address_of("mixed.example"), world.address_of("bad.example"));
    let policy = format!(
        "outbound_rules:\n  - {{name: rule-1, type: fqdn, destination: mixed.example, ports: [7000], \
         resolves_to: [{good_address}/32]}}\n"
    );
    let gate = world.gate(policy).start();

    for order in [[bad_address, good_address], [good_address, bad_address]] {
        world
            .dns
            .set("mixed.example", &order.map(|address| address.to_string()).each_ref().map(String::as_str));
        assert_eq!(gate.tunnel("mixed.example:7000").exactly(4), b"good");
    }
    assert_eq!((good.connections(), bad.connections()), (2, 0));
}

#[test]
fn the_second_address_is_tried_when_the_first_does_not_answer() {
    let world = World::new();
    let _origin = world.origin("twofold.example", 7000, greet("second"));
    let (silent, good) = (world.address_of("silent.example"), world.address_of("twofold.example"));
    world.dns.set("twofold.example", &[&silent.to_string(), &good.to_string()]);
    let gate = world.gate(allow_one("twofold.example", &[7000])).start();

    assert_eq!(gate.tunnel("twofold.example:7000").exactly(6), b"second");
    assert_eq!(gate.close("twofold.example")["address"], good.to_string());
}

#[test]
fn an_alias_is_vetted_at_its_end() {
    let world = World::new();
    let origin = world.origin("end.example", 7000, greet("end"));
    let end = world.address_of("end.example").into();
    let gate = world.gate(allow(&[("alias.example", &[7000]), ("trap.example", &[7000])])).start();
    world.dns.script("alias.example", [Answer::Alias("end.example".into(), vec![end])]);
    world
        .dns
        .script("trap.example", [Answer::Alias("end.example".into(), vec!["10.0.0.1".parse().unwrap()])]);

    assert_eq!(gate.tunnel("alias.example:7000").exactly(3), b"end");
    assert_eq!(gate.client().connect("trap.example:7000").status, 403);
    assert_eq!(origin.connections(), 1);
}

#[test]
fn the_gate_does_not_dial_itself() {
    let world = World::new();
    world.dns.set("self.example", &["127.0.0.1"]);
    let gate = world.gate(allow_one("self.example", &[1])).start();
    let ports = [gate.proxy().port(), gate.admin().port()];
    let every_port = allow_one("self.example", &ports);
    gate.reload_with(&every_port);

    for port in ports {
        let response = gate.client().connect(&format!("self.example:{port}"));
        assert_denied(&response, 403, "destination_ip_prohibited", "the gate's own");
    }
    assert_eq!(gate.reason("address-own")["verdict"], "deny");
}

#[test]
fn a_literal_needs_an_address_rule() {
    let world = World::new();
    let origin = world.origin("host.example", 7000, greet("hello"));
    let address = world.address_of("host.example");
    let gate = world.gate(allow_one("host.example", &[7000])).start();

    let response = gate.client().connect(&format!("{address}:7000"));
    assert_denied(&response, 403, "http_request_denied", "no rule allows it");

    gate.reload_with(&format!(
        "outbound_rules:\n  - {{name: lan, type: address, destination: {{addresses: [{address}], protocol: TCP, \
         port_ranges: \"7000-7001\"}}}}\n"
    ));
    assert_eq!(gate.tunnel(&format!("{address}:7000")).exactly(5), b"hello");
    assert_eq!(gate.client().connect(&format!("{address}:6999")).status, 403);
    assert_eq!(gate.client().connect(&format!("[::ffff:{address}]:6999")).status, 403);
    assert_eq!(origin.connections(), 1);
    assert_eq!(world.dns.packets(), 0);
}

#[test]
fn an_address_rule_admits_no_names() {
    let world = World::new();
    let origin = world.origin("host.example", 7000, greet("hello"));
    let address = world.address_of("host.example");
    let gate = world
        .gate(format!(
            "outbound_rules:\n  - {{name: lan, type: address, destination: {{addresses: [{address}], protocol: TCP, \
             port_ranges: \"7000\"}}}}\n"
        ))
        .start();

    assert_eq!(gate.client().connect("host.example:7000").status, 403);
    assert_eq!((origin.connections(), world.dns.packets()), (0, 0));
}

#[test]
fn an_address_that_one_rule_opens_is_not_open_to_the_names_of_another() {
    let world = World::new();
    let origin = world.origin("private.example", 7000, listen_only());
    let address = world.address_of("private.example").to_string();
    world.dns.set("public.example", &[&address]);
    let policy = allow_one("private.example", &[7000])
        + "  - {name: open, type: fqdn, destination: public.example, ports: [7000]}\n";
    let gate = world.gate(policy).start();

    drop(gate.tunnel("private.example:7000"));
    wait_until("the allowed connection", || origin.connections() == 1);
    let response = gate.client().connect("public.example:7000");

    assert_denied(&response, 403, "destination_ip_prohibited", "loopback");
    assert_eq!(origin.connections(), 1);
}

#[test]
fn a_service_tag_opens_its_prefixes_ports_and_protocol() {
    let world = World::new();
    let _origin = world.origin("tagged.example", 7000, greet("tagged"));
    let address = world.address_of("tagged.example");
    let tags = format!(
        r#"{{"changeNumber": 1, "cloud": "Public", "values": [{{"name": "TestTag", "id": "TestTag", "properties":
           {{"changeNumber": 1, "region": "", "platform": "Azure", "systemService": "", "addressPrefixes": ["{address}/32"],
           "networkFeatures": []}}}}]}}"#
    );
    let policy = "service_tags: [tags.json]\noutbound_rules:\n  - {name: tag, type: service_tag, \
                  destination: {service_tag: TestTag, protocol: TCP, port_ranges: \"7000\"}}\n";
    let gate = world.gate(policy).file("tags.json", tags).start();

    assert_eq!(gate.tunnel(&format!("{address}:7000")).exactly(6), b"tagged");
    assert_eq!(gate.client().connect(&format!("{address}:443")).status, 403);
    assert_eq!(gate.client().connect("tagged.example:7000").status, 403);
    assert_eq!(gate.decision(&address.to_string())["rule"]["name"], "tag");
}

#[test]
fn in_a_tunnel_to_an_address_the_hello_meets_only_deny_rules() {
    let world = World::new();
    let origin = world.origin("host.example", 443, listen_only());
    let address = world.address_of("host.example");
    let policy = format!(
        "outbound_rules:\n  - {{name: lan, type: address, destination: {{addresses: [{address}], protocol: TCP, \
         port_ranges: \"443\"}}}}\n  - {{name: never, action: deny, type: fqdn, destination: evil.example}}\n"
    );
    let gate = world.gate(policy).start();

    let hello = world.authority.hello("whoever.example");
    gate.tunnel(&format!("{address}:443")).send(&hello);
    wait_until("the hello at the origin", || origin.received() == hello);

    let mut client = gate.tunnel(&format!("{address}:443"));
    client.send_to_whom_it_may_concern(world.authority.hello("evil.example")).rest();
    assert_eq!(gate.denial(&client)["reason"], "deny-rule");
    assert_eq!(origin.received(), hello);
}

#[test]
fn private_answers_pass_where_the_rule_says_private() {
    let world = World::new();
    world.dns.set("private.example", &["8.8.8.8"]);
    let gate = world
        .gate("outbound_rules:\n  - {name: inside, type: fqdn, destination: private.example, ports: [443], resolves_to: private}\n")
        .start();

    let response = gate.client().connect("private.example:443");

    assert_denied(&response, 403, "destination_ip_prohibited", "private addresses only");
    assert_eq!(gate.close("private.example")["reason"], "address-public");
}

#[test]
fn a_deny_on_an_address_beats_a_name_that_resolves_to_it() {
    let world = World::new();
    let origin = world.http("host.example", page("reached"));
    let address = world.address_of("host.example");
    let policy = allow_with("host.example", &[80], "sni: any")
        + &format!(
            "  - {{name: not-there, action: deny, type: address, destination: {{addresses: [{address}], protocol: TCP, \
             port_ranges: \"1-65535\"}}}}\n"
        );
    let gate = world.gate(policy).start();

    let response = gate.client().get("http://host.example/");

    assert_denied(&response, 403, "http_request_denied", "a rule denies it");
    assert_eq!(gate.close("host.example")["rule"]["name"], "not-there");
    assert_eq!(origin.connections(), 0);
}

#[test]
fn a_client_over_a_dual_stack_listener_is_its_ipv4_self() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return skip("IPv6 is not there");
    }
    let world = World::new();
    let policy = "sources: {me: [127.0.0.1/32]}\noutbound_rules:\n\
                  \x20 - {name: mine, type: fqdn, destination: mine.example, ports: [443], sources: [me]}\n";
    let gate = world.gate(policy).set("listen.proxy.address", "[::]:0").start();
    let port = gate.proxy().port();

    let mut mapped = Client::to(([127, 0, 0, 1], port).into());
    assert_eq!(mapped.connect("mine.example:443").status, 502);
    let mut other = Client::to(std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port)));
    assert_eq!(other.connect("mine.example:443").status, 403);
    assert_eq!(gate.reason("source-not-in-rule")["client"], "::1");
}
