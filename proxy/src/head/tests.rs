use super::*;

fn take(text: &str) -> Result<Option<RequestHead>, Reason> {
    let mut buffer = BytesMut::from(text.as_bytes());
    RequestHead::take(&mut HeadScanner::default(), &mut buffer).map_err(|bad| bad.reason)
}

fn head(text: &str) -> RequestHead {
    take(text).unwrap_or_else(|reason| panic!("{}: {text:?}", reason.code())).expect("a complete head")
}

fn destination(text: &str) -> Destination {
    Destination::parse(text).unwrap()
}

#[test]
fn a_connect_names_its_destination() {
    let connect = head("CONNECT PyPI.org.:443 HTTP/1.1\r\nHost: pypi.org:443\r\n\r\n");
    assert_eq!(connect.target, Target::Authority(destination("pypi.org:443")));
    assert_eq!(connect.body, BodyLength::None);
    let old = head("CONNECT pypi.org:443 HTTP/1.0\r\n\r\n");
    assert_eq!(old.target, Target::Authority(destination("pypi.org:443")));
    for host in ["pypi.org", "127.0.0.1:3128"] {
        let connect = head(&format!("CONNECT pypi.org:443 HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(connect.target, Target::Authority(destination("pypi.org:443")), "{host} says nothing");
    }
}

#[test]
fn an_absolute_target_names_its_destination_and_path() {
    let get = head("GET http://pypi.org/simple/?a=b HTTP/1.1\r\nHost: pypi.org\r\n\r\n");
    let path = "/simple/?a=b".to_owned();
    assert_eq!(get.target, Target::Absolute { destination: destination("pypi.org:80"), path });
    let bare = head("GET http://pypi.org:8080?q HTTP/1.1\r\nHost: pypi.org:8080\r\n\r\n");
    let path = "/?q".to_owned();
    assert_eq!(bare.target, Target::Absolute { destination: destination("pypi.org:8080"), path });
}

#[test]
fn bytes_behind_the_head_stay_in_the_buffer() {
    let mut buffer = BytesMut::from(&b"CONNECT pypi.org:443 HTTP/1.1\r\n\r\n\x16\x03\x01"[..]);
    let head = RequestHead::take(&mut HeadScanner::default(), &mut buffer).unwrap().unwrap();
    assert_eq!(&head.raw[..], b"CONNECT pypi.org:443 HTTP/1.1\r\n\r\n");
    assert_eq!(&buffer[..], b"\x16\x03\x01");
}

#[test]
fn a_head_may_arrive_in_any_pieces() {
    let text = b"GET http://pypi.org/ HTTP/1.1\r\nHost: pypi.org\r\nContent-Length: 7\r\n\r\n";
    let mut scanner = HeadScanner::default();
    let mut buffer = BytesMut::new();
    for (index, byte) in text.iter().enumerate() {
        buffer.extend_from_slice(&[*byte]);
        let head = RequestHead::take(&mut scanner, &mut buffer).unwrap();
        assert_eq!(head.is_some(), index + 1 == text.len(), "after byte {index}");
    }
}

#[test]
fn every_bad_head_has_its_own_reason() {
    let get = |fields: &str| format!("GET http://pypi.org/ HTTP/1.1\r\n{fields}\r\n\r\n");
    let host = |fields: &str| get(&format!("Host: pypi.org\r\n{fields}"));
    let connect = |target: &str| format!("CONNECT {target} HTTP/1.1\r\n\r\n");
    let table = [
        (connect("pypi.org"), Reason::PortMissing),
        (connect("[pypi.org]:443"), Reason::HostBracketed),
        (connect("[[::1]]:443"), Reason::HostBracketed),
        (connect("a%00b:443"), Reason::HostPercentEncoded),
        (connect("a\0b.org:443"), Reason::HostControlByte),
        (connect("user:secret@pypi.org:443"), Reason::HostUserInfo),
        (connect("[fe80::1%25eth0]:443"), Reason::HostZoneId),
        (connect("2130706433:443"), Reason::HostNumeric),
        (connect("0x7f.1:443"), Reason::HostNumeric),
        (connect("pypi.org:0"), Reason::PortZero),
        (connect("pypi.org:65536"), Reason::PortOutOfRange),
        (connect("pypi.org:007"), Reason::PortLeadingZero),
        (connect("pypi..org:443"), Reason::HostEmptyLabel),
        (connect("bücher.example:443"), Reason::HostNotAscii),
        (connect("http://pypi.org:443"), Reason::HostCharacter),
        ("CONNECT pypi.org:443 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(), Reason::HostFieldRepeated),
        ("CONNECT pypi.org:443 HTTP/1.1\r\nContent-Length: 5\r\n\r\n".into(), Reason::ConnectWithBody),
        (
            "CONNECT pypi.org:443 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            Reason::ConnectWithBody,
        ),
        (get(""), Reason::HostFieldMissing),
        (get("Host: pypi.org\r\nHost: pypi.org"), Reason::HostFieldRepeated),
        (get("Host: evil.org"), Reason::HostFieldMismatch),
        (get("Host: pypi.org:8080"), Reason::HostFieldMismatch),
        (get("Host: pypi.org evil.org"), Reason::HostCharacter),
        (get("Host:"), Reason::HostEmpty),
        (get("Host : pypi.org"), Reason::HeadMalformed),
        (get("Host: pypi.org\r\n folded"), Reason::HeadFolded),
        (host("X: a\rb"), Reason::HeadControlByte),
        (host("X: a\0b"), Reason::HeadControlByte),
        (host("X: a\nY: b"), Reason::HeadBareLf),
        (host("no colon"), Reason::HeadMalformed),
        (host("Content-Length: 5\r\nTransfer-Encoding: chunked"), Reason::LengthConflict),
        (host("Content-Length: 5\r\nContent-Length: 5"), Reason::LengthInvalid),
        (host("Content-Length: 5, 5"), Reason::LengthInvalid),
        (host("Content-Length: +5"), Reason::LengthInvalid),
        (host("Content-Length: 0x5"), Reason::LengthInvalid),
        (host("Content-Length: "), Reason::LengthInvalid),
        (host("Content-Length: 18446744073709551616"), Reason::LengthInvalid),
        (host("Transfer-Encoding: xchunked"), Reason::TransferEncoding),
        (host("Transfer-Encoding: chunked, identity"), Reason::TransferEncoding),
        (host("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), Reason::TransferEncoding),
        (host("Transfer-Encoding: gzip, chunked"), Reason::TransferEncoding),
        (
            "POST http://pypi.org/ HTTP/1.0\r\nHost: pypi.org\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            Reason::TransferEncoding,
        ),
        (host("Upgrade: TLS/1.0\r\nConnection: upgrade"), Reason::UpgradeUnsupported),
        (host("Upgrade: websocket, h2c"), Reason::UpgradeUnsupported),
        (host("Upgrade: h2c, websocket"), Reason::UpgradeUnsupported),
        (host("Upgrade: h2c\r\nUpgrade: websocket"), Reason::UpgradeUnsupported),
        (host("Upgrade: h2"), Reason::UpgradeUnsupported),
        ("GET https://pypi.org/ HTTP/1.1\r\nHost: pypi.org\r\n\r\n".into(), Reason::TargetScheme),
        ("GET ftp://pypi.org/ HTTP/1.1\r\nHost: pypi.org\r\n\r\n".into(), Reason::TargetScheme),
        ("GET pypi.org HTTP/1.1\r\nHost: pypi.org\r\n\r\n".into(), Reason::TargetForm),
        ("OPTIONS * HTTP/1.1\r\nHost: pypi.org\r\n\r\n".into(), Reason::TargetForm),
        ("GET http://pypi.org/#x HTTP/1.1\r\nHost: pypi.org\r\n\r\n".into(), Reason::HeadMalformed),
        ("GET http://u:p@pypi.org/ HTTP/1.1\r\nHost: pypi.org\r\n\r\n".into(), Reason::HostUserInfo),
        ("GET http:///x HTTP/1.1\r\nHost: pypi.org\r\n\r\n".into(), Reason::HostEmpty),
        ("GET  http://pypi.org/ HTTP/1.1\r\n\r\n".into(), Reason::NotHttp),
        ("GET http://pypi.org/ x HTTP/1.1\r\n\r\n".into(), Reason::NotHttp),
        ("GET http://pypi.org/\r\n\r\n".into(), Reason::NotHttp),
        ("GET http://pypi.org/ HTTP/1.1\n\n".into(), Reason::HeadBareLf),
        ("GET http://pypi.org/ HTTP/2.0\r\n\r\n".into(), Reason::HttpVersion),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), Reason::HttpVersion),
        ("PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n".into(), Reason::NotHttp),
        ("SSH-2.0-OpenSSH_9.2\r\n".into(), Reason::NotHttp),
        ("\r\n\r\n\0\r\nQUIT\n".into(), Reason::NotHttp),
        ("\x16\x03\x01\x02\0".into(), Reason::NotHttp),
        ("\x05\x01\0".into(), Reason::NotHttp),
        ("G@T http://pypi.org/ HTTP/1.1\r\nHost: pypi.org\r\n\r\n".into(), Reason::HeadMalformed),
        (format!("GET http://pypi.org/{} HTTP/1.1\r\n", "a".repeat(MAX_HEAD)), Reason::HeadTooLarge),
        (host(&"a: b\r\n".repeat(MAX_FIELDS + 1)), Reason::HeadTooLarge),
    ];
    for (text, reason) in table {
        assert_eq!(take(&text).map(|_| ()), Err(reason), "{text:?}");
    }
}

#[test]
fn the_record_of_a_bad_head_holds_no_credentials_and_no_query() {
    let asked = |text: &str| {
        let mut buffer = BytesMut::from(text.as_bytes());
        RequestHead::take(&mut HeadScanner::default(), &mut buffer).unwrap_err().asked.to_string()
    };
    let connect = asked("CONNECT user:secret@pypi.org:443 HTTP/1.1\r\n\r\n");
    assert!(connect.contains("pypi.org:443") && !connect.contains("secret"), "{connect}");
    assert_eq!(asked("GET http://pypi.org/x?token=secret HTTP/1.1\r\n\r\n"), "http://pypi.org/x");
    assert!(asked(&format!("CONNECT {} HTTP/1.1\r\n\r\n", "a".repeat(9000))).len() <= 256);
}

#[test]
fn only_a_websocket_is_an_upgrade_and_an_offer_of_http_2_is_none() {
    let websocket =
        |fields: &str| head(&format!("GET http://a.b/ HTTP/1.1\r\nHost: a.b\r\n{fields}\r\n")).websocket;
    assert!(websocket("Connection: Upgrade\r\nUpgrade: WebSocket\r\n"));
    let old = "GET http://a.b/ HTTP/1.0\r\nHost: a.b\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert!(!head(old).websocket, "an older version knows no upgrade");
    for offer in ["h2c", "H2C"] {
        let fields =
            format!("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {offer}\r\nHTTP2-Settings: AAE\r\n");
        assert!(!websocket(&fields), "{offer}");
    }
}

#[test]
fn the_fields_of_a_head_are_all_there_in_their_order() {
    let get = head("GET http://a.b/ HTTP/1.1\r\nHost: a.b\r\nAccept: x\r\nX-Y: 1\r\nAccept: z\r\n\r\n");
    get.with_fields(|fields| {
        let names: Vec<&str> = fields.0.iter().map(|field| field.name).collect();
        assert_eq!(names, ["Host", "Accept", "X-Y", "Accept"]);
        assert_eq!(fields.all("accept").collect::<Vec<_>>(), [b"x", b"z"]);
    });
}

#[test]
fn whether_a_connection_goes_on_says_its_version_or_connection() {
    for (closes, version, fields) in [
        (false, "1.1", ""),
        (true, "1.1", "Connection: close\r\n"),
        (true, "1.1", "Connection: x , CLOSE\r\n"),
        (true, "1.1", "Connection: x\r\nConnection: close\r\n"),
        (false, "1.1", "Connection: closed\r\nX: close\r\n"),
        (true, "1.0", ""),
        (false, "1.0", "Connection: Keep-Alive\r\n"),
        (true, "1.0", "Connection: keep-alive, close\r\n"),
    ] {
        let get = head(&format!("GET http://a.b/ HTTP/{version}\r\nHost: a.b\r\n{fields}\r\n"));
        assert_eq!(get.close, closes, "{version} {fields:?}");
        assert_eq!(get.version == Version::HTTP_10, version == "1.0");
    }
}

#[test]
fn only_a_client_that_knows_of_interim_responses_waits_for_one() {
    for (waits, version, fields) in [
        (true, "1.1", "Expect: 100-Continue\r\n"),
        (false, "1.0", "Expect: 100-continue\r\n"),
        (false, "1.1", ""),
    ] {
        let post = head(&format!("POST http://a.b/ HTTP/{version}\r\nHost: a.b\r\n{fields}\r\n"));
        assert_eq!(post.expects_continue, waits, "{version} {fields:?}");
    }
}

#[test]
fn lengths_are_plain_numbers() {
    let body =
        |fields: &str| head(&format!("POST http://a.b/ HTTP/1.1\r\nHost: a.b\r\n{fields}\r\n\r\n")).body;
    assert_eq!(body("Content-Length: 0"), BodyLength::None);
    assert_eq!(body("Content-Length: 12"), BodyLength::Bytes(12));
    assert_eq!(body("Transfer-Encoding: Chunked"), BodyLength::Chunked);
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..512)) {
        let mut buffer = BytesMut::from(&bytes[..]);
        let _ = RequestHead::take(&mut HeadScanner::default(), &mut buffer);
    }
}
