use std::net::UdpSocket;

use super::super::namespace::inside;
use super::super::table::Expr::{Do, Is};
use super::super::table::{CtState, HookKind, HookPlace, Match, Policy, Rule, Statement, UDP};
use super::super::tests::{hooked, table};
use super::super::{Kept, apply};
use super::*;

/// Conntrack works in a namespace from the first rule on that asks for it.
fn tracked() {
    let rule = Rule::new([Is(Match::CtState(vec![CtState::New])), Do(Statement::SetCtMark(0x0067_0007))]);
    let chain = hooked("leaving", HookKind::Filter, HookPlace::Output, 0, Policy::Accept, vec![rule]);
    apply(&table(vec![], vec![chain]), &Kept::none()).expect("applied");
    std::fs::write("/proc/sys/net/netfilter/nf_conntrack_acct", "1").expect("a setting of the namespace");
}

fn flow_of(client: &UdpSocket, server: &UdpSocket) -> Filter {
    let server = server.local_addr().expect("an address");
    client.send_to(b"question", server).expect("sent");
    Filter {
        client: Some(client.local_addr().expect("an address").ip()),
        destination: Some(server.ip()),
        protocol: Some(UDP),
        port: Some(server.port()),
        mark: None,
    }
}

#[test]
fn a_flow_is_found_as_it_is_and_cut_once() {
    inside(|| {
        tracked();
        for loopback in ["127.0.0.1", "::1"] {
            let [client, server, other] = [(); 3].map(|()| UdpSocket::bind((loopback, 0)).expect("a socket"));
            let filter = flow_of(&client, &server);
            let kept = flow_of(&client, &other);
            let found = dump(&filter).expect("dumped");
            let [flow] = found.as_slice() else { panic!("{found:?}") };
            let port = client.local_addr().expect("an address").port();
            assert_eq!(flow.original.source_port, port);
            assert_eq!((flow.reply.destination, flow.reply.destination_port), (flow.original.source, port));
            assert_eq!(flow.mark, 0x0067_0007);
            let headers = if loopback == "::1" { 48 } else { 28 };
            assert_eq!((flow.bytes_up, flow.bytes_down), (Some(headers + 8), Some(0)));
            assert_eq!(delete(&found).expect("cut"), 1);
            assert_eq!(delete(&found).expect("gone already"), 0);
            assert_eq!(dump(&filter).expect("dumped"), []);
            assert_eq!(dump(&kept).expect("dumped").len(), 1);
        }
    });
}

#[test]
fn a_filter_takes_what_is_as_each_of_its_parts_says() {
    inside(|| {
        tracked();
        let [client, server] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
        let filter = flow_of(&client, &server);
        let found = dump(&Filter::default()).expect("dumped");
        let flow = found.iter().find(|flow| filter.takes(flow)).expect("the flow");
        let mark = |value, mask| Filter { mark: Some(Mark { value, mask }), ..filter };
        assert!(mark(0x0067_0000, 0x00ff_0000).takes(flow));
        let other = Some("127.0.0.9".parse().expect("an address"));
        let others = [
            mark(0x0066_0000, 0x00ff_0000),
            Filter { client: other, ..filter },
            Filter { destination: other, ..filter },
            Filter { protocol: Some(6), ..filter },
            Filter { port: filter.port.map(|port| port ^ 1), ..filter },
        ];
        assert!(!others.iter().any(|filter| filter.takes(flow)));
    });
}
