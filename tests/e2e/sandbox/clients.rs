//! Programs as developers use them, with no setting for it: what is allowed works, and what is not fails at once.

use outgate_tests::lab::{Ran, site};
use outgate_tests::program::program;

use super::{Desk, write};

#[test]
fn web_clients_reach_what_is_allowed_and_nothing_else() {
    let Some(desk) = Desk::new() else { return };
    let machine = desk.inside();
    for url in ["https://ml.azure.com/whoami", "http://ml.azure.com/whoami"] {
        let said =
            [Some(machine.curl(&["-4", url])), Some(machine.curl(&["-6", url])), Some(machine.wget(url))];
        for ran in said.into_iter().chain([Some(machine.python(url)), machine.node(url)]).flatten() {
            let said = ran.assert_done().stdout;
            assert!(said.starts_with("ml.azure.com at "), "{said}");
        }
    }
    let denied = "https://evil.example/whoami";
    let refused = [Some(machine.curl(&[denied])), Some(machine.wget(denied)), Some(machine.python(denied))];
    for ran in refused.into_iter().chain([machine.node(denied)]).flatten() {
        let told = ran.assert_failed().stderr;
        assert!(told.contains("outgate: denied 100.64.0.2 -> evil.example"), "{told}");
    }
    let azure = site("ml.azure.com");
    let visits = [azure.v4, azure.v6].into_iter().flat_map(|address| [(address, 80), (address, 443)]);
    let asked = [(site_resolver(), 53)];
    desk.lab.capture().assert_only(&visits.chain(asked).collect::<Vec<_>>());
}

/// The machine's own resolver, which the sandbox's gate asks.
fn site_resolver() -> &'static str {
    outgate_tests::lab::PUBLIC_RESOLVER
}

#[test]
fn package_managers_and_git_work() {
    let Some(desk) = Desk::new() else { return };
    desk.lab.offer_python_project();
    let _offered = (desk.lab.offer_debian_package(), desk.lab.offer_git_repository());
    let machine = desk.inside();
    let done = |ran: Option<Ran>, words: &str| {
        if let Some(ran) = ran {
            assert!(ran.clone().assert_done().words().contains(words), "{ran:?}");
        }
    };
    done(machine.pip_install("tiny"), "Successfully installed tiny-1.0");
    done(machine.apt_download("tiny"), "tiny");
    done(machine.git_clone("https://github.com/lab/tiny.git"), "");
}

#[test]
fn npm_and_cargo_fetch_from_what_is_allowed_and_fail_at_once_elsewhere() {
    let Some(desk) = Desk::new() else { return };
    let machine = desk.inside();
    if program("npm", &["--version"]).is_some() {
        let view = |host: &str| {
            let registry = format!("--registry=https://{host}/");
            machine.run(
                "npm",
                &[
                    "view",
                    "tiny",
                    &registry,
                    "--fetch-retries=0",
                    "--no-update-notifier",
                    "--cache=/tmp/none",
                ],
            )
        };
        // Nobody serves a package there: what counts is who answers.
        assert!(view("ml.azure.com").assert_failed().words().contains("404"), "{:?}", view("ml.azure.com"));
        let denied = view("evil.example").assert_failed().words();
        assert!(denied.contains("ENOTFOUND") || denied.contains("EAI_AGAIN"), "{denied}");
    }
    if program("cargo", &["--version"]).is_some() {
        let fetch = |host: &str| {
            let folder = desk.lab.folder().join(format!("cargo-{host}"));
            let manifest = "[package]\nname = \"a\"\nedition = \"2021\"\n[dependencies]\ntiny = {version = \"1\", registry = \"lab\"}\n";
            write(&folder, "Cargo.toml", manifest);
            write(&folder, "src/lib.rs", "");
            let config = format!("[registries.lab]\nindex = \"sparse+https://{host}/\"\n[net]\nretry = 0\n");
            write(&folder, ".cargo/config.toml", &config);
            let line = format!(
                "cd {} && CARGO_HOME=$PWD/home CARGO_HTTP_CAINFO=$SSL_CERT_FILE cargo fetch",
                folder.display()
            );
            let mut command = machine.command("sh");
            for name in ["RUSTUP_HOME", "RUSTUP_TOOLCHAIN"] {
                std::env::var_os(name).into_iter().for_each(|value| _ = command.env(name, value));
            }
            if std::env::var_os("RUSTUP_HOME").is_none()
                && let Some(home) = std::env::var_os("HOME")
            {
                command.env("RUSTUP_HOME", std::path::Path::new(&home).join(".rustup"));
            }
            let output = command.args(["-c", &line]).output().unwrap();
            assert!(!output.status.success());
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        let allowed = fetch("ml.azure.com");
        assert!(allowed.contains("404") || allowed.contains("config.json"), "{allowed}");
        let denied = fetch("evil.example");
        assert!(denied.contains("resolve host"), "{denied}");
    }
}

#[test]
fn pythons_own_clients_ssh_java_and_a_static_program_are_held_as_well() {
    let Some(desk) = Desk::new() else { return };
    let requests = "import sys, requests; print(requests.get(sys.argv[1], timeout=10).text)";
    let aiohttp = "
import aiohttp, asyncio, ssl, sys
async def get():
    async with aiohttp.ClientSession() as session:
        async with session.get(sys.argv[1]) as answer: print(await answer.text())
asyncio.run(get())";
    let java = write(desk.lab.folder(), "Get.java", JAVA).display().to_string();
    let python = |module: &str, code: &'static str| {
        program("/usr/bin/python3", &["-c", &format!("import {module}")])
            .map(|_| vec!["/usr/bin/python3", "-c", code])
    };
    let clients = [
        python("requests", requests),
        python("aiohttp", aiohttp),
        program("java", &["--version"]).map(|_| vec!["java", "-Xshare:auto", &java]),
    ];
    for client in clients.into_iter().flatten() {
        let fetch = |url: &str| desk.inside().run(client[0], &[&client[1..], &[url]].concat());
        let said = fetch("http://ml.azure.com/whoami").assert_done().stdout;
        assert!(said.contains("ml.azure.com at "), "{client:?}: {said}");
        fetch("http://evil.example/whoami").assert_failed();
        // By address, what comes back is the gate's own page, which says why.
        let said = fetch(&format!("http://{}/whoami", site("evil.example").v4)).stdout;
        assert!(!said.contains("evil.example at "), "{client:?}: {said}");
    }
    if program("busybox", &["nslookup", "--help"]).is_some() {
        let found = desk.inside().run("busybox", &["nslookup", "ml.azure.com", "8.8.8.8"]).words();
        assert!(found.contains(site("ml.azure.com").v4), "{found}");
        let denied = desk.inside().run("busybox", &["nslookup", "evil.example", "8.8.8.8"]).words();
        assert!(denied.contains("NXDOMAIN") && !denied.contains(site("evil.example").v4), "{denied}");
    }
    if program("ssh", &["-V"]).is_some() {
        for host in ["evil.example", "ml.azure.com", site("evil.example").v4] {
            let options =
                ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "ConnectTimeout=10"];
            let ran = desk.inside().run("ssh", &[&options[..], &[host, "true"]].concat());
            assert_eq!(ran.code, Some(255), "{ran:?}");
        }
    }
    let reached = desk.lab.visits();
    assert!(reached.iter().all(|visit| visit.site == "ml.azure.com"), "{reached:?}");
}

/// By its own DNS client and its own sockets, as the JDK has them.
const JAVA: &str = "
public class Get {
    public static void main(String[] arguments) throws Exception {
        var request = java.net.http.HttpRequest.newBuilder(java.net.URI.create(arguments[0]));
        var version = java.net.http.HttpClient.Version.HTTP_1_1;
        var client = java.net.http.HttpClient.newBuilder().version(version).build();
        var body = java.net.http.HttpResponse.BodyHandlers.ofString();
        var answer = client.send(request.timeout(java.time.Duration.ofSeconds(10)).build(), body);
        System.out.println(answer.body());
        if (answer.statusCode() != 200) System.exit(1);
    }
}
";

#[test]
fn libraries_with_their_own_loops_and_resolvers_are_held_as_well() {
    let Some(desk) = Desk::new() else { return };
    let asyncio = "
import asyncio, ssl, sys
async def get(host):
    reader, writer = await asyncio.open_connection(host, 443, ssl=True)
    writer.write(f'GET /whoami HTTP/1.0\\r\\nHost: {host}\\r\\n\\r\\n'.encode())
    return (await reader.read()).decode()
print(asyncio.run(get(sys.argv[1])))
";
    let python = |host: &str| desk.inside().run("/usr/bin/python3", &["-c", asyncio, host]);
    assert!(python("ml.azure.com").assert_done().stdout.contains("ml.azure.com at "));
    python("evil.example").assert_failed();
    let own = "require('dns').resolve4(process.argv[1], (error, found) => { console.log(error ? error.code : found) })";
    let node = |host: &str| desk.inside().run("node", &["-e", own, host]).assert_done().stdout;
    assert!(node("ml.azure.com").contains(site("ml.azure.com").v4));
    assert!(node("evil.example").contains("ENOTFOUND"));
}

#[test]
fn a_hundred_fetches_at_once_all_come_back() {
    let Some(desk) = Desk::new() else { return };
    let line = "for i in $(seq 100); do curl -sS --max-time 20 http://ml.azure.com/whoami & done; wait";
    let said = desk.sh(line).assert_done().stdout;
    assert_eq!(said.matches("ml.azure.com at ").count(), 100, "{said}");
}

#[test]
fn any_resolver_that_is_asked_is_ours() {
    let Some(desk) = Desk::new() else { return };
    for server in ["@8.8.8.8", "@1.2.3.4", "@127.0.0.53", "@2620:fe::9"] {
        for how in ["+notcp", "+tcp"] {
            let allowed = desk.inside().dig(&[server, how, "+short", "ml.azure.com"]).assert_done();
            assert_eq!(allowed.stdout.trim(), site("ml.azure.com").v4, "{server} {how}");
            let denied = desk.inside().dig(&[server, how, "evil.example"]).assert_done();
            assert!(denied.stdout.contains("NXDOMAIN"), "{server} {how}: {}", denied.stdout);
        }
    }
    let asked = desk.lab.asked();
    assert!(asked.iter().all(|(_, name)| name == "ml.azure.com"), "{asked:?}");
}

#[test]
fn a_port_beside_the_webs_is_open_to_the_name_that_its_rule_says() {
    let Some(desk) = Desk::new() else { return };
    let database = site("db.partner.example");
    let talk = "
import socket, sys
stream = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)
print(stream.recv(100).decode())
";
    let connect = |host: &str, port: &str| desk.inside().run("/usr/bin/python3", &["-c", talk, host, port]);
    assert!(connect(database.name, "5432").assert_done().stdout.contains(database.v4));
    assert!(!connect(database.name, "4444").stdout.contains(database.v4));
    // By its address alone nobody was told of it.
    assert!(!connect(database.v4, "5432").stdout.contains(database.v4));
}

#[test]
fn what_is_not_tcp_is_refused_at_once() {
    let Some(desk) = Desk::new() else { return };
    desk.inside().ping(site("ml.azure.com").v4).assert_failed();
    let datagram = "
import socket, sys
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.settimeout(5)
try:
    datagrams.connect((sys.argv[1], int(sys.argv[2])))
    datagrams.send(b'a')
    print('answered', datagrams.recv(10))
except TimeoutError:
    print('silence')
except OSError as error:
    print('refused', error)
";
    for port in ["123", "443", "5831"] {
        let ran = desk.inside().run("/usr/bin/python3", &["-c", datagram, site("ml.azure.com").v4, port]);
        let said = ran.assert_done().stdout;
        assert!(said.starts_with("refused"), "{port}: {said}");
    }
}

#[test]
fn the_sandboxs_loopback_is_the_commands_own() {
    let Some(desk) = Desk::new() else { return };
    let line = "python3 -m http.server 8000 --bind 127.0.0.1 >/dev/null 2>&1 & \
                for i in $(seq 100); do curl -sf http://127.0.0.1:8000/ >/dev/null && echo served && break; \
                sleep 0.05; done; kill $!";
    assert!(desk.sh(line).assert_done().stdout.contains("served"));
}
