//! The policies that are shipped in the binary, for `presets:` in a policy.
//!
//! They are written in the policy language. Each rule says besides where it comes from (`source:`), whether
//! what answers there can be written to (`access:`, one of `read`, `write` and `read-write`), and what it is
//! for (`why:`).

/// The text of the preset with this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static str> {
    PRESETS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// The names of all presets, in order.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

const PRESETS: &[(&str, &str)] = &[
    ("azure-ml", include_str!("../presets/azure-ml.yaml")),
    ("azure-ml-storage-open", include_str!("../presets/azure-ml-storage-open.yaml")),
    ("python", include_str!("../presets/python.yaml")),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde::Deserialize;

    use super::*;
    use crate::pattern::Pattern;
    use crate::port::PortSet;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Preset {
        outbound_rules: Vec<Rule>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Rule {
        name: String,
        r#type: Type,
        destination: Destination,
        #[serde(default)]
        ports: Vec<u16>,
        protocol: Option<String>,
        #[serde(default)]
        names: Vec<String>,
        source: String,
        access: Access,
        why: String,
    }

    #[derive(Deserialize, PartialEq, Debug)]
    #[serde(rename_all = "snake_case")]
    enum Type {
        Fqdn,
        ServiceTag,
    }

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Destination {
        Name(String),
        Names(Vec<String>),
        Tag(Tag),
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Tag {
        service_tag: String,
        protocol: String,
        port_ranges: String,
    }

    #[derive(Deserialize, PartialEq, Debug)]
    #[serde(rename_all = "kebab-case")]
    enum Access {
        Read,
        Write,
        ReadWrite,
    }

    impl Rule {
        /// What the rule opens by name, and what resolves for a rule by tag.
        fn patterns(&self) -> Vec<&str> {
            let of_destination = match &self.destination {
                Destination::Name(name) => std::slice::from_ref(name),
                Destination::Names(names) => names,
                Destination::Tag(_) => &[],
            };
            of_destination.iter().chain(&self.names).map(String::as_str).collect()
        }

        fn tag(&self) -> Option<&str> {
            match &self.destination {
                Destination::Tag(tag) => Some(&tag.service_tag),
                Destination::Name(_) | Destination::Names(_) => None,
            }
        }
    }

    const PARAMETERS: [&str; 4] = ["{region}", "{storage}", "{acr}", "{keyvault}"];

    fn filled(text: &str) -> String {
        PARAMETERS.iter().fold(text.to_owned(), |text, parameter| text.replace(parameter, "westeurope"))
    }

    fn rules(preset: &str) -> Vec<Rule> {
        serde_saphyr::from_str::<Preset>(find(preset).unwrap()).unwrap().outbound_rules
    }

    #[test]
    fn each_preset_is_found_by_its_name_and_nothing_else_is() {
        assert_eq!(names().collect::<Vec<_>>(), ["azure-ml", "azure-ml-storage-open", "python"]);
        assert!(names().all(|name| find(name).is_some()));
        for name in ["", "azure", "Azure-ML", "azure-ml.yaml", "../presets/python"] {
            assert!(find(name).is_none(), "{name:?}");
        }
    }

    #[test]
    fn each_rule_has_a_name_of_its_own_and_says_where_it_comes_from() {
        let mut seen = HashSet::new();
        for rule in names().flat_map(rules) {
            assert!(rule.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{}", rule.name);
            assert!(!rule.source.is_empty() && !rule.why.is_empty(), "{}", rule.name);
            assert!(seen.insert(rule.name.clone()), "{} comes twice", rule.name);
        }
    }

    #[test]
    fn each_destination_is_one_once_its_parameters_are_filled() {
        for rule in names().flat_map(rules) {
            for pattern in rule.patterns() {
                let pattern = Pattern::parse(&filled(pattern)).unwrap();
                assert!(!matches!(pattern, Pattern::InLabel(_)), "{}: a parameter unknown here", rule.name);
            }
            match &rule.destination {
                Destination::Tag(tag) => {
                    assert_eq!(rule.r#type, Type::ServiceTag, "{}", rule.name);
                    assert!(PortSet::parse(&tag.port_ranges).is_ok(), "{}", rule.name);
                    assert!(["TCP", "UDP", "*"].contains(&tag.protocol.as_str()), "{}", rule.name);
                    assert!(!rule.names.is_empty(), "{}: nothing would resolve", rule.name);
                }
                Destination::Name(_) | Destination::Names(_) => {
                    assert_eq!(rule.r#type, Type::Fqdn, "{}", rule.name);
                    assert!(!rule.ports.is_empty() && rule.names.is_empty(), "{}", rule.name);
                    assert!(rule.protocol.is_none_or(|protocol| protocol == "UDP"), "{}", rule.name);
                }
            }
        }
    }

    #[test]
    fn what_carries_data_to_strangers_is_in_the_open_preset_alone() {
        let strangers = |text: &str| {
            ["Storage", "Storage.westeurope", "AzureFrontDoor.Frontend", "AzureKeyVault", "AzureMonitor"]
                .contains(&text)
                || [".core.windows.net", "vault.azure.net", "azurecr.io"]
                    .iter()
                    .any(|parent| text.starts_with("*.") && text.ends_with(parent))
                || ["graph.microsoft.com", "*.anaconda.org", "api.anaconda.org", "upload.pypi.org"]
                    .contains(&text)
        };
        let open = |preset| {
            let opened = |rule: &Rule| {
                rule.patterns().into_iter().chain(rule.tag()).any(|text| strangers(&filled(text)))
            };
            rules(preset).iter().filter(|rule| opened(rule)).map(|rule| rule.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(open("azure-ml"), [""; 0]);
        assert_eq!(open("python"), [""; 0]);
        assert_eq!(open("azure-ml-storage-open").len(), rules("azure-ml-storage-open").len());
        assert!(rules("azure-ml-storage-open").iter().all(|rule| rule.access == Access::ReadWrite));
        assert!(rules("python").iter().all(|rule| rule.access == Access::Read));
    }

    #[test]
    fn every_tag_of_the_default_preset_has_a_twin_by_name() {
        let rules = rules("azure-ml");
        let by_name = |name: &str| rules.iter().find(|rule| rule.name == name && rule.tag().is_none());
        for rule in rules.iter().filter(|rule| rule.tag().is_some()) {
            let twin = match rule.name.as_str() {
                "microsoft-front-door-tag" => "microsoft-registry",
                name => name.strip_suffix("-tag").unwrap(),
            };
            assert!(by_name(twin).is_some(), "{} has no twin {twin}", rule.name);
        }
    }

    #[test]
    fn what_a_workspace_cannot_do_without_is_there() {
        let rules: Vec<Rule> = ["azure-ml", "python"].into_iter().flat_map(rules).collect();
        for (name, port) in [
            ("login.microsoftonline.com", 80),
            ("login.microsoftonline.com", 443),
            ("management.azure.com", 443),
            ("ml.azure.com", 443),
            ("*.azureml.ms", 443),
            ("*.instances.azureml.ms", 8787),
            ("{region}.tundra.azureml.ms", 5831),
            ("*.{region}.batch.azure.com", 443),
            ("mcr.microsoft.com", 443),
            ("*.data.mcr.microsoft.com", 443),
            ("{storage}.blob.core.windows.net", 443),
            ("{storage}.file.core.windows.net", 445),
            ("{acr}.azurecr.io", 443),
            ("pypi.org", 443),
            ("files.pythonhosted.org", 443),
            ("conda.anaconda.org", 443),
            ("download.pytorch.org", 443),
        ] {
            let opens = |rule: &Rule| rule.patterns().contains(&name) && rule.ports.contains(&port);
            assert!(rules.iter().any(opens), "{name}:{port}");
        }
    }
}
