//! Which upstreams are asked for a name: those of the longest zone that it is in.

use std::collections::HashMap;
use std::sync::Arc;

use outgate_rules::DomainName;

use crate::upstream::Upstream;
use crate::upstream::exchange::{Manner, Parent};
use crate::upstream::group::Group;

/// Conditional forwarding.
pub(crate) struct Zones {
    table: HashMap<Box<str>, Arc<Group>>,
    default: Arc<Group>,
    /// Every upstream, once.
    parents: Vec<Arc<Parent>>,
}

impl Zones {
    /// The upstreams of `zones`, and `default` for all other names. Of two lists for one zone the first holds.
    /// An upstream that is written several times is one, with one health and one set of connections.
    pub(crate) fn new(default: &[Upstream], zones: &[(DomainName, Vec<Upstream>)], manner: &Manner) -> Self {
        let mut parents: HashMap<Upstream, Arc<Parent>> = HashMap::new();
        let mut groups: HashMap<Vec<Upstream>, Arc<Group>> = HashMap::new();
        let mut group = |upstreams: &[Upstream]| {
            let parent = |upstream: &Upstream| {
                let new = || Arc::new(Parent::new(upstream.clone(), manner.clone()));
                Arc::clone(parents.entry(upstream.clone()).or_insert_with(new))
            };
            let parents = upstreams.iter().map(parent).collect();
            Arc::clone(groups.entry(upstreams.to_vec()).or_insert_with(|| Arc::new(Group { parents })))
        };
        let default = group(default);
        let mut table = HashMap::new();
        for (zone, upstreams) in zones {
            let group = group(upstreams);
            table.entry(Box::from(zone.as_str())).or_insert(group);
        }
        Self { table, default, parents: parents.into_values().collect() }
    }

    /// Whom to ask for `name`.
    pub(crate) fn upstreams_for(&self, name: &DomainName) -> &Arc<Group> {
        let zone = name.and_ancestors().find_map(|zone| self.table.get(zone));
        zone.unwrap_or(&self.default)
    }

    /// Every upstream and whether it is thought to be up.
    pub(crate) fn health(&self) -> Vec<(Upstream, bool)> {
        let mut health: Vec<_> =
            self.parents.iter().map(|parent| (parent.upstream.clone(), !parent.is_down())).collect();
        health.sort_by_key(|(upstream, _)| upstream.socket);
        health
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DomainName {
        DomainName::parse(text).unwrap()
    }

    fn upstream(text: &str) -> Upstream {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_zone_wins_and_the_first_of_two_lists() {
        let table = [
            (name("corp.example"), vec![upstream("10.0.0.1")]),
            (name("db.corp.example"), vec![upstream("10.0.0.2"), upstream("10.0.0.3")]),
            (name("corp.example"), vec![upstream("10.0.0.9")]),
        ];
        let zones = Zones::new(&[upstream("10.0.0.53")], &table, &Manner::default());
        for (asked, first) in [
            ("example", "10.0.0.53:53"),
            ("notcorp.example", "10.0.0.53:53"),
            ("corp.example", "10.0.0.1:53"),
            ("www.corp.example", "10.0.0.1:53"),
            ("xdb.corp.example", "10.0.0.1:53"),
            ("db.corp.example", "10.0.0.2:53"),
            ("a.b.db.corp.example", "10.0.0.2:53"),
        ] {
            let group = zones.upstreams_for(&name(asked));
            assert_eq!(group.parents[0].upstream.to_string(), first, "{asked}");
        }
    }

    #[test]
    fn equal_lists_are_one_group_and_equal_upstreams_one_upstream() {
        let azure = vec![upstream("168.63.129.16")];
        let both = vec![upstream("168.63.129.16"), upstream("10.0.0.1")];
        let table =
            [(name("a.example"), azure.clone()), (name("b.example"), azure), (name("c.example"), both)];
        let zones = Zones::new(&[upstream("10.0.0.1")], &table, &Manner::default());
        let group = |asked: &str| Arc::clone(zones.upstreams_for(&name(asked)));
        assert!(Arc::ptr_eq(&group("a.example"), &group("x.b.example")));
        assert!(!Arc::ptr_eq(&group("a.example"), &group("c.example")));
        assert_eq!(zones.health().len(), 2);
    }
}
