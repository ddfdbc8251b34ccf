use std::io::Cursor;
use std::sync::Arc;

use proptest::prelude::*;
use rustls::client::{EchGreaseConfig, EchMode};
use rustls::crypto::aws_lc_rs::{default_provider, hpke};
use rustls::crypto::hpke::Hpke;
use rustls::server::Acceptor;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;

// --- what is found

#[test]
fn a_hello_asks_for_its_name_in_canonical_form() {
    for name in ["pypi.org", "PyPI.org", "_x.pypi.org", "localhost", "xn--bcher-kva.example"] {
        let stream = Sketch::asking_for(name.as_bytes()).stream();
        assert_eq!(sni(&parse(&stream)), Some(name.to_ascii_lowercase()), "{name}");
    }
}

#[test]
fn a_hello_without_a_name_is_still_a_hello() {
    let without_name = Sketch { extensions: Some(vec![(43, vec![2, 3, 4])]), ..Sketch::default() };
    let empty_list = Sketch { extensions: Some(vec![]), ..Sketch::default() };
    let without_list = Sketch { extensions: None, ..Sketch::default() };
    for sketch in [without_name, empty_list, without_list] {
        assert_eq!(parse(&sketch.stream()), Hello::Found(ClientHello { sni: None, ech: false }));
    }
}

#[test]
fn encrypted_client_hello_is_recorded_and_the_outer_name_stands() {
    let sketch = Sketch::asking_for(b"pypi.org").with(0xfe0d, vec![0; 200]);
    let Hello::Found(hello) = parse(&sketch.stream()) else { panic!() };
    assert!(hello.ech);
    assert_eq!(hello.sni.unwrap().as_str(), "pypi.org");
}

#[test]
fn every_version_in_use_is_taken() {
    for minor in 1..=3 {
        let sketch = Sketch { version: [3, minor], ..Sketch::asking_for(b"pypi.org") };
        let mut stream = sketch.stream();
        for record_minor in 1..=3 {
            stream[2] = record_minor;
            assert_eq!(sni(&parse(&stream)).unwrap(), "pypi.org");
        }
    }
}

#[test]
fn what_follows_in_records_of_its_own_is_not_read() {
    let hello = Sketch::asking_for(b"pypi.org").stream();
    for tail in [b"\x14\x03\x03\0\x01\x01\x17\x03\x03\0\x02xx".as_slice(), b"anything", &hello] {
        assert_eq!(parse(&[&hello, tail].concat()), parse(&hello));
    }
}

// --- cuts

#[test]
fn a_hello_is_the_same_in_records_of_any_size() {
    let sketch = Sketch::asking_for(b"pypi.org").with(51, vec![7; 1600]);
    for size in [1, 2, 3, 4, 5, 6, 9, 10, 100, 1000, 16384] {
        let stream = in_records(&sketch.message(), size);
        assert_eq!(sni(&parse(&stream)).unwrap(), "pypi.org", "records of {size}");
        assert_prefixes_need_more(&stream);
    }
}

#[test]
fn an_answer_is_final() {
    let found = Sketch::asking_for(b"pypi.org").stream();
    let malformed = [&found[..], b"\0"].concat();
    for stream in [found, malformed, b"\x16\x03\x01\0\0".to_vec(), b"GET / HTTP/1.1\r\n".to_vec()] {
        let mut reader = Reader::default();
        let first = reader.read(&stream);
        assert_ne!(first, Hello::NeedMore);
        assert_eq!(reader.read(&stream), first);
        assert_eq!(reader.read(&[&stream[..], &[22; 100]].concat()), first);
    }
}

// --- bounds

#[test]
fn the_longest_hello_is_found_and_one_byte_more_is_too_long() {
    let padded = |padding: usize| {
        let half = padding / 2;
        let sketch =
            Sketch::asking_for(b"pypi.org").with(21, vec![0; half]).with(22, vec![0; padding - half]);
        in_records(&sketch.message(), MAX_RECORD)
    };
    let padding = MAX_HELLO - padded(60_000).len() + 60_000;
    let longest = padded(padding);
    assert_eq!(longest.len(), MAX_HELLO);
    assert_eq!(sni(&parse(&longest)).unwrap(), "pypi.org");
    assert_prefixes_need_more(&longest);
    assert_eq!(parse(&padded(padding + 1)), Hello::Malformed(HelloError::TooLong));
}

#[test]
fn a_long_hello_is_refused_by_what_it_claims() {
    let claiming = |length: u32| [b"\x16\x03\x01\x40\0\x01", &length.to_be_bytes()[1..]].concat();
    for length in [0xff_ffff, 0x01_0000, 0x00_fff8] {
        assert_prefixes_need_more(&claiming(length));
        assert_eq!(parse(&claiming(length)), Hello::Malformed(HelloError::TooLong), "{length:#x}");
    }
    assert_eq!(parse(&claiming(0x00_fff7)), Hello::NeedMore);
}

#[test]
fn records_are_counted() {
    let body = |size: usize| [&[1, 0, (size >> 8) as u8, size as u8], &*vec![0; size]].concat();
    let at_the_limit = in_records(&body(MAX_RECORDS - 4), 1);
    assert_eq!(parse(&at_the_limit), Hello::Malformed(HelloError::HelloVersion));
    let beyond = in_records(&body(MAX_RECORDS - 3), 1);
    assert_eq!(parse(&beyond), Hello::Malformed(HelloError::TooManyRecords));
}

#[test]
fn a_full_buffer_never_needs_more() {
    let endless = |record: &[u8]| -> Vec<u8> { record.iter().copied().cycle().take(MAX_HELLO).collect() };
    let streams = [
        endless(b"\x16\x03\x01\x40\0\x01\0\xff\xf0"),
        endless(b"\x16\x03\x01\0\x01\x01"),
        endless(b"\x16\x03\x01\0\x03\x01\0\0"),
        endless(&[b"\x16\x03\x01\0\xfa\x01\0".as_slice(), &[0xff; 248]].concat()),
        endless(b"\x16"),
        endless(b"\0"),
        in_records(&[&[1, 0, 0xff, 0xe7], &*vec![0; 0xffe7]].concat(), 10_000)[..MAX_HELLO].to_vec(),
        in_records(&[&[1, 0, 0xff, 0x00], &*vec![0; 0xff00]].concat(), 20)[..MAX_HELLO].to_vec(),
    ];
    for stream in streams {
        assert_ne!(parse(&stream), Hello::NeedMore, "{:02x?}", &stream[..16]);
    }
}

// --- what is refused

#[test]
fn every_wrong_field_of_a_hello_is_refused_for_its_own_reason() {
    use HelloError as E;
    let good = || Sketch::asking_for(b"pypi.org");
    let many = |count: u16| (100..100 + count).fold(good(), |sketch, kind| sketch.with(kind, vec![]));
    let table = [
        (Sketch { version: [3, 0], ..good() }, E::HelloVersion),
        (Sketch { version: [3, 4], ..good() }, E::HelloVersion),
        (Sketch { version: [2, 3], ..good() }, E::HelloVersion),
        (Sketch { session_id: vec![0; 33], ..good() }, E::Length),
        (Sketch { cipher_suites: vec![], ..good() }, E::Length),
        (Sketch { cipher_suites: vec![0x13, 1, 0x13], ..good() }, E::Length),
        (Sketch { compression_methods: vec![], ..good() }, E::Length),
        (good().with(0, server_name(&[(0, b"pypi.org")])), E::DuplicateExtension),
        (good().with(0, server_name(&[(0, b"evil.org")])), E::DuplicateExtension),
        (good().with(43, vec![]).with(43, vec![]), E::DuplicateExtension),
        (good().with(0x0a0a, vec![]).with(0x1a1a, vec![]).with(0x0a0a, vec![]), E::DuplicateExtension),
        (many(64), E::TooManyExtensions),
    ];
    for (sketch, error) in table {
        assert_eq!(parse(&sketch.stream()), Hello::Malformed(error), "{sketch:?}");
    }
    assert_eq!(sni(&parse(&many(63).stream())).unwrap(), "pypi.org");
}

#[test]
fn a_hello_that_ends_early_or_late_is_refused() {
    let message = Sketch::asking_for(b"pypi.org").message();
    let body = &message[HANDSHAKE_HEAD..];
    // The one place where a hello may end sooner: before its extensions, which then are none.
    let without_extensions =
        Sketch { extensions: None, ..Sketch::default() }.message().len() - HANDSHAKE_HEAD;
    for end in 0..body.len() {
        let stream = in_records(&handshake(CLIENT_HELLO, &body[..end]), MAX_RECORD);
        let expected = match end == without_extensions {
            true => Hello::Found(ClientHello { sni: None, ech: false }),
            false => Hello::Malformed(HelloError::Length),
        };
        assert_eq!(parse(&stream), expected, "cut at {end}");
    }
    let late = handshake(CLIENT_HELLO, &[body, b"\0"].concat());
    assert_eq!(parse(&in_records(&late, MAX_RECORD)), Hello::Malformed(HelloError::TrailingData));
}

#[test]
fn every_odd_record_is_refused_for_its_own_reason() {
    use HelloError as E;
    let message = Sketch::asking_for(b"pypi.org").message();
    let (front, back) = message.split_at(20);
    let whole = message.clone();
    let table = [
        (record([3, 0], &whole), E::RecordVersion),
        (record([3, 4], &whole), E::RecordVersion),
        (record([3, 1], b""), E::EmptyRecord),
        ([record([3, 1], front), record([3, 1], b""), record([3, 1], back)].concat(), E::EmptyRecord),
        ([record([3, 1], front), record([3, 5], back)].concat(), E::RecordVersion),
        (record([3, 1], &vec![0; MAX_RECORD + 1]), E::RecordTooLong),
        (b"\x16\x03\x01\xff\xff".to_vec(), E::RecordTooLong),
        (
            [record([3, 1], front), b"\x14\x03\x03\0\x01\x01".to_vec(), record([3, 1], back)].concat(),
            E::OtherRecord,
        ),
        ([record([3, 1], front), b"\x15\x03\x03\0\x02\x01\0".to_vec()].concat(), E::OtherRecord),
        ([record([3, 1], front), b"\x17".to_vec()].concat(), E::OtherRecord),
        (record([3, 1], &handshake(0, b"")), E::NotClientHello),
        (record([3, 1], &handshake(2, &message[4..])), E::NotClientHello),
        ([record([3, 1], b"\x0b")].concat(), E::NotClientHello),
        (record([3, 1], &handshake(CLIENT_HELLO, b"")), E::Length),
        (record([3, 1], &[&whole[..], b"\0"].concat()), E::BehindHello),
        (record([3, 1], &[&whole[..], &whole].concat()), E::BehindHello),
        ([record([3, 1], front), record([3, 1], &[back, b"\x01"].concat())].concat(), E::BehindHello),
    ];
    for (stream, error) in table {
        assert_eq!(parse(&stream), Hello::Malformed(error), "{:02x?}", &stream[..5]);
    }
}

#[test]
fn other_protocols_are_not_tls() {
    let sslv2 = b"\x80\x2e\x01\x03\x01\0\x15\0\0\0\x10\x01\0\x80\x03\0\x80";
    let table: [&[u8]; 8] = [
        b"GET / HTTP/1.1\r\n",
        b"CONNECT pypi.org:443 HTTP/1.1\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
        b"\r\n\r\n\0\r\nQUIT\n",
        b"\x05\x01\0",
        b"\0",
        sslv2,
    ];
    for stream in table {
        for end in 1..=stream.len() {
            assert_eq!(parse(&stream[..end]), Hello::NotTls, "{stream:02x?}");
        }
    }
    assert_eq!(parse(b""), Hello::NeedMore);
}

#[test]
fn a_length_that_looks_like_a_kind_of_record_does_not_make_tls() {
    for kind in 0x14..=0x17 {
        assert_eq!(parse(&[kind]), Hello::NeedMore);
        assert_eq!(parse(&[kind, 3]), if kind == HANDSHAKE { Hello::NeedMore } else { other_record() });
        for second in [0, 1, 2, 4, 0x16, 0xff] {
            assert_eq!(parse(&[kind, second]), Hello::NotTls);
        }
    }
}

#[test]
fn a_record_before_the_hello_does_not_hide_it() {
    let hello = Sketch::asking_for(b"pypi.org").stream();
    let (warning, change_cipher_spec) = (b"\x15\x03\x01\0\x02\x01\0", b"\x14\x03\x03\0\x01\x01");
    assert_eq!(parse(&[&warning[..], &hello].concat()), other_record());
    assert_eq!(parse(&[&change_cipher_spec[..], &hello].concat()), other_record());
    assert_eq!(parse(b"\x17\x03\x03\0\x01x"), other_record());
}

#[test]
fn every_odd_name_is_refused_for_its_own_reason() {
    use HelloError as E;
    let host = |name: &[u8]| server_name(&[(0, name)]);
    let table: &[(Vec<u8>, E)] = &[
        (vec![0, 0], E::EmptyName),
        (host(b""), E::EmptyName),
        (host(b"pypi.org\0.evil.org"), E::Nul),
        (host(b"\0"), E::Nul),
        (host(b"pypi.org."), E::TrailingDot),
        (host(b"127.0.0.1."), E::TrailingDot),
        (host(b"127.0.0.1"), E::Address),
        (host(b"::1"), E::Address),
        (host(b"2001:db8::1"), E::Address),
        (host(b"[::1]"), E::Name(NameError::Bracketed)),
        (host(b"2130706433"), E::Name(NameError::Numeric)),
        (host(b"0x7f.1"), E::Name(NameError::Numeric)),
        (host(b"127.1"), E::Name(NameError::Numeric)),
        (host(b"fe80::1%eth0"), E::Name(NameError::Character)),
        (host(b"pypi..org"), E::Name(NameError::EmptyLabel)),
        (host(b".pypi.org"), E::Name(NameError::EmptyLabel)),
        (host(b"*.pypi.org"), E::Name(NameError::Character)),
        (host(b"pypi.org:443"), E::Name(NameError::Character)),
        (host(b"pypi.org/simple"), E::Name(NameError::Character)),
        (host(b"user@pypi.org"), E::Name(NameError::Character)),
        (host(b"pypi.org\r\n"), E::Name(NameError::ControlByte)),
        (host(b"pypi%2eorg"), E::Name(NameError::PercentEncoded)),
        (host("bücher.example".as_bytes()), E::Name(NameError::NotAscii)),
        (host(b"pypi\xff.org"), E::Name(NameError::NotAscii)),
        (host(&[b'a'; 64]), E::Name(NameError::LabelTooLong)),
        (host(format!("{}org", "a.".repeat(127)).as_bytes()), E::Name(NameError::TooLong)),
        (server_name(&[(1, b"pypi.org")]), E::NameType),
        (server_name(&[(1, b"x"), (0, b"pypi.org")]), E::NameType),
        (server_name(&[(0, b"pypi.org"), (0, b"pypi.org")]), E::SeveralNames),
        (server_name(&[(0, b"pypi.org"), (0, b"evil.org")]), E::SeveralNames),
        (server_name(&[(0, b"pypi.org"), (1, b"evil.org")]), E::SeveralNames),
        (vec![], E::Length),
        (vec![0], E::Length),
        (vec![0, 9, 0, 0, 5, b'a'], E::Length),
        (vec![0, 4, 0, 0, 2, b'a'], E::Length),
        (vec![0, 2, 0, 0], E::Length),
        ([&host(b"pypi.org")[..], b"\0"].concat(), E::TrailingData),
    ];
    for (data, error) in table {
        let sketch = Sketch { extensions: Some(vec![(0, data.clone())]), ..Sketch::default() };
        let shown = String::from_utf8_lossy(data);
        assert_eq!(parse(&sketch.stream()), Hello::Malformed(*error), "{shown:?}");
    }
}

// --- real clients

/// First flights as they came from the clients that name the files, each asking for pypi.org.
const CAPTURES: [(&str, &str); 10] = [
    ("chromium", include_str!("captures/chromium-156.0.8078.79.hex")),
    ("curl", include_str!("captures/curl-7.88.1-openssl-3.0.19.hex")),
    ("git", include_str!("captures/git-2.47.3-gnutls-3.7.9.hex")),
    ("node", include_str!("captures/node-20.20.2-openssl-3.0.19.hex")),
    ("openjdk", include_str!("captures/openjdk-17.0.15.hex")),
    ("openssl", include_str!("captures/openssl-3.0.19.hex")),
    ("openssl -tls1", include_str!("captures/openssl-3.0.19-tls1.0.hex")),
    ("python", include_str!("captures/python-3.11.7-openssl-3.0.19.hex")),
    ("skopeo", include_str!("captures/skopeo-1.9.3-go1.19.8.hex")),
    ("wget", include_str!("captures/wget-1.21.3-gnutls-3.7.9.hex")),
];

#[test]
fn real_clients_are_understood_at_their_last_byte_and_not_before() {
    for (client, hex) in CAPTURES {
        let stream = from_hex(hex);
        // Browsers send an ECH extension whether or not they have anything to encrypt.
        let ech = client == "chromium";
        let expected = ClientHello { sni: Some(DomainName::parse("pypi.org").unwrap()), ech };
        assert_eq!(parse(&stream), Hello::Found(expected), "{client}");
        assert_prefixes_need_more(&stream);
        assert_agreement(&stream);
    }
}

#[test]
fn rustls_reads_what_we_build_and_what_clients_of_today_send() {
    let accepted = |stream: &[u8]| by_rustls(stream) == Reading::Accepted(Some("pypi.org".into()));
    for (client, hex) in CAPTURES.iter().filter(|(client, _)| *client != "openssl -tls1") {
        let stream = from_hex(hex);
        assert!(accepted(&stream), "{client}");
        assert!(accepted(&in_records(&Sketch::of(&stream).message(), 100)), "{client}, rebuilt");
    }
}

#[test]
fn a_post_quantum_hello_is_longer_than_a_segment_and_understood() {
    let stream = rustls_hello("pypi.org", &plain_config());
    assert!(stream.len() > 1460, "{}", stream.len());
    assert_eq!(sni(&parse(&stream)).unwrap(), "pypi.org");
    assert_prefixes_need_more(&stream);
}

#[test]
fn grease_for_encrypted_client_hello_refuses_nothing() {
    let stream = rustls_hello("pypi.org", &grease_config());
    let expected = ClientHello { sni: Some(DomainName::parse("pypi.org").unwrap()), ech: true };
    assert_eq!(parse(&stream), Hello::Found(expected));
    assert_prefixes_need_more(&stream);
}

#[test]
fn a_client_that_asks_for_an_address_sends_no_name() {
    let stream = rustls_hello("192.0.2.1", &plain_config());
    assert_eq!(parse(&stream), Hello::Found(ClientHello { sni: None, ech: false }));
}

// --- against rustls, and against ourselves

proptest! {
    #[test]
    fn rustls_hellos_are_found_whatever_the_name_and_the_records(
        name in "[a-zA-Z0-9]([a-zA-Z0-9_]{0,20}[a-zA-Z0-9])?(\\.[a-z0-9]{1,10}){0,5}\\.[a-z]{2,8}",
        fragment in prop::option::of(32_usize..600),
    ) {
        let mut config = ClientConfig::clone(&plain_config());
        config.max_fragment_size = fragment;
        let stream = rustls_hello(&name, &Arc::new(config));
        prop_assert_eq!(sni(&parse(&stream)), Some(name.to_ascii_lowercase()));
        assert_prefixes_need_more(&stream);
    }

    #[test]
    fn where_rustls_and_we_both_accept_the_names_are_equal(stream in mutated()) {
        assert_agreement(&stream);
    }

    #[test]
    fn an_answer_does_not_depend_on_where_the_stream_was_cut(stream in mutated(), step in 1_usize..50) {
        let mut reader = Reader::default();
        let ends = (step..stream.len()).step_by(step).chain([stream.len()]);
        let answer = ends.map(|end| reader.read(&stream[..end])).find(|answer| *answer != Hello::NeedMore);
        prop_assert_eq!(answer.unwrap_or(Hello::NeedMore), parse(&stream));
    }

    #[test]
    fn nothing_is_found_in_half_a_hello(stream in mutated(), cut in any::<prop::sample::Index>()) {
        if let Hello::Found(_) = parse(&stream) {
            let whole = (0..=stream.len()).find(|end| parse(&stream[..*end]) != Hello::NeedMore).unwrap();
            prop_assert_eq!(parse(&stream[..whole]), parse(&stream));
            prop_assert_eq!(parse(&stream[..cut.index(whole)]), Hello::NeedMore);
        }
    }

    #[test]
    fn noise_is_never_found(mut noise in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(!matches!(parse(&noise), Hello::Found(_)));
        noise.splice(..0, *b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03");
        let _ = parse(&noise);
    }
}

/// Streams near to what clients send: extensions dropped, doubled, swapped, renamed; server names of odd
/// shapes; then bytes changed at random; records of any size.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let edit = prop_oneof![
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, to)| Edit::Set(at, to)),
        any::<prop::sample::Index>().prop_map(Edit::Remove),
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Edit::Insert(at, byte)),
    ];
    let shape = prop_oneof![
        Just(Shape::Keep),
        any::<prop::sample::Index>().prop_map(Shape::Drop),
        (any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(|(a, b)| Shape::Swap(a, b)),
        any::<prop::sample::Index>().prop_map(Shape::Double),
        odd_server_name().prop_map(Shape::ServerName),
    ];
    let shapes = prop::collection::vec(shape, 0..3);
    let edits = prop::collection::vec(edit, 0..4);
    (0..CAPTURES.len() + 2, shapes, edits, prop_oneof![Just(MAX_RECORD), 1_usize..700], any::<bool>())
        .prop_map(|(base, shapes, edits, size, edit_records)| {
            let mut sketch = base_sketch(base);
            shapes.iter().for_each(|shape| shape.apply(&mut sketch));
            let mut message = sketch.message();
            if !edit_records {
                edits.iter().for_each(|edit| edit.apply(&mut message));
            }
            let mut stream = in_records(&message, size);
            if edit_records {
                edits.iter().for_each(|edit| edit.apply(&mut stream));
            }
            stream
        })
}

fn odd_server_name() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        "[a-zA-Z0-9._-]{0,20}".prop_map(String::into_bytes),
        "[a-z]{1,9}\\.(org|com|1|0x1)\\.?".prop_map(String::into_bytes),
        "[0-9]{1,3}(\\.[0-9]{1,3}){3}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..12),
    ];
    prop::collection::vec((0..2_u8, name), 0..3).prop_map(|names| {
        let names: Vec<(u8, &[u8])> = names.iter().map(|(kind, name)| (*kind, name.as_slice())).collect();
        server_name(&names)
    })
}

#[derive(Debug, Clone)]
enum Edit {
    Set(prop::sample::Index, u8),
    Remove(prop::sample::Index),
    Insert(prop::sample::Index, u8),
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Set(at, to) => *at.get_mut(bytes) = *to,
            Self::Remove(at) => drop(bytes.remove(at.index(bytes.len()))),
            Self::Insert(at, byte) => bytes.insert(at.index(bytes.len() + 1), *byte),
        }
    }
}

#[derive(Debug, Clone)]
enum Shape {
    Keep,
    Drop(prop::sample::Index),
    Swap(prop::sample::Index, prop::sample::Index),
    Double(prop::sample::Index),
    ServerName(Vec<u8>),
}

impl Shape {
    fn apply(&self, sketch: &mut Sketch) {
        let extensions = sketch.extensions.get_or_insert_default();
        let count = extensions.len();
        match self {
            _ if count == 0 => {}
            Self::Keep => {}
            Self::Drop(at) => drop(extensions.remove(at.index(count))),
            Self::Swap(a, b) => extensions.swap(a.index(count), b.index(count)),
            Self::Double(at) => extensions.push(at.get(extensions).clone()),
            Self::ServerName(data) => {
                extensions.retain(|(kind, _)| *kind != SERVER_NAME);
                extensions.insert(0, (SERVER_NAME, data.clone()));
            }
        }
    }
}

fn base_sketch(base: usize) -> Sketch {
    match CAPTURES.get(base) {
        Some((_, hex)) => Sketch::of(&from_hex(hex)),
        None if base == CAPTURES.len() => Sketch::of(&rustls_hello("pypi.org", &plain_config())),
        None => Sketch::of(&rustls_hello("pypi.org", &grease_config())),
    }
}

fn assert_agreement(stream: &[u8]) {
    let ours = parse(stream);
    if let Reading::Accepted(theirs) = by_rustls(stream) {
        assert_ne!(ours, Hello::NeedMore, "rustls needed no more");
        assert_ne!(ours, Hello::NotTls, "rustls took it for TLS");
        if let Hello::Found(_) = ours {
            assert_eq!(sni(&ours), theirs.map(|name| name.to_ascii_lowercase()));
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Reading {
    NeedsMore,
    Accepted(Option<String>),
    Rejected,
}

fn by_rustls(stream: &[u8]) -> Reading {
    let mut acceptor = Acceptor::default();
    let mut rest = Cursor::new(stream);
    while acceptor.read_tls(&mut rest).unwrap() > 0 {
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(hello)) => {
                return Reading::Accepted(hello.client_hello().server_name().map(str::to_owned));
            }
            Err(_) => return Reading::Rejected,
        }
    }
    Reading::NeedsMore
}

fn rustls_hello(server: &str, config: &Arc<ClientConfig>) -> Vec<u8> {
    let server = server.to_owned().try_into().unwrap();
    let mut client = ClientConnection::new(Arc::clone(config), server).unwrap();
    let mut stream = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut stream).unwrap();
    }
    stream
}

fn plain_config() -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    Arc::new(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

fn grease_config() -> Arc<ClientConfig> {
    let suite = hpke::DH_KEM_X25519_HKDF_SHA256_AES_128;
    let (placeholder, _) = suite.generate_key_pair().unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_ech(EchMode::Grease(EchGreaseConfig::new(suite, placeholder))).unwrap();
    Arc::new(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

// --- building hellos

/// A ClientHello, right or wrong, field by field.
#[derive(Debug, Clone)]
pub(crate) struct Sketch {
    version: [u8; 2],
    session_id: Vec<u8>,
    cipher_suites: Vec<u8>,
    compression_methods: Vec<u8>,
    extensions: Option<Vec<(u16, Vec<u8>)>>,
}

impl Default for Sketch {
    fn default() -> Self {
        Self {
            version: [3, 3],
            session_id: vec![],
            cipher_suites: vec![0x13, 1],
            compression_methods: vec![0],
            extensions: Some(vec![]),
        }
    }
}

impl Sketch {
    pub(crate) fn asking_for(name: &[u8]) -> Self {
        Self::default().with(SERVER_NAME, server_name(&[(HOST_NAME, name)]))
    }

    fn with(mut self, kind: u16, data: Vec<u8>) -> Self {
        self.extensions.get_or_insert_default().push((kind, data));
        self
    }

    /// The hello that is the one record of `stream`.
    fn of(stream: &[u8]) -> Self {
        let mut fields = Fields(&stream[RECORD_HEAD + HANDSHAKE_HEAD..]);
        let version = fields.array().unwrap();
        let _random: [u8; 32] = fields.array().unwrap();
        let session_id = fields.vector8().unwrap().to_vec();
        let cipher_suites = fields.vector16().unwrap().to_vec();
        let compression_methods = fields.vector8().unwrap().to_vec();
        let mut list = Fields(fields.vector16().unwrap());
        let mut extensions = vec![];
        while !list.is_empty() {
            extensions.push((list.number16().unwrap(), list.vector16().unwrap().to_vec()));
        }
        Self { version, session_id, cipher_suites, compression_methods, extensions: Some(extensions) }
    }

    fn message(&self) -> Vec<u8> {
        let mut body = [&self.version[..], &[0x5a; 32]].concat();
        body.push(self.session_id.len() as u8);
        body.extend(&self.session_id);
        body.extend(vector16(&self.cipher_suites));
        body.push(self.compression_methods.len() as u8);
        body.extend(&self.compression_methods);
        if let Some(extensions) = &self.extensions {
            let each = |(kind, data): &(u16, Vec<u8>)| [&kind.to_be_bytes()[..], &vector16(data)].concat();
            body.extend(vector16(&extensions.iter().flat_map(each).collect::<Vec<u8>>()));
        }
        handshake(CLIENT_HELLO, &body)
    }

    pub(crate) fn stream(&self) -> Vec<u8> {
        in_records(&self.message(), MAX_RECORD)
    }
}

fn server_name(names: &[(u8, &[u8])]) -> Vec<u8> {
    let each = |(kind, name): &(u8, &[u8])| [&[*kind][..], &vector16(name)].concat();
    vector16(&names.iter().flat_map(each).collect::<Vec<u8>>())
}

fn vector16(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], &length[1..], body].concat()
}

fn in_records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|chunk| record([3, 1], chunk)).collect()
}

fn record(version: [u8; 2], content: &[u8]) -> Vec<u8> {
    [&[HANDSHAKE][..], &version, &vector16(content)].concat()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.bytes().filter_map(|byte| char::from(byte).to_digit(16)).map(|d| d as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn other_record() -> Hello {
    Hello::Malformed(HelloError::OtherRecord)
}

fn sni(hello: &Hello) -> Option<String> {
    match hello {
        Hello::Found(hello) => hello.sni.as_ref().map(ToString::to_string),
        Hello::NeedMore | Hello::NotTls | Hello::Malformed(_) => panic!("{hello:?}"),
    }
}

/// Both ways of reading: each prefix for itself, and all of them one byte at a time.
fn assert_prefixes_need_more(stream: &[u8]) {
    let mut reader = Reader::default();
    for end in 0..stream.len() {
        assert_eq!(reader.read(&stream[..end]), Hello::NeedMore, "read to {end}");
        assert_eq!(parse(&stream[..end]), Hello::NeedMore, "cut at {end}");
    }
    assert_eq!(reader.read(stream), parse(stream));
}
