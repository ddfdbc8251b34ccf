//! A ClientHello is read the same however it is cut, and never differently from rustls.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outgate::hello::{self, Hello, MAX_HELLO, Reader};
use rustls::server::Acceptor;

fuzz_target!(|stream: &[u8]| {
    let whole = hello::parse(stream);
    let (answer, needed) = read_by_bytes(stream);
    assert_eq!(answer, whole);
    if stream.len() >= MAX_HELLO {
        assert_ne!(whole, Hello::NeedMore);
    }
    if let Hello::Found(found) = &whole {
        assert_eq!(hello::parse(&stream[..needed]), whole);
        assert_eq!(hello::parse(&stream[..needed - 1]), Hello::NeedMore);
        if let Some(name) = &found.sni {
            assert!(stream.len() > name.as_str().len());
            assert_eq!(outgate_rules::DomainName::parse(name.as_str()).as_ref(), Ok(name));
        }
    }
    if let Some(theirs) = by_rustls(stream) {
        match whole {
            Hello::Found(ours) => {
                let theirs = theirs.map(|name| name.to_ascii_lowercase());
                assert_eq!(ours.sni.as_ref().map(|name| name.as_str()), theirs.as_deref());
            }
            Hello::Malformed(_) => {}
            Hello::NeedMore | Hello::NotTls => panic!("rustls reads this as a ClientHello: {whole:?}"),
        }
    }
});

/// The answer to the stream as it comes byte by byte, and how many bytes it took.
fn read_by_bytes(stream: &[u8]) -> (Hello, usize) {
    let mut reader = Reader::default();
    for end in 0..=stream.len() {
        let answer = reader.read(&stream[..end]);
        if answer != Hello::NeedMore {
            return (answer, end);
        }
    }
    (Hello::NeedMore, stream.len())
}

/// The name that rustls reads from a hello it accepts.
fn by_rustls(mut stream: &[u8]) -> Option<Option<String>> {
    let mut acceptor = Acceptor::default();
    while acceptor.read_tls(&mut stream).ok()? > 0 {
        if let Some(accepted) = acceptor.accept().ok()? {
            return Some(accepted.client_hello().server_name().map(str::to_owned));
        }
    }
    None
}
