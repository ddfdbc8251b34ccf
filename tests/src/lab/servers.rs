//! The servers of the lab's internet.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::sites::{LIED_ABOUT, METADATA, RESOLVERS, SITES, Site};
use super::{Lab, Place, RESOLVER, Ran, write};
use crate::program::{finish, program};
use crate::wait_until;

pub(super) const SERVICES: &str = include_str!("services.py");
const CONTENT: &str = include_str!("content.py");

/// A request that a site has answered, as its web server noted it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Visit {
    /// Whose server it was.
    pub site: String,
    /// The address that was dialled.
    pub address: String,
    /// Who dialled it.
    pub client: String,
    /// The name in the ClientHello; empty without TLS or without a name.
    pub sni: String,
    /// The Host field.
    pub host: String,
    /// The request line.
    pub request: String,
}

impl Visit {
    fn of(line: &Value) -> Self {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        Self {
            site: text("site"),
            address: text("address"),
            client: text("client"),
            sni: text("sni"),
            host: text("host"),
            request: text("request"),
        }
    }
}

impl Lab {
    /// The requests that sites have answered so far, in order.
    #[must_use]
    pub fn visits(&self) -> Vec<Visit> {
        let text = std::fs::read_to_string(self.folder().join("nginx/visits.jsonl")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| Visit::of(&serde_json::from_str(line).unwrap())).collect()
    }

    /// The names that the lab's resolvers were asked for so far, each with the asking address.
    #[must_use]
    pub fn asked(&self) -> Vec<(String, String)> {
        let log = std::fs::read_to_string(self.folder().join("run/queries.log")).unwrap_or_default();
        let queries = log.lines().filter_map(|line| {
            // [time] unbound[pid:thread] info: ADDRESS NAME TYPE CLASS
            let (_, query) = line.split_once(" info: ")?;
            let mut words = query.split(' ');
            let (client, name) = (words.next()?, words.next()?);
            client.parse::<std::net::IpAddr>().ok()?;
            Some((client.to_owned(), name.trim_end_matches('.').to_owned()))
        });
        queries.collect()
    }

    /// Lets pypi.org and files.pythonhosted.org offer the project `tiny`.
    pub fn offer_python_project(&self) {
        self.make("wheel", &self.folder().join("www"));
    }

    /// Lets deb.debian.org offer the package `tiny`, unsigned. None where this machine has no `dpkg-deb`.
    #[must_use]
    pub fn offer_debian_package(&self) -> Option<()> {
        program("dpkg-deb", &["--version"])?;
        self.make("archive", &self.folder().join("www/deb.debian.org"));
        Some(())
    }

    /// Lets github.com serve the repository `lab/tiny.git`. None where git's server or `fcgiwrap` is missing.
    #[must_use]
    pub fn offer_git_repository(&self) -> Option<()> {
        program("git", &["--version"])?;
        program("test", &["-x", &git_backend()])?;
        program("fcgiwrap", &["-h"])?;
        let socket = self.folder().join("run/git.sock");
        self.serve("fcgiwrap", &["-s", &format!("unix:{}", socket.display())]);
        let root = self.folder().join("www/github.com/lab");
        std::fs::create_dir_all(&root).unwrap();
        let script =
            "git init --quiet --initial-branch main work && cd work && echo welcome >README && git add README
            git -c user.name=lab -c user.email=lab@example.org commit --quiet --message first
            git clone --quiet --bare . ../tiny.git && cd .. && rm -r work";
        self.machine(Place::Internet).shell(&format!("set -e; cd {}; {script}", root.display()));
        wait_until("git's server", || socket.exists());
        Some(())
    }

    /// Lets mcr.microsoft.com serve the image `azureml/tiny:1`. None where `docker-registry` or `skopeo` is
    /// missing.
    #[must_use]
    pub fn offer_image(&self) -> Option<()> {
        program("docker-registry", &["--version"])?;
        program("skopeo", &["--version"])?;
        let folder = self.folder().join("registry");
        std::fs::create_dir(&folder).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \
             '127.0.0.1:5000', secret: lab}}\n",
            folder.display()
        );
        write(folder.join("config.yml"), config);
        let server =
            self.serve("docker-registry", &["serve", &folder.join("config.yml").display().to_string()]);
        self.wait_for(server, 5000);
        let image = self.folder().join("image");
        self.make("image", &image);
        let source = format!("oci:{}:1", image.display());
        let target = "docker://mcr.microsoft.com/azureml/tiny:1";
        let [policy, registries] = self.skopeo_options();
        let arguments = [&policy, &registries, "copy", "--quiet", &source, target];
        self.machine(Place::Internet).run("skopeo", &arguments).assert_done();
        Some(())
    }

    pub(super) fn start_servers(&self) {
        write(self.folder().join("nginx/nginx.conf"), self.nginx_config());
        write(self.folder().join("unbound.conf"), self.unbound_config());
        let folder = self.folder().display();
        let nginx = self.serve("nginx", &["-c", &format!("{folder}/nginx/nginx.conf"), "-e", "stderr"]);
        let unbound = self.serve("unbound", &["-d", "-c", &format!("{folder}/unbound.conf")]);
        let echo: Vec<String> = std::iter::once(format!("{folder}/services.py"))
            .chain(SITES.iter().flat_map(|site| [site.v4.to_owned(), site.v6.to_owned()]))
            .collect();
        let echo = self.serve("python3", &echo.iter().map(String::as_str).collect::<Vec<_>>());
        for (server, port) in [(nginx, 80), (unbound, 853), (echo, 5432)] {
            self.wait_for(server, port);
        }
    }

    fn wait_for(&self, server: u32, port: u16) {
        wait_until(&format!("a server of the lab on port {port}"), || {
            let mut servers = self.servers.lock().unwrap();
            let child = servers.iter_mut().find(|child| child.id() == server).unwrap();
            assert!(child.try_wait().unwrap().is_none(), "a server ended: {}", self.server_logs());
            listens(server, port)
        });
    }

    /// Starts a server on the internet: the process that waits for it.
    fn serve(&self, name: &str, arguments: &[&str]) -> u32 {
        let log = std::fs::File::create(self.folder().join(format!("run/{name}.log"))).unwrap();
        let mut command = self.command(Place::Internet, name);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let server = command.spawn().unwrap();
        let id = server.id();
        self.servers.lock().unwrap().push(server);
        id
    }

    /// What servers and the network's making have said.
    pub(super) fn server_logs(&self) -> String {
        let logs = std::fs::read_dir(self.folder().join("run")).unwrap().map(|entry| entry.unwrap().path());
        let mut all = String::new();
        for path in logs.filter(|path| path.extension().is_some_and(|kind| kind == "log")) {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let last: Vec<&str> = text.lines().rev().take(20).collect();
            for line in last.iter().rev() {
                writeln!(all, "{}: {line}", path.file_name().unwrap().display()).unwrap();
            }
        }
        all
    }

    fn make(&self, what: &str, folder: &Path) {
        let output = finish(Command::new("python3").args(["-c", CONTENT, what]).arg(folder));
        Ran::of(&output).assert_done();
    }

    fn nginx_config(&self) -> String {
        let folder = self.folder().display();
        let mut servers = String::new();
        for site in &SITES {
            let (certificate, key) = self.authority().server_pem(site.name);
            write(self.folder().join(format!("tls/{}.pem", site.name)), certificate);
            write(self.folder().join(format!("tls/{}.key", site.name)), key);
            drop(std::fs::create_dir_all(self.folder().join("www").join(site.name)));
            servers.push_str(&nginx_site(site, self.folder()));
        }
        for address in METADATA {
            writeln!(
                servers,
                "server {{ listen {address}:80; server_name {address}; return 200 metadata; }}"
            )
            .unwrap();
        }
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {folder}/nginx/{kind};\n"))
            .concat();
        let visit = r#"{"site":"$server_name","address":"$server_addr","client":"$remote_addr","sni":"$ssl_server_name","host":"$http_host","request":"$request"}"#;
        // One process, so that nobody has to become another user, which a user namespace forbids.
        format!(
            "daemon off; master_process off; user root root; pid {folder}/nginx/pid; error_log stderr;
             events {{ worker_connections 8192; }} worker_rlimit_nofile 8192;
             http {{
               {temporary} log_format visit escape=json '{visit}'; access_log {folder}/nginx/visits.jsonl visit;
               default_type text/plain; keepalive_requests 1000000; client_max_body_size 0;
               {servers}
             }}\n"
        )
    }

    fn unbound_config(&self) -> String {
        let folder = self.folder().display();
        let (certificate, key) = self.authority().server_pem("dns.google");
        write(self.folder().join("tls/resolver.pem"), certificate);
        write(self.folder().join("tls/resolver.key"), key);
        let mut interfaces = format!("interface: {RESOLVER}\ninterface: fd00::1\ninterface: 10.0.1.1\n");
        for address in RESOLVERS.iter().flat_map(|site| [site.v4, site.v6]) {
            for port in [53, 853, 443] {
                writeln!(interfaces, "interface: {address}@{port}").unwrap();
            }
        }
        let mut names = String::new();
        for Site { name, v4, v6 } in SITES.iter().chain(&RESOLVERS) {
            writeln!(names, "local-data: \"{name}. 60 A {v4}\"\nlocal-data: \"{name}. 60 AAAA {v6}\"")
                .unwrap();
        }
        for (name, address) in LIED_ABOUT {
            writeln!(names, "local-data: \"{name}. 60 A {address}\"").unwrap();
        }
        format!(
            "server:\n{interfaces}directory: \"\"\nchroot: \"\"\nusername: \"\"\npidfile: \"\"\nuse-syslog: no\n\
             logfile: \"{folder}/run/queries.log\"\nlog-queries: yes\nverbosity: 0\ndo-daemonize: no\n\
             module-config: \"iterator\"\naccess-control: 0.0.0.0/0 allow\naccess-control: ::/0 allow\n\
             tls-service-pem: \"{folder}/tls/resolver.pem\"\ntls-service-key: \"{folder}/tls/resolver.key\"\n\
             so-reuseport: no\nminimal-responses: yes\n\
             local-zone: \".\" static\nlocal-data: \". 60 SOA lab. lab. 1 3600 600 86400 60\"\n{names}\
             remote-control:\ncontrol-enable: no\n"
        )
    }
}

fn nginx_site(site: &Site, folder: &Path) -> String {
    let (Site { name, v4, v6 }, folder) = (site, folder.display());
    let more = match *name {
        "mcr.microsoft.com" => {
            "location /v2/ { proxy_pass http://127.0.0.1:5000; proxy_set_header Host $http_host; \
             proxy_set_header X-Forwarded-Proto https; }"
                .to_owned()
        }
        "github.com" => format!(
            "location ~ \\.git/ {{ include /etc/nginx/fastcgi_params; fastcgi_param SCRIPT_FILENAME {backend}; \
             fastcgi_param GIT_HTTP_EXPORT_ALL 1; fastcgi_param GIT_PROJECT_ROOT {folder}/www/github.com; \
             fastcgi_param PATH_INFO $uri; fastcgi_pass unix:{folder}/run/git.sock; }}",
            backend = git_backend()
        ),
        _ => String::new(),
    };
    format!(
        "server {{ listen {v4}:80; listen [{v6}]:80; listen {v4}:443 ssl; listen [{v6}]:443 ssl; server_name {name};
           ssl_certificate {folder}/tls/{name}.pem; ssl_certificate_key {folder}/tls/{name}.key;
           root {folder}/www/{name};
           location = /whoami {{ return 200 \"{name} at $server_addr for $remote_addr\\n\"; }}
           location / {{ try_files $uri $uri/index.html =404; default_type text/html; }} {more} }}\n"
    )
}

fn git_backend() -> String {
    let output = Command::new("git").arg("--exec-path").output();
    let folder = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    format!("{}/git-http-backend", folder.unwrap_or_default())
}

/// Whether somebody listens on a TCP port in the network of a process, once that is another than ours.
fn listens(process: u32, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let network = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    if network(&process.to_string()) == network("self") {
        return false;
    }
    let table = |name| std::fs::read_to_string(format!("/proc/{process}/net/{name}")).unwrap_or_default();
    let sockets = table("tcp") + &table("tcp6");
    sockets.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, _, state) = (words.next(), words.next(), words.next());
        state == Some(LISTEN) && local.is_some_and(|local| local.ends_with(&format!(":{port:04X}")))
    })
}
