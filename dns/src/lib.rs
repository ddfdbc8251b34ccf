//! Outgate's resolver: a permit in, addresses out.
//!
//! A [`Permit`] is proof that the rules let the name be asked for, so a name that was denied cannot cause a
//! query: there is no other way in.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig,
    ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use outgate_rules::{DomainName, Permit, Reason};

/// Most addresses that one name may contribute: more would only be more to vet and to dial.
const MAX_ADDRESSES: usize = 32;
/// How long one query to one upstream may take before the next is tried.
const ATTEMPT: Duration = Duration::from_secs(2);

/// Which upstream resolvers are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstreams {
    /// Those that the system is configured with (`/etc/resolv.conf`).
    System,
    /// These, over UDP, and over TCP where an answer was truncated.
    Listed(Vec<SocketAddr>),
}

/// Turns permitted names into addresses, with a cache that honours the records' TTLs.
#[derive(Clone, Debug)]
pub struct Resolver {
    inner: TokioResolver,
}

impl Resolver {
    /// A resolver that asks `upstreams`.
    ///
    /// # Errors
    /// When the system's configuration cannot be read or names no resolver.
    pub fn new(upstreams: &Upstreams) -> Result<Self, ConfigError> {
        let config = match upstreams {
            Upstreams::System => {
                hickory_resolver::system_conf::read_system_conf()
                    .map_err(|error| ConfigError(error.to_string()))?
                    .0
            }
            Upstreams::Listed(addresses) => listed(addresses),
        };
        if config.name_servers().is_empty() {
            return Err(ConfigError("no upstream resolver is configured".to_owned()));
        }
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options();
        let inner = builder.build().map_err(|error| ConfigError(error.to_string()))?;
        Ok(Self { inner })
    }

    /// The addresses of the permit's destination: those of its name, or the one it was given as.
    ///
    /// # Errors
    /// Why there are none.
    pub async fn resolve(&self, permit: &Permit) -> Result<Vec<IpAddr>, ResolveError> {
        match permit.name() {
            Some(name) => self.lookup(name).await,
            None => Ok(permit.destination().host.address().into_iter().collect()),
        }
    }

    async fn lookup(&self, name: &DomainName) -> Result<Vec<IpAddr>, ResolveError> {
        // The final dot keeps search domains out of it: the name is asked for as decided, or not at all.
        let answer = self.inner.lookup_ip(format!("{name}.")).await.map_err(|error| classify(&error))?;
        let addresses: Vec<IpAddr> = answer.iter().take(MAX_ADDRESSES).collect();
        if addresses.is_empty() { Err(ResolveError::NoAddress) } else { Ok(addresses) }
    }
}

/// Why a name has no addresses to offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// NXDOMAIN.
    #[error("the name does not exist")]
    NotFound,
    /// The name exists, without A or AAAA records.
    #[error("the name has no address")]
    NoAddress,
    /// No upstream answered in time.
    #[error("the upstream resolvers did not answer in time")]
    Timeout,
    /// SERVFAIL, REFUSED, or an answer that is none.
    #[error("no upstream resolver gave a usable answer")]
    Failed,
}

impl From<ResolveError> for Reason {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::NotFound => Self::NameNotFound,
            ResolveError::NoAddress => Self::NameWithoutAddress,
            ResolveError::Timeout => Self::ResolverTimeout,
            ResolveError::Failed => Self::ResolverFailed,
        }
    }
}

/// The resolver cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the upstream resolvers: {0}")]
pub struct ConfigError(String);

fn listed(addresses: &[SocketAddr]) -> ResolverConfig {
    let servers = addresses.iter().map(|address| {
        let connection = |protocol| {
            let mut connection = ConnectionConfig::new(protocol);
            connection.port = address.port();
            connection
        };
        let both = vec![connection(ProtocolConfig::Udp), connection(ProtocolConfig::Tcp)];
        NameServerConfig::new(address.ip(), true, both)
    });
    ResolverConfig::from_parts(None, Vec::new(), servers.collect())
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // What the gate dials is what the upstreams say; a host's own file is not part of the policy.
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = ATTEMPT;
    options.attempts = 2;
    // One question to one upstream at a time: asking two would double their load.
    options.num_concurrent_reqs = 1;
    options
}

fn classify(error: &NetError) -> ResolveError {
    if error.is_nx_domain() {
        ResolveError::NotFound
    } else if error.is_no_records_found() {
        ResolveError::NoAddress
    } else if matches!(error, NetError::Timeout) {
        ResolveError::Timeout
    } else {
        ResolveError::Failed
    }
}
