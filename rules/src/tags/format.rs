//! The published formats, told apart by what they hold.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Cloud, MAX_TAG_NAME, Publication, ServiceTag, TagsError};
use crate::ranges::{PrefixError, parse_prefix};

type Read = (Publication, Vec<ServiceTag>);

/// Reads a file in whichever format it is.
pub(super) fn read(bytes: &[u8], stem: &str) -> Result<Read, TagsError> {
    let text = std::str::from_utf8(bytes).map_err(|_| TagsError::NotText)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match text.trim_start().chars().next() {
        None => Err(TagsError::Empty),
        Some('{') => read_json(text),
        Some('[' | '"' | '<') => Err(TagsError::UnknownFormat),
        Some(_) => read_list(text, stem),
    }
}

fn read_json(text: &str) -> Result<Read, TagsError> {
    let keys: Keys = json(text)?;
    if keys.has("values") {
        read_azure(text)
    } else if keys.has("prefixes") && keys.has("ipv6_prefixes") {
        read_aws(text)
    } else if keys.has("prefixes") {
        read_google(text)
    } else if keys.has("ssh_keys") || keys.has("hooks") || keys.has("web") {
        read_github(text)
    } else {
        Err(TagsError::UnknownFormat)
    }
}

fn json<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, TagsError> {
    serde_json::from_str(text).map_err(|error| {
        let (line, column, message) = (error.line(), error.column(), error.to_string());
        let message = message.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&message);
        TagsError::Json { line, column, message: excerpt(message) }
    })
}

/// The keys of the outermost object.
struct Keys(HashSet<String>);

impl Keys {
    fn has(&self, key: &str) -> bool {
        self.0.contains(key)
    }
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(KeysVisitor)
    }
}

struct KeysVisitor;

impl<'de> Visitor<'de> for KeysVisitor {
    type Value = Keys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
        let mut keys: HashSet<String> = HashSet::new();
        while let Some((key, IgnoredAny)) = map.next_entry()? {
            if let Some(twice) = keys.replace(key) {
                return Err(A::Error::custom(format_args!("`{}` comes twice", excerpt(&twice))));
            }
        }
        Ok(Keys(keys))
    }
}

/// A string, borrowed from the file unless it has escapes.
#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Microsoft, "Azure IP Ranges and Service Tags". What is not listed here is not read:
/// `networkFeatures` is null for half of the tags.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Azure<'a> {
    change_number: u64,
    #[serde(borrow)]
    cloud: Text<'a>,
    #[serde(borrow)]
    values: Vec<AzureTag<'a>>,
}

#[derive(Deserialize)]
struct AzureTag<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow)]
    properties: AzureProperties<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AzureProperties<'a> {
    #[serde(borrow)]
    region: Option<Text<'a>>,
    #[serde(borrow)]
    address_prefixes: Vec<Text<'a>>,
}

fn read_azure(text: &str) -> Result<Read, TagsError> {
    let file: Azure<'_> = json(text)?;
    let cloud = Cloud::Azure(Arc::from(plain_name(&file.cloud.0)?));
    let tags = file.values.iter().map(|value| read_azure_tag(value, &cloud)).collect::<Result<_, _>>()?;
    Ok((Publication { cloud, change_number: Some(file.change_number) }, tags))
}

fn read_azure_tag(value: &AzureTag<'_>, cloud: &Cloud) -> Result<ServiceTag, TagsError> {
    let (name, properties) = (value.name.0.as_ref(), &value.properties);
    let prefixes = properties.address_prefixes.iter().map(|text| prefix(name, &text.0));
    let region =
        properties.region.as_ref().map(|region| region.0.as_ref()).filter(|region| !region.is_empty());
    let region = region.map(|region| plain_name(region).map(Box::from)).transpose()?;
    Ok(ServiceTag { region, ..tag(name, cloud, prefixes.collect::<Result<_, _>>()?)? })
}

/// AWS, "IP address ranges JSON file": <https://docs.aws.amazon.com/vpc/latest/userguide/aws-ip-syntax.html>.
#[derive(Deserialize)]
struct Aws<'a> {
    #[serde(rename = "syncToken", borrow)]
    sync_token: Option<Text<'a>>,
    #[serde(borrow)]
    prefixes: Vec<AwsPrefix<'a>>,
    #[serde(borrow)]
    ipv6_prefixes: Vec<AwsPrefix<'a>>,
}

#[derive(Deserialize)]
struct AwsPrefix<'a> {
    #[serde(borrow, alias = "ipv6_prefix")]
    ip_prefix: Text<'a>,
    #[serde(borrow)]
    region: Text<'a>,
    #[serde(borrow)]
    service: Text<'a>,
}

fn read_aws(text: &str) -> Result<Read, TagsError> {
    let file: Aws<'_> = json(text)?;
    let mut tags = Gathered::default();
    for entry in file.prefixes.iter().chain(&file.ipv6_prefixes) {
        let everywhere = format!("AWS.{}", entry.service.0);
        let prefix = prefix(&everywhere, &entry.ip_prefix.0)?;
        tags.add(format!("{everywhere}.{}", entry.region.0), prefix);
        tags.add(everywhere, prefix);
    }
    Ok((publication(Cloud::Aws, file.sync_token.as_ref()), tags.finish(&Cloud::Aws)?))
}

/// Google, "Obtain Google IP address ranges": `cloud.json` with service and scope, `goog.json` without.
#[derive(Deserialize)]
struct Google<'a> {
    #[serde(rename = "syncToken", borrow)]
    sync_token: Option<Text<'a>>,
    #[serde(borrow)]
    prefixes: Vec<GooglePrefix<'a>>,
}

#[derive(Deserialize)]
struct GooglePrefix<'a> {
    #[serde(borrow, alias = "ipv4Prefix", alias = "ipv6Prefix")]
    prefix: Text<'a>,
    #[serde(borrow)]
    service: Option<Text<'a>>,
    #[serde(borrow)]
    scope: Option<Text<'a>>,
}

fn read_google(text: &str) -> Result<Read, TagsError> {
    let file: Google<'_> = json(text)?;
    let mut tags = Gathered::default();
    for entry in &file.prefixes {
        let service = entry.service.as_ref().map_or("Google", |service| service.0.as_ref());
        let everywhere = service.replace(' ', "");
        let prefix = prefix(&everywhere, &entry.prefix.0)?;
        if let Some(scope) = &entry.scope {
            tags.add(format!("{everywhere}.{}", scope.0), prefix);
        }
        tags.add(everywhere, prefix);
    }
    Ok((publication(Cloud::Google, file.sync_token.as_ref()), tags.finish(&Cloud::Google)?))
}

/// GitHub, "Get GitHub meta information": among other things, lists of prefixes.
#[derive(Deserialize)]
#[serde(untagged)]
enum GitHub<'a> {
    List(#[serde(borrow)] Vec<Text<'a>>),
    Other(IgnoredAny),
}

fn read_github(text: &str) -> Result<Read, TagsError> {
    let values: BTreeMap<Text<'_>, GitHub<'_>> = json(text)?;
    let mut tags = Vec::new();
    for (list, value) in &values {
        let GitHub::List(texts) = value else { continue };
        // `ssh_keys` holds no prefix at all. A list that holds some has to hold nothing else.
        if texts.iter().any(|text| parse_prefix(&text.0).is_ok()) {
            let name = format!("GitHub.{}", list.0);
            let prefixes = texts.iter().map(|text| prefix(&name, &text.0)).collect::<Result<_, _>>()?;
            tags.push(tag(&name, &Cloud::GitHub, prefixes)?);
        }
    }
    Ok((Publication { cloud: Cloud::GitHub, change_number: None }, tags))
}

fn read_list(text: &str, stem: &str) -> Result<Read, TagsError> {
    let mut prefixes = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.split('#').next().unwrap_or_default().trim();
        if !text.is_empty() {
            let prefix = parse_prefix(text);
            prefixes.push(prefix.map_err(|error| TagsError::Line { line, text: excerpt(text), error })?);
        }
    }
    if prefixes.is_empty() {
        return Err(TagsError::Empty);
    }
    let tag = tag(stem, &Cloud::List, prefixes)?;
    Ok((Publication { cloud: Cloud::List, change_number: None }, vec![tag]))
}

/// Prefixes by the name of their tag, for the formats that list prefixes and not tags.
#[derive(Default)]
struct Gathered(BTreeMap<String, Vec<IpNet>>);

impl Gathered {
    fn add(&mut self, name: String, prefix: IpNet) {
        self.0.entry(name).or_default().push(prefix);
    }

    fn finish(self, cloud: &Cloud) -> Result<Vec<ServiceTag>, TagsError> {
        self.0.into_iter().map(|(name, prefixes)| tag(&name, cloud, prefixes)).collect()
    }
}

fn publication(cloud: Cloud, token: Option<&Text<'_>>) -> Publication {
    Publication { cloud, change_number: token.and_then(|token| token.0.parse().ok()) }
}

fn tag(name: &str, cloud: &Cloud, mut prefixes: Vec<IpNet>) -> Result<ServiceTag, TagsError> {
    prefixes.sort_unstable();
    prefixes.dedup();
    let (name, prefixes) = (plain_name(name)?.into(), prefixes.into_boxed_slice());
    Ok(ServiceTag { name, cloud: cloud.clone(), region: None, prefixes })
}

/// What can stand in a policy, a record and a terminal as it is.
fn plain_name(name: &str) -> Result<&str, TagsError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let fits = !name.is_empty() && name.len() <= MAX_TAG_NAME && name.bytes().all(plain);
    if fits { Ok(name) } else { Err(TagsError::Name { name: excerpt(name) }) }
}

fn prefix(tag: &str, text: &str) -> Result<IpNet, TagsError> {
    let error = |error: PrefixError| TagsError::Prefix { tag: excerpt(tag), text: excerpt(text), error };
    parse_prefix(text).map_err(error)
}

/// As much of a text as an error shows: what is no prefix may be megabytes of something else.
fn excerpt(text: &str) -> String {
    text.chars().take(MAX_TAG_NAME).collect()
}
