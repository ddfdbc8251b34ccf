//! From what is written to what decides: the life of a rule.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::address::AddressClass;
use crate::document::{
    Diagnostic, FileId, Mistake, Placed, Report, Span, nearest, parse_at, plural, prefix, quoted, suggestion,
};
use crate::pattern::Pattern;
use crate::port::PortSet;
use crate::presets;
use crate::ranges::{PrefixSet, parse_prefix};
use crate::rule::{
    Action, ListedPrefixes, Opens, Place, Protocol, Protocols, Reach, Rule, RuleId, Sources, Terms,
};
use crate::ruleset::{RuleSetBuilder, Settings};
use crate::tags::{PseudoTag, UnknownTag};

use super::endpoint::{Endpoint, endpoint};
use super::lint::Lint;
use super::parameters::Parameters;
use super::raw::{Kind, RawPolicy, RawRule, ResolvesTo, some_of};
use super::references::References;
use super::tag_files::{self, Tags};

/// A file of the policy, or a preset.
pub(crate) struct Loaded {
    pub(crate) raw: RawPolicy,
    pub(crate) origin: Origin,
}

/// Who wrote a rule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Origin {
    /// The policy's author.
    Own,
    /// A preset, by its number.
    Preset(usize),
}

/// A preset that the policy asks for.
pub(crate) struct Preset {
    pub(crate) name: String,
    /// Where it is asked for.
    pub(crate) asked: Span,
}

/// Everything that rules are compiled with and into.
pub(crate) struct Compiler<'c, 'r> {
    pub(crate) report: &'c mut Report,
    pub(crate) references: References<'r>,
    pub(crate) parameters: Parameters,
    pub(crate) presets: Vec<Preset>,
    pub(crate) builder: RuleSetBuilder,
    pub(crate) lint: Lint,
    pub(crate) counts: Counts,
    groups: HashMap<String, Placed<Arc<PrefixSet>>>,
    tags: Option<Tags>,
    shared: Shared,
    off: Off,
}

/// How much was compiled.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) names: usize,
    pub(crate) prefixes: usize,
}

/// Entries of presets that are off.
#[derive(Default)]
struct Off {
    by_parameter: BTreeMap<(usize, String), usize>,
    /// For lack of service tags.
    by_tag: usize,
    unknown_tags: Vec<String>,
}

/// Why an entry does not become part of the rule set: said, or counted for a note.
struct Skipped;

impl<'c, 'r> Compiler<'c, 'r> {
    pub(crate) fn new(report: &'c mut Report, references: References<'r>) -> Self {
        Self {
            report,
            references,
            parameters: Parameters::default(),
            presets: Vec::new(),
            builder: RuleSetBuilder::default(),
            lint: Lint::default(),
            counts: Counts::default(),
            groups: HashMap::new(),
            tags: None,
            shared: Shared::default(),
            off: Off::default(),
        }
    }

    /// Adds the presets that the files ask for, and those that these ask for, each once.
    pub(crate) fn load_presets(
        &mut self,
        files: &mut Vec<Loaded>,
        read: impl Fn(&mut Report, FileId) -> Option<RawPolicy>,
    ) {
        let mut asked: std::collections::VecDeque<Placed<String>> =
            files.iter().flat_map(|file| &file.raw.presets).cloned().collect();
        while let Some(preset) = asked.pop_front() {
            if self.presets.iter().any(|known| known.name == preset.value) {
                continue;
            }
            let Some(text) = presets::find(&preset.value) else {
                let hint = suggestion(&preset.value, presets::names().collect::<Vec<_>>().iter().copied());
                self.report
                    .error(preset.span, format!("no preset is named {}", quoted(&preset.value)))
                    .hint(hint);
                continue;
            };
            self.references.identity.add("preset", &preset.value, text.as_bytes());
            let origin = Origin::Preset(self.presets.len());
            self.presets.push(Preset { name: preset.value.clone(), asked: preset.span });
            let file = self.report.add_file(&format!("preset:{}", preset.value), Arc::from(text));
            if let Some(raw) = read(self.report, file) {
                asked.extend(raw.presets.iter().cloned());
                files.push(Loaded { raw, origin });
            }
        }
    }

    /// What the files say beside their rules; two that contradict each other are a mistake.
    pub(crate) fn settings(&mut self, files: &[Loaded]) -> Settings {
        let (mut isolation, mut enforcement, mut on_revoke) = (None, None, None);
        for Loaded { raw, .. } in files {
            for mode in &raw.isolation {
                agree(self.report, "isolation_mode", &mut isolation, Some(mode));
            }
            agree(self.report, "enforcement", &mut enforcement, raw.enforcement.as_ref());
            agree(self.report, "on_revoke", &mut on_revoke, raw.on_revoke.as_ref());
            for (name, value) in &raw.parameters {
                self.parameters.add(self.report, name, value);
            }
            for (name, prefixes) in &raw.groups {
                self.add_group(name, prefixes);
            }
        }
        let default = Settings::default();
        Settings {
            isolation: isolation.map_or(default.isolation, |it| it.value),
            enforcement: enforcement.map_or(default.enforcement, |it| it.value),
            on_revoke: on_revoke.map_or(default.on_revoke, |it| it.value),
            revision: default.revision,
        }
    }

    fn add_group(&mut self, name: &Placed<String>, prefixes: &[IpNet]) {
        let set: PrefixSet = prefixes.iter().copied().collect();
        match self.groups.get(&name.value) {
            None => _ = self.groups.insert(name.value.clone(), Placed::new(Arc::new(set), name.span)),
            Some(first) if *first.value == set => {}
            Some(first) => {
                let message =
                    format!("the source group {} has other prefixes in two files", quoted(&name.value));
                self.report
                    .conflict(name.span, message, first.span, "the other one is here")
                    .hint("give one of the two groups another name");
            }
        }
    }

    /// Reads the service tags, and holds a refresh back that changes too much.
    pub(crate) fn load_tags(&mut self, files: &[Loaded], previous: Option<&Tags>) {
        let paths: Vec<Placed<String>> =
            files.iter().flat_map(|file| file.raw.service_tags.iter().cloned()).collect();
        let Some(fresh) = tag_files::load(self.report, &mut self.references, &paths) else { return };
        let named = files.iter().flat_map(|file| &file.raw.rules).filter(|rule| rule.addresses.is_empty());
        let tags: Vec<String> =
            named.filter_map(|rule| rule.tag.as_ref()).map(|tag| tag.value.clone()).collect();
        let used: Vec<String> =
            tags.iter().filter_map(|tag| self.parameters.fill(tag).ok()).map(Cow::into_owned).collect();
        let identity = &mut self.references.identity;
        self.tags = Some(tag_files::hold_back(self.report, fresh, previous, &used, identity));
    }

    /// Compiles one rule into the rule set. What keeps it out is reported, or counted for a note.
    pub(crate) fn rule(&mut self, raw: &RawRule, origin: Origin) {
        let endpoint = match self.endpoint(raw, origin) {
            Ok(endpoint) => endpoint,
            Err(Skipped) => return,
        };
        let names = self.names(raw, endpoint.as_ref(), origin);
        let Ok(prefixes) = self.prefixes(raw, origin) else { return };
        let Some(terms) = self.terms(raw, endpoint, &prefixes, origin) else { return };
        // Without the names that it is bound to, a rule would open its prefixes to all names.
        let unbound = !raw.names.is_empty() && names.is_empty();
        if unbound || (names.is_empty() && prefixes.is_empty() && raw.name_files.is_empty()) {
            return;
        }
        let id = self.builder.add(Rule {
            name: Arc::clone(&raw.name.value),
            place: Place {
                file: self.report.name(raw.span.file),
                line: raw.span.line,
                text: Arc::clone(&raw.text),
            },
            terms: self.shared.terms(terms),
        });
        self.lint.begin_rule(id, raw, origin, &prefixes);
        for (pattern, span) in &names {
            self.add_name(id, pattern, *span);
        }
        for file in &raw.name_files {
            self.add_names_of(id, file, origin);
        }
        self.counts.prefixes += prefixes.len();
        prefixes.into_iter().for_each(|prefix| self.builder.add_prefix(id, prefix));
    }

    pub(crate) fn into_parts(self) -> (RuleSetBuilder, Lint, References<'r>, Tags) {
        (self.builder, self.lint, self.references, self.tags.unwrap_or_default())
    }

    /// Fills the parameters of a text; a preset's entry without its parameter is off.
    fn fill<'t>(&mut self, text: &'t Placed<String>, origin: Origin) -> Result<Cow<'t, str>, Skipped> {
        self.parameters.fill(&text.value).map_err(|name| {
            match origin {
                Origin::Preset(preset) => *self.off.by_parameter.entry((preset, name)).or_default() += 1,
                Origin::Own => {
                    let hint = match nearest(&name, self.parameters.names()) {
                        Some(meant) => format!("did you mean `{{{meant}}}`?"),
                        None => format!(
                            "give it: `parameters: {{{name}: ...}}`; alternatives have a comma: {{a,b}}"
                        ),
                    };
                    self.report
                        .error(
                            text.span,
                            format!("the parameter {} is not given", quoted(&format!("{{{name}}}"))),
                        )
                        .hint(hint);
                }
            }
            Skipped
        })
    }

    fn endpoint(&mut self, raw: &RawRule, origin: Origin) -> Result<Option<Endpoint>, Skipped> {
        let Some(written) = &raw.endpoint else { return Ok(None) };
        let resource = self.fill(&written.resource, origin)?;
        let subresource = written.subresource.as_ref().map(|subresource| subresource.value.as_str());
        let region = || self.parameters.value("region").map(str::to_owned);
        let found = endpoint(&resource, subresource, region, !raw.names.is_empty());
        found.map(Some).map_err(|mistake| {
            self.report.error(written.resource.span, mistake.message).hint_if(mistake.hint);
            Skipped
        })
    }

    /// The patterns that the rule itself lists; those in files are added as they are read.
    fn names(&mut self, raw: &RawRule, endpoint: Option<&Endpoint>, origin: Origin) -> Vec<(Pattern, Span)> {
        let mut patterns = Vec::with_capacity(raw.names.len());
        for written in &raw.names {
            let Ok(text) = self.fill(written, origin) else { continue };
            patterns.extend(self.pattern(&text, written.span).map(|pattern| (pattern, written.span)));
        }
        let resource = raw.endpoint.as_ref().map_or(raw.span, |endpoint| endpoint.resource.span);
        for name in endpoint.iter().flat_map(|endpoint| &endpoint.names) {
            patterns.extend(self.pattern(name, resource).map(|pattern| (pattern, resource)));
        }
        patterns
    }

    fn pattern(&mut self, text: &str, span: Span) -> Option<Pattern> {
        match Pattern::parse(text) {
            Ok(pattern) => Some(pattern),
            Err(error) => {
                let message = format!("{} is not a pattern: {}", quoted(text), error.kind);
                self.report.error(span, message).hint(error.hint());
                None
            }
        }
    }

    fn add_name(&mut self, id: RuleId, pattern: &Pattern, span: Span) {
        self.counts.names += 1;
        if let Err(error) = self.builder.add_name(id, pattern) {
            self.report.error(span, error.to_string()).hint("make the list shorter");
        }
        self.lint.name(pattern, span);
    }

    /// The names of a file, one a line.
    fn add_names_of(&mut self, id: RuleId, path: &Placed<String>, origin: Origin) {
        let Ok(filled) = self.fill(path, origin) else { return };
        let path = Placed::new(filled.into_owned(), path.span);
        let Some(file) = self.references.text(self.report, &path) else { return };
        let text = self.report.text(file);
        self.builder.reserve_names(text.bytes().filter(|byte| *byte == b'\n').count());
        let before = self.counts.names;
        let mut start = 0;
        for (line, written) in (1..).zip(text.split('\n')) {
            self.add_line(id, file, line, start, written, origin);
            start += written.len() + 1;
        }
        if self.counts.names == before && !self.report.has_errors() {
            self.report.warning(path.span, format!("{} lists no names", quoted(&path.value)));
        }
    }

    fn add_line(&mut self, id: RuleId, file: FileId, line: u32, start: usize, written: &str, origin: Origin) {
        let listed = written.split('#').next().unwrap_or_default();
        let text = listed.trim();
        if text.is_empty() {
            return;
        }
        let start = (start + listed.len() - listed.trim_start().len()) as u32;
        let span = Span { file, line, start, end: start + text.len() as u32 };
        if !text.contains('{') {
            if let Some(pattern) = self.pattern(text, span) {
                self.add_name(id, &pattern, span);
            }
            return;
        }
        let written = Placed::new(text.to_owned(), span);
        let Ok(filled) = self.fill(&written, origin) else { return };
        if let Some(pattern) = self.pattern(&filled, span) {
            self.add_name(id, &pattern, span);
        }
    }

    /// The prefixes that a tag or address rule speaks of.
    fn prefixes(&mut self, raw: &RawRule, origin: Origin) -> Result<Vec<IpNet>, Skipped> {
        if let (Some(tag), true) = (&raw.tag, raw.addresses.is_empty()) {
            return self.tag_prefixes(tag, raw.action, origin);
        }
        let mut prefixes = Vec::with_capacity(raw.addresses.len());
        for written in &raw.addresses {
            let text = self.fill(written, origin)?;
            prefixes.extend(
                parse_at(self.report, &text, written.span, address_or_prefix).map(|prefix| prefix.value),
            );
        }
        Ok(prefixes)
    }

    fn tag_prefixes(
        &mut self,
        tag: &Placed<String>,
        action: Action,
        origin: Origin,
    ) -> Result<Vec<IpNet>, Skipped> {
        let name = self.fill(tag, origin)?;
        let unknown = match (PseudoTag::find(&name), &self.tags) {
            (Some(pseudo), _) => UnknownTag::Pseudo(pseudo),
            (None, None) => {
                self.without_tags(tag.span, &name, action, origin);
                return Err(Skipped);
            }
            (None, Some(tags)) => match tags.prefixes(&name) {
                Ok(prefixes) => return Ok(prefixes),
                Err(unknown) => unknown,
            },
        };
        match (origin, unknown) {
            (Origin::Preset(_), _) => self.off.unknown_tags.push(quoted(&name)),
            (Origin::Own, UnknownTag::Pseudo(pseudo)) => {
                let message = format!("the tag {} stands for no published addresses", quoted(pseudo.name));
                self.tag_is_off(tag.span, message, action).hint(pseudo.hint);
            }
            (Origin::Own, UnknownTag::Unknown { meant, .. }) => {
                let hint = meant.map_or_else(
                    || "the names are those of the files in `service_tags:`".to_owned(),
                    |meant| format!("did you mean `{meant}`?"),
                );
                self.report.error(tag.span, format!("no service tag is named {}", quoted(&name))).hint(hint);
            }
        }
        Err(Skipped)
    }

    fn without_tags(&mut self, span: Span, name: &str, action: Action, origin: Origin) {
        match origin {
            Origin::Preset(_) => self.off.by_tag += 1,
            // Where a file was named and not taken, that is the mistake.
            Origin::Own if self.report.has_errors() => {}
            Origin::Own => {
                let message = format!("the addresses of the service tag {} are not known", quoted(name));
                self.tag_is_off(span, message, action).hint(
                    "name the file that the cloud publishes: `service_tags: [ServiceTags_Public.json]`",
                );
            }
        }
    }

    /// A rule whose tag has no addresses. An allow rule is off, which opens nothing, so that the rules of a
    /// workspace load as they are; a deny rule that is off would open what it should close.
    fn tag_is_off(&mut self, span: Span, message: String, action: Action) -> &mut Diagnostic {
        match action {
            Action::Allow => self.report.warning(span, format!("{message}: the rule is off")),
            Action::Deny => self.report.error(span, message),
        }
    }

    /// The addresses of a private endpoint: those that the rule gives, or else any private one.
    fn endpoint_addresses(&mut self, raw: &RawRule, origin: Origin) -> Option<Reach> {
        let written = raw.endpoint.iter().flat_map(|endpoint| &endpoint.addresses);
        let mut pinned = Vec::new();
        for written in written {
            let text = self.fill(written, origin).ok()?;
            pinned.push(parse_at(self.report, &text, written.span, private_address)?.value);
        }
        Some(if pinned.is_empty() { Reach::Private } else { Reach::Pinned(pinned.into()) })
    }

    fn terms(
        &mut self,
        raw: &RawRule,
        endpoint: Option<Endpoint>,
        prefixes: &[IpNet],
        origin: Origin,
    ) -> Option<Terms> {
        let sources = self.sources(raw);
        let flow = self.flow(raw, endpoint);
        let (protocol, ports) = flow?;
        let reach = match (raw.kind, &raw.resolves_to) {
            (Kind::ServiceTag | Kind::Address, _) => listed(prefixes),
            (Kind::PrivateEndpoint, _) => self.endpoint_addresses(raw, origin)?,
            (Kind::Fqdn | Kind::Resolve, None) => Reach::Public,
            (Kind::Fqdn | Kind::Resolve, Some(given)) => match &given.value {
                ResolvesTo::Public => Reach::Public,
                ResolvesTo::Private => Reach::Private,
                ResolvesTo::Prefixes(prefixes) => listed(prefixes),
            },
        };
        Some(Terms {
            action: raw.action,
            opens: if raw.kind == Kind::Resolve { Opens::Lookups } else { Opens::Flows },
            sources: sources?,
            protocol,
            ports,
            reach,
            sni: raw.sni,
            tls_only: raw.tls_only,
            offload: raw.offload.is_some(),
            bound_to_names: matches!(raw.kind, Kind::ServiceTag | Kind::Address) && !raw.names.is_empty(),
            expires: raw.expires.map(|expires| expires.value),
            max_upload: raw.max_upload,
            max_upload_per_hour: raw.max_upload_per_hour,
            record_types: raw.record_types.clone(),
        })
    }

    /// Protocol and ports. A deny rule that names none denies all of them: a port left out of it would be open.
    fn flow(&mut self, raw: &RawRule, endpoint: Option<Endpoint>) -> Option<(Protocols, PortSet)> {
        let given = raw.protocol.map(|protocol| protocol.value);
        let ports = raw.ports.as_ref().filter(|_| raw.has_ports()).map(|ports| ports.value.clone());
        if raw.action == Action::Deny {
            return self.deny_flow(raw, given, ports);
        }
        let tcp = given.unwrap_or(Protocols::One(Protocol::Tcp));
        match raw.kind {
            // The lookups of a name have no port of their own.
            Kind::Resolve => Some((Protocols::Any, PortSet::all())),
            _ if !raw.has_ports() => Some((tcp, PortSet::all())),
            Kind::Fqdn if tcp == Protocols::One(Protocol::Udp) && ports.is_none() => {
                self.no_ports(raw, "a rule for UDP has no usual ports");
                None
            }
            Kind::Fqdn => Some((tcp, ports.unwrap_or_else(PortSet::web))),
            Kind::PrivateEndpoint => {
                let usual = endpoint.map_or_else(PortSet::web, |endpoint| endpoint.ports);
                Some((tcp, ports.unwrap_or(usual)))
            }
            Kind::ServiceTag | Kind::Address => match ports {
                Some(ports) => Some((tcp, ports)),
                None => {
                    self.no_ports(raw, "a rule for addresses has no usual ports");
                    None
                }
            },
        }
    }

    fn deny_flow(
        &mut self,
        raw: &RawRule,
        protocol: Option<Protocols>,
        ports: Option<PortSet>,
    ) -> Option<(Protocols, PortSet)> {
        if raw.kind == Kind::Resolve {
            self.report
                .error(raw.span, "a deny rule of type `resolve` would deny nothing")
                .hint("a rule of type `fqdn` with `action: deny` denies the name's lookups, too");
            return None;
        }
        Some((protocol.unwrap_or(Protocols::Any), ports.unwrap_or_else(PortSet::all)))
    }

    fn no_ports(&mut self, raw: &RawRule, why: &str) {
        // Ports that are given and wrong were reported already.
        if !raw.says_ports {
            self.report.error(raw.span, format!("the rule names no ports, and {why}")).hint(match raw.kind {
                Kind::ServiceTag | Kind::Address => {
                    "port_ranges: \"443\" in the destination, or \"*\" for every port"
                }
                Kind::Fqdn | Kind::PrivateEndpoint | Kind::Resolve => "ports: [5831]",
            });
        }
    }

    fn sources(&mut self, raw: &RawRule) -> Option<Sources> {
        let Some(written) = &raw.sources else {
            // A mistake in `sources:` must not make the rule one for everyone.
            return Some(Sources::Everyone);
        };
        let key: Vec<&str> = written.iter().map(|source| source.value.as_str()).collect();
        if let Some(known) = self.shared.sources.get(&key.join("\n")) {
            return Some(known.clone());
        }
        let (mut groups, mut prefixes, mut wrong) = (Vec::new(), Vec::new(), false);
        for source in written {
            groups.push(Arc::from(source.value.as_str()));
            match (self.groups.get(&source.value), parse_prefix(&source.value)) {
                (Some(group), _) => prefixes.extend(group.value.prefixes()),
                (None, Ok(_)) => {
                    prefixes
                        .extend(parse_at(self.report, &source.value, source.span, prefix).map(|it| it.value));
                }
                (None, Err(_)) => {
                    wrong = true;
                    self.unknown_source(source);
                }
            }
        }
        let sources = Sources::Only { groups, prefixes: Arc::new(prefixes.into_iter().collect()) };
        if wrong {
            return None;
        }
        self.shared.sources.insert(key.join("\n"), sources.clone());
        Some(sources)
    }

    fn unknown_source(&mut self, source: &Placed<String>) {
        if source.value.contains('/') {
            _ = parse_at(self.report, &source.value, source.span, prefix);
            return;
        }
        let groups = self.groups.keys().map(String::as_str);
        let hint = match nearest(&source.value, groups) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!(
                "name it: `sources: {{{}: [10.1.0.0/24]}}`",
                source.value.chars().take(40).collect::<String>()
            ),
        };
        self.report
            .error(source.span, format!("no source group is named {}", quoted(&source.value)))
            .hint(hint);
    }

    /// Notes on the entries of presets that are off, one for each cause.
    pub(crate) fn note_what_is_off(&mut self) {
        for (number, preset) in self.presets.iter().enumerate() {
            let off = self.off.by_parameter.iter().filter(|((preset, _), _)| *preset == number);
            let (names, counts): (Vec<String>, Vec<usize>) =
                off.map(|((_, name), count)| (name.clone(), *count)).unzip();
            if names.is_empty() {
                continue;
            }
            let entries = plural(counts.iter().sum(), "entry");
            let message = format!(
                "off in the preset `{}`: {entries} for lack of the parameters {}",
                preset.name,
                names.join(", ")
            );
            self.report
                .note(preset.asked, message)
                .hint(format!("parameters: {{{}: ...}}", names.join(": ..., ")));
        }
        let Some(first) = self.presets.first() else { return };
        if self.off.by_tag > 0 {
            let entries = plural(self.off.by_tag, "entry");
            self.report
                .note(
                    first.asked,
                    format!("off in the presets: {entries} by service tag, for no file of tags is given"),
                )
                .hint("`service_tags: [ServiceTags_Public.json]`; rules by name hold without");
        }
        if !self.off.unknown_tags.is_empty() {
            let tags = some_of(&self.off.unknown_tags);
            self.report
                .warning(first.asked, format!("off in the presets: the service tag files do not have {tags}"))
                .hint("is it the file of another cloud?");
        }
    }

    /// Warns of parameters that fill nothing: a name that is misspelt where it is used would be an error there.
    pub(crate) fn warn_of_unused_parameters(&mut self) {
        // A rule that was not read to its end may have asked for one.
        if self.report.has_errors() {
            return;
        }
        for (name, span) in self.parameters.unused() {
            self.report
                .warning(span, format!("the parameter {} is given and nothing uses it", quoted(name)))
                .hint("a rule or a preset would say `{".to_owned() + name + "}`");
        }
    }
}

fn agree<T: PartialEq + Copy>(
    report: &mut Report,
    what: &str,
    first: &mut Option<Placed<T>>,
    next: Option<&Placed<T>>,
) {
    match (&first, next) {
        (_, None) => {}
        (None, Some(next)) => *first = Some(*next),
        (Some(first), Some(next)) if first.value == next.value => {}
        (Some(first), Some(next)) => {
            report
                .conflict(
                    next.span,
                    format!("`{what}` is given twice, and not the same"),
                    first.span,
                    "the other one",
                )
                .hint("a policy has one: rule sets add up, settings do not");
        }
    }
}

/// A prefix of an address rule; the hint for a name is another one than for a prefix.
fn address_or_prefix(text: &str) -> Result<IpNet, Mistake> {
    prefix(text).map_err(|mistake| match Pattern::parse(text) {
        Ok(_) => Mistake::new(mistake.message, "for a name, write a rule of `type: fqdn`"),
        Err(_) => mistake,
    })
}

/// An address of a private endpoint.
fn private_address(text: &str) -> Result<IpAddr, Mistake> {
    let hint = "an endpoint's address is one of your own network, as in `addresses: [10.1.5.4]`";
    let mistake = |what: &str| Mistake::new(format!("{} is not {what}", quoted(text)), hint);
    let address = text.parse::<IpAddr>().map_err(|_| mistake("an address"))?.to_canonical();
    if AddressClass::of(address) == AddressClass::Private {
        Ok(address)
    } else {
        Err(mistake("a private address"))
    }
}

fn listed(prefixes: &[IpNet]) -> Reach {
    Reach::Prefixes(Arc::new(prefixes.iter().copied().collect::<ListedPrefixes>()))
}

/// What rules have in common, held once.
#[derive(Default)]
struct Shared {
    sources: HashMap<String, Sources>,
    terms: HashMap<u64, Vec<Arc<Terms>>>,
}

impl Shared {
    fn terms(&mut self, terms: Terms) -> Arc<Terms> {
        let equal = self.terms.entry(fingerprint(&terms)).or_default();
        match equal.iter().find(|known| ***known == terms) {
            Some(known) => Arc::clone(known),
            None => {
                let terms = Arc::new(terms);
                equal.push(Arc::clone(&terms));
                terms
            }
        }
    }
}

/// Equal terms have equal fingerprints.
fn fingerprint(terms: &Terms) -> u64 {
    let mut hasher = DefaultHasher::new();
    (terms.action, terms.opens, terms.protocol, &terms.ports, terms.sni, terms.tls_only).hash(&mut hasher);
    (terms.bound_to_names, terms.offload, terms.expires, terms.max_upload, terms.max_upload_per_hour)
        .hash(&mut hasher);
    terms.record_types.hash(&mut hasher);
    if let Sources::Only { groups, .. } = &terms.sources {
        groups.hash(&mut hasher);
    }
    match &terms.reach {
        Reach::Public => 0_u8.hash(&mut hasher),
        Reach::Private => 1_u8.hash(&mut hasher),
        Reach::Prefixes(listed) => listed.set().hash(&mut hasher),
        Reach::Pinned(pinned) => pinned.hash(&mut hasher),
    }
    hasher.finish()
}
