use proptest::collection::vec;
use proptest::prelude::*;

use super::super::{conntrack, told};
use super::*;

fn bytes(request: &Request) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.write_to(&mut bytes, 0, 7).expect("short enough");
    bytes
}

fn sample() -> Vec<u8> {
    let request = Request::new(0x0a03, 0, &[1, 0, 0, 0])
        .with(1, b"outgate\0")
        .with(2, &7_u32.to_be_bytes())
        .with_nested(3, |inside| {
            inside.push(1, &9_u16.to_be_bytes());
            inside.push_text(2, "inner");
            inside.nest(4, |inner| inner.push_be32(1, 1));
        });
    bytes(&request)
}

/// Everything that reads what the kernel sent.
fn read_all(datagram: &[u8]) -> usize {
    let mut seen = 0;
    for message in messages(datagram) {
        let _ = (message.verdict(), conntrack::Flow::read(&message), told::standing_in_both(&message));
        for (kind, value) in message.attributes(4).iter() {
            let inside = Attributes(value);
            let _ = (
                inside.text(1),
                inside.be16(1),
                inside.be32(1),
                inside.be64(1),
                inside.inside(kind).iter().count(),
            );
            seen += 1 + inside.iter().count();
        }
    }
    seen
}

#[test]
fn what_was_written_is_read() {
    let sample = sample();
    let found: Vec<_> = messages(&sample).collect();
    let [message] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((message.kind, message.sequence), (0x0a03, 7));
    let attributes = message.attributes(4);
    assert_eq!(attributes.text(1), Some("outgate"));
    assert_eq!(attributes.be32(2), Some(7));
    assert_eq!(attributes.be16(2), None, "a number of another size");
    let inside = attributes.inside(3);
    assert_eq!((inside.be16(1), inside.text(2), inside.inside(4).be32(1)), (Some(9), Some("inner"), Some(1)));
    assert_eq!(attributes.inside(9).iter().count(), 0);
}

#[test]
fn a_message_cut_anywhere_is_no_message() {
    let sample = sample();
    for end in 0..sample.len() {
        assert_eq!(messages(&sample[..end]).count(), 0, "cut at {end}");
    }
    let twice = [sample.clone(), sample.clone()].concat();
    assert_eq!(messages(&twice[..twice.len() - 1]).count(), 1);
}

#[test]
fn lengths_that_lie_end_the_reading() {
    for length in [0_u32, 1, 15, u32::MAX, 0x8000_0000] {
        let mut lying = sample();
        lying[..4].copy_from_slice(&length.to_ne_bytes());
        assert_eq!(messages(&lying).count(), 0, "a message of {length}");
    }
    for length in [0_u16, 1, 3, u16::MAX] {
        let mut lying = sample();
        lying[20..22].copy_from_slice(&length.to_ne_bytes());
        let message = messages(&lying).next().expect("a message");
        assert_eq!(message.attributes(4).iter().count(), 0, "an attribute of {length}");
    }
}

#[test]
fn a_value_that_no_attribute_holds_is_never_sent() {
    let inside_long = |request: &mut Request| request.push(1, &[0; 60_000]);
    let too_long = [
        Request::new(1, 0, &[]).with(1, &[0; 65_532]),
        Request::new(1, 0, &[]).with_nested(1, |nest| {
            inside_long(nest);
            inside_long(nest);
        }),
    ];
    for request in too_long {
        assert!(matches!(request.write_to(&mut Vec::new(), 0, 1), Err(Failure::TooLong)));
    }
}

proptest! {
    #[test]
    fn random_bytes_are_survived(datagram in vec(any::<u8>(), 0..400)) {
        read_all(&datagram);
    }

    #[test]
    fn random_changes_to_a_message_are_survived(changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let mut changed = [sample(), sample()].concat();
        for (index, byte) in changes {
            let at = index.index(changed.len());
            changed[at] = byte;
        }
        prop_assert!(read_all(&changed) <= changed.len());
    }
}
