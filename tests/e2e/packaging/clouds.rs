//! The manifests for Kubernetes and the modules for Azure, by the readers of others that can be had.

use std::path::{Path, PathBuf};
use std::process::Command;

use outgate_tests::gate::binary;
use outgate_tests::program::{program, skip};

use super::{outgate, root, run};

/// Runs the checker of this folder, whose libraries tests/run has installed; none where it has not.
fn check(what: &str, files: &[PathBuf]) -> Option<String> {
    let libraries = binary().ancestors().nth(2).unwrap().join("python");
    if !libraries.exists() {
        skip(&format!("{} is not there: tests/run --install", libraries.display()));
        return None;
    }
    let script = root().join("tests/e2e/packaging/check.py");
    Some(run(Command::new("python3").arg(script).arg(what).args(files).env("PYTHONPATH", libraries)))
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    assert!(!found.is_empty(), "nothing in {folder}");
    found
}

/// The manifests of a folder, rendered.
fn rendered(name: &str) -> Option<String> {
    let kubectl = program("kubectl", &["version", "--client"])?;
    Some(run(kubectl.command().arg("kustomize").arg(root().join("packaging/kubernetes").join(name))))
}

#[test]
fn the_manifests_are_what_kubernetes_takes() {
    let folder = tempfile::tempdir().unwrap();
    for (name, wanted) in [
        (
            "base",
            &["Deployment outgate", "PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy"][..],
        ),
        ("monitoring", &["Service outgate-admin"]),
        ("spoke", &["NetworkPolicy only-through-outgate"]),
        ("sidecar", &["Deployment training"]),
    ] {
        let Some(text) = rendered(name) else { return };
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        let Some(said) = check("kubernetes", &[file]) else { return };
        for object in wanted {
            assert!(said.contains(object), "{name} has no {object}: {said}");
        }
    }
}

#[test]
fn every_container_of_the_manifests_is_without_capabilities_but_the_one_that_redirects() {
    for name in ["base", "sidecar"] {
        let Some(text) = rendered(name) else { return };
        let drops = text.matches("drop:\n").count();
        assert_eq!(text.matches("allowPrivilegeEscalation: false").count(), drops, "{name}");
        assert_eq!(
            text.matches("\n        image: ").count() + text.matches("- image: ").count(),
            drops,
            "{name}"
        );
        assert_eq!(text.matches("- NET_ADMIN").count(), usize::from(name == "sidecar"), "{name}");
        assert!(!text.contains("privileged: true"), "{name}");
    }
}

#[test]
fn the_policies_of_the_manifests_and_of_the_image_are_valid() {
    for folder in ["kubernetes/base/policy.d", "kubernetes/sidecar/policy.d", "container/policy.d"] {
        let folder = root().join("packaging").join(folder);
        outgate(["check", "--policy", folder.to_str().unwrap()]);
        outgate(["test", "--policy", folder.to_str().unwrap()]);
    }
    for config in ["kubernetes/sidecar/outgate.yaml", "container/outgate.yaml"] {
        outgate(["check", "--config", root().join("packaging").join(config).to_str().unwrap()]);
    }
}

#[test]
fn the_modules_for_azure_can_be_read() {
    let modules =
        [files("packaging/azure/terraform", "tf"), files("packaging/azure/terraform/cloud-init", "tf")];
    let Some(said) = check("terraform", &modules.concat()) else { return };
    assert!(said.contains("resource"), "{said}");
    check("bicep", &files("packaging/azure/bicep", "bicep"));
}

#[test]
fn both_modules_for_azure_build_the_same_network() {
    let terraform = std::fs::read_to_string(root().join("packaging/azure/terraform/main.tf")).unwrap();
    let bicep = std::fs::read_to_string(root().join("packaging/azure/bicep/hub.bicep")).unwrap();
    for words in [
        "\"probe\"",
        "\"no-admin\"",
        "\"no-ssh\"",
        "\"spokes\"",
        "\"nobody-else\"",
        "\"ha-ports\"",
        "\"/readyz\"",
        "\"0.0.0.0/0\"",
        "\"::/0\"",
        "\"VirtualAppliance\"",
        "\"ubuntu-24_04-lts\"",
    ] {
        assert!(terraform.contains(words), "Terraform lacks {words}");
        assert!(bicep.contains(&words.replace('"', "'")), "Bicep lacks {words}");
    }
    assert!(terraform.contains("enable_ip_forwarding          = true"));
    assert!(bicep.contains("enableIPForwarding: true"));
}

#[test]
fn the_cloud_init_is_valid_and_so_is_the_gate_that_it_sets_up() {
    let Some(cloud_init) = program("cloud-init", &["--version"]) else { return };
    let text = std::fs::read_to_string(root().join("packaging/cloud-init/hub.yaml")).unwrap();
    let filled = text
        .replace("@CLIENTS@", "\"10.1.0.0/16\", \"10.2.0.0/16\"")
        .replace("@UPSTREAMS@", "\"168.63.129.16\"")
        .replace("@PACKAGE_URL@", "https://packages.example/outgate.deb")
        .replace("@PACKAGE_SHA256@", &"0".repeat(64))
        .replace("@POLICY_BASE64@", "cHJlc2V0czogW3B5dGhvbl0K");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("user-data");
    std::fs::write(&file, &filled).unwrap();
    assert!(run(cloud_init.command().args(["schema", "--config-file"]).arg(&file)).contains("Valid"));
    check_gate(&filled, folder.path());
}

#[test]
fn terraform_fills_in_the_cloud_init() {
    // Terraform comes from no package registry that tests/run may use; where it is not there, the parser above is all.
    let Ok(version) = Command::new("terraform").arg("version").output() else { return };
    assert!(version.status.success());
    let folder = tempfile::tempdir().unwrap();
    let packaging = folder.path().join("packaging");
    run(Command::new("cp").arg("-r").arg(root().join("packaging")).arg(&packaging));
    let terraform = |arguments: &[&str]| {
        let mut command = Command::new("terraform");
        command.env("CHECKPOINT_DISABLE", "1").env("TF_CLI_CONFIG_FILE", "/dev/null").args(arguments);
        command.current_dir(packaging.join("azure/terraform/cloud-init"));
        run(&mut command)
    };
    terraform(&["fmt", "-check", "-recursive", ".."]);
    terraform(&["init", "-input=false"]);
    let policy = "# not a word to fill in: @CLIENTS@\npresets: [python]\n";
    terraform(&[
        "apply",
        "-auto-approve",
        "-input=false",
        "-var=client_prefixes=[\"10.1.0.0/16\",\"10.2.0.0/16\"]",
        "-var=upstreams=[\"168.63.129.16\"]",
        "-var=package_url=https://packages.example/outgate.deb",
        &format!("-var=package_sha256={}", "0".repeat(64)),
        &format!("-var=policy={policy}"),
    ]);
    let user_data = terraform(&["output", "-raw", "user_data"]);
    assert!(user_data.starts_with("#cloud-config\npackage_update: true\n"), "{user_data}");
    assert!(!user_data.contains('@'), "{user_data}");
    check_gate(&user_data, folder.path());
}

/// The gate's configuration inside a cloud-init, as `outgate check` sees it.
fn check_gate(user_data: &str, folder: &Path) {
    let block = user_data.split("path: /etc/outgate/outgate.yaml\n    content: |\n").nth(1).unwrap();
    let lines = block.lines().map_while(|line| line.strip_prefix("      "));
    std::fs::write(folder.join("outgate.yaml"), lines.map(|line| format!("{line}\n")).collect::<String>())
        .unwrap();
    std::fs::create_dir(folder.join("policy.d")).unwrap();
    std::fs::write(folder.join("policy.d/00-policy.yaml"), "presets: [python]\n").unwrap();
    outgate(["check", "--config", folder.join("outgate.yaml").to_str().unwrap()]);
}
