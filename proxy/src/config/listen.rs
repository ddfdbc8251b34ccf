//! The `listen` keys: where the gate listens, and whom it serves there.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;

use outgate_rules::PrefixSet;
use outgate_rules::document::{Fields, Node, Report, Value, prefix};

use super::{Config, DnsListen, dns, socket_address};
use crate::listener::Way;

/// Loopback, private, shared and link-local ranges: whom a listener serves unless told otherwise. A gate that
/// is reachable from the internet by mistake does not serve it.
const DEFAULT_CLIENTS: [&str; 9] = [
    "127.0.0.0/8",
    "::1/128",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "fc00::/7",
    "fe80::/10",
];

/// Where an appliance listens for what the kernel redirects to it, unless told otherwise: addresses of both
/// families, and ports that need no privilege.
const APPLIANCE: [(Way, u16); 3] = [(Way::Tls, 8443), (Way::Http, 8080), (Way::Tcp, 8081)];
/// Where an appliance answers DNS unless told otherwise. Port 53 of any server is redirected to it.
const APPLIANCE_DNS: u16 = 1053;

/// A listener that serves clients.
#[derive(Clone, Debug, PartialEq)]
pub struct Listen {
    /// Where.
    pub address: SocketAddr,
    /// Whom.
    pub clients: PrefixSet,
}

/// Loopback and private ranges.
#[must_use]
pub fn default_clients() -> PrefixSet {
    DEFAULT_CLIENTS.iter().filter_map(|prefix| prefix.parse().ok()).collect()
}

/// Every listener's key and address.
pub(super) fn addresses(config: &Config) -> Vec<(&'static str, SocketAddr)> {
    let transparent = config.transparent.iter().map(|(way, listen)| (way.name(), listen.address));
    let dns = config.dns.iter().map(|dns| ("dns", dns.address));
    let tls = config.dns.iter().filter_map(|dns| Some(("dns", dns.tls.as_ref()?.address)));
    [("proxy", config.proxy.address), ("admin", config.admin)]
        .into_iter()
        .chain(transparent)
        .chain(dns)
        .chain(tls)
        .collect()
}

/// What an appliance listens on where the configuration does not say.
pub(super) fn for_appliance(config: &mut Config) {
    let Some(appliance) = &config.appliance else { return };
    let clients = || appliance.clients.clone();
    config.transparent = APPLIANCE
        .map(|(way, port)| (way, Listen { address: everywhere(port), clients: clients() }))
        .into_iter()
        .collect();
    let dns = config.dns.take().unwrap_or_default();
    config.dns = Some(DnsListen { address: everywhere(APPLIANCE_DNS), clients: clients(), ..dns });
}

/// The `listen` keys, into what they say.
pub(super) fn read(report: &mut Report, node: &Node, folder: &Path, config: &mut Config) {
    let Some(fields) = Fields::of(report, node, "the listeners") else { return };
    fields.only(report, &["proxy", "tls", "http", "tcp", "dns", "admin"]);
    if let Some(node) = fields.get("dns") {
        config.dns = dns::read_listen(report, node, &fields, folder, config.dns.take());
    }
    if let Some(proxy) = read_one(report, &fields, "proxy", &config.proxy.clients) {
        config.proxy = proxy;
    }
    for way in [Way::Tls, Way::Http, Way::Tcp] {
        read_transparent(report, &fields, way, config);
    }
    if let Some(admin) = fields.parsed(report, "admin", socket_address) {
        config.admin = admin.value;
    }
    refuse_shared(report, node, &fields, config);
}

fn read_transparent(report: &mut Report, fields: &Fields<'_>, way: Way, config: &mut Config) {
    let before = config.transparent.iter().position(|(known, _)| *known == way);
    let clients = before.and_then(|at| config.transparent.get(at)).map(|(_, listen)| listen.clients.clone());
    let Some(listen) = read_one(report, fields, way.name(), &clients.unwrap_or_else(default_clients)) else {
        return;
    };
    config.transparent.retain(|(known, _)| *known != way);
    config.transparent.push((way, listen));
}

/// `proxy: 127.0.0.1:3128`, or a mapping with `clients:` beside the address.
fn read_one(report: &mut Report, listeners: &Fields<'_>, key: &str, clients: &PrefixSet) -> Option<Listen> {
    let node = listeners.get(key)?;
    if !matches!(node.value, Value::Map(_)) {
        let address = listeners.parsed(report, key, socket_address)?.value;
        return Some(Listen { address, clients: clients.clone() });
    }
    let fields = Fields::of(report, node, "a listener")?;
    fields.only(report, &["address", "clients"]);
    if fields.get("address").is_none() {
        report
            .error(node.span, format!("`{key}` has no `address`"))
            .hint("as in {address: \"0.0.0.0:3128\"}");
    }
    let served = fields.all_parsed(report, "clients", prefix);
    let clients = served.map_or_else(
        || clients.clone(),
        |prefixes| prefixes.into_iter().map(|prefix| prefix.value).collect(),
    );
    Some(Listen { address: fields.parsed(report, "address", socket_address)?.value, clients })
}

/// Two listeners on one address would leave the second without clients.
fn refuse_shared(report: &mut Report, node: &Node, fields: &Fields<'_>, config: &Config) {
    let all = addresses(config);
    for (at, (key, address)) in all.iter().enumerate() {
        let earlier = all.iter().take(at).find(|(_, other)| other == address && other.port() != 0);
        if let Some((other, _)) = earlier {
            let node = fields.get(key).or(fields.get(other)).unwrap_or(node);
            report
                .error(node.span, format!("{address} is the address of both `{other}` and `{key}`"))
                .hint("give each an address of its own");
        }
    }
}

fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}
