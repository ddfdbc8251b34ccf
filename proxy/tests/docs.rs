//! docs/operations.md says what the code says: its configuration loads, and every metric is on the page.
#![allow(clippy::unwrap_used, clippy::panic)] // a test's own helpers may stop it

use std::path::{Path, PathBuf};

use outgate::audit::AuditCounts;
use outgate::config::{Config, default_clients};
use outgate::gate::Limits;
use outgate::metrics::Metrics;

#[test]
fn the_configuration_on_the_page_is_taken_and_has_the_defaults() {
    let page = read("docs/operations.md");
    let (_, behind) = page.split_once("```yaml\n").unwrap();
    let (yaml, _) = behind.split_once("```").unwrap();
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("outgate.yaml");
    std::fs::write(&file, yaml).unwrap();
    let config = Config::read(Some(&file)).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.proxy.clients, default_clients());
    assert_eq!(
        (config.proxy.address, config.admin),
        (Config::default().proxy.address, Config::default().admin)
    );
}

#[test]
fn the_sample_configuration_is_taken() {
    let file = root().join("packaging/examples/outgate.yaml");
    let config = Config::read(Some(&file)).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.policy, [root().join("packaging/examples/policy.d/")]);
}

#[test]
fn every_metric_is_on_the_page() {
    let page = read("docs/operations.md");
    let metrics = Metrics::new();
    let _listener = metrics.listener("proxy");
    let text = metrics.exposition(AuditCounts::default());
    let described = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let names: Vec<&str> = described.collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        assert!(page.contains(&format!("`{name}`")), "docs/operations.md lacks {name}");
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}
