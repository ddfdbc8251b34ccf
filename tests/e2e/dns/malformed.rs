//! Packets that are no query: an error or silence, nobody upstream hears of them, and the gate goes on.

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use hickory_proto::op::{Message, ResponseCode};
use outgate_tests::lookup::{
    A, Datagrams, addresses, code, framed, message, opt, over_tcp, plain_query, query, question, read_framed,
};
use outgate_tests::upstream::address;
use outgate_tests::{Gate, PATIENCE, Upstream};

use super::{LAST, asking, assert_only_asked, resolving};

const NAME: &str = "ok.example";
/// The id of the query that follows each malformed packet.
const NEXT: u16 = 0xfffe;

fn upstream() -> Upstream {
    Upstream::knowing([address(LAST, 60, "9.9.9.9"), address(NAME, 60, "9.9.9.1")])
}

/// What comes back for a packet up to the answer to the query that follows, and up to the first so many: an error
/// may take longer than what is answered on the spot.
fn answers_to(gate: &Gate, packet: &[u8], expected: usize) -> Vec<Vec<u8>> {
    let client = Datagrams::to(gate.dns());
    client.send(packet);
    client.send(&query(NEXT, "denied.example", A));
    let (mut answers, mut followed) = (Vec::new(), false);
    while !followed || answers.len() < expected {
        let answer = client.receive();
        if answer.starts_with(&NEXT.to_be_bytes()) {
            followed = true;
        } else {
            answers.push(answer);
        }
    }
    answers
}

/// Packets about an allowed name, and the response code; none is silence.
fn malformed() -> Vec<(&'static str, Vec<u8>, Option<ResponseCode>)> {
    use ResponseCode::{BADVERS, FormErr, NotImp, Refused};
    let asked = question(NAME, A);
    let (in_class, chaos): (&[u8], &[u8]) = (&[0, 1, 0, 1], &[0, 1, 0, 3]);
    let name = &asked[..asked.len() - 4];
    let version_1 = [0, 0, 41, 4, 208, 0, 1, 0, 0, 0, 0];
    let rd = 0x0100;
    let address_record: &[u8] = &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 1, 2, 3, 4];
    vec![
        ("nothing", vec![], None),
        ("half a header", vec![1, 2, 3, 4, 5, 6], None),
        ("a response", message(1, 0x8180, [1, 0, 0, 0], &[&asked]), None),
        ("a response with an answer", message(1, 0x8180, [1, 1, 0, 0], &[&asked, address_record]), None),
        ("a header alone", message(1, rd, [1, 0, 0, 0], &[]), Some(FormErr)),
        ("no question", message(1, rd, [0, 0, 0, 0], &[]), Some(FormErr)),
        (
            "two questions",
            message(1, rd, [2, 0, 0, 0], &[&asked, &question("evil.example", A)]),
            Some(FormErr),
        ),
        ("65535 questions", message(1, rd, [0xffff, 0, 0, 0], &[&asked]), Some(FormErr)),
        ("a status query", message(1, 0x1000, [1, 0, 0, 0], &[&asked]), Some(NotImp)),
        ("a notification", message(1, 0x2000, [1, 0, 0, 0], &[&asked]), Some(NotImp)),
        ("an update", message(1, 0x2800, [1, 0, 0, 0], &[&asked]), Some(NotImp)),
        ("class CHAOS", message(1, rd, [1, 0, 0, 0], &[name, chaos]), Some(Refused)),
        (
            "a name that points at itself",
            message(1, rd, [1, 0, 0, 0], &[&[0xc0, 12], in_class]),
            Some(FormErr),
        ),
        (
            "a name that points ahead",
            message(1, rd, [1, 0, 0, 0], &[&[0xc0, 14], name, in_class]),
            Some(FormErr),
        ),
        (
            "two names that point at each other",
            message(1, rd, [1, 0, 0, 1], &[&[0xc0, 18], in_class, &[0xc0, 12], in_class]),
            Some(FormErr),
        ),
        (
            "a label of a kind that never was",
            message(1, rd, [1, 0, 0, 0], &[&[0x41, 0], in_class]),
            Some(FormErr),
        ),
        ("a label without its end", message(1, rd, [1, 0, 0, 0], &[&[63, b'a']]), Some(FormErr)),
        (
            "a name of 300 bytes",
            message(1, rd, [1, 0, 0, 0], &[&[1, b'a'].repeat(150), &[0], in_class]),
            Some(FormErr),
        ),
        ("no type", message(1, rd, [1, 0, 0, 0], &[name]), Some(FormErr)),
        ("half a class", message(1, rd, [1, 0, 0, 0], &[&asked[..asked.len() - 1]]), Some(FormErr)),
        ("bytes behind", message(1, rd, [1, 0, 0, 0], &[&asked, b"secret"]), Some(FormErr)),
        ("bytes behind OPT", message(1, rd, [1, 0, 0, 1], &[&asked, &opt(1232, &[]), b"x"]), Some(FormErr)),
        ("an answer", message(1, rd, [1, 1, 0, 0], &[&asked, address_record]), Some(FormErr)),
        ("an authority", message(1, rd, [1, 0, 1, 0], &[&asked, address_record]), Some(FormErr)),
        ("an additional record", message(1, rd, [1, 0, 0, 1], &[&asked, address_record]), Some(FormErr)),
        ("two OPT", message(1, rd, [1, 0, 0, 2], &[&asked, &opt(512, &[]), &opt(512, &[])]), Some(FormErr)),
        (
            "an option cut short",
            message(1, rd, [1, 0, 0, 1], &[&asked, &opt(512, &[0, 3, 0, 9, 1])]),
            Some(FormErr),
        ),
        ("OPT that is announced and missing", message(1, rd, [1, 0, 0, 1], &[&asked]), Some(FormErr)),
        ("EDNS 1", message(1, rd, [1, 0, 0, 1], &[&asked, &version_1]), Some(BADVERS)),
    ]
}

#[test]
fn what_is_no_query_gets_an_error_or_silence_and_nobody_upstream_hears_of_it() {
    let upstream = upstream();
    let mut gate = asking(&upstream, resolving(&[NAME])).start();
    for (what, packet, expected) in malformed() {
        let answers = answers_to(&gate, &packet, expected.iter().len());
        // By number: BADVERS shares its own with BADSIG.
        let number = |bytes: &Vec<u8>| u16::from(code(&Message::from_vec(bytes).unwrap()));
        let codes: Vec<_> = answers.iter().map(number).collect();
        assert_eq!(codes, expected.map(u16::from).into_iter().collect::<Vec<_>>(), "{what}");
        for answer in answers {
            assert!(answer.len() <= packet.len(), "{what}: {} bytes for {}", answer.len(), packet.len());
            assert_eq!(answer[..2], packet[..2], "{what}");
        }
    }
    assert_only_asked(&gate, &upstream, &[]);
    assert!(gate.is_alive());
}

#[test]
fn a_query_cut_at_any_byte_is_no_query() {
    let upstream = upstream();
    let mut gate = asking(&upstream, resolving(&[NAME])).start();
    let whole = query(1, NAME, A);
    for length in 0..whole.len() {
        for answer in answers_to(&gate, &whole[..length], 0) {
            assert_eq!(code(&Message::from_vec(&answer).unwrap()), ResponseCode::FormErr, "{length} bytes");
        }
    }
    assert_only_asked(&gate, &upstream, &[]);
    assert!(gate.is_alive());
}

#[test]
fn malformed_messages_on_a_stream_are_answered_alike() {
    let upstream = upstream();
    let mut gate = asking(&upstream, resolving(&[NAME])).start();
    for (what, packet, _) in malformed() {
        let mut stream = TcpStream::connect(gate.dns()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&framed(&packet)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // A reset is an answer, too.
        drop(std::io::Read::read_to_end(&mut stream, &mut answer));
        assert!(answer.len() <= packet.len() + 2, "{what}: {answer:?}");
    }
    assert_only_asked(&gate, &upstream, &[]);
    assert!(gate.is_alive());
}

#[test]
fn a_stream_is_read_however_it_is_cut_and_carries_several_queries() {
    let upstream = upstream();
    let gate = asking(&upstream, resolving(&[NAME])).start();
    let mut stream = TcpStream::connect(gate.dns()).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for byte in framed(&query(5, NAME, A)) {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(addresses(&read_framed(&mut stream)), ["9.9.9.1"]);
    let answers =
        over_tcp(gate.dns(), &[query(1, NAME, A), query(2, "denied.example", A), query(3, NAME, A)]);
    let mut ids: Vec<_> = answers.iter().map(|answer| answer.metadata.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3]);
}

#[test]
fn a_stream_that_lies_about_its_lengths_does_no_harm() {
    let upstream = upstream();
    let mut gate = asking(&upstream, resolving(&[NAME])).start();
    let long: Vec<u8> = [&[0xff, 0xff][..], &query(1, NAME, A)].concat();
    for bytes in [&[0, 0][..], &[0], &[0, 5, 1, 2], &long, &[0xff; 4096]] {
        let mut stream = TcpStream::connect(gate.dns()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        drop(stream.write_all(bytes));
        drop(stream.shutdown(Shutdown::Write));
        drop(std::io::Read::read_to_end(&mut stream, &mut Vec::new()));
    }
    assert_only_asked(&gate, &upstream, &[]);
    assert!(gate.is_alive());
}

/// Letter case, flags, a client's subnet, a cookie, padding and an option that nobody knows.
fn covert_query() -> Vec<u8> {
    let options: Vec<u8> = [
        &[0, 8, 0, 7, 0, 1, 24, 0, 203, 0, 113][..],
        &[0, 10, 0, 8, 0xde, 0xad, 0xbe, 0xef, 0xde, 0xad, 0xbe, 0xef],
        &[0, 12, 0, 4, 1, 2, 3, 4],
        &[0xfd, 0xe9, 0, 6, b's', b'e', b'c', b'r', b'e', b't'],
    ]
    .concat();
    // CD and the bits that have no meaning in a query.
    message(0x5ec7, 0x0170, [1, 0, 0, 1], &[&question("oK.eXaMpLe", A), &opt(4095, &options)])
}

#[test]
fn what_goes_upstream_depends_on_name_and_type_and_on_nothing_else_that_a_client_sends() {
    let upstream = upstream();
    for question in [plain_query(1, NAME, A), covert_query()] {
        // A gate each: the second would be answered from the first's cache.
        let gate = asking(&upstream, resolving(&[NAME])).start();
        let answer = Datagrams::to(gate.dns()).ask(&question);
        assert_eq!(addresses(&answer), ["9.9.9.1"]);
    }
    let packets = upstream.packets();
    assert_eq!(packets.len(), 2);
    assert_eq!(packets[0][2..], packets[1][2..], "but for the id");
    assert_ne!(packets[1][..2], [0x5e, 0xc7], "the id is the gate's own");
}
