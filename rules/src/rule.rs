//! Rules as a rule set holds them: compiled, and with the place they came from.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;

use crate::address::{AddressClass, is_special_prefix, judged};
use crate::port::PortSet;
use crate::ranges::PrefixSet;
use crate::reason::Reason;

/// A rule's number in its rule set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RuleId(pub(crate) u32);

impl RuleId {
    /// The number, from 0 in the order of the policy.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

/// One rule: what it is called, where it stands, and its terms.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The rule's own name.
    pub name: Arc<str>,
    /// Where it was written.
    pub place: Place,
    /// What it says. Rules of equal terms share them.
    pub terms: Arc<Terms>,
}

/// A place in a policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The file, as the policy's reader named it; `preset:python` for one that is shipped in the binary.
    pub file: Arc<str>,
    /// The line where the rule begins, from 1.
    pub line: u32,
    /// The rule as written there, on one line and cut to a readable length.
    pub text: Arc<str>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What a rule says, apart from the names and prefixes it is found by.
#[derive(Clone, PartialEq, Debug)]
pub struct Terms {
    /// Allow or deny.
    pub action: Action,
    /// What an allowed name opens.
    pub opens: Opens,
    /// For whom.
    pub sources: Sources,
    /// Over which protocol.
    pub protocol: Protocols,
    /// On which ports. Not asked for protocols that have none.
    pub ports: PortSet,
    /// Which addresses a name may resolve to, or an address rule covers.
    pub reach: Reach,
    /// Whether a TLS hello must name the destination.
    pub sni: SniCheck,
    /// Whether every port wants TLS, not 443 alone.
    pub tls_only: bool,
    /// Whether the kernel of a transparent gate passes the rule's TCP by itself: `offload: kernel`.
    pub offload: bool,
    /// Whether a flow to one of the rule's addresses whose name can be seen must carry one of the rule's
    /// names: an address rule with `names:`.
    pub bound_to_names: bool,
    /// From this moment on the rule no longer matches.
    pub expires: Option<Timestamp>,
    /// Bytes that one connection may send to the origin.
    pub max_upload: Option<u64>,
    /// Bytes that one client may send over this rule in an hour.
    pub max_upload_per_hour: Option<u64>,
    /// DNS record types that resolve beyond A, AAAA, HTTPS and SVCB, by number.
    pub record_types: Vec<u16>,
}

/// Whether a rule allows or denies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// What matches may pass.
    Allow,
    /// What matches may not pass, whatever else allows it.
    Deny,
}

/// What an allowed name opens.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Opens {
    /// Flows, and the lookups they need.
    Flows,
    /// Lookups alone: `type: resolve`.
    Lookups,
}

/// Whether a TLS hello must name the destination.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SniCheck {
    /// The hello's name is the destination's name.
    Match,
    /// Any name, or none: `sni: any`.
    Any,
}

/// The protocol of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
}

impl Protocol {
    /// The name as a record and a policy write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Icmp => "ICMP",
        }
    }
}

/// The protocols that a rule speaks of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Protocols {
    /// One of them.
    One(Protocol),
    /// Every protocol: `*` or `Any`.
    Any,
}

impl Protocols {
    /// Whether the rule speaks of `protocol`.
    #[must_use]
    pub fn contains(self, protocol: Protocol) -> bool {
        match self {
            Self::One(one) => one == protocol,
            Self::Any => true,
        }
    }
}

impl Protocols {
    /// Whether the rule speaks of every protocol that `other` speaks of.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self == Self::Any || self == other
    }
}

impl fmt::Display for Protocols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(protocol) => f.write_str(protocol.name()),
            Self::Any => f.write_str("any protocol"),
        }
    }
}

/// The clients that a rule is for.
#[derive(Clone, PartialEq, Debug)]
pub enum Sources {
    /// Every client that a listener serves.
    Everyone,
    /// Clients in these prefixes.
    Only {
        /// The names of the groups, as written.
        groups: Vec<Arc<str>>,
        /// Their prefixes together.
        prefixes: Arc<PrefixSet>,
    },
}

impl Sources {
    /// Whether `client` is among them; an IPv4-mapped client is its IPv4 self.
    #[must_use]
    pub fn contains(&self, client: IpAddr) -> bool {
        match self {
            Self::Everyone => true,
            Self::Only { prefixes, .. } => prefixes.contains(client.to_canonical()),
        }
    }

    /// Whether every client among `other` is among these.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Everyone, _) => true,
            (Self::Only { .. }, Self::Everyone) => false,
            (Self::Only { prefixes: these, .. }, Self::Only { prefixes: others, .. }) => {
                Arc::ptr_eq(these, others) || others.prefixes().all(|prefix| these.covers(prefix))
            }
        }
    }
}

/// The addresses that a rule takes.
#[derive(Clone, PartialEq, Debug)]
pub enum Reach {
    /// Public unicast.
    Public,
    /// Private addresses, and only those.
    Private,
    /// Addresses in these prefixes.
    Prefixes(Arc<ListedPrefixes>),
    /// These addresses, which the rule gives to its names: nobody is asked for them.
    Pinned(Arc<[IpAddr]>),
}

impl Reach {
    /// The addresses that the rule gives to its names, where it does.
    #[must_use]
    pub fn pinned(&self) -> Option<&[IpAddr]> {
        match self {
            Self::Pinned(pinned) => Some(pinned),
            Self::Public | Self::Private | Self::Prefixes(_) => None,
        }
    }

    /// Whether the rule takes `address` of this class, and if not, why.
    ///
    /// # Errors
    /// The reason that a record of the refusal carries.
    pub fn admits(&self, address: IpAddr, class: AddressClass) -> Result<(), Reason> {
        match self {
            Self::Public if class == AddressClass::Public => Ok(()),
            Self::Private if class == AddressClass::Private => Ok(()),
            Self::Public | Self::Private => Err(class.reason()),
            Self::Prefixes(listed) if class.is_special() && !listed.speaks_for(address, class) => {
                Err(class.reason())
            }
            Self::Prefixes(listed) if !listed.contains(address) => Err(Reason::AddressNotInRule),
            Self::Prefixes(_) => Ok(()),
            Self::Pinned(pinned) if pinned.contains(&address.to_canonical()) => Ok(()),
            Self::Pinned(_) => Err(Reason::AddressNotInRule),
        }
    }
}

/// Prefixes that a rule lists, and what they say of special addresses.
#[derive(Clone, PartialEq, Debug)]
pub struct ListedPrefixes {
    all: PrefixSet,
    /// Those that lie wholly inside a special range.
    special: PrefixSet,
    /// Those of one address.
    hosts: PrefixSet,
}

impl ListedPrefixes {
    /// Whether the address, or the IPv4 address inside it, is in a listed prefix.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.all.contains(judged(address)) || self.all.contains(address)
    }

    /// Whether the address itself is listed, as a prefix of one address.
    #[must_use]
    pub fn lists_host(&self, address: IpAddr) -> bool {
        self.hosts.contains(judged(address))
    }

    /// The prefixes as a set.
    #[must_use]
    pub fn set(&self) -> &PrefixSet {
        &self.all
    }

    /// Those of the prefixes that lie wholly inside a special range.
    pub(crate) fn special(&self) -> &PrefixSet {
        &self.special
    }

    /// Whether a prefix was listed for the sake of special addresses such as this one. A metadata address
    /// has to be listed itself, not just its range.
    fn speaks_for(&self, address: IpAddr, class: AddressClass) -> bool {
        match class {
            AddressClass::Metadata => self.lists_host(address),
            AddressClass::Public
            | AddressClass::Private
            | AddressClass::Loopback
            | AddressClass::LinkLocal
            | AddressClass::Multicast
            | AddressClass::Unspecified
            | AddressClass::Reserved => self.special.contains(judged(address)),
        }
    }
}

impl FromIterator<IpNet> for ListedPrefixes {
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        let prefixes: Vec<IpNet> = prefixes.into_iter().collect();
        Self {
            special: prefixes.iter().copied().filter(|prefix| is_special_prefix(*prefix)).collect(),
            hosts: prefixes
                .iter()
                .copied()
                .filter(|prefix| prefix.prefix_len() == prefix.max_prefix_len())
                .collect(),
            all: prefixes.into_iter().collect(),
        }
    }
}
