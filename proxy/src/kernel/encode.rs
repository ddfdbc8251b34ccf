//! A table as the requests that make it: nf_tables' own messages, without the `nft` program.
//!
//! The bytecode is what `nft` makes of the same rules, so that it shows them as it would its own. Numbers are
//! those of `linux/netfilter/nf_tables.h`.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::netlink::{APPEND, CREATE, EXCLUSIVE, Request};
use super::table::ranges::{address_behind, merged, merged_ports, merged_verdicts};
use super::table::{
    Chain, Contents, Family, Hook, HookKind, HookPlace, Policy, Rule, Set, Table, ToldLimits, Verdict,
};

mod expressions;

/// nf_tables in the kind of a netfilter message.
pub(super) const NFTABLES: u8 = 10;
/// The family `inet`.
pub(super) const INET: u8 = 1;

/// The kinds of nf_tables' messages.
pub(super) mod kind {
    pub(in crate::kernel) const NEW_TABLE: u8 = 0;
    pub(in crate::kernel) const GET_TABLE: u8 = 1;
    pub(in crate::kernel) const DELETE_TABLE: u8 = 2;
    pub(in crate::kernel) const NEW_CHAIN: u8 = 3;
    pub(in crate::kernel) const GET_CHAIN: u8 = 4;
    pub(in crate::kernel) const DELETE_CHAIN: u8 = 5;
    pub(in crate::kernel) const NEW_RULE: u8 = 6;
    pub(in crate::kernel) const DELETE_RULE: u8 = 8;
    pub(in crate::kernel) const NEW_SET: u8 = 9;
    pub(in crate::kernel) const GET_SET: u8 = 10;
    pub(in crate::kernel) const DELETE_SET: u8 = 11;
    pub(in crate::kernel) const NEW_ELEMENT: u8 = 12;
    pub(in crate::kernel) const GET_ELEMENT: u8 = 13;
    pub(in crate::kernel) const DELETE_ELEMENT: u8 = 14;
}

/// The attributes of sets and of their elements that are read back, too.
pub(super) mod attribute {
    pub(in crate::kernel) const TABLE: u16 = 1;
    pub(in crate::kernel) const NAME: u16 = 2;
    pub(in crate::kernel) const CHAIN_NAME: u16 = 3;
    pub(in crate::kernel) const CHAIN_HOOK: u16 = 4;
    pub(in crate::kernel) const HOOK_NUMBER: u16 = 1;
    pub(in crate::kernel) const HOOK_PRIORITY: u16 = 2;
    pub(in crate::kernel) const CHAIN_POLICY: u16 = 5;
    pub(in crate::kernel) const CHAIN_TYPE: u16 = 7;
    pub(in crate::kernel) const SET_FLAGS: u16 = 3;
    pub(in crate::kernel) const SET_KEY_TYPE: u16 = 4;
    pub(in crate::kernel) const SET_KEY_LENGTH: u16 = 5;
    pub(in crate::kernel) const SET_ID: u16 = 10;
    pub(in crate::kernel) const ELEMENTS: u16 = 3;
    pub(in crate::kernel) const ELEMENT_KEY: u16 = 1;
    pub(in crate::kernel) const ELEMENT_TIMEOUT: u16 = 4;
    pub(in crate::kernel) const ELEMENT_EXPIRATION: u16 = 5;
    pub(in crate::kernel) const ELEMENT_USERDATA: u16 = 6;
    pub(in crate::kernel) const VALUE: u16 = 1;
    pub(in crate::kernel) const LIST_ELEMENT: u16 = 1;
}

const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const SET_DATA_TYPE: u16 = 6;
const SET_DESCRIPTION: u16 = 9;
const SET_DESCRIPTION_SIZE: u16 = 1;
const SET_GC_INTERVAL: u16 = 12;
const ELEMENTS_SET_ID: u16 = 4;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_FLAGS: u16 = 3;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

const ANONYMOUS: u32 = 0x1;
const CONSTANT: u32 = 0x2;
const INTERVAL: u32 = 0x4;
const MAP: u32 = 0x8;
const TIMEOUT: u32 = 0x10;
const INTERVAL_END: u32 = 0x1;
const VERDICT_TYPE: u32 = 0xffff_ff00;
/// What the kernel puts a number into, for a set that lives as long as its rule.
const ANONYMOUS_NAME: &str = "__set%d";

/// Elements in one message. The list is an attribute, 64 KiB at most, and an element with a jump takes 68 bytes
/// beside the chain's name; whatever would not fit begins the next message earlier.
const ELEMENTS_AT_ONCE: usize = 700;
const LIST_BYTES: usize = 60_000;

/// One object of a table, and the requests that make it, which stay in one transaction.
#[derive(Clone, Debug)]
pub(super) struct Object {
    /// What a person calls it.
    pub(super) name: String,
    /// What the kernel must have for it, where that is not nf_tables itself.
    pub(super) features: Vec<&'static str>,
    /// In the order in which they are sent.
    pub(super) requests: Vec<Request>,
}

impl Object {
    /// An object that one request is about.
    pub(super) fn new(name: String, request: Request) -> Self {
        Self { name, features: Vec::new(), requests: vec![request] }
    }

    /// The bytes of its requests.
    pub(super) fn length(&self) -> usize {
        self.requests.iter().map(Request::length).sum()
    }
}

/// The numbers by which rules refer to sets that the same transaction makes.
#[derive(Debug, Default)]
pub(super) struct SetIds(u32);

impl SetIds {
    pub(super) fn next(&mut self) -> u32 {
        self.0 += 1;
        self.0
    }
}

/// The table itself; nothing happens where it is there.
pub(super) fn table(table: &str) -> Object {
    let mut request = message(kind::NEW_TABLE, CREATE);
    request.push_text(attribute::TABLE, table);
    request.push_be32(2, 0);
    Object::new(format!("table inet {table}"), request)
}

/// A set, empty.
pub(super) fn set(table: &Table, set: &Set, ids: &mut SetIds) -> Object {
    let shape = Shape::of(&set.contents);
    let mut request = new_set(&table.name, &set.name, shape, ids.next());
    if let Contents::Told(_, limits) | Contents::Ways(_, limits) = &set.contents {
        let ToldLimits { size, clear_every } = limits;
        request.nest(SET_DESCRIPTION, |description| description.push_be32(SET_DESCRIPTION_SIZE, *size));
        let milliseconds = u32::try_from(clear_every.as_millis()).unwrap_or(u32::MAX);
        request.push_be32(SET_GC_INTERVAL, milliseconds);
    }
    Object::new(format!("set {}", set.name), request)
}

/// What is in a set, one object for each message.
pub(super) fn elements(table: &Table, set: &Set) -> Vec<Object> {
    let name = format!("elements of set {}", set.name);
    let requests = element_requests(&table.name, &set.name, None, intervals(&set.contents));
    requests.into_iter().map(|request| Object::new(name.clone(), request)).collect()
}

/// A chain, empty; one with a hook that is there gets the policy.
pub(super) fn chain(table: &Table, chain: &Chain) -> Object {
    let mut request = about(kind::NEW_CHAIN, CREATE, &table.name, attribute::CHAIN_NAME, &chain.name);
    let mut features = Vec::new();
    if let Some(hook) = &chain.hook {
        push_hook(&mut request, hook);
        features.extend((hook.kind == HookKind::Nat).then_some("CONFIG_NFT_NAT"));
    }
    Object { name: format!("chain {}", chain.name), features, requests: vec![request] }
}

/// A rule at the end of its chain, with the sets that are its own.
pub(super) fn rule(table: &Table, chain: &Chain, index: usize, rule: &Rule, ids: &mut SetIds) -> Object {
    let mut request = about(kind::NEW_RULE, CREATE | APPEND, &table.name, RULE_CHAIN, &chain.name);
    let (mut requests, mut features) = (Vec::new(), Vec::new());
    request.nest(RULE_EXPRESSIONS, |list| {
        let mut compiler = expressions::Compiler::new(table, list, ids);
        rule.expressions.iter().for_each(|expression| compiler.expression(expression));
        (requests, features) = compiler.finish();
    });
    if let Some(comment) = rule.comment.as_deref().and_then(comment_data) {
        request.push(RULE_USERDATA, &comment);
    }
    requests.push(request);
    let comment = rule.comment.as_deref().map_or(String::new(), |comment| format!(" ({comment})"));
    let name = format!("chain {}, rule {}{comment}", chain.name, index + 1);
    Object { name, features, requests }
}

/// `text` as a comment that `nft` shows: a type, a length, and text of 127 bytes at most that ends in a NUL. None for
/// longer text: the kernel has 255 bytes for all of an element, and cut short it would be another name.
pub(super) fn comment_data(text: &str) -> Option<Vec<u8>> {
    const COMMENT: u8 = 0;
    const MOST: usize = 128;
    let length = u8::try_from(text.len() + 1).ok().filter(|length| usize::from(*length) <= MOST)?;
    Some([&[COMMENT, length], text.as_bytes(), &[0]].concat())
}

/// A request to nf_tables about family `inet`.
pub(super) fn message(kind: u8, flags: u16) -> Request {
    Request::netfilter(NFTABLES, kind, flags, INET)
}

/// A request about something with a name in a table.
pub(super) fn about(kind: u8, flags: u16, table: &str, name_attribute: u16, name: &str) -> Request {
    let mut request = message(kind, flags);
    request.push_text(attribute::TABLE, table);
    request.push_text(name_attribute, name);
    request
}

/// How a set is keyed, which two sets must share for one to stand for the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    pub(super) flags: u32,
    pub(super) key_type: u32,
    pub(super) key_length: u32,
}

const IPV4_ADDRESS: u32 = 7;
const IPV6_ADDRESS: u32 = 8;
const INET_PROTOCOL: u32 = 12;
const INET_SERVICE: u32 = 13;

impl Shape {
    pub(super) fn of(contents: &Contents) -> Self {
        match contents {
            Contents::Addresses(family, _) => Self { flags: INTERVAL, ..Self::address(*family) },
            Contents::Dispatch(family, _) => Self { flags: INTERVAL | MAP, ..Self::address(*family) },
            Contents::Ports(_) => Self { flags: INTERVAL, key_type: INET_SERVICE, key_length: 2 },
            Contents::Told(family, _) => {
                let Self { key_type, key_length, .. } = Self::address(*family);
                Self::timed(&[key_type, key_type, INET_PROTOCOL, INET_SERVICE], 2 * key_length + 8)
            }
            Contents::Ways(family, _) => {
                let Self { key_type, key_length, .. } = Self::address(*family);
                Self::timed(&[key_type, INET_PROTOCOL, INET_SERVICE], key_length + 8)
            }
        }
    }

    /// nft numbers a concatenation by its parts, 6 bits each; each part takes whole registers.
    fn timed(parts: &[u32], key_length: u32) -> Self {
        let key_type = parts.iter().fold(0, |number, part| number << 6 | part);
        Self { flags: TIMEOUT, key_type, key_length }
    }

    fn address(family: Family) -> Self {
        match family {
            Family::V4 => Self { flags: 0, key_type: IPV4_ADDRESS, key_length: 4 },
            Family::V6 => Self { flags: 0, key_type: IPV6_ADDRESS, key_length: 16 },
        }
    }

    fn single(key_type: u32, key_length: u32) -> Self {
        Self { flags: 0, key_type, key_length }
    }
}

/// An element of an interval set: where a range begins or where it has ended.
struct Bound<'a> {
    key: Vec<u8>,
    ends: bool,
    verdict: Option<&'a Verdict>,
}

/// The requests that make a set of one rule.
fn anonymous_set(table: &str, shape: Shape, id: u32, bounds: Vec<Bound<'_>>) -> Vec<Request> {
    let shape = Shape { flags: shape.flags | ANONYMOUS | CONSTANT, ..shape };
    let mut requests = vec![new_set(table, ANONYMOUS_NAME, shape, id)];
    requests.extend(element_requests(table, ANONYMOUS_NAME, Some(id), bounds));
    requests
}

fn new_set(table: &str, name: &str, shape: Shape, id: u32) -> Request {
    let mut request = about(kind::NEW_SET, CREATE | EXCLUSIVE, table, attribute::NAME, name);
    request.push_be32(attribute::SET_FLAGS, shape.flags);
    request.push_be32(attribute::SET_KEY_TYPE, shape.key_type);
    request.push_be32(attribute::SET_KEY_LENGTH, shape.key_length);
    if shape.flags & MAP != 0 {
        request.push_be32(SET_DATA_TYPE, VERDICT_TYPE);
    }
    request.push_be32(attribute::SET_ID, id);
    request
}

fn element_requests(table: &str, set: &str, id: Option<u32>, bounds: Vec<Bound<'_>>) -> Vec<Request> {
    let mut requests = Vec::new();
    let mut bounds = bounds.iter().peekable();
    while bounds.peek().is_some() {
        let mut request = about(kind::NEW_ELEMENT, CREATE, table, attribute::NAME, set);
        if let Some(id) = id {
            request.push_be32(ELEMENTS_SET_ID, id);
        }
        request.nest(attribute::ELEMENTS, |list| {
            for bound in bounds.by_ref().take(ELEMENTS_AT_ONCE) {
                push_element(list, bound);
                if list.length() > LIST_BYTES {
                    break;
                }
            }
        });
        requests.push(request);
    }
    requests
}

fn push_element(list: &mut Request, bound: &Bound<'_>) {
    list.nest(attribute::LIST_ELEMENT, |element| {
        if bound.ends {
            element.push_be32(ELEMENT_FLAGS, INTERVAL_END);
        }
        element.nest(attribute::ELEMENT_KEY, |key| key.push(attribute::VALUE, &bound.key));
        if let Some(verdict) = bound.verdict {
            element.nest(ELEMENT_DATA, |data| push_verdict(data, verdict));
        }
    });
}

/// A verdict as the value of a map's element or of an expression.
fn push_verdict(data: &mut Request, verdict: &Verdict) {
    let (code, chain): (i32, _) = match verdict {
        Verdict::Accept => (1, None),
        Verdict::Drop => (0, None),
        Verdict::Return => (-5, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
    };
    data.nest(DATA_VERDICT, |data| {
        data.push(VERDICT_CODE, &code.to_be_bytes());
        if let Some(chain) = chain {
            data.push_text(VERDICT_CHAIN, chain);
        }
    });
}

fn push_hook(request: &mut Request, hook: &Hook) {
    let number = hook_number(hook.place);
    request.nest(attribute::CHAIN_HOOK, |inside| {
        inside.push_be32(attribute::HOOK_NUMBER, number);
        inside.push(attribute::HOOK_PRIORITY, &hook.priority.to_be_bytes());
    });
    request.push_be32(attribute::CHAIN_POLICY, policy_number(hook.policy));
    request.push_text(attribute::CHAIN_TYPE, hook_kind(hook.kind));
}

pub(super) fn hook_number(place: HookPlace) -> u32 {
    match place {
        HookPlace::Prerouting => 0,
        HookPlace::Input => 1,
        HookPlace::Forward => 2,
        HookPlace::Output => 3,
        HookPlace::Postrouting => 4,
    }
}

pub(super) fn hook_kind(kind: HookKind) -> &'static str {
    match kind {
        HookKind::Filter => "filter",
        HookKind::Nat => "nat",
        HookKind::Route => "route",
    }
}

fn policy_number(policy: Policy) -> u32 {
    match policy {
        Policy::Accept => 1,
        Policy::Drop => 0,
    }
}

/// The elements of an interval set. A range that ends with its family has no end.
fn intervals(contents: &Contents) -> Vec<Bound<'_>> {
    match contents {
        Contents::Addresses(_, ranges) => address_bounds(&merged(ranges)),
        Contents::Ports(ranges) => port_bounds(&merged_ports(ranges)),
        Contents::Dispatch(_, verdicts) => {
            let merged = merged_verdicts(verdicts).into_iter();
            merged.flat_map(|(range, verdict)| bounds_of(&range, Some(verdict))).collect()
        }
        Contents::Told(..) | Contents::Ways(..) => Vec::new(),
    }
}

fn address_bounds(ranges: &[RangeInclusive<IpAddr>]) -> Vec<Bound<'static>> {
    ranges.iter().flat_map(|range| bounds_of(range, None)).collect()
}

fn bounds_of<'a>(
    range: &RangeInclusive<IpAddr>,
    verdict: Option<&'a Verdict>,
) -> impl Iterator<Item = Bound<'a>> + use<'a> {
    let start = Bound { key: address_bytes(*range.start()), ends: false, verdict };
    let end = address_behind(*range.end());
    let end = end.map(|behind| Bound { key: address_bytes(behind), ends: true, verdict: None });
    [Some(start), end].into_iter().flatten()
}

fn port_bounds(ranges: &[RangeInclusive<u16>]) -> Vec<Bound<'static>> {
    let bounds = ranges.iter().flat_map(|range| {
        [Some((*range.start(), false)), range.end().checked_add(1).map(|behind| (behind, true))]
    });
    bounds
        .flatten()
        .map(|(port, ends)| Bound { key: port.to_be_bytes().into(), ends, verdict: None })
        .collect()
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}
