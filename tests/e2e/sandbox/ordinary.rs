//! The command of an ordinary user, on this machine as it is: no lab, and no network that answers.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use outgate_tests::gate::binary;
use outgate_tests::lab::Ran;

use super::{POLICY, write};

/// A home folder of an ordinary user, with a copy of the program that the user may run.
struct Home {
    folder: tempfile::TempDir,
    /// What makes root that user; nothing where the test is one itself.
    as_user: Vec<&'static str>,
}

impl Home {
    fn new() -> Self {
        let home = Self { folder: tempfile::tempdir().unwrap(), as_user: as_user() };
        let program = home.path().join("outgate");
        // A link where that goes: a debug build is large.
        std::fs::hard_link(binary(), &program)
            .or_else(|_| std::fs::copy(binary(), &program).map(drop))
            .unwrap();
        write(home.path(), "policy.yaml", POLICY);
        if !home.as_user.is_empty() {
            std::fs::set_permissions(home.path(), PermissionsExt::from_mode(0o755)).unwrap();
            for path in [home.path().to_owned(), home.path().join("policy.yaml")] {
                std::os::unix::fs::chown(path, Some(USER), Some(USER)).unwrap();
            }
        }
        home
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A shell's line in a sandbox of that user.
    fn sh(&self, line: &str) -> Ran {
        self.run(&["run", "--policy", "policy.yaml", "--", "sh", "-c", line])
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let program = self.path().join("outgate").display().to_string();
        let words = [&self.as_user[..], &[program.as_str()], arguments].concat();
        let (first, rest) = words.split_first().unwrap();
        let mut command = Command::new(first);
        command.args(rest).current_dir(self.path()).env("HOME", self.path()).env("LC_ALL", "C");
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran {
            done: output.status.success(),
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

/// Nobody.
const USER: u32 = 65534;

fn as_user() -> Vec<&'static str> {
    if rustix::process::geteuid().is_root() {
        vec!["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    } else {
        Vec::new()
    }
}

/// Whether this machine gives the user namespaces; where not, `outgate run` says why, and that is all there is to see.
fn home() -> Option<Home> {
    let home = Home::new();
    let ran = home.sh("true");
    if ran.done {
        return Some(home);
    }
    assert!(ran.code == Some(125) && ran.stderr.contains("--proxy-only"), "{ran:?}");
    None
}

#[test]
fn it_is_the_user_and_may_do_no_more_than_the_user() {
    let Some(home) = home() else { return };
    let ran = home.sh("id -u; cat /proc/self/status; touch made; exit 42");
    assert_eq!(ran.code, Some(42), "{ran:?}");
    let user = if home.as_user.is_empty() { rustix::process::geteuid().as_raw() } else { USER };
    assert_eq!(ran.stdout.lines().next(), Some(user.to_string().as_str()));
    for line in [
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(ran.stdout.contains(line), "{line}: {ran:?}");
    }
    assert_eq!(std::fs::metadata(home.path().join("made")).unwrap().uid(), user);
}

#[test]
fn the_users_policy_can_be_neither_written_nor_moved() {
    let Some(home) = home() else { return };
    let name = home.path().file_name().unwrap().to_str().unwrap();
    let line = format!(
        "echo x >> policy.yaml; rm -f policy.yaml; mv policy.yaml other; echo x >> ../{name}/policy.yaml; \
         mv ../{name} ../{name}-other; echo x > ~/.config/outgate/policy.yaml; exit 0"
    );
    home.sh(&line).assert_done();
    assert_eq!(std::fs::read_to_string(home.path().join("policy.yaml")).unwrap(), POLICY);
    assert!(!home.path().join(".config/outgate/policy.yaml").exists());
}

#[test]
fn the_user_cannot_reach_what_the_machine_can() {
    let Some(home) = home() else { return };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let line = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
    let ran = home.run(&["run", "--policy", "policy.yaml", "--", "bash", "-c", &line]).assert_failed();
    assert!(ran.stderr.contains("refused"), "{ran:?}");
}

/// As a container engine does it: namespaces of its own, and parts of /proc covered.
#[test]
fn in_a_container_that_covers_parts_of_proc_one_sentence_says_what_to_set() {
    let Some(home) = home() else { return };
    let line = "mount -t tmpfs tmpfs /proc/scsi 2>/dev/null || mount -t tmpfs tmpfs /proc/acpi 2>/dev/null || \
                mount --bind /dev/null /proc/kcore; exec \"$0\" run --policy policy.yaml -- touch ran";
    let unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount", "--mount-proc"];
    let program = home.path().join("outgate");
    let mut command = Command::new(unshare[0]);
    command.args(&unshare[1..]).args(["sh", "-c", line]).arg(&program).current_dir(home.path());
    let output = command.env("HOME", home.path()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{told}");
    assert!(told.contains("--security-opt unmask=ALL") && told.contains("systempaths=unconfined"), "{told}");
    assert!(!home.path().join("ran").exists());
}

/// The same where it covers none: nested, and a sandbox all the same.
#[test]
fn in_a_container_whose_proc_is_whole_it_works() {
    let Some(home) = home() else { return };
    let unshare =
        ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount", "--mount-proc", "--net"];
    let mut command = Command::new(unshare[0]);
    command.args(&unshare[1..]).arg(home.path().join("outgate")).args([
        "run",
        "--policy",
        "policy.yaml",
        "--",
    ]);
    let output = command
        .args(["sh", "-c", "exit 5"])
        .current_dir(home.path())
        .env("HOME", home.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
}
