use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use Verdict::{Accept, Drop};

fn v4(bits: u32) -> IpAddr {
    Ipv4Addr::from_bits(bits).into()
}

proptest! {
    #[test]
    fn merged_ports_are_the_same_ports_apart(bounds in vec((0_u16.., 0_u16..300), 0..20)) {
        let ranges: Vec<_> = bounds.iter().map(|(start, length)| *start..=start.saturating_add(*length)).collect();
        let merged = merged_ports(&ranges);
        for port in 0..=u16::MAX {
            let before = ranges.iter().any(|range| range.contains(&port));
            prop_assert_eq!(merged.iter().any(|range| range.contains(&port)), before);
        }
        prop_assert!(merged.is_sorted_by(|one, next| one.end().checked_add(1).is_some_and(|gap| gap < *next.start())));
    }

    #[test]
    fn merged_verdicts_say_the_same_of_every_address(steps in vec((1_u32..4, any::<bool>(), any::<bool>()), 0..40)) {
        let mut at = u32::MAX - 200;
        let mut ranges = Vec::new();
        for (length, there, accept) in steps {
            let range = v4(at)..=v4(at.saturating_add(length - 1));
            at = at.saturating_add(length);
            if there {
                ranges.push((range, if accept { Accept } else { Drop }));
            }
        }
        ranges.reverse();
        let merged = merged_verdicts(&ranges);
        for address in (u32::MAX - 210..=u32::MAX).map(v4) {
            let before = ranges.iter().find(|(range, _)| range.contains(&address)).map(|(_, verdict)| verdict);
            let after = merged.iter().find(|(range, _)| range.contains(&address)).map(|(_, verdict)| *verdict);
            prop_assert_eq!(before, after);
        }
    }

    #[test]
    fn a_prefix_is_found_in_its_bounds(bits: u32, length in 0_u32..=32) {
        let host = u32::MAX.checked_shr(length).unwrap_or(0);
        let range = v4(bits & !host)..=v4(bits | host);
        prop_assert_eq!(prefix_length(&range), Some(length));
    }
}

#[test]
fn what_is_not_a_prefix_has_no_length() {
    for (start, end) in
        [("10.0.0.1", "10.0.0.2"), ("10.0.0.0", "10.0.0.2"), ("10.0.0.2", "10.0.0.5"), ("::1", "::2")]
    {
        let [start, end]: [IpAddr; 2] = [start, end].map(|text| text.parse().expect("an address"));
        assert_eq!(prefix_length(&(start..=end)), None, "{start}-{end}");
    }
}

#[test]
fn families_that_meet_at_their_ends_stay_apart() {
    let ranges = ["255.255.255.255", "::"].map(|text| {
        let address: IpAddr = text.parse().expect("an address");
        address..=address
    });
    assert_eq!(merged(&ranges).len(), 2);
}
