//! `listen.dns` and `dns`: whom the gate answers names for, and whom it asks.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use outgate_dns::budget::BudgetSettings;
use outgate_dns::server::Denied;
use outgate_dns::{CacheSettings, PrivateLink, ResolverSettings, Transport, Upstream, Upstreams};
use outgate_rules::document::{
    Fields, Mistake, Node, Placed, Report, Value, duration, parse_at, prefix, quoted, size, texts,
};
use outgate_rules::{DomainName, OwnAddresses, PrefixSet};

use super::{default_clients, socket_address};

/// Where DNS is answered unless told otherwise: a port that needs no privilege.
pub const DEFAULT_DNS: &str = "127.0.0.1:1053";
/// Queries of one client a second: a busy machine asks some dozens, and resolvers that stand for a network
/// some hundreds.
const QUERIES_PER_SECOND: NonZeroU32 = NonZeroU32::new(2000).unwrap();

/// How a resolver over TLS is written.
const TLS_UPSTREAM: &str = "as in `upstreams: [\"tls://10.0.0.6#dns.example\"]`";

/// The DNS listener.
#[derive(Clone, Debug)]
pub struct DnsListen {
    /// Where, over UDP and TCP.
    pub address: SocketAddr,
    /// Whom.
    pub clients: PrefixSet,
    /// Where and as whom over TLS.
    pub tls: Option<DnsTls>,
}

/// DNS over TLS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsTls {
    /// Where.
    pub address: SocketAddr,
    /// The file of the certificate and its chain, PEM.
    pub certificate: PathBuf,
    /// The file of its key, PEM.
    pub key: PathBuf,
}

/// What `dns` says beside the upstreams.
#[derive(Clone, Debug)]
pub struct DnsAnswers {
    /// What a denied name looks like.
    pub denied: Denied,
    /// Queries that a client may ask a second.
    pub queries_per_second: NonZeroU32,
    /// What a client may say below a wildcard.
    pub budget: BudgetSettings,
}

impl Default for DnsListen {
    fn default() -> Self {
        let address = DEFAULT_DNS.parse().unwrap_or_else(|_| SocketAddr::from(([127, 0, 0, 1], 0)));
        Self { address, clients: default_clients(), tls: None }
    }
}

impl Default for DnsAnswers {
    fn default() -> Self {
        Self {
            denied: Denied::default(),
            queries_per_second: QUERIES_PER_SECOND,
            budget: BudgetSettings::default(),
        }
    }
}

/// `dns: 127.0.0.1:1053`, `dns: off`, or a mapping with `clients:` and `tls:` beside the address.
pub(super) fn read_listen(
    report: &mut Report,
    node: &Node,
    listeners: &Fields<'_>,
    folder: &Path,
    before: Option<DnsListen>,
) -> Option<DnsListen> {
    let mut listen = before.unwrap_or_default();
    if let Value::Text(text) = &node.value
        && text.text == "off"
    {
        return None;
    }
    if !matches!(node.value, Value::Map(_)) {
        if let Some(address) = listeners.parsed(report, "dns", socket_address) {
            listen.address = address.value;
        }
        return Some(listen);
    }
    let fields = Fields::of(report, node, "a listener")?;
    fields.only(report, &["address", "clients", "tls"]);
    if let Some(address) = fields.parsed(report, "address", socket_address) {
        listen.address = address.value;
    }
    if let Some(clients) = fields.all_parsed(report, "clients", prefix) {
        listen.clients = clients.into_iter().map(|prefix| prefix.value).collect();
    }
    listen.tls = fields.get("tls").and_then(|node| read_tls(report, node, folder));
    Some(listen)
}

fn read_tls(report: &mut Report, node: &Node, folder: &Path) -> Option<DnsTls> {
    let fields = Fields::of(report, node, "DNS over TLS")?;
    fields.only(report, &["address", "certificate", "key"]);
    for key in ["address", "certificate", "key"].into_iter().filter(|key| fields.get(key).is_none()) {
        report
            .error(node.span, format!("`tls` has no `{key}`"))
            .hint("as in {address: \"0.0.0.0:853\", certificate: dns.pem, key: dns.key}");
    }
    Some(DnsTls {
        address: fields.parsed(report, "address", socket_address)?.value,
        certificate: folder.join(fields.text(report, "certificate")?.value),
        key: folder.join(fields.text(report, "key")?.value),
    })
}

/// The `dns` key, into what it says of answers and of upstreams. No upstream may be one of `listeners`.
pub(super) fn read(
    report: &mut Report,
    node: &Node,
    folder: &Path,
    listeners: Vec<SocketAddr>,
    answers: &mut DnsAnswers,
    resolver: &mut ResolverSettings,
) {
    let Some(fields) = Fields::of(report, node, "the resolver's keys") else { return };
    fields.only(
        report,
        &[
            "upstreams",
            "zones",
            "private_link",
            "ca",
            "case_randomization",
            "hosts",
            "denied",
            "cache",
            "budget",
            "queries_per_second",
        ],
    );
    let own = OwnAddresses { listeners, interfaces: Vec::new() };
    if let Some(node) = fields.get("upstreams") {
        resolver.upstreams = Upstreams::Listed(upstreams(report, node, "upstreams", &own));
    }
    for (name, node) in named(report, &fields, "zones") {
        resolver.zones.push((name, upstreams(report, node, "zones", &own)));
    }
    for (name, node) in named(report, &fields, "hosts") {
        let texts = texts(report, node, "hosts").unwrap_or_default();
        let addresses = texts.iter().filter_map(|text| parse_at(report, &text.value, text.span, address));
        resolver.hosts.push((name, addresses.map(|address| address.value).collect()));
    }
    resolver.private_link = fields.get("private_link").and_then(|node| private_link(report, &fields, node));
    if let Some(ca) = fields.text(report, "ca") {
        resolver.ca = Some(folder.join(ca.value));
        if !asks_over_tls(resolver) {
            report.error(ca.span, "`ca` is for resolvers over TLS, and none is asked").hint(TLS_UPSTREAM);
        }
    }
    let words = [("true", true), ("false", false)];
    if let Some(random) = fields.word(report, "case_randomization", &words) {
        resolver.case_randomization = random.value;
    }
    if let Some(node) = fields.get("cache") {
        read_cache(report, node, &mut resolver.cache);
    }
    let words = [("nxdomain", Denied::NxDomain), ("refused", Denied::Refused), ("gate", Denied::Gate)];
    if let Some(denied) = fields.word(report, "denied", &words) {
        answers.denied = denied.value;
    }
    if let Some(node) = fields.get("budget") {
        read_budget(report, node, &mut answers.budget);
    }
    if let Some(rate) = fields.parsed(report, "queries_per_second", number) {
        answers.queries_per_second = rate.value;
    }
}

fn asks_over_tls(resolver: &ResolverSettings) -> bool {
    let listed = match &resolver.upstreams {
        Upstreams::System => &[],
        Upstreams::Listed(upstreams) => upstreams.as_slice(),
    };
    let mut all = listed.iter().chain(resolver.zones.iter().flat_map(|(_, upstreams)| upstreams));
    all.any(|upstream| matches!(upstream.transport, Transport::Tls(_)))
}

fn upstreams(report: &mut Report, node: &Node, key: &str, own: &OwnAddresses) -> Vec<Upstream> {
    let mut upstreams = Vec::new();
    for text in texts(report, node, key).unwrap_or_default() {
        let Some(Placed { value, span }) = parse_at(report, &text.value, text.span, upstream) else {
            continue;
        };
        // A resolver that asks itself never answers.
        if own.contains(value.socket) {
            report
                .error(span, format!("{} is the gate itself", text.value))
                .hint("name a resolver outside the gate");
        }
        upstreams.push(value);
    }
    upstreams
}

/// The entries of a mapping whose keys are names.
fn named<'n>(report: &mut Report, fields: &Fields<'n>, key: &str) -> Vec<(DomainName, &'n Node)> {
    let entries = fields.get(key).and_then(|node| Fields::of(report, node, "names, each with its values"));
    let mut named = Vec::new();
    for (key, node) in entries.iter().flat_map(Fields::entries) {
        if let Some(name) = parse_at(report, &key.text, key.span, name) {
            named.push((name.value, node));
        }
    }
    named
}

/// `private_link: true`, or a mapping with the region.
fn private_link(report: &mut Report, fields: &Fields<'_>, node: &Node) -> Option<PrivateLink> {
    if !matches!(node.value, Value::Map(_)) {
        let words = [("true", Some(PrivateLink::default())), ("false", None)];
        return fields
            .parsed(report, "private_link", |text| {
                words.iter().find(|(word, _)| *word == text).map(|(_, value)| value.clone()).ok_or_else(
                    || {
                        Mistake::new(
                            format!("{} is not a value of `private_link`", quoted(text)),
                            "true, false, or {region: westeurope}",
                        )
                    },
                )
            })?
            .value;
    }
    let fields = Fields::of(report, node, "the keys of private_link")?;
    fields.only(report, &["region"]);
    Some(PrivateLink { region: fields.string(report, "region").map(|region| region.value) })
}

fn read_cache(report: &mut Report, node: &Node, cache: &mut CacheSettings) {
    let Some(fields) = Fields::of(report, node, "the bounds of the cache") else { return };
    fields.only(report, &["entries", "memory", "max_ttl", "stale"]);
    if let Some(entries) = fields.parsed(report, "entries", number) {
        cache.entries = as_count(entries.value);
    }
    if let Some(memory) = fields.parsed(report, "memory", size) {
        cache.memory = usize::try_from(memory.value).unwrap_or(usize::MAX);
    }
    if let Some(max_ttl) = fields.parsed(report, "max_ttl", duration) {
        cache.max_ttl = max_ttl.value;
    }
    if let Some(stale) = fields.parsed(report, "stale", duration) {
        cache.stale = stale.value;
    }
}

fn read_budget(report: &mut Report, node: &Node, budget: &mut BudgetSettings) {
    let Some(fields) = Fields::of(report, node, "the budget below a wildcard") else { return };
    fields.only(report, &["names_per_minute", "name_bytes", "entropy_per_minute"]);
    let limits = [
        ("names_per_minute", &mut budget.names_per_minute),
        ("name_bytes", &mut budget.name_bytes),
        ("entropy_per_minute", &mut budget.entropy_per_minute),
    ];
    for (key, limit) in limits {
        if let Some(number) = fields.parsed(report, key, number) {
            *limit = as_count(number.value);
        }
    }
}

fn upstream(text: &str) -> Result<Upstream, Mistake> {
    text.parse().map_err(|error| {
        Mistake::new(
            format!("{} is not a resolver: {error}", quoted(text)),
            "as in `10.0.0.5`, `10.0.0.5:5353`, `\"[2001:db8::5]:53\"`, `tcp://10.0.0.5` or `tls://10.0.0.6#dns.example`",
        )
    })
}

fn name(text: &str) -> Result<DomainName, Mistake> {
    let mistake = |error: &dyn fmt::Display| {
        Mistake::new(format!("{} is not a name: {error}", quoted(text)), "as in `blob.core.windows.net`")
    };
    DomainName::parse_unicode(text).map_err(|error| mistake(&error))
}

fn address(text: &str) -> Result<IpAddr, Mistake> {
    text.parse().map_err(|_| {
        Mistake::new(format!("{} is not an address", quoted(text)), "as in `10.9.0.7` or `2001:db8::7`")
    })
}

fn number(text: &str) -> Result<NonZeroU32, Mistake> {
    text.parse()
        .map_err(|_| Mistake::new(format!("{} is not a number above 0", quoted(text)), "as in `2000`"))
}

fn as_count(number: NonZeroU32) -> usize {
    usize::try_from(number.get()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use outgate_rules::document::Diagnostics;

    use super::*;
    use crate::config::Config;

    fn read(text: &str) -> Result<Config, Diagnostics> {
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("outgate.yaml");
        std::fs::write(&file, text).unwrap();
        Config::read(Some(&file))
    }

    #[test]
    fn without_a_word_about_it_dns_is_answered_on_loopback() {
        let config = read("policy: p.yaml").unwrap();
        let dns = config.dns.unwrap();
        assert_eq!((dns.address.to_string().as_str(), dns.tls), (DEFAULT_DNS, None));
        assert_eq!(dns.clients, default_clients());
        assert!(read("listen: {dns: off}").unwrap().dns.is_none());
    }

    #[test]
    fn every_key_is_read() {
        let config = read(
            "listen:
  dns: {address: '0.0.0.0:53', clients: [10.1.0.0/16], tls: {address: '0.0.0.0:853', certificate: c.pem, key: k.pem}}
dns:
  upstreams: [10.0.0.5, '10.0.0.6:5353', 'tcp://10.0.0.7', 'tls://10.0.0.6#dns.example']
  zones: {blob.core.windows.net: 168.63.129.16, Corp.example: [10.0.0.8, 10.0.0.9]}
  private_link: {region: westeurope}
  ca: authorities.pem
  case_randomization: true
  hosts: {licence.corp.example: [10.9.0.7, '2001:db8::7']}
  denied: gate
  cache: {entries: 5, memory: 2MiB, max_ttl: 30s, stale: 2h}
  budget: {names_per_minute: 1, name_bytes: 2, entropy_per_minute: 3}
  queries_per_second: 7
",
        )
        .unwrap_or_else(|diagnostics| panic!("{diagnostics}"));
        let dns = config.dns.unwrap();
        assert!(dns.clients.contains([10, 1, 2, 3].into()) && !dns.clients.contains([10, 2, 0, 1].into()));
        let tls = dns.tls.unwrap();
        assert_eq!(tls.address.port(), 853);
        assert!(tls.certificate.is_absolute() && tls.certificate.ends_with("c.pem"), "beside the file");
        let Upstreams::Listed(upstreams) = &config.resolver.upstreams else { panic!() };
        let shown: Vec<String> = upstreams.iter().map(Upstream::to_string).collect();
        let expected =
            ["10.0.0.5:53", "10.0.0.6:5353", "tcp://10.0.0.7:53", "tls://10.0.0.6:853#dns.example"];
        assert_eq!(shown, expected);
        let zones: Vec<_> =
            config.resolver.zones.iter().map(|(name, upstreams)| (name.as_str(), upstreams.len())).collect();
        assert_eq!(zones, [("blob.core.windows.net", 1), ("corp.example", 2)]);
        assert_eq!(config.resolver.private_link.unwrap().region.as_deref(), Some("westeurope"));
        assert_eq!(config.resolver.hosts[0].1.len(), 2);
        assert!(config.resolver.case_randomization);
        assert!(config.resolver.ca.is_some_and(|ca| ca.is_absolute() && ca.ends_with("authorities.pem")));
        assert_eq!((config.resolver.cache.entries, config.resolver.cache.memory), (5, 2 << 20));
        assert_eq!(config.resolver.cache.max_ttl.as_secs(), 30);
        assert_eq!(config.answers.denied, Denied::Gate);
        let budget = BudgetSettings { names_per_minute: 1, name_bytes: 2, entropy_per_minute: 3 };
        assert_eq!(config.answers.budget, budget);
        assert_eq!(config.answers.queries_per_second.get(), 7);
    }

    #[test]
    fn private_link_may_be_a_plain_word() {
        let region = |text: &str| read(text).unwrap().resolver.private_link.map(|link| link.region);
        assert_eq!(region("dns: {private_link: true}"), Some(None));
        assert_eq!(region("dns: {private_link: false}"), None);
    }

    #[test]
    fn each_mistake_is_told_where_it_is() {
        for (text, told) in [
            ("dns: {upstreams: [127.0.0.1:1053]}", "is the gate itself"),
            ("listen: {dns: '0.0.0.0:53'}\ndns: {zones: {a.example: 127.0.0.1}}", "is the gate itself"),
            ("dns: {upstreams: ['tls://127.0.0.1:3128']}", "is the gate itself"),
            ("dns: {upstreams: [dns.example]}", "is not a resolver: not an address"),
            ("dns: {upstreams: []}", "upstreams"),
            ("dns: {upstream: [10.0.0.5]}", "unknown key \"upstream\""),
            ("dns: {zones: {'*.a.example': 10.0.0.5}}", "is not a name"),
            ("dns: {hosts: {a.example: b.example}}", "is not an address"),
            ("dns: {private_link: yes}", "is not a value of `private_link`"),
            ("dns: {denied: drop}", "is not a value of `denied`"),
            ("dns: {ca: a.pem}", "`ca` is for resolvers over TLS"),
            ("dns: {ca: a.pem, upstreams: [10.0.0.5]}", "`ca` is for resolvers over TLS"),
            ("dns: {case_randomization: sometimes}", "is not a value of `case_randomization`"),
            ("dns: {cache: {memory: much}}", "is not a size"),
            ("dns: {queries_per_second: 0}", "is not a number above 0"),
            ("dns: {cache: {max_ttl: 5}}", "is not a duration"),
            ("listen: {dns: {tls: {address: '0.0.0.0:853'}}}", "`tls` has no `certificate`"),
            ("listen: {dns: 127.0.0.1:3128}", "is the address of both `proxy` and `dns`"),
        ] {
            let diagnostics = read(text).map(|_| ()).unwrap_err().to_string();
            let plain = diagnostics.replace('`', "\"");
            assert!(plain.contains(&told.replace('`', "\"")), "{text}:\n{diagnostics}");
        }
    }
}
