//! Which flows a client may open because of what it was told for a name: the elements of the told sets. And which
//! ones every client of a group may open, because the gate itself was told: the elements of sets of ways.
//!
//! An element is a client, an address, a protocol and a port; a way is the same for any client. It runs out by itself, and carries the name that it is
//! there for (up to 127 bytes), which `nft list` shows as its comment. Adding takes about ten microseconds, whatever else is in the
//! table, so that it can be done before the client has its answer.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use outgate_rules::DomainName;

use super::encode::{self, attribute, comment_data, kind};
use super::netlink::{Attributes, Bus, CREATE, Failure, Message, Request, Socket};
use super::table::Family;
use super::{Error, open};

/// Elements that one transaction brings: what a socket holds without `CAP_NET_ADMIN` in the first user namespace is
/// more, by far.
const AT_ONCE: usize = 150;

/// What a client may open.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Flow {
    /// Whose flow it is.
    pub client: IpAddr,
    /// Where to.
    pub address: IpAddr,
    /// The protocol's number in an IP header.
    pub protocol: u8,
    /// The destination's port.
    pub port: u16,
}

/// Where anybody may go who is led to a set of ways.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Way {
    /// Where to.
    pub address: IpAddr,
    /// The protocol's number in an IP header.
    pub protocol: u8,
    /// The destination's port.
    pub port: u16,
}

/// What elements are found by.
pub trait Key: Copy + Ord {
    /// The family of its addresses; none where they differ, since no such flow can be.
    fn family(&self) -> Option<Family>;

    /// As the kernel has it: each part in registers of its own.
    fn bytes(&self) -> Vec<u8>;

    /// Reads what [`Key::bytes`] wrote.
    fn read(family: Family, bytes: &[u8]) -> Option<Self>;
}

impl Key for Flow {
    fn family(&self) -> Option<Family> {
        let family = Family::of(self.client);
        (family == Family::of(self.address)).then_some(family)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = address_bytes(self.client);
        bytes.extend(Way::from(*self).bytes());
        bytes
    }

    fn read(family: Family, bytes: &[u8]) -> Option<Self> {
        let (client, rest) = read_address(family, bytes)?;
        let Way { address, protocol, port } = Way::read(family, rest)?;
        Some(Self { client, address, protocol, port })
    }
}

impl Key for Way {
    fn family(&self) -> Option<Family> {
        Some(Family::of(self.address))
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = address_bytes(self.address);
        bytes.extend([self.protocol, 0, 0, 0]);
        bytes.extend(self.port.to_be_bytes());
        bytes.extend([0, 0]);
        bytes
    }

    fn read(family: Family, bytes: &[u8]) -> Option<Self> {
        let (address, rest) = read_address(family, bytes)?;
        let [protocol, _, _, _, high, low, ..] = *rest else { return None };
        Some(Self { address, protocol, port: u16::from_be_bytes([high, low]) })
    }
}

impl From<Flow> for Way {
    fn from(Flow { address, protocol, port, .. }: Flow) -> Self {
        Self { address, protocol, port }
    }
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

fn read_address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::V4 => {
            let (address, rest) = bytes.split_first_chunk::<4>()?;
            Some((Ipv4Addr::from(*address).into(), rest))
        }
        Family::V6 => {
            let (address, rest) = bytes.split_first_chunk::<16>()?;
            Some((Ipv6Addr::from(*address).into(), rest))
        }
    }
}

/// An element to add.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Element<K = Flow> {
    /// What it lets pass.
    pub flow: K,
    /// The name that was asked for.
    pub name: DomainName,
}

/// An element that is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing<K = Flow> {
    /// What it lets pass.
    pub flow: K,
    /// The name that it was added for; none where that has more than 127 bytes, for which the kernel has no room, or
    /// where somebody else added it.
    pub name: Option<DomainName>,
    /// How long it still stands.
    pub left: Duration,
}

/// The told sets of one table, or two sets of ways, and a socket that is kept for them.
#[derive(Debug)]
pub struct ToldSets<K = Flow> {
    socket: Socket,
    table: String,
    v4: String,
    v6: String,
    keys: PhantomData<K>,
}

impl<K: Key> ToldSets<K> {
    /// The sets of this table with these names, for IPv4 and for IPv6, in the network namespace of this thread.
    ///
    /// # Errors
    /// There is no socket to be had.
    pub fn open(table: &str, [v4, v6]: [&str; 2]) -> Result<Self, Error> {
        let socket = open(Bus::Netfilter)?;
        Ok(Self { socket, table: table.to_owned(), v4: v4.to_owned(), v6: v6.to_owned(), keys: PhantomData })
    }

    /// Lets these flows pass for `timeout` from now, those that may pass already too. Returns when they do. A flow
    /// between families is left out: there is none.
    ///
    /// # Errors
    /// The kernel refuses: there is no table, or the set is full (`ENFILE`). Of more than 150 elements some may be in.
    pub fn add(&mut self, elements: &[Element<K>], timeout: Duration) -> Result<(), Error> {
        for family in [Family::V4, Family::V6] {
            let of_family = elements.iter().filter(|element| element.flow.family() == Some(family));
            // Of two for one flow the later counts; within a transaction there is only one.
            let of_family: BTreeMap<_, _> = of_family.map(|element| (element.flow, element)).collect();
            let of_family: Vec<_> = of_family.into_values().collect();
            for some in of_family.chunks(AT_ONCE) {
                let new = self.new_elements(family, some, timeout);
                let old = self.old_elements(family, some.iter().map(|element| element.flow));
                // Older kernels leave the timeout of an element that is there as it is, so it is taken out first; and so
                // that there is one to take out, it is put in before that.
                self.transact(family, &[&new, &old, &new])?;
            }
        }
        Ok(())
    }

    /// Lets these flows pass no longer. Those that do not anyway are no error.
    ///
    /// # Errors
    /// The kernel refuses: there is no table. Of more than 150 elements some may be out.
    pub fn delete(&mut self, flows: &[K]) -> Result<(), Error> {
        for family in [Family::V4, Family::V6] {
            let of_family: BTreeSet<_> =
                flows.iter().copied().filter(|flow| flow.family() == Some(family)).collect();
            let of_family: Vec<_> = of_family.into_iter().collect();
            for some in of_family.chunks(AT_ONCE) {
                let old = self.old_elements(family, some.iter().copied());
                match self.transact(family, &[&old]) {
                    Err(Error::Refused { errno: nix::errno::Errno::ENOENT, .. }) => {
                        self.delete_each(family, some)?
                    }
                    done => done?,
                }
            }
        }
        Ok(())
    }

    /// What may pass now.
    ///
    /// # Errors
    /// The kernel refuses: there is no table.
    pub fn dump(&mut self) -> Result<Vec<Standing<K>>, Error> {
        let mut standing = self.dump_family(Family::V4)?;
        standing.extend(self.dump_family(Family::V6)?);
        Ok(standing)
    }

    /// Some are not there, and the kernel takes all or none: whatever is there goes one by one.
    fn delete_each(&mut self, family: Family, flows: &[K]) -> Result<(), Error> {
        for flow in flows {
            let old = self.old_elements(family, [*flow]);
            match self.transact(family, &[&old]) {
                Err(Error::Refused { errno: nix::errno::Errno::ENOENT, .. }) if self.is_there(family)? => {}
                done => done?,
            }
        }
        Ok(())
    }

    fn is_there(&mut self, family: Family) -> Result<bool, Error> {
        let request = encode::about(kind::GET_SET, 0, &self.table, attribute::NAME, self.set(family));
        match self.socket.request(&request) {
            Ok(()) => Ok(true),
            Err(Failure::Refused { errno: nix::errno::Errno::ENOENT, .. }) => Ok(false),
            Err(failure) => Err(self.error(family, failure)),
        }
    }

    fn dump_family(&mut self, family: Family) -> Result<Vec<Standing<K>>, Error> {
        let request = encode::about(kind::GET_ELEMENT, 0, &self.table, attribute::NAME, self.set(family));
        let found = self.socket.dump(&request, |message| Some(standing_in(family, message)));
        let found = found.map_err(|failure| self.error(family, failure))?;
        Ok(found.into_iter().flatten().collect())
    }

    fn new_elements(&self, family: Family, elements: &[&Element<K>], timeout: Duration) -> Request {
        let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut request =
            encode::about(kind::NEW_ELEMENT, CREATE, &self.table, attribute::NAME, self.set(family));
        request.nest(attribute::ELEMENTS, |list| {
            for Element { flow, name } in elements {
                list.nest(attribute::LIST_ELEMENT, |element| {
                    push_key(element, flow);
                    element.push(attribute::ELEMENT_TIMEOUT, &milliseconds.to_be_bytes());
                    if let Some(name) = comment_data(name.as_str()) {
                        element.push(attribute::ELEMENT_USERDATA, &name);
                    }
                });
            }
        });
        request
    }

    fn old_elements(&self, family: Family, flows: impl IntoIterator<Item = K>) -> Request {
        let mut request =
            encode::about(kind::DELETE_ELEMENT, 0, &self.table, attribute::NAME, self.set(family));
        request.nest(attribute::ELEMENTS, |list| {
            for flow in flows {
                list.nest(attribute::LIST_ELEMENT, |element| push_key(element, &flow));
            }
        });
        request
    }

    fn transact(&mut self, family: Family, requests: &[&Request]) -> Result<(), Error> {
        let done = self.socket.transact(requests.iter().copied());
        done.map_err(|failure| self.error(family, failure))
    }

    fn error(&self, family: Family, failure: Failure) -> Error {
        Error::of(format!("elements of set {} of table inet {}", self.set(family), self.table), failure, &[])
    }

    fn set(&self, family: Family) -> &str {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

fn push_key(element: &mut Request, flow: &impl Key) {
    element.nest(attribute::ELEMENT_KEY, |key| key.push(attribute::VALUE, &flow.bytes()));
}

fn standing_in<K: Key>(family: Family, message: &Message<'_>) -> Vec<Standing<K>> {
    const FIXED: usize = 4;
    let list = message.attributes(FIXED).inside(attribute::ELEMENTS);
    list.iter().filter_map(|(_, element)| standing(family, Attributes(element))).collect()
}

fn standing<K: Key>(family: Family, element: Attributes<'_>) -> Option<Standing<K>> {
    let flow = K::read(family, element.inside(attribute::ELEMENT_KEY).find(attribute::VALUE)?)?;
    let name = element.find(attribute::ELEMENT_USERDATA).and_then(name_in);
    let left = element.be64(attribute::ELEMENT_EXPIRATION).unwrap_or(0);
    Some(Standing { flow, name, left: Duration::from_millis(left) })
}

/// The comment in an element's data: types, lengths and values.
fn name_in(data: &[u8]) -> Option<DomainName> {
    let [0, length, rest @ ..] = data else { return None };
    let text = rest.get(..usize::from(*length))?.strip_suffix(&[0])?;
    DomainName::parse(std::str::from_utf8(text).ok()?).ok()
}

/// For the test that gives every reader random bytes.
#[cfg(test)]
pub(super) fn standing_in_both(message: &Message<'_>) -> usize {
    [Family::V4, Family::V6].map(|family| standing_in::<Flow>(family, message).len()).iter().sum()
}

#[cfg(test)]
mod tests;
