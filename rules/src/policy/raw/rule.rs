//! One rule as written.

use super::*;
use crate::document::{Mistake, size, suggestion};
use crate::rule::Protocol;

/// A rule, its fields checked by themselves. Names, prefixes and the like are still text: parameters fill them.
#[derive(Debug)]
pub(crate) struct RawRule {
    pub(crate) span: Span,
    pub(crate) name: Placed<Arc<str>>,
    /// The rule on one line.
    pub(crate) text: Arc<str>,
    pub(crate) kind: Kind,
    pub(crate) action: Action,
    /// Names that the rule opens, denies, or is bound to.
    pub(crate) names: Vec<Placed<String>>,
    pub(crate) name_files: Vec<Placed<String>>,
    pub(crate) tag: Option<Placed<String>>,
    pub(crate) addresses: Vec<Placed<String>>,
    pub(crate) endpoint: Option<RawEndpoint>,
    pub(crate) sources: Option<Vec<Placed<String>>>,
    pub(crate) protocol: Option<Placed<Protocols>>,
    pub(crate) ports: Option<Placed<PortSet>>,
    /// Whether the rule says its ports, be it wrongly.
    pub(crate) says_ports: bool,
    pub(crate) resolves_to: Option<Placed<ResolvesTo>>,
    pub(crate) record_types: Vec<u16>,
    pub(crate) sni: SniCheck,
    pub(crate) tls_only: bool,
    /// `offload: kernel`, and where it stands.
    pub(crate) offload: Option<Span>,
    pub(crate) expires: Option<Placed<Timestamp>>,
    pub(crate) max_upload: Option<u64>,
    pub(crate) max_upload_per_hour: Option<u64>,
    pub(crate) access: Option<Access>,
}

/// `type`: what a rule's destination is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Fqdn,
    ServiceTag,
    PrivateEndpoint,
    Address,
    Resolve,
}

impl Kind {
    const ALL: [Self; 5] =
        [Self::Fqdn, Self::ServiceTag, Self::PrivateEndpoint, Self::Address, Self::Resolve];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fqdn => "fqdn",
            Self::ServiceTag => "service_tag",
            Self::PrivateEndpoint => "private_endpoint",
            Self::Address => "address",
            Self::Resolve => "resolve",
        }
    }
}

/// What `service_resource_id`, `subresource_target` and `addresses` say.
#[derive(Debug)]
pub(crate) struct RawEndpoint {
    pub(crate) resource: Placed<String>,
    pub(crate) subresource: Option<Placed<String>>,
    pub(crate) addresses: Vec<Placed<String>>,
}

/// `resolves_to`: which addresses a name may have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ResolvesTo {
    Public,
    Private,
    Prefixes(Vec<IpNet>),
}

/// `access`: what can be done to the destination, as far as its maker says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    Read,
    Write,
    ReadWrite,
}

const ACCESS: [(&str, Access); 3] =
    [("read", Access::Read), ("write", Access::Write), ("read-write", Access::ReadWrite)];
const ACTIONS: [(&str, Action); 2] = [("allow", Action::Allow), ("deny", Action::Deny)];
const SNI: [(&str, SniCheck); 2] = [("match", SniCheck::Match), ("any", SniCheck::Any)];
const OFFLOAD: [(&str, ()); 1] = [("kernel", ())];
const BOOLEAN: [(&str, bool); 2] = [("true", true), ("false", false)];

/// What exports say of a rule beside what it does.
const READ_ONLY: [&str; 4] = ["category", "status", "parent_rule_names", "error_information"];

/// A key of a rule, the types it has a meaning in, and whether it has one in a deny rule.
const KEYS: [(&str, &[Kind], bool); 23] = {
    use Kind::{Address, Fqdn, PrivateEndpoint, Resolve, ServiceTag};
    const ALL: &[Kind] = &Kind::ALL;
    const FLOWS: &[Kind] = &[Fqdn, ServiceTag, PrivateEndpoint, Address];
    const NAMED: &[Kind] = &[Fqdn, Resolve];
    const BY_ADDRESS: &[Kind] = &[ServiceTag, Address];
    [
        ("name", ALL, true),
        ("type", ALL, true),
        ("action", ALL, true),
        ("destination", ALL, true),
        ("destination_file", NAMED, true),
        ("names", BY_ADDRESS, false),
        ("sources", ALL, true),
        ("protocol", FLOWS, true),
        ("ports", FLOWS, true),
        ("resolves_to", NAMED, false),
        ("record_types", ALL, false),
        ("sni", FLOWS, false),
        ("tls_only", FLOWS, false),
        ("offload", BY_ADDRESS, false),
        ("expires", ALL, true),
        ("max_upload", FLOWS, false),
        ("max_upload_per_hour", FLOWS, false),
        ("access", ALL, true),
        ("source", ALL, true),
        ("why", ALL, true),
        ("service_resource_id", &[], false),
        ("service_tag", &[], false),
        ("port_ranges", &[], false),
    ]
};

/// Reads a rule; none where not even its name and type can be told. `key` is its name where rules are a
/// mapping.
pub(super) fn read(
    report: &mut Report,
    node: &Node,
    key: Option<&Key>,
    ignored: &mut Ignored,
) -> Option<RawRule> {
    let fields = Fields::of(report, node, "a rule: a mapping with `name`, `type` and `destination`")?;
    let name = rule_name(report, &fields, key);
    let kind = rule_kind(report, &fields);
    let action = fields.word(report, "action", &ACTIONS).map_or(Action::Allow, |action| action.value);
    check_keys(report, &fields, kind, action, ignored);
    check_prose(report, &fields);
    let (name, kind) = (name?, kind?);
    let mut rule = RawRule {
        span: node.span,
        text: Arc::from(one_line(node)),
        kind,
        action,
        name,
        names: fields.texts(report, "names").unwrap_or_default(),
        name_files: fields.texts(report, "destination_file").unwrap_or_default(),
        tag: None,
        addresses: Vec::new(),
        endpoint: None,
        sources: fields.texts(report, "sources"),
        protocol: fields.parsed(report, "protocol", values::protocol),
        ports: ports(report, &fields, "ports"),
        says_ports: fields.get("ports").is_some(),
        resolves_to: resolves_to(report, &fields),
        record_types: record_types(report, &fields),
        sni: fields.word(report, "sni", &SNI).map_or(SniCheck::Match, |sni| sni.value),
        tls_only: fields.word(report, "tls_only", &BOOLEAN).is_some_and(|only| only.value),
        offload: fields.word(report, "offload", &OFFLOAD).map(|kernel| kernel.span),
        expires: fields.parsed(report, "expires", values::expiry),
        max_upload: fields.parsed(report, "max_upload", size).map(|size| size.value),
        max_upload_per_hour: fields.parsed(report, "max_upload_per_hour", size).map(|size| size.value),
        access: fields.word(report, "access", &ACCESS).map(|access| access.value),
    };
    destination(report, &fields, &mut rule);
    check_offload(report, &rule);
    Some(rule)
}

/// What the kernel passes nobody looks into: a rule that wants more than addresses and ports cannot have both.
fn check_offload(report: &mut Report, rule: &RawRule) {
    let Some(span) = rule.offload else { return };
    if rule.protocol.is_some_and(|protocol| !protocol.value.contains(Protocol::Tcp)) {
        report
            .error(span, "`offload` is for TCP, and the rule is for another protocol")
            .hint("leave it out: what is not TCP the kernel passes in any case");
    }
    let wants = [
        (!rule.names.is_empty(), "`names`"),
        (rule.tls_only, "`tls_only`"),
        (rule.max_upload.is_some(), "`max_upload`"),
        (rule.max_upload_per_hour.is_some(), "`max_upload_per_hour`"),
    ];
    for (_, key) in wants.iter().filter(|(wanted, _)| *wanted) {
        report
            .error(span, format!("the kernel cannot hold what {key} says"))
            .hint("leave one of the two out: without `offload` the gate itself passes the rule's TCP");
    }
}

fn rule_name(report: &mut Report, fields: &Fields<'_>, key: Option<&Key>) -> Option<Placed<Arc<str>>> {
    let written = fields.text(report, "name").map(|name| Placed::new(Arc::from(name.value), name.span));
    let by_key = key.map(|key| Placed::new(Arc::from(key.text.as_str()), key.span));
    let name: Placed<Arc<str>> = match written.or(by_key) {
        Some(name) => name,
        None if fields.get("name").is_some() => return None,
        None => {
            report.error(fields.span, "the rule has no name").hint("records tell rules by name: add `name:`");
            return None;
        }
    };
    if name.value.trim().is_empty() || name.value.len() > 128 || name.value.chars().any(char::is_control) {
        report
            .error(name.span, "a rule's name is 1 to 128 bytes of printable text")
            .hint("records carry it on one line: make it short");
        return None;
    }
    Some(name)
}

fn rule_kind(report: &mut Report, fields: &Fields<'_>) -> Option<Kind> {
    if fields.get("type").is_none() {
        report
            .error(fields.span, "the rule has no type")
            .hint(format!("add `type:`, one of {}", kind_names()));
        return None;
    }
    // Azure's REST interface writes ServiceTag where its command line writes service_tag.
    let plain = |text: &str| text.to_ascii_lowercase().replace('_', "");
    let kind = fields.parsed(report, "type", |text| {
        Kind::ALL.into_iter().find(|kind| plain(kind.name()) == plain(text)).ok_or_else(|| {
            let hint = suggestion(text, Kind::ALL.map(Kind::name));
            Mistake::new(format!("{} is not a type of rule", quoted(text)), hint)
        })
    });
    kind.map(|kind| kind.value)
}

fn kind_names() -> String {
    Kind::ALL.map(Kind::name).join(", ")
}

fn check_keys(
    report: &mut Report,
    fields: &Fields<'_>,
    kind: Option<Kind>,
    action: Action,
    ignored: &mut Ignored,
) {
    for (key, _) in fields.entries() {
        if READ_ONLY.contains(&key.text.as_str()) {
            ignored.add(key);
            continue;
        }
        match KEYS.iter().find(|(known, ..)| *known == key.text) {
            None => {
                let known = KEYS.iter().filter(|(_, kinds, _)| !kinds.is_empty()).map(|(known, ..)| *known);
                let hint = suggestion(&key.text, known);
                report.error(key.span, format!("unknown key {} in a rule", quoted(&key.text))).hint(hint);
            }
            Some((known, [], _)) => {
                report
                    .error(key.span, format!("`{known}` stands inside `destination`"))
                    .hint(format!("destination: {{{known}: ...}}"));
            }
            Some((known, kinds, _)) if kind.is_some_and(|kind| !kinds.contains(&kind)) => {
                let names: Vec<String> = kinds.iter().map(|kind| format!("`{}`", kind.name())).collect();
                let kind = kind.map_or("", Kind::name);
                report
                    .error(key.span, format!("`{known}` has no meaning in a rule of type `{kind}`"))
                    .hint(format!("it belongs to rules of type {}", names.join(", ")));
            }
            Some((known, _, false)) if action == Action::Deny => {
                report.error(key.span, format!("`{known}` has no meaning in a deny rule")).hint(
                    "leave it out: a deny rule holds for names and addresses, whatever else is said of them",
                );
            }
            Some(_) => {}
        }
    }
}

/// The keys that are for people are still text.
fn check_prose(report: &mut Report, fields: &Fields<'_>) {
    for key in ["source", "why"] {
        fields.text(report, key);
    }
}

fn destination(report: &mut Report, fields: &Fields<'_>, rule: &mut RawRule) {
    let Some(node) = fields.get("destination") else {
        if rule.name_files.is_empty() && fields.get("destination_file").is_none() {
            report.error(fields.span, "the rule has no destination").hint(destination_hint(rule.kind));
        }
        return;
    };
    match (rule.kind, &node.value) {
        (_, Value::Invalid) => {}
        (Kind::Fqdn | Kind::Resolve, Value::Map(_)) => {
            report
                .error(
                    node.span,
                    format!("the destination of type `{}` is a name or a list of names", rule.kind.name()),
                )
                .hint(destination_hint(rule.kind));
        }
        (Kind::Fqdn | Kind::Resolve, _) => {
            rule.names = texts(report, node, "destination").unwrap_or_default()
        }
        (Kind::Address, Value::Text(_) | Value::List(_)) => {
            rule.addresses = texts(report, node, "destination").unwrap_or_default();
        }
        (Kind::Address, _) => address(report, node, rule),
        (Kind::ServiceTag, _) => service_tag(report, node, rule),
        (Kind::PrivateEndpoint, _) => private_endpoint(report, node, rule),
    }
}

fn destination_hint(kind: Kind) -> &'static str {
    match kind {
        Kind::Fqdn | Kind::Resolve => {
            "as in `destination: [pypi.org, \"*.pythonhosted.org\"]` or `destination_file:`"
        }
        Kind::ServiceTag => {
            "as in `destination: {service_tag: AzureActiveDirectory, protocol: TCP, port_ranges: \"443\"}`"
        }
        Kind::PrivateEndpoint => {
            "as in `destination: {service_resource_id: /subscriptions/..., subresource_target: blob}`"
        }
        Kind::Address => "as in `destination: {addresses: [10.9.0.7], protocol: TCP, port_ranges: \"443\"}`",
    }
}

fn address(report: &mut Report, node: &Node, rule: &mut RawRule) {
    let Some(fields) = Fields::of(report, node, "a mapping with `addresses`") else { return };
    inner_keys(report, &fields, &["addresses", "protocol", "port_ranges"]);
    protocol_and_ports(report, &fields, rule);
    rule.addresses = fields.texts(report, "addresses").unwrap_or_default();
    if fields.get("addresses").is_none() {
        report.error(fields.span, "the destination has no addresses").hint(destination_hint(Kind::Address));
    }
}

fn service_tag(report: &mut Report, node: &Node, rule: &mut RawRule) {
    let Some(fields) = Fields::of(report, node, "a mapping with `service_tag`") else { return };
    inner_keys(report, &fields, &["service_tag", "protocol", "port_ranges", "address_prefixes"]);
    protocol_and_ports(report, &fields, rule);
    // An export has an empty list where the tag alone counts.
    let listed = |node: &&Node| !matches!(&node.value, Value::List(items) if items.is_empty());
    if fields.get("address_prefixes").filter(listed).is_some_and(|node| !matches!(node.value, Value::Null)) {
        rule.addresses = fields.texts(report, "address_prefixes").unwrap_or_default();
    }
    rule.tag = fields.string(report, "service_tag");
    if fields.get("service_tag").is_none() && fields.get("address_prefixes").is_none() {
        report
            .error(fields.span, "the destination has no service tag")
            .hint(destination_hint(Kind::ServiceTag));
    }
}

fn private_endpoint(report: &mut Report, node: &Node, rule: &mut RawRule) {
    let Some(fields) = Fields::of(report, node, "a mapping with `service_resource_id`") else { return };
    inner_keys(
        report,
        &fields,
        &["service_resource_id", "subresource_target", "spark_enabled", "spark_status", "fqdns", "addresses"],
    );
    let given = |node: &&Node| {
        !matches!(&node.value, Value::Null) && !matches!(&node.value, Value::List(items) if items.is_empty())
    };
    if fields.get("fqdns").filter(given).is_some() {
        rule.names = fields.texts(report, "fqdns").unwrap_or_default();
    }
    let subresource = fields
        .get("subresource_target")
        .filter(given)
        .and_then(|_| fields.string(report, "subresource_target"));
    let addresses = fields.texts(report, "addresses").unwrap_or_default();
    if rule.action == Action::Deny
        && let Some(first) = addresses.first()
    {
        report
            .error(first.span, "addresses have no meaning in a deny rule")
            .hint("leave them out: the names are denied whatever they resolve to");
    }
    match fields.string(report, "service_resource_id") {
        Some(resource) => rule.endpoint = Some(RawEndpoint { resource, subresource, addresses }),
        None if fields.get("service_resource_id").is_some() => {}
        None => {
            report
                .error(fields.span, "the destination has no resource id")
                .hint(destination_hint(Kind::PrivateEndpoint));
        }
    }
}

/// As [`Fields::only`], with a word for `{port_ranges: 80, 443}`, which YAML reads as two keys.
fn inner_keys(report: &mut Report, fields: &Fields<'_>, known: &[&'static str]) {
    for (key, node) in fields.entries().iter().filter(|(key, _)| !known.contains(&key.text.as_str())) {
        let port = matches!(node.value, Value::Null) && key.text.starts_with(|c: char| c.is_ascii_digit());
        if port {
            report
                .error(key.span, format!("{} stands apart from its list", quoted(&key.text)))
                .hint("quote a list of ports inside braces: {port_ranges: \"80, 443\"}");
        } else {
            unknown_key(report, key, known);
        }
    }
}

/// Protocol and ports inside a destination, as Azure has them, unless they stand beside it.
fn protocol_and_ports(report: &mut Report, fields: &Fields<'_>, rule: &mut RawRule) {
    let protocol = fields.parsed(report, "protocol", values::protocol);
    let ports = ports(report, fields, "port_ranges");
    let twice = [
        (rule.protocol.as_ref().map(|it| it.span), protocol.as_ref().map(|it| it.span), "protocol"),
        (rule.ports.as_ref().map(|it| it.span), ports.as_ref().map(|it| it.span), "list of ports"),
    ];
    for (beside, inside, what) in twice {
        if let (Some(beside), Some(inside)) = (beside, inside) {
            report
                .conflict(inside, format!("the {what} of the rule is given twice"), beside, "here, too")
                .hint("leave one of the two out");
        }
    }
    rule.protocol = rule.protocol.or(protocol);
    rule.ports = rule.ports.take().or(ports);
    rule.says_ports |= fields.get("port_ranges").is_some();
}

fn ports(report: &mut Report, fields: &Fields<'_>, key: &str) -> Option<Placed<PortSet>> {
    let span = fields.get(key)?.span;
    let before = report.errors();
    let parts = fields.all_parsed(report, key, values::ports)?;
    if report.errors() > before {
        return None;
    }
    let ranges = parts.iter().flat_map(|part| part.value.ranges());
    let ports = |range: std::ops::RangeInclusive<u16>| {
        Some(crate::port::Port::new(*range.start())?..=crate::port::Port::new(*range.end())?)
    };
    Some(Placed::new(ranges.filter_map(ports).collect(), span))
}

fn resolves_to(report: &mut Report, fields: &Fields<'_>) -> Option<Placed<ResolvesTo>> {
    let span = fields.get("resolves_to")?.span;
    let words = fields.texts(report, "resolves_to")?;
    match words.as_slice() {
        [one] if one.value == "public" => return Some(Placed::new(ResolvesTo::Public, span)),
        [one] if one.value == "private" => return Some(Placed::new(ResolvesTo::Private, span)),
        _ => {}
    }
    let before = report.errors();
    let prefix = |text: &str| match text {
        "public" | "private" => Err(Mistake::new(
            format!("`{text}` does not mix with prefixes"),
            "write a rule for each, or list the prefixes that are meant",
        )),
        _ => prefix(text).map_err(|mistake| Mistake {
            message: mistake.message,
            hint: Some("`public`, `private`, or prefixes such as 10.9.0.0/16".to_owned())
                .filter(|_| text.bytes().all(|byte| byte.is_ascii_alphabetic()))
                .or(mistake.hint),
        }),
    };
    let prefixes: Vec<IpNet> = words
        .iter()
        .filter_map(|word| parse_at(report, &word.value, word.span, prefix))
        .map(|it| it.value)
        .collect();
    (report.errors() == before).then(|| Placed::new(ResolvesTo::Prefixes(prefixes), span))
}

fn record_types(report: &mut Report, fields: &Fields<'_>) -> Vec<u16> {
    let types = fields.all_parsed(report, "record_types", values::record_type).unwrap_or_default();
    let mut numbers: Vec<u16> = types.into_iter().filter_map(|number| number.value).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

impl RawRule {
    /// Whether the rule speaks of ports: ICMP has none.
    pub(crate) fn has_ports(&self) -> bool {
        self.protocol.as_ref().is_none_or(|protocol| protocol.value != Protocols::One(Protocol::Icmp))
    }
}

/// A rule on one line in flow style, cut to what fits a record.
fn one_line(node: &Node) -> String {
    const LONGEST: usize = 200;
    let mut text = String::new();
    flow(node, &mut text, true);
    if text.chars().count() > LONGEST {
        text = text.chars().take(LONGEST - 3).collect();
        text.push_str("...");
    }
    text
}

fn flow(node: &Node, text: &mut String, outermost: bool) {
    // Enough for the cut, and a list of a million names is not walked.
    const ENOUGH: usize = 1_000;
    if text.len() > ENOUGH {
        return;
    }
    match &node.value {
        Value::Null | Value::Invalid => {}
        Value::Text(scalar) => {
            text.extend(scalar.text.chars().take(ENOUGH).map(|c| if c.is_control() { ' ' } else { c }))
        }
        Value::List(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate().take(ENOUGH) {
                text.push_str(if index > 0 { ", " } else { "" });
                flow(item, text, false);
            }
            text.push(']');
        }
        Value::Map(entries) => {
            text.push_str(if outermost { "" } else { "{" });
            for (index, (key, value)) in entries.iter().enumerate().take(ENOUGH) {
                text.push_str(if index > 0 { ", " } else { "" });
                text.extend(key.text.chars().take(ENOUGH).filter(|c| !c.is_control()));
                text.push_str(": ");
                flow(value, text, false);
            }
            text.push_str(if outermost { "" } else { "}" });
        }
    }
}
