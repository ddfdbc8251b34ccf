//! Fixed answers: `hosts:` in the configuration.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record};
use outgate_rules::DomainName;

use crate::reply::{Rcode, Reply, wire_name};

/// Names whose addresses the configuration gives. They are exact: nothing below them is meant.
#[derive(Debug, Default)]
pub struct Hosts {
    names: HashMap<DomainName, Host, RandomState>,
}

#[derive(Debug)]
struct Host {
    v4: Arc<Reply>,
    v6: Arc<Reply>,
    nothing: Arc<Reply>,
}

impl Hosts {
    /// The answers, which clients may keep for `ttl` seconds.
    #[must_use]
    pub fn new(hosts: &[(DomainName, Vec<IpAddr>)], ttl: u32) -> Self {
        let names = hosts.iter().map(|(name, addresses)| (name.clone(), Host::new(name, addresses, ttl)));
        Self { names: names.collect() }
    }

    /// The answer to a question about one of the names: its addresses, and no records of other types.
    #[must_use]
    pub fn answer(&self, name: &DomainName, record_type: u16) -> Option<&Arc<Reply>> {
        if self.names.is_empty() {
            return None;
        }
        let host = self.names.get(name)?;
        Some(match record_type {
            crate::TYPE_A => &host.v4,
            crate::TYPE_AAAA => &host.v6,
            _ => &host.nothing,
        })
    }
}

impl Host {
    fn new(name: &DomainName, addresses: &[IpAddr], ttl: u32) -> Self {
        let reply = |record_type| Arc::new(fixed(name, addresses, record_type, ttl));
        Self { v4: reply(crate::TYPE_A), v6: reply(crate::TYPE_AAAA), nothing: reply(crate::TYPE_HTTPS) }
    }
}

/// The answer to a question about a name with these addresses: those of the asked family, and no records of other
/// types.
pub(crate) fn fixed(name: &DomainName, addresses: &[IpAddr], record_type: u16, ttl: u32) -> Reply {
    let asked = addresses.iter().filter(|address| match record_type {
        crate::TYPE_A => address.is_ipv4(),
        crate::TYPE_AAAA => address.is_ipv6(),
        _ => false,
    });
    let data = |address: &IpAddr| match address {
        IpAddr::V4(address) => RData::A(A(*address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
    };
    let record = |address| Some(Record::from_rdata(wire_name(name)?, ttl, data(address)));
    Reply { rcode: Rcode::NoError, records: asked.filter_map(record).collect(), soa: None, ttl }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_name_has_its_addresses_by_family_and_nothing_else() {
        let name = DomainName::parse("licence.corp.example").unwrap();
        let addresses = ["10.9.0.7", "10.9.0.8", "fd00::7"].map(|address| address.parse().unwrap());
        let hosts = Hosts::new(&[(name.clone(), addresses.to_vec())], 60);
        let records = |record_type| hosts.answer(&name, record_type).map(|reply| reply.records.len());
        assert_eq!(records(crate::TYPE_A), Some(2));
        assert_eq!(records(crate::TYPE_AAAA), Some(1));
        assert_eq!(records(crate::TYPE_HTTPS), Some(0), "not asked of an upstream either");
        assert!(hosts.answer(&DomainName::parse("x.licence.corp.example").unwrap(), 1).is_none());
    }
}
