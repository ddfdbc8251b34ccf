//! What the strict reader takes for a head, a reader that accepts more takes for the same one; and it makes no
//! difference where the bytes are cut.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use outgate::head::{HeadScanner, RequestHead, Target};

fuzz_target!(|input: (&[u8], u8)| {
    let (bytes, cut) = input;
    let whole = RequestHead::take(&mut HeadScanner::default(), &mut BytesMut::from(bytes));
    let parts = in_parts(bytes, usize::from(cut));
    assert_eq!(whole.is_ok(), parts.is_ok());
    let (Ok(Some(head)), Ok(Some(again))) = (whole, parts) else { return };
    assert_eq!(head.raw, again.raw);
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut fields);
    assert!(matches!(request.parse(&head.raw), Ok(httparse::Status::Complete(length)) if length == head.raw.len()));
    assert_eq!(request.method, Some(head.method.as_str()));
    match &head.target {
        Target::Authority(_) => assert_eq!(head.method, "CONNECT"),
        Target::Absolute { .. } | Target::Origin { .. } => {
            let hosts = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
            assert_eq!(hosts.count(), 1);
        }
    }
});

/// The head of a stream that comes in two parts.
fn in_parts(bytes: &[u8], cut: usize) -> Result<Option<RequestHead>, outgate::head::BadHead> {
    let (one, two) = bytes.split_at(cut.min(bytes.len()));
    let mut scanner = HeadScanner::default();
    let mut buffer = BytesMut::from(one);
    if let Some(head) = RequestHead::take(&mut scanner, &mut buffer)? {
        return Ok(Some(head));
    }
    buffer.extend_from_slice(two);
    RequestHead::take(&mut scanner, &mut buffer)
}
