//! `outgate explain`.

use std::sync::Arc;

use jiff::Timestamp;
use outgate_rules::rule::{Reach, Sources};
use outgate_rules::tags::ServiceTag;
use outgate_rules::{Explanation, Host, Lack, Near, OwnAddresses, Request, Rule, RuleSet};

use crate::own;

use super::{Exit, check, parse_request, say, show};

/// Most tags of an address that are told.
const MAX_TAGS: usize = 8;
/// Most prefixes of a rule that are told.
const MAX_PREFIXES: usize = 4;

/// Says how a request would be decided, and why.
pub(super) fn explain(asked: &super::Explain) -> Exit {
    let (destination, client) = match parse_request(&asked.destination, &asked.from) {
        Ok(request) => request,
        Err(error) => {
            say(&format_args!("outgate: {error}"));
            return Exit::Bad;
        }
    };
    let (config, compiled) = match check::compile(&asked.files) {
        Ok(compiled) => compiled,
        Err(exit) => return exit,
    };
    let listeners = config.listeners();
    let own = OwnAddresses { listeners, interfaces: own::interfaces() };
    let rules = Arc::new(compiled.rules);
    let request = Request { client, destination: &destination, protocol: asked.protocol };
    let now = Timestamp::now();
    let explanation = rules.explain(&request, now);
    let refused = RuleSet::explain_address(&explanation.decision, &own, now);
    let allowed = explanation.decision.allows() && refused.is_none();
    show(&format_args!(
        "{} {destination} over {} from {client}",
        if allowed { "allow" } else { "deny" },
        asked.protocol.name()
    ));
    show(&format_args!(
        "  reason   {} ({})",
        explanation.decision.reason.code(),
        explanation.decision.reason.sentence()
    ));
    if let Some(refused) = refused {
        show(&format_args!("  but      {} ({})", refused.reason.code(), refused.reason.sentence()));
    }
    show_rules(&explanation);
    if let Host::Address(address) = destination.host {
        let tags = compiled.tags.service_tags();
        let tags: Vec<&str> = tags.containing(address).map(ServiceTag::name).take(MAX_TAGS).collect();
        if !tags.is_empty() {
            show(&format_args!("  tags     {}", tags.join(", ")));
        }
    }
    show(&format_args!("  revision {}", explanation.decision.revision));
    if allowed { Exit::Yes } else { Exit::No }
}

fn show_rules(explanation: &Explanation) {
    if let Some(rule) = &explanation.decision.rule {
        show(&format_args!("  rule     {}", placed(rule)));
        if explanation.decision.allows() {
            show(&format_args!("  reaches  {}", reach(rule)));
        }
    }
    if let Some(lost) = &explanation.lost {
        show(&format_args!("  lost     {}", placed(lost)));
    }
    for near in &explanation.near {
        show(&format_args!("  near     {}\n           lacks {}", placed(&near.rule), lacked(near)));
    }
}

/// `"pypi" at policy.yaml:12: name: pypi, type: fqdn, …`
fn placed(rule: &Rule) -> String {
    format!("\"{}\" at {}: {}", rule.name, rule.place, rule.place.text)
}

fn reach(rule: &Rule) -> String {
    match &rule.terms.reach {
        Reach::Public => "public addresses that the name resolves to".to_owned(),
        Reach::Private => "private addresses that the name resolves to".to_owned(),
        Reach::Prefixes(listed) => {
            let shown: Vec<String> =
                listed.set().prefixes().take(MAX_PREFIXES).map(|it| it.to_string()).collect();
            let more = match listed.set().prefixes().count() - shown.len() {
                0 => String::new(),
                more => format!(" and {more} more prefixes"),
            };
            format!("addresses in {}{more}", shown.join(", "))
        }
        Reach::Pinned(pinned) => {
            let shown: Vec<String> = pinned.iter().map(ToString::to_string).collect();
            format!("the addresses that the rule gives: {}", shown.join(", "))
        }
    }
}

fn lacked(near: &Near) -> String {
    let terms = &near.rule.terms;
    let pattern = near.pattern.iter().map(|pattern| format!("the name (it has {pattern})"));
    let lacks = near.lacks.iter().map(|lack| match lack {
        Lack::Source => match &terms.sources {
            Sources::Everyone => "the source".to_owned(),
            Sources::Only { groups, .. } => format!("the source (it is for {})", groups.join(", ")),
        },
        Lack::Protocol => format!("the protocol (it is for {})", terms.protocol),
        Lack::Port => format!("the port (it has {})", terms.ports),
        Lack::OpensNothing => "any connection (it lets the name be resolved)".to_owned(),
        Lack::Expired => match terms.expires {
            Some(expires) => format!("time (it expired at {expires})"),
            None => "time".to_owned(),
        },
    });
    pattern.chain(lacks).collect::<Vec<_>>().join(", ")
}
