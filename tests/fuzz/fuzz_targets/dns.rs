//! A packet is read as a query the same way as hickory reads it, or not at all; and every reply to one is a
//! message that hickory reads, no larger than the client takes.
#![no_main]

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, rdata};
use libfuzzer_sys::fuzz_target;
use outgate_dns::respond::{Content, ExtendedError, Response, datagram_limit};
use outgate_dns::wire::{Fault, Head, Query};

fuzz_target!(|packet: &[u8]| match Query::read(packet) {
    Ok(query) => {
        agrees(packet, &query);
        replies(&query);
    }
    Err(Fault::Silence) => {
        assert!(packet.len() < 12 || packet[2] & 0x80 != 0);
    }
    Err(Fault::Opcode(head)) => {
        assert_ne!(packet[2] & 0x78, 0);
        is_of(head, packet);
    }
    Err(Fault::Format(head, _)) => is_of(head, packet),
});

/// What an answer repeats is the packet's own.
fn is_of(head: Head, packet: &[u8]) {
    assert_eq!(head.id.to_be_bytes(), packet[..2]);
    assert_eq!(head.flags.to_be_bytes(), [packet[2] & 0x79, packet[3] & 0x10]);
}

fn agrees(packet: &[u8], query: &Query<'_>) {
    is_of(query.head, packet);
    // hickory-server is given what was understood of the packet.
    let bare = query.to_packet();
    assert_eq!(Query::read(&bare).as_ref(), Ok(query));
    let theirs = Message::from_vec(&bare).expect("hickory does not read what was accepted");
    assert_eq!(theirs.metadata.message_type, MessageType::Query);
    assert_eq!(theirs.metadata.op_code, OpCode::Query);
    assert_eq!(theirs.metadata.id, query.head.id);
    assert_eq!(theirs.metadata.recursion_desired, query.head.recursion_desired());
    let [asked] = theirs.queries.as_slice() else { panic!("{} questions", theirs.queries.len()) };
    assert_eq!(u16::from(asked.query_type()), query.question.record_type);
    assert_eq!(u16::from(asked.query_class()), query.question.class);
    assert!(theirs.answers.is_empty() && theirs.authorities.is_empty() && theirs.additionals.is_empty());
    assert_eq!(theirs.edns.is_some(), query.edns.is_some());
    if let (Some(theirs), Some(ours)) = (&theirs.edns, query.edns) {
        // hickory raises a size below 512, as a reply does.
        assert_eq!(theirs.max_payload().max(512), ours.size.max(512));
        assert_eq!(theirs.version(), ours.version);
        assert_eq!(theirs.flags().dnssec_ok, ours.dnssec_ok);
    }
    // Where the name is that of a host, it is the same one; where it is not, some label shows why.
    assert_eq!(asked.name().is_root(), query.question.is_root());
    match query.question.name() {
        Ok(name) => {
            let labels: Vec<Vec<u8>> = asked.name().iter().map(<[u8]>::to_ascii_lowercase).collect();
            let ours: Vec<&[u8]> = name.labels().map(str::as_bytes).collect();
            assert_eq!(labels, ours);
        }
        Err(_) => assert!(query.question.presentation().is_ascii()),
    }
}

/// Replies of every kind.
fn replies(query: &Query<'_>) {
    let owner = query.question.name().ok().and_then(|name| Name::from_ascii(format!("{name}.")).ok());
    let elsewhere = Name::from_ascii("elsewhere.example.").unwrap_or_default();
    let alias = RData::CNAME(rdata::CNAME(elsewhere.clone()));
    let mut chain = vec![Record::from_rdata(owner.unwrap_or_else(Name::root), 60, alias)];
    let address = |last| RData::A(rdata::A::new(192, 0, 2, last));
    chain.extend(
        (0..query.head.id as u8).map(|last| Record::from_rdata(elsewhere.clone(), 60, address(last))),
    );
    let records = Content::Records { answers: &chain, soa: chain.first(), age: 30 };
    let limit = datagram_limit(query.edns);
    assert!((512..=1232).contains(&limit));
    for content in [Content::Nothing, Content::Own([192, 0, 2, 1].into()), records] {
        let error = ExtendedError { code: ExtendedError::BLOCKED, text: "no rule allows it" };
        let response = Response {
            content,
            extended_error: Some(error),
            ..Response::empty(query, ResponseCode::NXDomain)
        };
        let mut reply = Vec::new();
        response.write(limit, &mut reply);
        assert!(reply.len() <= limit);
        let asked = query.question.bytes();
        assert_eq!(reply[12..12 + asked.len()], *asked);
        let theirs = Message::from_vec(&reply).expect("hickory does not read the reply");
        assert_eq!(theirs.metadata.message_type, MessageType::Response);
        assert_eq!(theirs.edns.is_some(), query.edns.is_some());
        if let (Content::Records { answers, .. }, false) = (content, theirs.metadata.truncation) {
            assert_eq!(theirs.answers, answers);
        }
    }
}
