//! The clients that people use, through the gate: what works, and what a denial looks like to them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use outgate_tests::origin::{Reply, Request, http, page, tls, websocket};
use outgate_tests::policy::{NOTHING, allow, allow_one};
use outgate_tests::program::{finish, program, through, words};
use outgate_tests::{Gate, Origin, World};

/// A world with the page `welcome` at https://page.example/ and http://page.example/.
struct Pages {
    world: World,
    _origins: [Origin; 2],
    gate: Gate,
}

fn pages() -> Pages {
    let world = World::new();
    let origins = [world.https("page.example", page("welcome")), world.http("page.example", page("welcome"))];
    let gate = world.gate(allow_one("page.example", &[80, 443])).start();
    Pages { world, _origins: origins, gate }
}

impl Pages {
    /// Runs a client through the gate to its end.
    fn run(&self, command: &mut Command) -> (bool, String) {
        let output = finish(through(command, &self.gate, &self.world.authority));
        (output.status.success(), words(&output))
    }

    /// Runs a script for each of the pages, which must print `welcome`, and for a denied one, which must fail
    /// with the gate's reason in sight.
    fn assert_served_and_denied(&self, client: &dyn Fn(&str) -> Command) {
        for url in ["https://page.example/", "http://page.example/"] {
            let (passed, said) = self.run(&mut client(url));
            assert!(passed && said.contains("welcome"), "{url}: {said}");
        }
        let (passed, said) = self.run(&mut client("https://evil.example/"));
        assert!(!passed && (said.contains("403") || said.contains("no rule allows it")), "{said}");
        assert_eq!(self.gate.decision("evil.example")["reason"], "no-rule");
        assert!(!self.world.dns.asked().iter().any(|name| name.contains("evil")));
    }
}

#[test]
fn curl() {
    let Some(curl) = program("curl", &["--version"]) else { return };
    pages().assert_served_and_denied(&|url| {
        let mut command = curl.command();
        command.args(["-sSf", url]);
        command
    });
}

#[test]
fn curl_shows_the_reason_of_a_denial() {
    let Some(curl) = program("curl", &["--version"]) else { return };
    let (_, said) = pages().run(curl.command().args(["-sS", "-v", "https://evil.example/"]));
    assert!(said.contains("no rule allows it"), "{said}");

    let (_, said) = pages().run(curl.command().args(["-sS", "http://evil.example/"]));
    assert!(said.contains("evil.example") && said.contains("no rule allows it"), "{said}");
}

#[test]
fn curl_with_a_trailing_dot_and_capitals_gets_the_same_verdict() {
    let Some(curl) = program("curl", &["--version"]) else { return };
    let pages = pages();
    let (passed, said) = pages.run(curl.command().args(["-sSf", "https://PAGE.example/"]));
    assert!(passed && said.contains("welcome"), "{said}");
    let (passed, said) = pages.run(curl.command().args(["-sSf", "http://page.example./"]));
    assert!(passed && said.contains("welcome"), "{said}");
    let (passed, _) = pages.run(curl.command().args(["-sSf", "https://EVIL.example./"]));
    assert!(!passed);
}

#[test]
fn curl_reuses_its_connections() {
    let Some(curl) = program("curl", &["--version"]) else { return };
    let pages = pages();
    let urls = ["http://page.example/1", "http://page.example/2", "http://page.example/3"];

    let (passed, said) = pages.run(curl.command().arg("-sSf").args(urls));

    assert!(passed && said.matches("welcome").count() == 3, "{said}");
    let decisions = pages.gate.records_until(3, |r| r["event"] == "decision");
    assert!(decisions.iter().all(|r| r["session"] == decisions[0]["session"]), "{decisions:?}");
}

#[test]
fn wget() {
    let Some(wget) = program("wget", &["--version"]) else { return };
    let pages = pages();
    let authority = pages.world.authority.pem_file();
    pages.assert_served_and_denied(&|url| {
        let mut command = wget.command();
        command.args(["-O", "-", "--tries=1", "--ca-certificate"]).arg(&authority).arg(url);
        command
    });
}

#[test]
fn python_urllib() {
    let Some(python) = program("python3", &["--version"]) else { return };
    pages().assert_served_and_denied(&|url| {
        let mut command = python.command();
        command.args([
            "-c",
            "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=15).read())",
            url,
        ]);
        command
    });
}

#[test]
fn python_http_client_shows_the_reason_of_a_denial() {
    let Some(python) = program("python3", &["--version"]) else { return };
    let pages = pages();
    let script = "import http.client, sys\n\
        connection = http.client.HTTPSConnection('127.0.0.1', int(sys.argv[1]), timeout=15)\n\
        connection.set_tunnel('evil.example', 443)\n\
        connection.request('GET', '/')\n";

    let (passed, said) =
        pages.run(python.command().args(["-c", script, &pages.gate.proxy().port().to_string()]));

    assert!(!passed && said.contains("no rule allows it"), "{said}");
}

#[test]
fn python_requests() {
    let Some(python) = program("python3", &["-c", "import requests"]) else { return };
    pages().assert_served_and_denied(&|url| {
        let mut command = python.command();
        command.args(["-c", "import sys, requests; r = requests.get(sys.argv[1], timeout=15); r.raise_for_status(); print(r.text)", url]);
        command
    });
}

#[test]
fn node_by_connect() {
    let Some(node) = program("node", &["--version"]) else { return };
    let pages = pages();
    let proxy = pages.gate.proxy();
    let (host, port) = (proxy.ip().to_string(), proxy.port().to_string());
    let run = |target: &str| pages.run(node.command().args(["-e", NODE_CONNECT, &host, &port, target]));

    let (passed, said) = run("page.example");
    assert!(passed && said.contains("welcome"), "{said}");
    let (passed, said) = run("evil.example");
    assert!(!passed && said.contains("403") && said.contains("no rule allows it"), "{said}");
}

const NODE_CONNECT: &str = r"
const [host, port, target] = process.argv.slice(1);
const http = require('http'), https = require('https');
http.request({host, port, method: 'CONNECT', path: target + ':443', headers: {host: target + ':443'}}).on('connect', (response, socket) => {
  if (response.statusCode !== 200) {
    console.error(response.statusCode, response.statusMessage);
    process.exit(1);
  }
  https.get({socket, agent: false, servername: target, headers: {host: target}, path: '/'}, (page) => {
    page.pipe(process.stdout);
    page.on('end', () => process.exit(0));
  });
}).on('error', (error) => { console.error(error); process.exit(1); }).end();
";

/// It offers HTTP/2 with every plain request, which goes on without the offer.
#[test]
fn java_http_client() {
    let Some(java) = program("java", &["--describe-module", "jdk.compiler"]) else { return };
    let pages = pages();
    let source = pages.gate.folder().join("Ask.java");
    std::fs::write(&source, JAVA_ASK).unwrap();
    let proxy = pages.gate.proxy();
    let (host, port) = (proxy.ip().to_string(), proxy.port().to_string());
    let run = |url: &str| pages.run(java.command().arg(&source).args([&host, &port, url]));

    let (passed, said) = run("http://page.example/");
    assert!(passed && said.contains("200 welcome"), "{said}");
    let (passed, said) = run("http://evil.example/");
    assert!(passed && said.contains("403 ") && said.contains("no rule allows it"), "{said}");
}

const JAVA_ASK: &str = r#"
import java.net.*;
import java.net.http.*;

public class Ask {
    public static void main(String[] arguments) throws Exception {
        var proxy = new InetSocketAddress(arguments[0], Integer.parseInt(arguments[1]));
        var client = HttpClient.newBuilder().proxy(ProxySelector.of(proxy)).build();
        var request = HttpRequest.newBuilder(URI.create(arguments[2])).build();
        var response = client.send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(response.statusCode() + " " + response.body());
    }
}
"#;

#[test]
fn python_websockets() {
    let Some(python) = program("python3", &["-c", "import websockets"]) else { return };
    let world = World::new();
    let _plain = world.http("ws.example", websocket());
    let _secure = world.https("ws.example", websocket());
    let gate = world.gate(allow_one("ws.example", &[80, 443])).start();
    let script = "import asyncio, socket, sys, websockets\n\
        url, port, proxy = sys.argv[1], sys.argv[2], int(sys.argv[3])\n\
        tunnel = socket.create_connection(('127.0.0.1', proxy))\n\
        tunnel.sendall(f'CONNECT ws.example:{port} HTTP/1.1\\r\\nHost: ws.example:{port}\\r\\n\\r\\n'.encode())\n\
        head = b''\n\
        while not head.endswith(b'\\r\\n\\r\\n'): head += tunnel.recv(1)\n\
        assert b' 200 ' in head, head\n\
        extra = {'server_hostname': 'ws.example'} if port == '443' else {}\n\
        async def main():\n\
        \x20   async with websockets.connect(url, sock=tunnel, **extra) as ws:\n\
        \x20       await ws.send('hello'); print(await ws.recv())\n\
        asyncio.run(main())\n";

    for (url, port) in [("ws://ws.example/", "80"), ("wss://ws.example/", "443")] {
        let mut command = python.command();
        command.args(["-c", script, url, port, &gate.proxy().port().to_string()]);
        let output = finish(command.env("SSL_CERT_FILE", world.authority.pem_file()).env("no_proxy", "*"));
        assert!(output.status.success() && words(&output).contains("hello"), "{url}: {}", words(&output));
    }
}

/// A wheel with one module, as pip wants it.
const MAKE_WHEEL: &str = r"
import sys, zipfile
info = 'outgate_probe-1.0.dist-info/'
with zipfile.ZipFile(sys.argv[1] + '/outgate_probe-1.0-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('outgate_probe.py', 'greeting = \'installed through the gate\'\n')
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\nName: outgate-probe\nVersion: 1.0\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
    wheel.writestr(info + 'RECORD', ''.join(f'{name},,\n' for name in
        ['outgate_probe.py', info + 'METADATA', info + 'WHEEL', info + 'RECORD']))
";

/// An index and a file host, as pypi.org and files.pythonhosted.org are.
fn package_index(world: &World, wheel: Vec<u8>) -> [Origin; 2] {
    let link = "<a href=\"https://files.example/outgate_probe-1.0-py3-none-any.whl\">outgate_probe-1.0-py3-none-any.whl</a>";
    let index = http(move |request| match request.target.as_str() {
        "/simple/outgate-probe/" => Reply::html(link),
        _ => Reply::status(404),
    });
    let files = http(move |_| Reply { body: wheel.clone(), ..Reply::text("") });
    [world.https("index.example", index), world.https("files.example", files)]
}

#[test]
fn pip_installs_a_wheel() {
    let Some(python) = program("python3", &["-m", "pip", "--version"]) else { return };
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    assert!(python.command().args(["-c", MAKE_WHEEL]).arg(folder.path()).status().unwrap().success());
    let wheel = std::fs::read(folder.path().join("outgate_probe-1.0-py3-none-any.whl")).unwrap();
    let _origins = package_index(&world, wheel);
    let gate = world.gate(allow(&[("index.example", &[443]), ("files.example", &[443])])).start();

    let output = pip(python.command(), &world, &gate, folder.path());

    assert!(output.status.success(), "{}", words(&output));
    let module = std::fs::read_to_string(folder.path().join("site/outgate_probe.py")).unwrap();
    assert!(module.contains("installed through the gate"));
}

#[test]
fn pip_fails_at_once_with_the_reason() {
    let Some(python) = program("python3", &["-m", "pip", "--version"]) else { return };
    let world = World::new();
    let gate = world.gate(NOTHING).start();
    let folder = tempfile::tempdir().unwrap();

    let output = pip(python.command(), &world, &gate, folder.path());

    assert!(!output.status.success());
    assert!(words(&output).contains("no rule allows it"), "{}", words(&output));
    assert_eq!(world.dns.packets(), 0);
}

fn pip(mut pip: Command, world: &World, gate: &Gate, folder: &Path) -> std::process::Output {
    pip.args([
        "-m",
        "pip",
        "install",
        "--isolated",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--no-deps",
        "--retries=1",
    ]);
    pip.args(["--index-url", "https://index.example/simple/", "--target"])
        .arg(folder.join("site"))
        .arg("outgate-probe");
    pip.args(["--cert"]).arg(world.authority.pem_file()).args(["--proxy", &gate.proxy_url()]);
    finish(through(pip.env("HOME", folder).env_remove("PIP_CONFIG_FILE"), gate, &world.authority))
}

/// Serves a folder of repositories by `git http-backend` (CGI, RFC 3875).
fn git_backend(root: &Path, request: &Request) -> Reply {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let mut backend = Command::new("git");
    backend
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "me");
    backend.env("PATH_INFO", path).env("QUERY_STRING", query).env("REQUEST_METHOD", &request.method);
    backend.env("CONTENT_TYPE", request.field("content-type").unwrap_or_default());
    backend.env("CONTENT_LENGTH", request.body.len().to_string());
    if let Some(encoding) = request.field("content-encoding") {
        backend.env("HTTP_CONTENT_ENCODING", encoding);
    }
    if let Some(protocol) = request.field("git-protocol") {
        backend.env("GIT_PROTOCOL", protocol);
    }
    let mut child = backend.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let body = request.body.clone();
    std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &body));
    cgi_reply(&child.wait_with_output().unwrap().stdout)
}

fn cgi_reply(output: &[u8]) -> Reply {
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&output[..end]).into_owned();
    let status =
        head.lines().find_map(|line| line.strip_prefix("Status: ")?.get(..3)?.parse().ok()).unwrap_or(200);
    let fields =
        head.lines().filter(|line| !line.starts_with("Status:")).map(|line| format!("{line}\r\n")).collect();
    Reply { status, fields, body: output[end + 4..].to_vec() }
}

#[test]
fn git_clones_and_pushes_over_https() {
    if program("git", &["--version"]).is_none()
        || program("sh", &["-c", "test -x \"$(git --exec-path)/git-http-backend\""]).is_none()
    {
        return;
    }
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let root: Arc<Path> = folder.path().join("served").into();
    let git = |directory: &Path, arguments: &[&str]| {
        let mut git = Command::new("git");
        git.current_dir(directory)
            .args(["-c", "user.name=me", "-c", "user.email=me@example.org"])
            .args(arguments);
        git.env("HOME", directory).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
        git
    };
    std::fs::create_dir(&root).unwrap();
    assert!(git(&root, &["init", "--quiet", "--bare", "repo.git"]).status().unwrap().success());
    assert!(git(&root.join("repo.git"), &["config", "http.receivepack", "true"]).status().unwrap().success());
    let served = Arc::clone(&root);
    let _origin = world.https("git.example", http(move |request| git_backend(&served, request)));
    let gate = world.gate(allow_one("git.example", &[443])).start();
    let through_gate = |directory: &Path, arguments: &[&str]| {
        let output = finish(through(&mut git(directory, arguments), &gate, &world.authority));
        (output.status.success(), words(&output))
    };

    let (cloned, said) = through_gate(folder.path(), &["clone", "https://git.example/repo.git", "work"]);
    assert!(cloned, "{said}");
    let work = folder.path().join("work");
    std::fs::write(work.join("large.txt"), "some content\n".repeat(100_000)).unwrap();
    assert!(git(&work, &["add", "."]).status().unwrap().success());
    assert!(git(&work, &["commit", "--quiet", "-m", "first"]).status().unwrap().success());
    let (pushed, said) = through_gate(&work, &["push", "origin", "HEAD:refs/heads/main"]);
    assert!(pushed, "{said}");
    let (cloned, said) =
        through_gate(folder.path(), &["clone", "--branch", "main", "https://git.example/repo.git", "again"]);
    assert!(cloned, "{said}");
    assert_eq!(std::fs::metadata(folder.path().join("again/large.txt")).unwrap().len(), 1_300_000);

    let (cloned, said) = through_gate(folder.path(), &["clone", "https://evil.example/repo.git", "stolen"]);
    assert!(!cloned && said.contains("403"), "{said}");
}

#[test]
fn tls_1_2_and_1_3_clients_pass() {
    let Some(curl) = program("curl", &["--version"]) else { return };
    let pages = pages();
    for version in [["--tls-max", "1.2"], ["--tls-max", "1.3"]] {
        let (passed, said) = pages.run(curl.command().arg("-sSf").args(version).arg("https://page.example/"));
        assert!(passed && said.contains("welcome"), "{version:?}: {said}");
    }
}

#[test]
fn a_download_of_some_size_arrives_whole() {
    let Some(curl) = program("curl", &["--version"]) else { return };
    let world = World::new();
    let body: Vec<u8> = (0..20_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let served = body.clone();
    let inner = http(move |_| Reply { body: served.clone(), ..Reply::text("") });
    let _origin = world.origin("big.example", 443, tls(world.authority.server("big.example"), inner));
    let gate = world.gate(allow_one("big.example", &[443])).start();

    let output =
        finish(through(curl.command().args(["-sSf", "https://big.example/"]), &gate, &world.authority));

    assert!(output.status.success() && output.stdout == body, "{}", output.stdout.len());
}
