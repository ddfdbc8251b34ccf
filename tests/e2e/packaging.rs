//! What is shipped: the binary, the Debian package on a machine that boots, the container, and the files for clouds.
//!
//! `packaging/build deb image` has made it before these tests run; tests/run does that.

mod clouds;
mod container;
mod debian;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use outgate_tests::gate::binary;
use outgate_tests::program::{finish, skip, words};

/// The root of the repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Something that `packaging/build` made; none where it has not.
fn dist(name: &str) -> Option<PathBuf> {
    let target = binary().ancestors().nth(2).unwrap().to_owned();
    let path = target.join("dist").join(name);
    if !path.exists() {
        skip(&format!("{} is not there: packaging/build deb image", path.display()));
        return None;
    }
    Some(path)
}

/// Runs a program that must end well, and gives what it wrote on stdout.
fn printed(command: &mut Command) -> String {
    let output = finish(command);
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, words(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The same with all its words.
fn run(command: &mut Command) -> String {
    let output = finish(command);
    let said = words(&output);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    said
}

/// Runs this `outgate`, which must end well, and gives its words.
fn outgate<const N: usize>(arguments: [&str; N]) -> String {
    run(Command::new(binary()).args(arguments))
}

#[test]
fn the_binary_is_static_and_below_fifteen_megabytes() {
    let Some(binary) = dist("outgate") else { return };
    let size = binary.metadata().unwrap().len();
    assert!(size < 15_000_000, "{size} bytes");
    let headers = run(Command::new("readelf").args(["--wide", "--program-headers"]).arg(&binary));
    assert!(headers.contains("LOAD") && !headers.contains("INTERP"), "{headers}");
}

#[test]
fn an_idle_gate_takes_less_than_twenty_megabytes() {
    let Some(binary) = dist("outgate") else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("policy.yaml"), "presets: [azure-ml, python]\n").unwrap();
    let mut gate = Command::new(binary)
        .args(["serve", "--policy", "policy.yaml", "--control", "control.sock", "--audit", "-"])
        .args(["--proxy", "127.0.0.1:0", "--dns", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(gate.stderr.take().unwrap()).lines().map_while(Result::ok);
    let ready = lines.any(|line| line == "outgate: ready");
    let status = std::fs::read_to_string(format!("/proc/{}/status", gate.id()));
    gate.kill().unwrap();
    gate.wait().unwrap();
    let status = status.unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: u32 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(ready && (1_000..20_000).contains(&kilobytes), "{kilobytes} kB");
}

#[test]
fn the_bill_of_materials_lists_what_is_linked_and_nothing_else() {
    let Some(path) = dist("sbom.cdx.json") else { return };
    let bill: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let components = bill["components"].as_array().unwrap();
    let names: Vec<&str> = components.iter().filter_map(|component| component["name"].as_str()).collect();
    for linked in ["outgate-rules", "outgate-dns", "tokio", "rustls", "aws-lc-rs"] {
        assert!(names.contains(&linked), "{linked} is missing");
    }
    for other in ["proptest", "insta", "criterion", "rcgen"] {
        assert!(!names.contains(&other), "{other} is for tests");
    }
    for component in components {
        assert!(component["licenses"][0]["expression"].is_string(), "{component} has no license");
    }
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for component in components {
        let (name, version) = (&component["name"], &component["version"]);
        assert!(lock.contains(&format!("name = {name}\nversion = {version}")), "{name} {version}");
    }
}
