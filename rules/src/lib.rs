//! Outgate's policy: names, patterns, addresses, service tags, rule sets and decisions.
//!
//! This crate is pure: bytes in, decision out. It has no async, no sockets, no files and no clock; time is
//! an argument, and what a policy refers to is read by the caller.
#![forbid(unsafe_code)]

pub mod address;
pub mod decision;
pub mod destination;
pub mod document;
pub mod explain;
mod index;
pub mod intercepted;
pub mod lookup;
pub mod name;
pub mod network;
pub mod pattern;
pub mod policy;
pub mod port;
pub mod presets;
pub mod ranges;
pub mod reason;
pub mod rule;
pub mod ruleset;
pub mod tags;

pub use address::AddressClass;
pub use decision::{Decision, Denial, OwnAddresses, Permit, RuleRef, TlsTerms, VettedAddr};
pub use destination::{Destination, DestinationError, Host, HostError};
pub use explain::{Explanation, Near};
pub use index::IndexError;
pub use intercepted::{Intercepted, Seen};
pub use lookup::{LookupDecision, LookupPermit};
pub use name::{DomainName, NameError};
pub use network::{NetworkPlan, NetworkVerdict};
pub use pattern::{Pattern, PatternError};
pub use port::{Port, PortError, PortSet};
pub use ranges::PrefixSet;
pub use reason::Reason;
pub use rule::{Protocol, Rule};
pub use ruleset::{
    BeyondWeb, Enforcement, Isolation, Lack, OnRevoke, Request, Revision, RuleSet, RuleSetBuilder, Settings,
};
