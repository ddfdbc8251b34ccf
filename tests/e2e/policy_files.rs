//! Policies as files: what starts a gate, what does not, and that every mistake is named with its line.

use outgate_tests::gate::run_in;
use outgate_tests::origin::greet;
use outgate_tests::policy::{NOTHING, allow_one};
use outgate_tests::{Setup, World};

/// Runs `outgate check` on one policy: whether it succeeded, and what it said.
fn check(policy: impl AsRef<[u8]>) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("policy.yaml"), policy).unwrap();
    let output = run_in(folder.path(), ["check", "--policy", "policy.yaml"]);
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), said)
}

/// Policies that do not load, and where and why the message says so.
const MISTAKES: [(&str, &[&str]); 13] = [
    ("outbound_rules:\n  - {name: x, type: fqdn, destination: '*'}\n", &["policy.yaml:2", "*"]),
    (
        "outbound_rules:\n  - {name: x, type: fqdn, destination: '*contoso.com'}\n",
        &["policy.yaml:2", "*.contoso.com"],
    ),
    ("outbound_rules:\n  - {name: x, type: fqdn, destination: 'www.contoso.*'}\n", &["policy.yaml:2"]),
    ("outbound_rules:\n  - {name: x, type: fqdn, destination: a..b}\n", &["policy.yaml:2", "empty"]),
    ("outbound_rules:\n  - {name: x, type: fqdn, destination: pypi.org, ports: [0]}\n", &["policy.yaml:2"]),
    (
        "outbound_rules:\n  - {name: x, type: fqdn, destination: pypi.org, ports: [65536]}\n",
        &["policy.yaml:2"],
    ),
    (
        "outbound_rules:\n  - {name: x, type: fqdn, destination: pypi.org, prots: [1]}\n",
        &["policy.yaml:2", "prots"],
    ),
    (
        "outbound_rules:\n  - {name: x, type: fqdn, destination: pypi.org, sources: [nowhere]}\n",
        &["policy.yaml:2", "nowhere"],
    ),
    ("sources:\n  a: [10.0.0.0/33]\noutbound_rules: []\n", &["policy.yaml:2", "10.0.0.0/33"]),
    ("isolation_mode: disabled\n", &["policy.yaml:1", "disabled"]),
    ("presets: [no-such-preset]\n", &["policy.yaml:1", "no-such-preset"]),
    ("outbound_rules:\n  - name: x\n    type: fqdn\n    destination: *.pypi.org\n", &["policy.yaml:4"]),
    ("outbound_rules:\n\t- x\n", &["policy.yaml:2"]),
];

#[test]
fn every_mistake_is_named_with_its_line() {
    for (policy, said) in MISTAKES {
        let (passed, message) = check(policy);
        assert!(!passed, "{policy}");
        for words in said {
            assert!(message.contains(words), "{policy}: {words:?} is not in\n{message}");
        }
    }
}

#[test]
fn every_mistake_of_a_file_is_named_at_once() {
    let (passed, message) = check(
        "outbound_rules:\n  - {name: a, type: fqdn, destination: '*'}\n  - {name: b, type: fqdn, destination: a..b}\n\
         \x20 - {name: c, type: fqdn, destination: pypi.org, ports: [70000]}\n",
    );

    assert!(!passed);
    for line in ["policy.yaml:2", "policy.yaml:3", "policy.yaml:4"] {
        assert!(message.contains(line), "{line} is not in\n{message}");
    }
}

#[test]
fn a_gate_with_a_bad_policy_does_not_start() {
    for (policy, said) in MISTAKES {
        let (status, message) = World::new().gate(policy).start_in_vain();
        assert!(!status.success(), "{policy}");
        assert!(message.contains(said[0]), "{policy}: {message}");
    }
}

#[test]
fn a_policy_that_is_no_policy_does_not_start_a_gate() {
    let no_policies: [(&str, Vec<u8>); 4] = [
        ("binary", (0..=255).cycle().take(4096).collect()),
        ("half-written", b"outbound_rules:\n  - {name: x, type: fq".to_vec()),
        ("a list", b"- a\n- b\n".to_vec()),
        ("an alias bomb", alias_bomb()),
    ];
    for (what, content) in no_policies {
        let (status, said) = World::new().gate(NOTHING).file("policy.yaml", content).start_in_vain();
        assert!(!status.success() && said.contains("policy.yaml"), "{what}: {said}");
    }
}

fn alias_bomb() -> Vec<u8> {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let again = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{again}]\n"));
    }
    text.into_bytes()
}

#[test]
fn a_folder_without_files_and_a_path_without_file_do_not_start_a_gate() {
    let setup = World::new().gate(NOTHING).set("policy", vec!["policy.d/"]);
    std::fs::create_dir(setup.folder().join("policy.d")).unwrap();
    let (status, said) = setup.start_in_vain();
    assert!(!status.success() && said.contains("policy.d"), "{said}");

    let (status, said) = World::new().gate(NOTHING).set("policy", vec!["missing.yaml"]).start_in_vain();
    assert!(!status.success() && said.contains("missing.yaml"), "{said}");
}

#[test]
fn a_huge_policy_is_refused_or_loaded_and_never_a_crash() {
    let rules: String = (0..30_000)
        .map(|n| format!("  - {{name: r{n}, type: fqdn, destination: n{n}.example, ports: [443]}}\n"))
        .collect();
    let world = World::new();
    let gate = world.gate(format!("outbound_rules:\n{rules}")).start();
    assert_eq!(gate.client().connect("n29999.example:443").status, 502);
    assert_eq!(gate.client().connect("n30000.example:443").status, 403);
}

#[test]
fn an_unknown_key_of_the_configuration_does_not_start_a_gate() {
    for (key, value) in
        [("listn", "x"), ("limits.heads", "1s"), ("audit.rotat", "1MB"), ("dns.upstream", "1.1.1.1")]
    {
        let (status, said) = World::new().gate(NOTHING).set(key, value).start_in_vain();
        let last = key.rsplit('.').next().unwrap();
        assert!(!status.success() && said.contains(last) && said.contains("outgate.yaml"), "{key}: {said}");
    }
}

#[test]
fn a_bad_value_of_the_configuration_does_not_start_a_gate() {
    for (key, value) in [
        ("limits.head", "soon"),
        ("limits.connections", "-1"),
        ("listen.proxy.address", "nowhere"),
        ("listen.proxy.address", "127.0.0.1:99999"),
        ("audit.when_full", "shrug"),
    ] {
        let (status, said) = World::new().gate(NOTHING).set(key, value).start_in_vain();
        assert!(!status.success() && said.contains("outgate.yaml"), "{key}: {said}");
    }
}

#[test]
fn a_resolver_that_is_the_gate_itself_is_an_error() {
    let (status, said) = Setup::new(NOTHING)
        .set("listen.proxy.address", "127.0.0.1:53539")
        .set("dns.upstreams", vec!["127.0.0.1:53539"])
        .start_in_vain();

    assert!(!status.success() && said.contains("127.0.0.1:53539"), "{said}");
}

#[test]
fn a_folders_rule_sets_add_up() {
    let world = World::new();
    let _origins = (world.origin("a.example", 7000, greet("a")), world.origin("b.example", 7000, greet("b")));
    let gate = world
        .gate(NOTHING)
        .file("policy.d/a.yaml", allow_one("a.example", &[7000]))
        .file("policy.d/b.yaml", allow_one("b.example", &[7000]))
        .set("policy", vec!["policy.d/"])
        .start();

    assert_eq!(gate.tunnel("a.example:7000").exactly(1), b"a");
    assert_eq!(gate.tunnel("b.example:7000").exactly(1), b"b");
    let file = gate.decision("b.example")["rule"]["file"].clone();
    assert!(file.as_str().unwrap().ends_with("b.yaml"), "{file}");
}

#[test]
fn an_azure_ml_workspace_file_loads_unchanged() {
    let workspace = "$schema: https://azuremlschemas.azureedge.net/latest/workspace.schema.json\nname: ws\nlocation: westeurope\n\
        managed_network:\n  isolation_mode: allow_only_approved_outbound\n  firewall_sku: basic\n  outbound_rules:\n\
        \x20 - name: pypi\n    type: fqdn\n    destination: 'pypi.example, *.hosted.example'\n    category: user_defined\n\
        \x20   status: Active\n\
        \x20 - name: tag\n    type: service_tag\n    destination:\n      service_tag: DataFactory\n      protocol: TCP\n\
        \x20     port_ranges: 80, 8080-8089\n";
    let world = World::new();
    let gate = world.gate(workspace).start();

    assert_eq!(gate.client().connect("pypi.example:443").status, 502);
    assert_eq!(gate.client().connect("files.hosted.example:80").status, 502);
    assert_eq!(gate.client().connect("hosted.example:443").status, 403);
    let (passed, said) = check(workspace);
    assert!(passed, "{said}");
}

#[test]
fn the_presets_allow_what_training_needs_and_not_the_open_stores() {
    let world = World::new();
    let gate = world.gate("presets: [azure-ml, python]\n").start();

    for name in [
        "pypi.org",
        "files.pythonhosted.org",
        "mcr.microsoft.com",
        "ml.azure.com",
        "login.microsoftonline.com",
    ] {
        assert_eq!(gate.client().connect(&format!("{name}:443")).status, 502, "{name}");
    }
    for name in ["strangers.blob.core.windows.net", "evil.azurefd.net", "example.com", "gist.github.com"] {
        assert_eq!(gate.client().connect(&format!("{name}:443")).status, 403, "{name}");
    }
    assert!(!world.dns.asked().iter().any(|name| name.contains("blob")), "{:?}", world.dns.asked());
}

#[test]
fn warnings_are_said_and_are_no_errors() {
    for (policy, said) in [
        (allow_one("*.github.io", &[443]), "github.io"),
        (
            "outbound_rules:\n  - {name: old, type: fqdn, destination: a.example, expires: 2020-01-31}\n"
                .to_owned(),
            "expire",
        ),
        (
            "outbound_rules:\n  - {name: wide, type: fqdn, destination: '*.a.example'}\n\
             \x20 - {name: narrow, type: fqdn, destination: '*.a.example'}\n"
                .to_owned(),
            "narrow",
        ),
        ("presets: [azure-ml-storage-open]\n".to_owned(), "azure-ml-storage-open"),
    ] {
        let (passed, message) = check(&policy);
        assert!(passed, "{policy}: {message}");
        assert!(message.contains("warning") && message.contains(said), "{policy}: {message}");
    }
}
