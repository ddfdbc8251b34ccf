//! What kind of address this is, and so who must have said that it may be reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::reason::Reason;

/// The kinds of address that a policy tells apart (IANA special-purpose address registries, RFC 6890).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AddressClass {
    /// Public unicast.
    Public,
    /// RFC 1918, RFC 6598 (CGNAT) and RFC 4193 (ULA).
    Private,
    /// 127.0.0.0/8, ::1.
    Loopback,
    /// 169.254.0.0/16, fe80::/10.
    LinkLocal,
    /// A cloud's metadata or platform service: [`METADATA`].
    Metadata,
    /// 224.0.0.0/4, ff00::/8.
    Multicast,
    /// 0.0.0.0/8, ::.
    Unspecified,
    /// Anything else that is not the public internet: documentation, benchmarking, 240.0.0.0/4, and every
    /// IPv6 address outside 2000::/3.
    Reserved,
}

/// Addresses that hand out credentials or steer the machine they are asked from.
pub const METADATA: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), // instance metadata of Azure, AWS, Google, Oracle
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),   // Azure's platform: DNS, DHCP, health, WireServer
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),   // AWS's container credentials
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), // Alibaba's instance metadata
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)), // AWS's instance metadata
];

impl AddressClass {
    /// The class of an address. An IPv4 address inside an IPv6 form is unwrapped first, as by [`judged`].
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        let address = judged(address);
        if METADATA.contains(&address) {
            return Self::Metadata;
        }
        match address {
            IpAddr::V4(address) => of_v4(address),
            IpAddr::V6(address) => of_v6(address),
        }
    }

    /// Whether a rule has to list the very prefix before such an address can be reached.
    #[must_use]
    pub fn is_special(self) -> bool {
        match self {
            Self::Public | Self::Private => false,
            Self::Loopback
            | Self::LinkLocal
            | Self::Metadata
            | Self::Multicast
            | Self::Unspecified
            | Self::Reserved => true,
        }
    }

    /// The reason that keeps such an address from being dialled.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Self::Public => Reason::AddressPublic,
            Self::Private => Reason::AddressPrivate,
            Self::Loopback => Reason::AddressLoopback,
            Self::LinkLocal => Reason::AddressLinkLocal,
            Self::Metadata => Reason::AddressMetadata,
            Self::Multicast => Reason::AddressMulticast,
            Self::Unspecified => Reason::AddressUnspecified,
            Self::Reserved => Reason::AddressReserved,
        }
    }
}

/// The address by which another is judged: the IPv4 address inside IPv4-mapped and -compatible (RFC 4291
/// §2.5.5), translated (RFC 6145, `::ffff:0:0:0/96`), NAT64 (`64:ff9b::/96`, RFC 6052), 6to4 (`2002::/16`,
/// RFC 3056) and Teredo (`2001::/32`, RFC 4380: the client's) addresses, else the address itself.
#[must_use]
pub fn judged(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(outer) => embedded_v4(outer).map_or(address, IpAddr::V4),
    }
}

/// Whether all of `prefix` lies in one special range: only such a prefix is a rule's word for a special
/// address, so that `0.0.0.0/0` never opens loopback by the way.
#[must_use]
pub fn is_special_prefix(prefix: IpNet) -> bool {
    METADATA.iter().any(|address| IpNet::from(*address) == prefix)
        || SPECIAL.iter().any(|range| range.parse::<IpNet>().is_ok_and(|range| range.contains(&prefix)))
}

/// Whether packets to this address can be judged by its number alone: of the forms with an IPv4 address inside,
/// NAT64's well-known prefix. No network carries the others any more (RFC 7526, RFC 4291 §2.5.5.1), and nobody's
/// rule lists what they reach.
#[must_use]
pub(crate) fn is_carried(address: IpAddr) -> bool {
    judged(address) == address || matches!(address, IpAddr::V6(outer) if outer.to_bits() >> 32 == NAT64 >> 32)
}

/// The first address of NAT64's well-known prefix, `64:ff9b::/96` (RFC 6052).
pub(crate) const NAT64: u128 = 0x64_ff9b << 96;

/// Prefixes at whose ends alone the class of an address changes, or whether it [`is_carried`].
pub(crate) fn boundaries() -> impl Iterator<Item = IpNet> {
    let texts = SPECIAL.iter().chain(&PRIVATE).chain(&FORMS);
    texts.filter_map(|range| range.parse().ok()).chain(METADATA.map(IpNet::from))
}

/// Private ranges, global unicast, and what has an IPv4 address inside, for [`boundaries`].
const PRIVATE: [&str; 6] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "2000::/3"];
const FORMS: [&str; 7] =
    ["::/127", "::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "2002::/16", "2001::/32"];

fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0xffff) | (0, 0, 0, 0, 0xffff, 0) | (0x64, 0xff9b, 0, 0, 0, 0) => v4(g, h),
        // `::` and `::1` are addresses of their own, not compatible forms.
        (0, 0, 0, 0, 0, 0) if g != 0 || h > 1 => v4(g, h),
        (0x2002, high, low, ..) => v4(high, low),
        (0x2001, 0, ..) => v4(!g, !h),
        _ => None,
    }
}

fn of_v4(address: Ipv4Addr) -> AddressClass {
    match address.octets() {
        [0, ..] => AddressClass::Unspecified,
        [127, ..] => AddressClass::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => AddressClass::Private,
        [169, 254, ..] => AddressClass::LinkLocal,
        [224..=239, ..] => AddressClass::Multicast,
        // IETF protocols, documentation, 6to4 relays, benchmarking, future use and broadcast.
        [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [240..=255, ..] => AddressClass::Reserved,
        _ => AddressClass::Public,
    }
}

fn of_v6(address: Ipv6Addr) -> AddressClass {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => AddressClass::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => AddressClass::Loopback,
        [0xfe80..=0xfebf, ..] => AddressClass::LinkLocal,
        [0xfc00..=0xfdff, ..] => AddressClass::Private,
        [0xff00..=0xffff, ..] => AddressClass::Multicast,
        // IETF protocols (RFC 2928), documentation (RFC 3849, RFC 9637), SRv6 SIDs.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => AddressClass::Reserved,
        [0x2000..=0x3fff, ..] => AddressClass::Public,
        _ => AddressClass::Reserved,
    }
}

/// The special ranges as prefixes, for [`is_special_prefix`].
const SPECIAL: [&str; 21] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "::1/128",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "3fff::/20",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        use AddressClass as C;
        let table = [
            ("8.8.8.8", C::Public),
            ("2606:4700::1111", C::Public),
            ("10.0.0.1", C::Private),
            ("172.16.0.1", C::Private),
            ("172.31.255.255", C::Private),
            ("172.32.0.1", C::Public),
            ("192.168.1.1", C::Private),
            ("100.64.0.1", C::Private),
            ("100.127.255.255", C::Private),
            ("100.128.0.1", C::Public),
            ("fd00::1", C::Private),
            ("fc00::1", C::Private),
            ("127.0.0.1", C::Loopback),
            ("127.255.255.254", C::Loopback),
            ("::1", C::Loopback),
            ("169.254.1.1", C::LinkLocal),
            ("fe80::1", C::LinkLocal),
            ("169.254.169.254", C::Metadata),
            ("168.63.129.16", C::Metadata),
            ("fd00:ec2::254", C::Metadata),
            ("224.0.0.1", C::Multicast),
            ("ff02::1", C::Multicast),
            ("0.0.0.0", C::Unspecified),
            ("0.1.2.3", C::Unspecified),
            ("::", C::Unspecified),
            ("240.0.0.1", C::Reserved),
            ("255.255.255.255", C::Reserved),
            ("198.18.0.1", C::Reserved),
            ("203.0.113.7", C::Reserved),
            ("2001:db8::1", C::Reserved),
            ("fec0::1", C::Reserved),
            ("64:ff9b:1::a00:1", C::Reserved),
            ("100::1", C::Reserved),
        ];
        for (address, class) in table {
            assert_eq!(AddressClass::of(address.parse().unwrap()), class, "{address}");
        }
    }

    #[test]
    fn an_ipv4_address_inside_an_ipv6_form_is_judged_itself() {
        let table = [
            ("::ffff:127.0.0.1", "127.0.0.1"),
            ("::127.0.0.1", "127.0.0.1"),
            ("::ffff:0:10.0.0.1", "10.0.0.1"),
            ("64:ff9b::a9fe:a9fe", "169.254.169.254"),
            ("2002:a00:1::", "10.0.0.1"),
            ("2002:7f00:1::1", "127.0.0.1"),
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "192.0.2.45"),
            ("64:ff9b::808:808", "8.8.8.8"),
        ];
        for (outer, inner) in table {
            assert_eq!(judged(outer.parse().unwrap()).to_string(), inner, "{outer}");
        }
        for plain in ["::1", "::", "2606:4700::1111", "fe80::1"] {
            assert_eq!(judged(plain.parse().unwrap()).to_string(), plain);
        }
    }

    #[test]
    fn only_a_prefix_inside_a_special_range_speaks_for_it() {
        for yes in [
            "127.0.0.0/8",
            "127.0.0.1/32",
            "169.254.169.254/32",
            "168.63.129.16/32",
            "::1/128",
            "203.0.113.0/24",
        ] {
            assert!(is_special_prefix(yes.parse().unwrap()), "{yes}");
        }
        for no in ["0.0.0.0/0", "126.0.0.0/7", "168.63.129.0/24", "::/0", "10.0.0.0/8", "8.8.8.8/32"] {
            assert!(!is_special_prefix(no.parse().unwrap()), "{no}");
        }
    }

    #[test]
    fn the_list_of_special_prefixes_agrees_with_the_classes() {
        for range in SPECIAL {
            let range: IpNet = range.parse().unwrap();
            for address in [range.network(), range.broadcast()] {
                let class = AddressClass::of(address);
                // Teredo lies inside 2001::/23 and is judged by what it carries.
                assert!(class.is_special() || judged(address) != address, "{range}: {address} is {class:?}");
            }
        }
    }
}
