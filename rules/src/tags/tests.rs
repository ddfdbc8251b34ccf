use super::*;

const AZURE: &str = r#"{
  "changeNumber": 363,
  "cloud": "Public",
  "values": [
    {"name": "AzureCloud", "id": "AzureCloud", "properties": {"changeNumber": 7, "region": "", "regionId": 0,
      "platform": "Azure", "systemService": "", "networkFeatures": null,
      "addressPrefixes": ["20.0.0.0/8", "2603:1000::/24"]}},
    {"name": "AzureCloud.centralfrance", "id": "AzureCloud.centralfrance",
      "properties": {"region": "centralfrance", "addressPrefixes": ["20.40.0.0/16"], "networkFeatures": ["NSG"]}},
    {"name": "AzureCloud.norwaye", "id": "x",
      "properties": {"region": "norwaye", "addressPrefixes": ["20.100.0.0/18"]}},
    {"name": "Sql.NorwayEast", "id": "x", "properties": {"region": "norwaye", "addressPrefixes": []}},
    {"name": "Storage.FranceCentral", "id": "x",
      "properties": {"region": "centralfrance", "addressPrefixes": ["20.40.8.0\/24", "20.40.1.0/24", "20.40.8.0/24"]}},
    {"name": "Storage.WestUS2", "id": "x", "properties": {"addressPrefixes": ["20.150.68.0/24"]}},
    {"name": "AzureFrontDoor.Frontend", "id": "x", "properties": {"addressPrefixes": ["13.107.208.0/24"]}},
    {"name": "AzureKeyVault", "id": "x", "properties": {"addressPrefixes": ["13.66.230.241/32"]}},
    {"name": "BatchNodeManagement.WestUS", "id": "x", "properties": {"addressPrefixes": []}}
  ]
}"#;

const AWS: &str = r#"{
  "syncToken": "1753388594", "createDate": "2025-07-24-20-23-14",
  "prefixes": [
    {"ip_prefix": "3.5.0.0/19", "region": "us-east-1", "service": "AMAZON", "network_border_group": "us-east-1"},
    {"ip_prefix": "3.5.0.0/19", "region": "us-east-1", "service": "S3", "network_border_group": "us-east-1"},
    {"ip_prefix": "3.5.64.0/21", "region": "eu-west-1", "service": "S3", "network_border_group": "eu-west-1"}
  ],
  "ipv6_prefixes": [
    {"ipv6_prefix": "2600:1f68::/40", "region": "eu-west-1", "service": "S3", "network_border_group": "eu-west-1"}
  ]
}"#;

const GOOGLE: &str = r#"{"syncToken": "1753409788780", "creationTime": "2025-07-24T19:16:28.780563", "prefixes": [
  {"ipv4Prefix": "34.1.208.0/20", "service": "Google Cloud", "scope": "africa-south1"},
  {"ipv6Prefix": "2600:1900:8000::/44", "service": "Google Cloud", "scope": "africa-south1"},
  {"ipv4Prefix": "34.80.0.0/15", "service": "Google Cloud", "scope": "asia-east1"}
]}"#;

const GITHUB: &str = r#"{
  "verifiable_password_authentication": false,
  "ssh_keys": ["ssh-ed25519 AAAA"],
  "web": ["192.30.252.0/22", "2606:50c0::/32", "20.201.28.151"],
  "domains": {"website": ["*.github.com"], "actions_inbound": {"full_domains": ["github.com"]}}
}"#;

fn parse(text: &str) -> Result<ServiceTags, TagsError> {
    ServiceTags::parse(text.as_bytes(), "partners")
}

fn azure() -> ServiceTags {
    parse(AZURE).unwrap()
}

fn prefixes(tags: &ServiceTags, name: &str) -> Vec<String> {
    tags.find(name).unwrap().prefixes().iter().map(IpNet::to_string).collect()
}

fn tag_of(prefixes: &[&str]) -> ServiceTags {
    let text: String = prefixes.iter().map(|prefix| format!("{prefix}\n")).collect();
    parse(&text).unwrap()
}

#[test]
fn each_format_is_told_by_what_it_holds() {
    let table: &[(&str, &[&str], Cloud, Option<u64>)] = &[
        (
            AWS,
            &["AWS.AMAZON", "AWS.AMAZON.us-east-1", "AWS.S3", "AWS.S3.eu-west-1", "AWS.S3.us-east-1"],
            Cloud::Aws,
            Some(1_753_388_594),
        ),
        (
            GOOGLE,
            &["GoogleCloud", "GoogleCloud.africa-south1", "GoogleCloud.asia-east1"],
            Cloud::Google,
            Some(1_753_409_788_780),
        ),
        (r#"{"prefixes": [{"ipv4Prefix": "8.8.8.0/24"}]}"#, &["Google"], Cloud::Google, None),
        (GITHUB, &["GitHub.web"], Cloud::GitHub, None),
        ("# ours\n10.0.0.0/8 # hub\r\n\n2001:db8::1\n", &["partners"], Cloud::List, None),
    ];
    for (text, names, cloud, change_number) in table {
        let tags = parse(text).unwrap();
        assert_eq!(tags.names().collect::<Vec<_>>(), *names);
        assert_eq!(
            tags.publications(),
            [Publication { cloud: cloud.clone(), change_number: *change_number }]
        );
        assert!(tags.tags().iter().all(|tag| tag.cloud() == cloud));
    }
    assert_eq!(prefixes(&parse(AWS).unwrap(), "AWS.S3"), ["3.5.0.0/19", "3.5.64.0/21", "2600:1f68::/40"]);
    assert_eq!(
        prefixes(&parse("10.0.0.0/8\n2001:db8::1").unwrap(), "partners"),
        ["10.0.0.0/8", "2001:db8::1/128"]
    );
    assert_eq!(
        prefixes(&parse(GITHUB).unwrap(), "github.web"),
        ["20.201.28.151/32", "192.30.252.0/22", "2606:50c0::/32"]
    );
}

#[test]
fn a_name_is_found_in_any_letter_case_and_only_whole() {
    let tags = azure();
    assert_eq!(
        tags.publications(),
        [Publication { cloud: Cloud::Azure("Public".into()), change_number: Some(363) }]
    );
    assert_eq!(tags.find("azurefrontdoor.FrontEnd").unwrap().name(), "AzureFrontDoor.Frontend");
    assert_eq!(prefixes(&tags, "STORAGE.francecentral"), ["20.40.1.0/24", "20.40.8.0/24"]);
    for name in ["AzureCloud.", "AzureCloud ", "AzureClou", "", "Storage", "AzureCloud.centralfrance."] {
        assert!(tags.find(name).is_err(), "{name:?}");
    }
}

#[test]
fn a_misspelled_name_gets_a_question() {
    let mut tags = azure();
    tags.extend(parse(AWS).unwrap()).unwrap();
    let table = [
        ("BatchNodeManagement.uswest", Some("BatchNodeManagement.WestUS")),
        ("Storage.uswest2", Some("Storage.WestUS2")),
        ("Storage.CentralFrance", Some("Storage.FranceCentral")),
        ("AzureCloud.francecentral", Some("AzureCloud.centralfrance")),
        ("AzureCloud.norwayeast", Some("AzureCloud.norwaye")),
        ("Storage.norwayeast", None),
        ("Storage.West US 2", Some("Storage.WestUS2")),
        ("Keyvault", Some("AzureKeyVault")),
        ("AzureKeyVaults", Some("AzureKeyVault")),
        ("AzureFrontDor.Frontend", Some("AzureFrontDoor.Frontend")),
        ("S3.eu-west-1", Some("AWS.S3.eu-west-1")),
        ("Cdn", None),
        ("AzureDevOps", None),
        ("", None),
    ];
    for (name, meant) in table {
        assert_eq!(tags.suggest(name), meant, "{name}");
    }
    let error = tags.find("Keyvault").unwrap_err().to_string();
    assert_eq!(error, "no service tag is named `Keyvault`; did you mean `AzureKeyVault`?");
    assert_eq!(tags.suggest(&"a".repeat(1 << 20)), None);
}

#[test]
fn a_pseudo_tag_says_what_to_write_instead() {
    for name in [
        "internet",
        "VirtualNetwork",
        "AzureLoadBalancer",
        "AzurePlatformDNS",
        "AzurePlatformIMDS",
        "AzurePlatformLKM",
    ] {
        let UnknownTag::Pseudo(pseudo) = azure().find(name).unwrap_err() else { panic!("{name}") };
        assert!(pseudo.name.eq_ignore_ascii_case(name) && !pseudo.hint.is_empty());
    }
}

#[test]
fn an_address_is_in_several_tags_the_narrowest_first() {
    let tags = azure();
    let containing =
        |address: &str| tags.containing(address.parse().unwrap()).map(ServiceTag::name).collect::<Vec<_>>();
    assert_eq!(containing("20.40.8.9"), ["Storage.FranceCentral", "AzureCloud.centralfrance", "AzureCloud"]);
    assert_eq!(containing("2603:1000::1"), ["AzureCloud"]);
    assert_eq!(containing("192.0.2.1"), [""; 0]);
}

#[test]
fn files_add_up_and_addresses_are_found_in_all() {
    let mut tags = azure();
    let address = "3.5.64.1".parse().unwrap();
    assert_eq!(tags.containing(address).count(), 0);
    tags.extend(parse(AWS).unwrap()).unwrap();
    assert_eq!(
        tags.containing(address).map(ServiceTag::name).collect::<Vec<_>>(),
        ["AWS.S3", "AWS.S3.eu-west-1"]
    );
    assert_eq!(tags.publications().len(), 2);
    assert_eq!(tags.find("AzureCloud").unwrap().cloud().to_string(), "Azure Public");
}

#[test]
fn a_tag_in_two_files_is_a_conflict_and_nothing_is_added() {
    let china = AZURE.replace("\"Public\"", "\"China\"");
    for other in [AZURE, &china] {
        let mut tags = azure();
        let conflict = tags.extend(parse(other).unwrap()).unwrap_err();
        assert_eq!(conflict.first, Cloud::Azure("Public".into()));
        assert_eq!((tags.tags().len(), tags.publications().len()), (9, 1));
    }
}

#[test]
fn a_byte_order_mark_is_skipped() {
    assert_eq!(parse(&format!("\u{feff}{AZURE}")).unwrap().tags(), azure().tags());
    assert_eq!(parse("\u{feff}10.0.0.0/8").unwrap().tags(), tag_of(&["10.0.0.0/8"]).tags());
}

#[test]
fn a_prefix_that_is_none_is_named_with_its_tag() {
    let table = [
        (
            AZURE.replace("20.40.1.0/24", "20.40.1.1/24"),
            "the tag `Storage.FranceCentral`: `20.40.1.1/24`: the address has bits set behind the prefix length; the prefix around it is 20.40.1.0/24",
        ),
        (
            AZURE.replace("20.40.1.0/24", "\\u001b[2J"),
            "the tag `Storage.FranceCentral`: `\\u{1b}[2J`: not an IPv4 or IPv6 address",
        ),
        (
            AWS.replace("3.5.64.0/21", "3.5.64.0/33"),
            "the tag `AWS.S3`: `3.5.64.0/33`: the prefix length is not a number from 0 to 32 (IPv4) or 128 (IPv6)",
        ),
        (
            GOOGLE.replace("34.80.0.0/15", "034.80.0.0/15"),
            "the tag `GoogleCloud`: `034.80.0.0/15`: not an IPv4 or IPv6 address",
        ),
        (
            GITHUB.replace("192.30.252.0/22", "github.com"),
            "the tag `GitHub.web`: `github.com`: not an IPv4 or IPv6 address",
        ),
        ("10.0.0.0/8\n\nexample.com\n".to_owned(), "line 3: `example.com`: not an IPv4 or IPv6 address"),
    ];
    for (text, message) in table {
        assert_eq!(parse(&text).unwrap_err().to_string(), message);
    }
}

#[test]
fn what_is_no_such_file_is_refused_for_its_own_reason() {
    let twice = AZURE.replace("BatchNodeManagement.WestUS", "azurecloud");
    assert_eq!(parse(&twice).unwrap_err(), TagsError::Twice { tag: "AzureCloud".to_owned() });
    for text in
        ["", " \n", "# nothing\n", r#"{"changeNumber": 1, "cloud": "Public", "values": []}"#, "\u{feff}"]
    {
        assert_eq!(parse(text).unwrap_err(), TagsError::Empty, "{text:?}");
    }
    for text in ["{}", "[]", "[1]", "\"x\"", r#"{"message": "rate limit"}"#, "<!doctype html>"] {
        assert_eq!(parse(text).unwrap_err(), TagsError::UnknownFormat, "{text:?}");
    }
    for text in [
        &AZURE[..AZURE.len() - 1],
        "{",
        r#"{"values": 1}"#,
        r#"{"web": ["10.0.0.0/8"], "web": ["0.0.0.0/0"]}"#,
        r#"{"values": [], "values": [], "cloud": "Public", "changeNumber": 1}"#,
        &format!("{AZURE}x"),
    ] {
        assert!(matches!(parse(text), Err(TagsError::Json { .. })), "{text:?}");
    }
    assert_eq!(ServiceTags::parse(b"\xff\xfe1\0", "x").unwrap_err(), TagsError::NotText);
    let escape = AZURE.replace("AzureKeyVault", "Azure\\nKeyVault");
    assert!(matches!(parse(&escape), Err(TagsError::Name { .. })));
    assert!(matches!(ServiceTags::parse(b"10.0.0.0/8", "my list"), Err(TagsError::Name { .. })));
    let large = vec![b'#'; MAX_INPUT + 1];
    assert_eq!(ServiceTags::parse(&large, "x").unwrap_err(), TagsError::TooLarge { bytes: MAX_INPUT + 1 });
}

#[test]
fn an_error_never_shows_more_than_a_glimpse_of_the_file() {
    let long = "x".repeat(1 << 20);
    for text in [
        long.clone(),
        AZURE.replace("20.40.1.0/24", &long),
        AZURE.replace("AzureKeyVault", &long),
        AZURE.replace("363", &format!("\"{long}\"")),
    ] {
        assert!(parse(&text).unwrap_err().to_string().len() < 600);
    }
}

#[test]
fn no_cut_of_a_file_is_taken_for_the_file() {
    for text in [AZURE, AWS, GOOGLE, GITHUB] {
        for end in 0..text.len() {
            assert!(parse(&text[..end]).is_err(), "{}", &text[..end]);
        }
    }
}

#[test]
fn a_change_is_abnormal_below_half_or_above_three_times() {
    let size =
        |family, before, after| AbnormalChange::Size { tag: "partners".to_owned(), family, before, after };
    let table: &[(&[&str], &[&str], Vec<AbnormalChange>)] = &[
        (&["10.0.0.0/16"], &["10.0.0.0/17"], vec![]),
        (&["10.0.0.0/16"], &["10.0.0.0/18"], vec![size(Family::V4, 65_536, 16_384)]),
        (&["10.0.0.0/16"], &["10.0.0.0/15", "10.2.0.0/16"], vec![]),
        (&["10.0.0.0/16"], &["10.0.0.0/14"], vec![size(Family::V4, 65_536, 262_144)]),
        (
            &["10.0.0.0/16"],
            &["10.0.0.0/15", "10.2.0.0/16", "10.3.0.0/32"],
            vec![size(Family::V4, 65_536, 196_609)],
        ),
        // The same addresses twice are no more addresses.
        (&["10.0.0.0/16"], &["10.0.0.0/16", "10.0.0.0/17", "10.0.0.0/18", "10.0.128.0/17"], vec![]),
        (&["10.0.0.1", "10.0.0.9"], &["10.0.0.1"], vec![]),
        (&["10.0.0.1"], &["10.0.0.0/25"], vec![]),
        (&["10.0.0.1"], &["0.0.0.0/0"], vec![size(Family::V4, 1, 1 << 32)]),
        (&["10.0.0.0/16", "2001:db8::/48"], &["10.0.0.0/16"], vec![size(Family::V6, 65_536, 0)]),
        (&["10.0.0.0/16"], &["10.0.0.0/16", "::/0"], vec![size(Family::V6, 0, 1 << 64)]),
        (&["10.0.0.0/16", "2001:db8::/64"], &["10.0.0.0/16", "2001:db8::1"], vec![]),
    ];
    for (old, new, changes) in table {
        assert_eq!(abnormal_changes(&tag_of(old), &tag_of(new), ["Partners"]), *changes, "{old:?} {new:?}");
    }
}

#[test]
fn a_tag_that_is_gone_is_abnormal_whatever_its_size_and_a_new_one_is_not() {
    let (old, new) = (azure(), parse(&AZURE.replace("AzureKeyVault", "Other")).unwrap());
    assert_eq!(
        abnormal_changes(&old, &new, ["azurekeyvault", "AzureCloud", "Other"]),
        [AbnormalChange::Gone { tag: "AzureKeyVault".to_owned() }]
    );
    assert_eq!(abnormal_changes(&old, &new, ["AzureCloud"]), []);
}

/// The file as published, where the folder with them lies beside the workspace.
fn published(file: &str) -> Option<ServiceTags> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(file);
    match std::fs::read(&path) {
        Ok(bytes) => Some(ServiceTags::parse(&bytes, "unused").unwrap()),
        Err(error) => {
            println!("skipped: the published file {} is not here: {error}", path.display());
            None
        }
    }
}

#[test]
fn the_published_files_are_read_whole() {
    let table = [
        ("ServiceTags_Public_20250725.json", 2967, 67_078 + 23_415),
        ("ServiceTags_AzureGovernment_20260720.json", 299, 0),
        ("ServiceTags_China_20260720.json", 327, 0),
        ("aws-ip-ranges_20250724.json", 0, 0),
        ("google-cloud_20250725.json", 0, 0),
        ("github-meta_20250725.json", 13, 0),
    ];
    for (file, count, prefixes) in table {
        let Some(tags) = published(file) else { continue };
        assert!(count == 0 || tags.tags().len() == count, "{file}: {} tags", tags.tags().len());
        let held: usize = tags.tags().iter().map(|tag| tag.prefixes().len()).sum();
        assert!(prefixes == 0 || held == prefixes, "{file}: {held} prefixes");
        assert_eq!(abnormal_changes(&tags, &tags, tags.names()), []);
    }
}

#[test]
fn in_the_published_file_the_traps_are_none() {
    let Some(tags) = published("ServiceTags_Public_20250725.json") else { return };
    for name in
        ["azurecloud.WestEurope", "AzureFrontDoor.FrontEnd", "AzureMachineLearning", "Storage.francecentral"]
    {
        assert!(tags.find(name).is_ok(), "{name}");
    }
    for (name, meant) in [
        ("BatchNodeManagement.uswest", "BatchNodeManagement.WestUS"),
        ("Keyvault", "AzureKeyVault"),
        ("AzureCloud.francecentral", "AzureCloud.centralfrance"),
        ("AzureCloud.norwayeast", "AzureCloud.norwaye"),
        ("AzureCloud.germanywestcentral", "AzureCloud.germanywc"),
        ("AzureCloud.brazilsoutheast", "AzureCloud.brazilse"),
        ("Storage.brazilse", "Storage.BrazilSoutheast"),
        ("Storage.WestEurop", "Storage.WestEurope"),
    ] {
        assert_eq!(tags.suggest(name), Some(meant), "{name}");
    }
    let most = tags.tags().iter().flat_map(|tag| tag.prefixes().iter().map(IpNet::addr));
    let most = most.map(|address| tags.containing(address).count()).max();
    assert_eq!(most, Some(5), "DataFactory in westeurope: two of its own, its management, two of AzureCloud");
}
