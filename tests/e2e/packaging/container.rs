//! The container image, run as it is to be run: by a user, without capabilities, on a root that cannot be written.

use std::path::Path;
use std::process::Command;

use outgate_tests::program::{Program, finish, program, skip, words};
use outgate_tests::{Client, wait_for, wait_until};

use super::{dist, printed, run};

/// The image, loaded.
struct Image {
    podman: Program,
    name: String,
}

impl Image {
    fn load() -> Option<Self> {
        let archive = dist("outgate-image.tar")?;
        let podman = program("podman", &["--version"])?;
        if std::env::var_os("OUTGATE_TESTS_NAMESPACE").is_some() {
            skip("containers are run by root here");
            return None;
        }
        let said = printed(podman.command().args(["load", "--quiet", "--input"]).arg(archive));
        let name = said.rsplit("Loaded image: ").next().unwrap().trim().to_owned();
        Some(Self { podman, name })
    }

    /// A run of it with these arguments ahead of the image's name, and these behind.
    fn run(&self, ahead: &[&str], behind: &[&str]) -> Command {
        let mut command = self.podman.command();
        command.args(["--runtime", "runc", "run"]).args(LIMITS).args(ahead).arg(&self.name).args(behind);
        command
    }

    /// The same in the background; it is removed when the test is over.
    fn start(&self, ahead: &[&str], behind: &[&str]) -> Container<'_> {
        let id = printed(&mut self.run(&[&["--detach"], ahead].concat(), behind));
        Container { image: self, id: id.trim().to_owned() }
    }
}

/// Where the limits of the test's own process are low, a runtime may ask for no higher ones.
const LIMITS: [&str; 4] = ["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=4096:4096"];
/// As the manifests for Kubernetes run it.
const CONFINED: [&str; 5] = ["--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges"];

/// A container of the image.
struct Container<'a> {
    image: &'a Image,
    id: String,
}

impl Container<'_> {
    fn podman(&self, arguments: &[&str]) -> String {
        printed(self.image.podman.command().args(arguments).arg(&self.id))
    }

    fn logs(&self) -> String {
        words(&finish(self.image.podman.command().args(["logs", &self.id])))
    }

    fn address(&self) -> String {
        self.podman(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}"]).trim().to_owned()
    }

    fn wait_for_log(&self, what: &str) {
        wait_until(&format!("{what:?} in the container's log:\n{}", self.logs()), || {
            self.logs().contains(what)
        });
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = finish(self.image.podman.command().args(["rm", "--force", "--time", "0", &self.id]));
    }
}

#[test]
fn the_image_denies_everything_until_a_policy_is_mounted() {
    let Some(image) = Image::load() else { return };
    let said = run(image.run(&["--rm", "--network", "none"], &["explain", "pypi.org:443"]).arg("--help"));
    assert!(said.contains("Usage: outgate explain"), "{said}");
    let denied = finish(&mut image.run(&["--rm", "--network", "none"], &["explain", "pypi.org:443"]));
    assert_eq!(denied.status.code(), Some(1), "{}", words(&denied));
}

#[test]
fn a_container_is_configured_by_its_environment_and_its_policy_folder() {
    let Some(image) = Image::load() else { return };
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.yaml");
    write(&policy, "outbound_rules: []\n");
    let mount = format!("{}:/policy:ro", folder.path().display());
    let environment = ["OUTGATE_PROXY=0.0.0.0:8888", "OUTGATE_DNS=0.0.0.0:5353", "OUTGATE_POLICY=/policy"];
    let environment: Vec<&str> = environment.iter().flat_map(|variable| ["--env", variable]).collect();
    let ahead = [&CONFINED[..], &environment, &["--volume", &mount]].concat();
    let container = image.start(&ahead, &[]);
    container.wait_for_log("outgate: ready");
    let talk = container.logs();
    for listener in ["proxy listens on 0.0.0.0:8888", "dns listens on 0.0.0.0:5353"] {
        assert!(talk.contains(listener), "{talk}");
    }

    // The health check is `outgate status`, which finds the gate by the same configuration.
    assert!(
        container
            .podman(&["inspect", "--format", "{{.Config.Healthcheck.Test}}"])
            .contains("/outgate status")
    );
    container.podman(&["healthcheck", "run"]);

    // A denial explains itself to the client, and its record is on standard output.
    let address = container.address();
    let mut client = Client::to(format!("{address}:8888").parse().unwrap());
    let response = client.connect("a.example:443");
    assert_eq!(response.status, 403, "{}", response.phrase);
    container.wait_for_log("\"reason\":\"no-rule\"");

    // The folder reloads by itself.
    write(&policy, "outbound_rules: [{name: a, type: fqdn, destination: a.example}]\n");
    container.wait_for_log("1 rule from 1 file");
    let mut client = Client::to(format!("{address}:8888").parse().unwrap());
    assert_ne!(
        client.connect("a.example:443").status,
        403,
        "the rule allows it; there is nobody by that name"
    );

    // It drains and ends well, as the user of the image.
    assert_eq!(container.podman(&["inspect", "--format", "{{.Config.User}}"]).trim(), "65532:65532");
    container.podman(&["kill", "--signal", "TERM"]);
    let ended = wait_for("the container to end", || {
        let state = container.podman(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}"]);
        state.starts_with("exited").then_some(state)
    });
    assert_eq!(ended.trim(), "exited 0");
}

#[test]
fn a_sidecar_takes_all_that_the_application_sends_and_nothing_of_the_gate() {
    let Some(image) = Image::load() else { return };
    let folder = tempfile::tempdir().unwrap();
    let origin = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = origin.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in origin.incoming().map_while(Result::ok) {
            let _ = std::io::Write::write_all(
                &mut stream,
                b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\norigin\n",
            );
        }
    });
    let files = super::root().join("packaging/kubernetes/sidecar");
    std::fs::copy(files.join("outgate.yaml"), folder.path().join("outgate.yaml")).unwrap();
    std::fs::create_dir(folder.path().join("policy.d")).unwrap();
    let policy = folder.path().join("policy.d/policy.yaml");
    write(&policy, "outbound_rules: []\n");
    let mount = format!("{}:/etc/outgate:ro", folder.path().display());

    // The gate's container has the network, as a pod's has it.
    let pod = image.start(&[&CONFINED[..], &["--volume", &mount]].concat(), &[]);
    pod.wait_for_log("outgate: ready");
    let network = format!("container:{}", pod.id);
    let gateway = pod.podman(&["inspect", "--format", "{{.NetworkSettings.Gateway}}"]).trim().to_owned();
    let redirect = ["--rm", "--network", &network, "--volume", &mount];
    let as_root = ["--user", "0:0", "--cap-drop", "all", "--cap-add", "NET_ADMIN"];
    run(&mut image.run(&[&redirect[..], &as_root].concat(), &["appliance", "up", "--sidecar"]));

    let fetch = |user: &str| {
        let mut command = image.podman.command();
        command.args(["--runtime", "runc", "run", "--rm"]).args(LIMITS).args(["--network", &network]);
        command.args(["--cap-drop", "all", "--user", user, "--rootfs", "/:O"]);
        command.args(["curl", "--silent", "--max-time", "10", &format!("http://{gateway}:{port}/")]);
        words(&finish(&mut command))
    };
    let application = "10001:10001";
    assert!(!fetch(application).contains("origin"), "the application has gone round the gate");
    pod.wait_for_log("\"verdict\":\"deny\"");
    let destination = format!("{{addresses: [{gateway}], protocol: TCP, port_ranges: \"{port}\"}}");
    write(&policy, &format!("outbound_rules: [{{name: a, type: address, destination: {destination}}}]\n"));
    pod.wait_for_log("1 rule from 1 file");
    assert!(fetch(application).contains("origin"), "{}", pod.logs());
    pod.wait_for_log("\"verdict\":\"allow\"");
    assert!(fetch("65532:65532").contains("origin"), "the gate's own user is free");
}

fn write(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    let folder = path.parent().unwrap();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let new = folder.join(".new");
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::rename(new, path).unwrap();
}
