use outgate_rules::Destination;
use tokio::net::{TcpListener, TcpStream};

use super::super::request::tests::head;
use super::*;
use crate::flow::tests::{flow, flow_to};
use crate::head::BodyLength;

const GET: &str = "GET / HTTP/1.1\r\nHost: a.b\r\n\r\n";

/// What a client gets of an origin that sends these parts and closes.
fn sent_in(parts: &[&[u8]]) -> Result<Vec<u8>, Reason> {
    let (request, flow, draining) = (head(GET), flow(), CancellationToken::new());
    let mut down = Down::new();
    let (mut ahead, mut all) = (Vec::new(), Vec::new());
    for part in parts {
        ahead.extend_from_slice(part);
        let mut out = Vec::new();
        let taken = down.pass(&ahead, &request, &draining, &flow, &mut out)?;
        ahead.drain(..taken);
        all.append(&mut out);
    }
    assert_eq!(flow.bytes().1, data_of(&all).len() as u64, "what is counted is the data");
    if down.is_done() { Ok(all) } else { Err(Reason::OriginClosed) }
}

/// The data of a response, as a client reads it.
fn data_of(response: &[u8]) -> Vec<u8> {
    let Some(end) = memmem::find(response, b"\r\n\r\n") else { return Vec::new() };
    let (head, rest) = response.split_at(end + 4);
    let chunked = memmem::find(head, b"chunked").is_some();
    let mut body = Body::of(if chunked { BodyLength::Chunked } else { BodyLength::Bytes(u64::MAX) });
    let mut data = Vec::new();
    let collect = |piece: &[u8]| {
        data.extend_from_slice(piece);
        Ok(())
    };
    assert_eq!(body.take(rest, collect), Ok(rest.len()));
    data
}

#[test]
fn it_makes_no_difference_where_the_bytes_of_a_response_are_cut() {
    for (response, data) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"[..], &b"hello"[..]),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nhel\r\n2\r\nlo\r\n0\r\nT: u\r\n\r\n", b"hello"),
        (b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Go\r\n\r\nHTTP/1.1 200 OK\nContent-Length: 2\n\nok", b"ok"),
        (b"HTTP/1.1 204 None\r\n\r\n", b""),
    ] {
        let whole = sent_in(&[response]).unwrap();
        assert_eq!(data_of(&whole), data);
        for cut in 0..=response.len() {
            let (one, two) = response.split_at(cut);
            let parts = sent_in(&[one, two]).unwrap();
            let head = |all: &[u8]| all[..memmem::find(all, b"\r\n\r\n").unwrap()].to_vec();
            assert_eq!((head(&parts), data_of(&parts)), (head(&whole), data.to_vec()), "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = response.chunks(1).collect();
        assert_eq!(data_of(&sent_in(&bytes).unwrap()), data);
    }
}

#[test]
fn what_comes_behind_a_response_is_not_part_of_it() {
    let two =
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned";
    assert_eq!(data_of(&sent_in(&[two]).unwrap()), b"ok");
}

#[test]
fn heads_that_come_before_a_response_are_bounded_together() {
    let hint = [&b"HTTP/1.1 103 Hints\r\nX: "[..], &[b'y'; 1000], b"\r\n\r\n"].concat();
    let ok = b"HTTP/1.1 204 None\r\n\r\n";
    let some = vec![&hint[..]; MAX_HEAD / hint.len() - 1];
    assert!(sent_in(&[some.concat(), ok.to_vec()].concat().chunks(997).collect::<Vec<_>>()).is_ok());
    assert_eq!(sent_in(&vec![&hint[..]; MAX_HEAD / hint.len() + 1]), Err(Reason::OriginResponse));
}

#[test]
fn a_head_that_does_not_fit_behind_those_before_it_is_not_begun() {
    let (request, flow, draining) = (head(GET), flow(), CancellationToken::new());
    let hints = b"HTTP/1.1 103 Hints\r\n\r\n".repeat(MAX_HEAD / 25);
    let large = [&b"HTTP/1.1 200 OK\r\nX: "[..], &[b'y'; 10_000], b"\r\n\r\n"].concat();
    for cut in [0, hints.len(), hints.len() + 20] {
        let all = [hints.clone(), large.clone()].concat();
        let (mut down, mut out) = (Down::new(), Vec::new());
        let taken = down.pass(&all[..cut], &request, &draining, &flow, &mut out).unwrap();
        let ended = down.pass(&all[taken..], &request, &draining, &flow, &mut out);
        assert_eq!((ended, out), (Err(Reason::OriginResponse), Vec::new()), "cut at {cut}");
    }
}

#[tokio::test]
async fn a_client_that_has_yet_to_take_what_was_begun_gets_no_answer_behind_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connected = async || {
        // To the listener of this test.
        #[allow(clippy::disallowed_methods)]
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (near, _) = listener.accept().await.unwrap();
        SockRef::from(&near).set_send_buffer_size(4096).unwrap();
        near.writable().await.unwrap();
        (near, far)
    };
    let request = head("POST / HTTP/1.1\r\nHost: a.b\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    for full in [false, true] {
        let ((near, _far), (to_origin, _origin)) = (connected().await, connected().await);
        while full && near.try_write(&[0; 65536]).is_ok() {}
        let ((flow, address), draining) = (flow_to(), CancellationToken::new());
        let mut client = Client::new(near);
        let mut origin = Origin::new(to_origin, Destination::parse("a.b:80").unwrap(), address);
        let transfer = Transfer::begin(&mut client, &mut origin, &flow, &request, &draining);
        assert_eq!((transfer.status(), transfer.has_begun()), (None, full));
    }
}

#[test]
fn a_body_that_lies_is_not_given_an_end() {
    for body in ["zz\r\n", "3\r\nhello", "5\r\nhel"] {
        let response = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        assert!(sent_in(&[response.as_bytes()]).is_err(), "{body:?}");
    }
}
