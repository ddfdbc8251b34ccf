//! A rule's expressions as bytecode: values are loaded into registers, compared, looked up; what does not hold
//! ends the rule.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::super::netlink::Request;
use super::super::table::ranges::{merged, merged_ports, prefix_length};
use super::super::table::{
    Addresses, Contents, CtDirection, CtState, Expr, Family, Field, ICMP, ICMPV6, Log, Mark, Match, Reject,
    Statement, Table, TproxyTo,
};
use super::{
    Bound, INET_PROTOCOL, INET_SERVICE, INTERVAL, SetIds, Shape, address_bounds, address_bytes,
    anonymous_set, attribute, port_bounds, push_verdict,
};

/// The register that most values go through: 16 bytes.
const REGISTER: u32 = 1;
/// The same register as the first of the 4-byte ones, which a concatenation fills one behind the other.
const FIRST_WORD: u32 = 8;
/// The register whose content is the verdict.
const VERDICT_REGISTER: u32 = 0;

const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;

const META_MARK: u32 = 3;
const META_INPUT_NAME: u32 = 6;
const META_OUTPUT_NAME: u32 = 7;
const META_SOCKET_USER: u32 = 10;
const META_NFPROTO: u32 = 15;
const META_PROTOCOL: u32 = 16;

const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_MARK: u32 = 3;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;

/// One rule on its way into a request.
pub(super) struct Compiler<'a> {
    table: &'a Table,
    list: &'a mut Request,
    ids: &'a mut SetIds,
    sets: Vec<Request>,
    features: Vec<&'static str>,
    /// The family that the packet has, where the rule has come past a guard.
    family: Option<Family>,
}

impl<'a> Compiler<'a> {
    pub(super) fn new(table: &'a Table, list: &'a mut Request, ids: &'a mut SetIds) -> Self {
        Self { table, list, ids, sets: Vec::new(), features: Vec::new(), family: None }
    }

    /// The sets that the rule refers to and that are its own, and what the kernel must have for it.
    pub(super) fn finish(self) -> (Vec<Request>, Vec<&'static str>) {
        (self.sets, self.features)
    }

    pub(super) fn expression(&mut self, expression: &Expr) {
        match expression {
            Expr::Is(a_match) => self.a_match(a_match, Sense::Is),
            Expr::IsNot(a_match) => self.a_match(a_match, Sense::IsNot),
            Expr::Dispatch { address, map } => self.dispatch(*address, map),
            Expr::Do(statement) => self.statement(statement),
            Expr::Verdict(verdict) => self.emit("immediate", |data| {
                data.push_be32(1, VERDICT_REGISTER);
                data.nest(2, |data| push_verdict(data, verdict));
            }),
        }
    }

    fn a_match(&mut self, a_match: &Match, sense: Sense) {
        match a_match {
            Match::Nfproto(family) => self.nfproto(*family, sense),
            Match::Protocol(numbers) => self.protocol(numbers, sense),
            Match::InputInterface(name) => self.interface(META_INPUT_NAME, name, sense),
            Match::OutputInterface(name) => self.interface(META_OUTPUT_NAME, name, sense),
            Match::Mark(mark) => {
                self.meta(META_MARK, REGISTER);
                self.masked(*mark, sense);
            }
            Match::SocketUser(user) => {
                self.meta(META_SOCKET_USER, REGISTER);
                self.compare(sense.comparison(), &user.to_ne_bytes());
            }
            Match::Address(field, addresses) => self.address(*field, addresses, sense),
            Match::DestinationPort(ranges) => self.ports(2, ranges, sense),
            Match::SourcePort(ranges) => self.ports(0, ranges, sense),
            Match::DestinationPortIn(set) => {
                self.payload(TRANSPORT_HEADER, 2, 2, REGISTER);
                self.look_up(set, None, sense);
            }
            Match::IcmpType(family, number) => self.icmp_type(*family, *number, sense),
            Match::CtState(states) => self.ct_state(states, sense),
            Match::CtDirection(direction) => {
                self.ct(CT_DIRECTION);
                let number = match direction {
                    CtDirection::Original => 0,
                    CtDirection::Reply => 1,
                };
                self.compare(sense.comparison(), &[number]);
            }
            Match::CtMark(mark) => {
                self.ct(CT_MARK);
                self.masked(*mark, sense);
            }
            Match::LocalDestination => self.local_destination(sense),
            Match::TransparentSocket => self.transparent_socket(sense),
            Match::Ipv4Option(number) => self.header_exists(Family::V4, *number, sense),
            Match::RoutingHeader => self.header_exists(Family::V6, 43, sense),
            Match::Told(set) => self.told(set, sense),
            Match::Way(set) => self.way(set, sense),
        }
    }

    fn nfproto(&mut self, family: Family, sense: Sense) {
        self.meta(META_NFPROTO, REGISTER);
        self.compare(sense.comparison(), &[nfproto(family)]);
        if sense == Sense::Is {
            self.family = Some(family);
        }
    }

    /// Lets only packets of `family` on, unless the rule has done that.
    fn guard(&mut self, family: Family) {
        if self.family != Some(family) {
            self.nfproto(family, Sense::Is);
        }
    }

    fn protocol(&mut self, numbers: &[u8], sense: Sense) {
        self.meta(META_PROTOCOL, REGISTER);
        if let [number] = numbers {
            return self.compare(sense.comparison(), &[*number]);
        }
        let mut numbers = numbers.to_vec();
        numbers.sort_unstable();
        numbers.dedup();
        let bounds = numbers.iter().map(|number| Bound { key: vec![*number], ends: false, verdict: None });
        self.look_up_own(Shape::single(INET_PROTOCOL, 1), bounds.collect(), sense);
    }

    fn interface(&mut self, key: u32, name: &str, sense: Sense) {
        let mut padded: Vec<u8> = name.bytes().collect();
        padded.resize(16, 0);
        self.meta(key, REGISTER);
        self.compare(sense.comparison(), &padded);
    }

    fn masked(&mut self, mark: Mark, sense: Sense) {
        if mark.mask != u32::MAX {
            self.bitwise(&mark.mask.to_ne_bytes());
        }
        self.compare(sense.comparison(), &mark.value.to_ne_bytes());
    }

    fn address(&mut self, field: Field, addresses: &Addresses, sense: Sense) {
        match addresses {
            Addresses::In(set) => {
                self.load_address(field, self.family_of(set), REGISTER);
                self.look_up(set, None, sense);
            }
            Addresses::Ranges(ranges) => {
                let ranges = merged(ranges);
                let family = ranges.first().map_or(Family::V4, |first| Family::of(*first.start()));
                self.load_address(field, family, REGISTER);
                match ranges.as_slice() {
                    [range] => self.one_range_of_addresses(range, sense),
                    ranges => {
                        let shape = Shape { flags: INTERVAL, ..Shape::address(family) };
                        self.look_up_own(shape, address_bounds(ranges), sense);
                    }
                }
            }
        }
    }

    fn one_range_of_addresses(&mut self, range: &RangeInclusive<IpAddr>, sense: Sense) {
        let (start, end) = (address_bytes(*range.start()), address_bytes(*range.end()));
        let Some(length) = prefix_length(range) else { return self.between(&start, &end, sense) };
        if start != end {
            let mask = match range.start() {
                IpAddr::V4(_) => mask_bytes(u128::MAX << 96, length).get(..4).map(<[u8]>::to_vec),
                IpAddr::V6(_) => Some(mask_bytes(u128::MAX, length).to_vec()),
            };
            self.bitwise(&mask.unwrap_or_default());
        }
        self.compare(sense.comparison(), &start);
    }

    fn ports(&mut self, offset: u32, ranges: &[RangeInclusive<u16>], sense: Sense) {
        self.payload(TRANSPORT_HEADER, offset, 2, REGISTER);
        let ranges = merged_ports(ranges);
        match ranges.as_slice() {
            [range] if range.start() == range.end() => {
                self.compare(sense.comparison(), &range.start().to_be_bytes());
            }
            [range] => self.between(&range.start().to_be_bytes(), &range.end().to_be_bytes(), sense),
            ranges if ranges.iter().all(|range| range.start() == range.end()) => {
                let bounds = ranges.iter().map(|port| Bound {
                    key: port.start().to_be_bytes().into(),
                    ends: false,
                    verdict: None,
                });
                self.look_up_own(Shape::single(INET_SERVICE, 2), bounds.collect(), sense);
            }
            ranges => {
                let shape = Shape { flags: INTERVAL, ..Shape::single(INET_SERVICE, 2) };
                self.look_up_own(shape, port_bounds(ranges), sense);
            }
        }
    }

    fn icmp_type(&mut self, family: Family, number: u8, sense: Sense) {
        self.guard(family);
        let protocol = match family {
            Family::V4 => ICMP,
            Family::V6 => ICMPV6,
        };
        self.protocol(&[protocol], Sense::Is);
        self.payload(TRANSPORT_HEADER, 0, 1, REGISTER);
        self.compare(sense.comparison(), &[number]);
    }

    fn ct_state(&mut self, states: &[CtState], sense: Sense) {
        let bit = |state: &CtState| -> u32 {
            match state {
                CtState::Invalid => 1,
                CtState::Established => 2,
                CtState::Related => 4,
                CtState::New => 8,
                CtState::Untracked => 64,
            }
        };
        let bits = states.iter().fold(0, |bits, state| bits | bit(state));
        self.ct(CT_STATE);
        self.bitwise(&bits.to_ne_bytes());
        // One of the bits is set, or none is.
        self.compare(sense.opposite().comparison(), &0_u32.to_ne_bytes());
    }

    fn local_destination(&mut self, sense: Sense) {
        const LOCAL: u32 = 2;
        self.features.push("CONFIG_NFT_FIB_INET");
        self.emit("fib", |data| {
            data.push_be32(1, REGISTER);
            data.push_be32(2, 3); // the address's type
            data.push_be32(3, 2); // of the destination
        });
        self.compare(sense.comparison(), &LOCAL.to_ne_bytes());
    }

    fn transparent_socket(&mut self, sense: Sense) {
        self.features.push("CONFIG_NFT_SOCKET");
        self.emit("socket", |data| {
            data.push_be32(1, 0); // whether it is transparent
            data.push_be32(2, REGISTER);
        });
        self.compare(sense.comparison(), &[1]);
    }

    fn header_exists(&mut self, family: Family, number: u8, sense: Sense) {
        const PRESENCE: u32 = 1;
        self.guard(family);
        let kind = match family {
            Family::V4 => 2, // an IPv4 option
            Family::V6 => 0, // an extension header
        };
        self.emit("exthdr", |data| {
            data.push_be32(1, REGISTER);
            data.push(2, &[number]);
            data.push_be32(3, 0);
            data.push_be32(4, 1);
            data.push_be32(5, PRESENCE);
            data.push_be32(6, kind);
        });
        self.compare(EQUAL, &[u8::from(sense == Sense::Is)]);
    }

    fn told(&mut self, set: &str, sense: Sense) {
        let family = self.family_of(set);
        let words = words(family);
        self.load_address(Field::Source, family, FIRST_WORD);
        self.load_address(Field::Destination, family, FIRST_WORD + words);
        self.meta(META_PROTOCOL, FIRST_WORD + 2 * words);
        self.payload(TRANSPORT_HEADER, 2, 2, FIRST_WORD + 2 * words + 1);
        self.look_up(set, None, sense);
    }

    fn way(&mut self, set: &str, sense: Sense) {
        let family = self.family_of(set);
        let words = words(family);
        self.load_address(Field::Destination, family, FIRST_WORD);
        self.meta(META_PROTOCOL, FIRST_WORD + words);
        self.payload(TRANSPORT_HEADER, 2, 2, FIRST_WORD + words + 1);
        self.look_up(set, None, sense);
    }

    fn dispatch(&mut self, field: Field, map: &str) {
        self.load_address(field, self.family_of(map), REGISTER);
        self.emit("lookup", |data| {
            data.push_text(1, map);
            data.push_be32(2, REGISTER);
            data.push_be32(3, VERDICT_REGISTER);
        });
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Count => self.emit("counter", |_| {}),
            Statement::Log(log) => self.log(log),
            Statement::SetMark(mark) => {
                self.immediate(&mark.to_ne_bytes());
                self.emit("meta", |data| {
                    data.push_be32(2, META_MARK);
                    data.push_be32(3, REGISTER);
                });
            }
            Statement::SetCtMark(mark) => {
                self.immediate(&mark.to_ne_bytes());
                self.features.push("CONFIG_NFT_CT");
                self.emit("ct", |data| {
                    data.push_be32(2, CT_MARK);
                    data.push_be32(4, REGISTER);
                });
            }
            Statement::Notrack => {
                self.features.push("CONFIG_NFT_CT");
                self.emit("notrack", |_| {});
            }
            Statement::Tproxy(to) => self.tproxy(*to),
            Statement::Redirect(port) => {
                self.features.push("CONFIG_NFT_REDIR");
                self.immediate(&port.to_be_bytes());
                self.emit("redir", |data| data.push_be32(1, REGISTER));
            }
            Statement::Masquerade => {
                self.features.push("CONFIG_NFT_MASQ");
                self.emit("masq", |_| {});
            }
            Statement::Reject(reject) => self.reject(*reject),
        }
    }

    fn log(&mut self, log: &Log) {
        self.features.push("CONFIG_NFT_LOG");
        self.features.push("CONFIG_NETFILTER_NETLINK_LOG");
        self.emit("log", |data| {
            data.push(1, &log.group.to_be_bytes());
            if !log.prefix.is_empty() {
                data.push_text(2, &log.prefix);
            }
            data.push_be32(3, log.snaplen);
            data.push(4, &log.queue_threshold.to_be_bytes());
        });
    }

    fn tproxy(&mut self, to: TproxyTo) {
        const SECOND_REGISTER: u32 = 2;
        self.features.push("CONFIG_NFT_TPROXY");
        let (address, port) = match to {
            TproxyTo::Port(port) => (None, port),
            TproxyTo::Address(address, port) => (Some(address), port),
        };
        if let Some(address) = address {
            self.immediate(&address_bytes(address));
        }
        let port_register = if address.is_some() { SECOND_REGISTER } else { REGISTER };
        self.immediate_in(port_register, &port.to_be_bytes());
        self.emit("tproxy", |data| {
            data.push_be32(1, address.map_or(0, |address| u32::from(nfproto(Family::of(address)))));
            if address.is_some() {
                data.push_be32(2, REGISTER);
            }
            data.push_be32(3, port_register);
        });
    }

    fn reject(&mut self, reject: Reject) {
        self.features.push("CONFIG_NFT_REJECT_INET");
        // Type 2 is "ICMP or ICMPv6, as the packet is", with codes of its own.
        let (kind, code) = match reject {
            Reject::PortUnreachable => (2, 1),
            Reject::AdminProhibited => (2, 3),
            Reject::TcpReset => (1, 0),
        };
        self.emit("reject", |data| {
            data.push_be32(1, kind);
            data.push(2, &[code]);
        });
    }

    /// The family of a set of addresses. One that is not there is the kernel's to refuse, at the look-up.
    fn family_of(&self, set: &str) -> Family {
        let set = self.table.sets.iter().find(|candidate| candidate.name == set);
        match set.map(|set| &set.contents) {
            Some(
                Contents::Addresses(family, _)
                | Contents::Dispatch(family, _)
                | Contents::Told(family, _)
                | Contents::Ways(family, _),
            ) => *family,
            Some(Contents::Ports(_)) | None => Family::V4,
        }
    }

    fn load_address(&mut self, field: Field, family: Family, register: u32) {
        self.guard(family);
        let (offset, length) = match (family, field) {
            (Family::V4, Field::Source) => (12, 4),
            (Family::V4, Field::Destination) => (16, 4),
            (Family::V6, Field::Source) => (8, 16),
            (Family::V6, Field::Destination) => (24, 16),
        };
        self.payload(NETWORK_HEADER, offset, length, register);
    }

    fn meta(&mut self, key: u32, register: u32) {
        self.emit("meta", |data| {
            data.push_be32(2, key);
            data.push_be32(1, register);
        });
    }

    fn ct(&mut self, key: u32) {
        self.features.push("CONFIG_NFT_CT");
        self.emit("ct", |data| {
            data.push_be32(2, key);
            data.push_be32(1, REGISTER);
        });
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) {
        self.emit("payload", |data| {
            data.push_be32(1, register);
            data.push_be32(2, base);
            data.push_be32(3, offset);
            data.push_be32(4, length);
        });
    }

    fn immediate(&mut self, value: &[u8]) {
        self.immediate_in(REGISTER, value);
    }

    fn immediate_in(&mut self, register: u32, value: &[u8]) {
        self.emit("immediate", |data| {
            data.push_be32(1, register);
            data.nest(2, |data| data.push(attribute::VALUE, value));
        });
    }

    /// Keeps the bits of the register that are in `mask`.
    fn bitwise(&mut self, mask: &[u8]) {
        self.emit("bitwise", |data| {
            data.push_be32(1, REGISTER);
            data.push_be32(2, REGISTER);
            data.push_be32(3, u32::try_from(mask.len()).unwrap_or(0));
            data.nest(4, |data| data.push(attribute::VALUE, mask));
            data.nest(5, |data| data.push(attribute::VALUE, &vec![0; mask.len()]));
        });
    }

    fn between(&mut self, from: &[u8], to: &[u8], sense: Sense) {
        match sense {
            Sense::Is => {
                self.compare(AT_LEAST, from);
                self.compare(AT_MOST, to);
            }
            Sense::IsNot => self.emit("range", |data| {
                data.push_be32(1, REGISTER);
                data.push_be32(2, UNEQUAL);
                data.nest(3, |data| data.push(attribute::VALUE, from));
                data.nest(4, |data| data.push(attribute::VALUE, to));
            }),
        }
    }

    fn compare(&mut self, comparison: u32, value: &[u8]) {
        self.emit("cmp", |data| {
            data.push_be32(1, REGISTER);
            data.push_be32(2, comparison);
            data.nest(3, |data| data.push(attribute::VALUE, value));
        });
    }

    fn look_up_own(&mut self, shape: Shape, bounds: Vec<Bound<'_>>, sense: Sense) {
        let id = self.ids.next();
        self.sets.extend(anonymous_set(&self.table.name, shape, id, bounds));
        self.look_up(super::ANONYMOUS_NAME, Some(id), sense);
    }

    fn look_up(&mut self, set: &str, id: Option<u32>, sense: Sense) {
        self.emit("lookup", |data| {
            data.push_text(1, set);
            data.push_be32(2, REGISTER);
            if let Some(id) = id {
                data.push_be32(4, id);
            }
            data.push_be32(5, u32::from(sense == Sense::IsNot));
        });
    }

    fn emit(&mut self, name: &str, data: impl FnOnce(&mut Request)) {
        self.list.nest(attribute::LIST_ELEMENT, |expression| {
            expression.push_text(EXPRESSION_NAME, name);
            expression.nest(EXPRESSION_DATA, data);
        });
    }
}

/// Whether a match is to hold or not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sense {
    Is,
    IsNot,
}

impl Sense {
    fn comparison(self) -> u32 {
        match self {
            Self::Is => EQUAL,
            Self::IsNot => UNEQUAL,
        }
    }

    fn opposite(self) -> Self {
        match self {
            Self::Is => Self::IsNot,
            Self::IsNot => Self::Is,
        }
    }
}

/// The registers that an address takes.
fn words(family: Family) -> u32 {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// The first `length` bits of `ones`.
fn mask_bytes(ones: u128, length: u32) -> [u8; 16] {
    let mask = if length == 0 { 0 } else { ones & (u128::MAX << (128 - length)) };
    mask.to_be_bytes()
}
