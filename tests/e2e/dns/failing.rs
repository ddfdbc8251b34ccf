//! Upstreams in trouble: real ones that freeze, die and come back, and scripted ones that break off or lie over TCP,
//! from another port, in another letter case.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hickory_proto::op::{Message, ResponseCode};
use outgate_tests::authority::{NameServer, Software};
use outgate_tests::dns::bind_both;
use outgate_tests::lookup::{A, addresses, code, framed};
use outgate_tests::upstream::{address, bytes, reply, reply_from};
use outgate_tests::{Gate, Setup, Upstream, wait_for, wait_until};

use super::resolving;

const NAME: &str = "a.example";
const TRUTH: &str = "9.9.9.1";
const LIE: &str = "6.6.6.6";

fn gate(upstreams: &[SocketAddr]) -> Gate {
    let upstreams: Vec<_> = upstreams.iter().map(ToString::to_string).collect();
    let setup = Setup::new(&resolving(&["*.example"])).set("dns.upstreams", upstreams);
    setup.set("dns.budget.names_per_minute", 10_000).start()
}

fn says(place: &str, query: &Message) -> Message {
    reply_from(&[address(NAME, 60, place)], query)
}

fn honest() -> Upstream {
    Upstream::start(|query| vec![bytes(&says(TRUTH, query))])
}

/// Names that were never asked for before.
fn new_name() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("n{}.example", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Who answered a new name, and that it was answered.
fn answerer(gate: &Gate) -> String {
    let name = new_name();
    assert_eq!(addresses(&gate.lookup(&name, A)), [TRUTH], "{name}");
    gate.decision(&name)["upstream"].as_str().unwrap_or_default().to_owned()
}

/// Two authorities with one zone.
fn twins() -> Option<[NameServer; 2]> {
    let zone = [("example", "* A 9.9.9.1\n")];
    Some([
        NameServer::authority(Software::Bind, &zone, None)?,
        NameServer::authority(Software::Nsd, &zone, None)?,
    ])
}

#[test]
fn a_server_that_freezes_costs_its_clients_one_wait_each_until_it_is_left_out_and_returns_when_it_thaws() {
    let Some([first, second]) = twins() else { return };
    let (one, other) = (first.address().to_string(), second.address().to_string());
    let gate = gate(&[first.address(), second.address()]);
    assert_eq!(answerer(&gate), one);
    first.freeze();
    wait_until("it to be left out", || {
        let since = Instant::now();
        assert_eq!(answerer(&gate), other, "nobody goes without an answer");
        since.elapsed().as_millis() < 1000
    });
    first.thaw();
    wait_until("it to be asked first again", || answerer(&gate) == one);
}

#[test]
fn a_server_that_dies_and_comes_back_is_asked_again() {
    let Some([first, second]) = twins() else { return };
    let (place, other) = (first.address(), second.address().to_string());
    let gate = gate(&[place, second.address()]);
    assert_eq!(answerer(&gate), place.to_string());
    drop(first);
    for _ in 0..5 {
        assert_eq!(answerer(&gate), other, "nobody goes without an answer");
    }
    let Some(_first) = NameServer::authority(Software::Knot, &[("example", "* A 9.9.9.1\n")], Some(place))
    else {
        return;
    };
    wait_until("it to be asked first again", || answerer(&gate) == place.to_string());
}

#[test]
fn after_an_outage_of_all_of_them_names_resolve_again() {
    let Some([first, second]) = twins() else { return };
    let place = first.address();
    let gate = gate(&[place, second.address()]);
    drop((first, second));
    let since = Instant::now();
    assert_eq!(code(&gate.lookup(NAME, A)), ResponseCode::ServFail);
    assert!(since.elapsed().as_secs() < 6, "{:?}", since.elapsed());
    let Some(_first) = NameServer::authority(Software::Nsd, &[("example", "* A 9.9.9.1\n")], Some(place))
    else {
        return;
    };
    let answer = wait_for("an answer", || {
        Some(gate.lookup(NAME, A)).filter(|answer| code(answer) == ResponseCode::NoError)
    });
    assert_eq!(addresses(&answer), [TRUTH]);
}

/// What a server sends over TCP when it is asked, before it hangs up.
type Sends = fn(&Message) -> Vec<u8>;

/// A server that has no room for its answers in a datagram, and over TCP sends these bytes.
fn truncating(sends: Sends) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let (udp, tcp) = bind_both();
    let place = udp.local_addr().unwrap();
    let datagrams = std::thread::spawn(move || cut_off(&udp));
    std::thread::spawn(move || {
        for stream in tcp.incoming().map_while(Result::ok) {
            let _ = send(stream, sends);
        }
    });
    (place, datagrams)
}

fn cut_off(socket: &UdpSocket) {
    let mut buffer = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let query = Message::from_vec(&buffer[..length]).unwrap();
        let mut answer = reply(&query, ResponseCode::NoError);
        answer.metadata.truncation = true;
        drop(socket.send_to(&bytes(&answer), from));
    }
}

fn send(mut stream: TcpStream, sends: Sends) -> std::io::Result<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut packet = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut packet)?;
    stream.write_all(&sends(&Message::from_vec(&packet).map_err(std::io::Error::other)?))
}

#[test]
fn who_breaks_off_or_lies_over_tcp_is_followed_by_the_next() {
    let liars: [(&str, Sends); 8] = [
        ("nothing", |_| vec![]),
        ("half of a length", |_| vec![0]),
        ("a length and nothing", |_| vec![0, 80]),
        ("half of an answer", |query| framed(&bytes(&says(LIE, query)))[..30].to_vec()),
        ("another id", |query| {
            let mut reply = says(LIE, query);
            reply.metadata.id ^= 1;
            framed(&bytes(&reply))
        }),
        ("truncated once more", |query| {
            let mut reply = says(LIE, query);
            reply.metadata.truncation = true;
            framed(&bytes(&reply))
        }),
        ("rubbish", |_| framed(&[0xff; 300])),
        ("a message without end", |_| vec![0xff; 1 << 20]),
    ];
    for (what, sends) in liars {
        let (liar, honest) = (truncating(sends).0, honest());
        let gate = gate(&[liar, honest.address()]);
        assert_eq!(addresses(&gate.lookup(NAME, A)), [TRUTH], "{what}");
        assert_eq!(gate.decision(NAME)["upstream"], honest.address().to_string(), "{what}");
    }
}

#[test]
fn a_true_answer_over_tcp_is_taken_with_all_its_records_up_to_a_bound() {
    let (server, _) = truncating(|query| {
        let records: Vec<_> =
            (0..2000).map(|n| address(NAME, 60, &format!("9.9.{}.{}", n / 250, n % 250 + 1))).collect();
        framed(&bytes(&reply_from(&records, query)))
    });
    let gate = gate(&[server]);
    assert_eq!(addresses(&gate.lookup_over_tcp(NAME, A)).len(), 128);
}

#[test]
fn who_refuses_tcp_is_followed_by_the_next() {
    let (udp, tcp): (UdpSocket, TcpListener) = bind_both();
    let place = udp.local_addr().unwrap();
    drop(tcp);
    std::thread::spawn(move || cut_off(&udp));
    let honest = honest();
    let gate = gate(&[place, honest.address()]);
    assert_eq!(addresses(&gate.lookup(NAME, A)), [TRUTH]);
}

#[test]
fn an_answer_from_another_port_or_address_is_not_heard() {
    let (socket, _tcp) = bind_both();
    let place = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        let strangers = ["127.0.0.1:0", "127.0.0.2:0"].map(|place| UdpSocket::bind(place).unwrap());
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let query = Message::from_vec(&buffer[..length]).unwrap();
            for stranger in &strangers {
                stranger.send_to(&bytes(&says(LIE, &query)), from).unwrap();
            }
            socket.send_to(&bytes(&says(TRUTH, &query)), from).unwrap();
        }
    });
    assert_eq!(addresses(&gate(&[place]).lookup(NAME, A)), [TRUTH]);
}

#[test]
fn a_shower_of_guesses_ends_in_a_question_over_tcp() {
    let upstream = Upstream::start(|query| {
        let guess = |id: u16| {
            let mut guess = says(LIE, query);
            guess.metadata.id = query.metadata.id.wrapping_add(id);
            bytes(&guess)
        };
        (1..200).map(guess).chain([bytes(&says(TRUTH, query))]).collect()
    });
    let honest = honest();
    let gate = gate(&[upstream.address(), honest.address()]);
    assert_eq!(addresses(&gate.lookup(NAME, A)), [TRUTH]);
    let over_udp = upstream.ports().len();
    assert!(upstream.packets().len() > over_udp, "{over_udp} datagrams and nothing else");
}

#[test]
fn the_letter_case_of_an_answer_does_not_matter() {
    let upstream = Upstream::start(|query| {
        let shouted = |name: &hickory_proto::rr::Name| {
            hickory_proto::rr::Name::from_ascii(name.to_ascii().to_ascii_uppercase()).unwrap()
        };
        let mut reply = says(TRUTH, query);
        reply.queries.iter_mut().for_each(|question| _ = question.set_name(shouted(question.name())));
        reply.answers.iter_mut().for_each(|record| record.name = shouted(&record.name));
        vec![bytes(&reply)]
    });
    let answer = gate(&[upstream.address()]).lookup("A.example", A);
    assert_eq!(
        (addresses(&answer), answer.queries[0].name().to_ascii()),
        (vec![TRUTH.to_owned()], "A.example.".to_owned())
    );
}

#[test]
fn a_server_that_knows_no_opt_is_asked_without_it() {
    for refusal in [ResponseCode::FormErr, ResponseCode::NotImp] {
        let upstream = Upstream::start(move |query| {
            vec![bytes(&if query.edns.is_some() { reply(query, refusal) } else { says(TRUTH, query) })]
        });
        assert_eq!(addresses(&gate(&[upstream.address()]).lookup(NAME, A)), [TRUTH], "{refusal}");
        assert_eq!(upstream.packets().len(), 2, "{refusal}");
    }
}
