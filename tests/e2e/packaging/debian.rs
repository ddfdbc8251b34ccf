//! The Debian package: what others' checks say of it, and what it does on a machine that boots.

use std::path::Path;
use std::process::Command;

use outgate_tests::program::{Program, finish, program, skip, words};
use outgate_tests::wait_until;

use super::{dist, outgate, root, run};

/// A machine of the test's own: this one's file system, of which it changes a copy, its own network, and systemd.
struct Booted {
    podman: Program,
    name: String,
}

impl Booted {
    /// Boots one, with a folder at /mnt; none where that cannot be.
    fn start(mounted: &Path) -> Option<Self> {
        let podman = program("podman", &["--version"])?;
        if !Path::new("/lib/systemd/systemd").exists()
            || std::env::var_os("OUTGATE_TESTS_NAMESPACE").is_some()
        {
            skip("systemd cannot be booted in a container here: that takes root and systemd");
            return None;
        }
        let name = format!("outgate-test-{}", std::process::id());
        let mut start = podman.command();
        start.args([
            "--runtime",
            "runc",
            "run",
            "--detach",
            "--name",
            &name,
            "--privileged",
            "--network",
            "none",
        ]);
        start.args(["--cgroupns", "private", "--systemd", "false", "--env", "container=podman"]);
        start.args(["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=4096:4096"]);
        for folder in ["/tmp", "/run", "/run/lock", "/var/log/journal"] {
            start.args(["--tmpfs", &format!("{folder}:notmpcopyup")]);
        }
        start.arg("--volume").arg(format!("{}:/mnt:ro", mounted.display()));
        start.args(["--rootfs", "/:O", "/lib/systemd/systemd", "systemd.unit=basic.target"]);
        run(&mut start);
        let booted = Self { podman, name };
        wait_until("systemd", || booted.succeeds("systemctl is-active basic.target"));
        // Where a policy forbids packages to start services, the test is about one that does.
        booted.shell("rm -f /usr/sbin/policy-rc.d");
        // A new network inherits this from the machine's.
        booted.shell("echo 0 >/proc/sys/net/ipv4/ip_forward");
        Some(booted)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = self.podman.command();
        command.args(["exec", &self.name, "sh", "-c", line]);
        command
    }

    fn shell(&self, line: &str) -> String {
        run(&mut self.command(line))
    }

    fn succeeds(&self, line: &str) -> bool {
        finish(&mut self.command(line)).status.success()
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        let _ = finish(self.podman.command().args(["rm", "--force", "--time", "0", &self.name]));
    }
}

#[test]
fn lintian_finds_nothing() {
    let (Some(package), Some(lintian)) = (dist("outgate.deb"), program("lintian", &["--version"])) else {
        return;
    };
    let said = run(lintian.command().args(["--allow-root", "--fail-on", "error,warning"]).arg(package));
    assert_eq!(said, "");
}

#[test]
fn the_configuration_of_the_package_and_the_samples_are_valid_and_pass_their_tests() {
    let Some(package) = dist("outgate.deb") else { return };
    let folder = tempfile::tempdir().unwrap();
    run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(folder.path()));
    for config in ["etc/outgate/outgate.yaml", "usr/share/doc/outgate/examples/outgate.yaml"] {
        let config = folder.path().join(config);
        assert!(outgate(["check", "--config", config.to_str().unwrap()]).contains("valid:"));
        assert!(outgate(["test", "--config", config.to_str().unwrap()]).contains("passed"));
    }
}

#[test]
fn the_unit_is_exposed_less_than_two() {
    let Some(analyze) = program("systemd-analyze", &["--version"]) else { return };
    let unit = root().join("packaging/systemd/outgate.service");
    let said =
        run(analyze.command().args(["security", "--offline=true", "--no-pager", "--threshold=20"]).arg(unit));
    assert!(said.contains("Overall exposure level"), "{said}");
}

#[test]
fn the_unit_keeps_no_capability_beyond_three() {
    let unit = std::fs::read_to_string(root().join("packaging/systemd/outgate.service")).unwrap();
    for set in ["CapabilityBoundingSet", "AmbientCapabilities"] {
        let line = format!("{set}=CAP_NET_ADMIN CAP_NET_BIND_SERVICE CAP_SYS_RESOURCE");
        assert_eq!(unit.lines().filter(|other| other.starts_with(set)).collect::<Vec<_>>(), [line]);
    }
}

#[test]
fn the_apparmor_profile_compiles() {
    let Some(parser) = program("apparmor_parser", &["--version"]) else { return };
    let profile = root().join("packaging/apparmor/outgate-serve");
    run(parser.command().args(["--skip-kernel-load", "--skip-cache"]).arg(profile));
}

#[test]
fn nothing_is_forwarded_from_boot_until_the_rules_are_in_the_kernel() {
    let sysctl = std::fs::read_to_string(root().join("packaging/systemd/sysctl.conf")).unwrap();
    assert!(!sysctl.contains("forward"), "sysctl.d acts before the gate does: {sysctl}");
    let drop_in = std::fs::read_to_string(root().join("packaging/systemd/appliance.conf")).unwrap();
    let (rules, forwarding) = (drop_in.find("appliance up").unwrap(), drop_in.find("/router.conf").unwrap());
    assert!(rules < forwarding, "{drop_in}");
}

#[test]
fn the_package_installs_starts_reloads_routes_and_goes() {
    let Some(package) = dist("outgate.deb") else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(package, folder.path().join("outgate.deb")).unwrap();
    let Some(machine) = Booted::start(folder.path()) else { return };
    machine.shell("dpkg --install /mnt/outgate.deb");

    // It runs as its own user, with nothing that the unit does not give it, and has said that it is ready.
    assert!(
        machine.succeeds("systemctl is-active outgate"),
        "{}",
        machine.shell("journalctl -u outgate --no-pager")
    );
    assert!(machine.shell("systemctl show outgate --property StatusText").contains("enforcing revision"));
    assert!(machine.shell("outgate status").contains("ready     yes"));
    let process = machine.shell("cat /proc/$(systemctl show outgate --property MainPID --value)/status");
    let user = machine.shell("id --user outgate");
    assert!(process.contains(&format!("Uid:\t{0}\t{0}\t{0}\t{0}", user.trim())), "{process}");
    assert!(process.contains("NoNewPrivs:\t1") && process.contains("Seccomp:\t2"), "{process}");
    let bounding = process.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    let bounding = u64::from_str_radix(bounding, 16).unwrap();
    assert_eq!(bounding & !(1 << 10 | 1 << 12 | 1 << 24), 0, "{bounding:x}");

    // A policy reloads, and a bad one is refused and said.
    machine.shell("echo 'outbound_rules: [{name: a, type: fqdn, destination: a.example}]' >/etc/outgate/policy.d/a.yaml");
    machine.shell("systemctl reload outgate && outgate status | grep -q 'rules     7'");
    machine.shell("echo 'no_such_key: 1' >/etc/outgate/policy.d/a.yaml");
    assert!(!machine.succeeds("systemctl reload outgate"));
    assert!(
        machine.shell("systemctl is-active outgate && rm /etc/outgate/policy.d/a.yaml").contains("active")
    );

    // A killed gate is started again.
    machine.shell("systemctl kill --signal KILL outgate");
    wait_until("the service to be started again", || {
        machine.succeeds(
            "systemctl show outgate --property NRestarts | grep -q =1 && systemctl is-active outgate",
        )
    });

    // As a router it forwards once its rules are there, and not before.
    assert_eq!(machine.shell("cat /proc/sys/net/ipv4/ip_forward").trim(), "0");
    machine.shell(
        "mkdir -p /etc/systemd/system/outgate.service.d \
         && cp /usr/share/outgate/appliance.conf /etc/systemd/system/outgate.service.d/ \
         && echo 'appliance: {clients: [10.1.0.0/16]}' >>/etc/outgate/outgate.yaml \
         && systemctl daemon-reload && systemctl restart outgate || { journalctl -u outgate --no-pager; false; }",
    );
    assert_eq!(machine.shell("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
    assert!(machine.shell("outgate status").contains("ready     yes"));

    let said = words(&finish(&mut machine.command("dpkg --purge outgate; ls /etc/outgate /usr/bin/outgate")));
    assert!(!said.contains("outgate.yaml") && !machine.succeeds("systemctl is-active outgate"), "{said}");
    assert!(machine.succeeds("test -s /var/log/outgate/audit.jsonl"), "the records stay");
}
