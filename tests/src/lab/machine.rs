//! What a machine of the lab does: programs as people run them, without a proxy's name anywhere.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use super::{Lab, Place};
use crate::program::{finish, program};

/// A machine in the lab.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    pub(super) lab: &'a Lab,
    pub(super) place: Place,
    /// A program that runs the others, with its arguments.
    runner: &'a [String],
}

/// How a program's run ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Whether it said that it had done what it was to do.
    pub done: bool,
    /// Its exit status; none if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Ran {
    pub(super) fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        Self { done: output.status.success(), code: output.status.code(), stdout, stderr }
    }

    /// Itself, if it succeeded.
    ///
    /// # Panics
    /// With what it said, if it failed.
    #[track_caller]
    #[expect(clippy::must_use_candidate, reason = "asserting may be all that is wanted")]
    pub fn assert_done(self) -> Self {
        assert!(self.done, "it failed: {self:#?}");
        self
    }

    /// Itself, if it failed.
    ///
    /// # Panics
    /// With what it said, if it succeeded.
    #[track_caller]
    #[expect(clippy::must_use_candidate, reason = "asserting may be all that is wanted")]
    pub fn assert_failed(self) -> Self {
        assert!(!self.done, "it succeeded: {self:#?}");
        self
    }

    /// Both of what it printed and what it complained of.
    #[must_use]
    pub fn words(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl<'a> Machine<'a> {
    pub(super) fn at(lab: &'a Lab, place: Place) -> Self {
        Self { lab, place, runner: &[] }
    }

    /// A program's run, not yet started.
    #[must_use]
    pub fn command(&self, name: &str) -> Command {
        let Some((runner, arguments)) = self.runner.split_first() else {
            return self.lab.command(self.place, name);
        };
        let mut command = self.lab.command(self.place, runner);
        command.args(arguments).arg(name);
        command
    }

    /// The same machine, where every program is run by another: `runner` with its arguments.
    #[must_use]
    pub fn through(self, runner: &'a [String]) -> Self {
        Self { runner, ..self }
    }

    /// Runs a program to its end.
    #[must_use]
    pub fn run(&self, name: &str, arguments: &[&str]) -> Ran {
        Ran::of(&finish(self.command(name).args(arguments)))
    }

    /// Runs a line of shell, which must succeed.
    ///
    /// # Panics
    /// If it fails.
    pub fn shell(&self, line: &str) -> String {
        self.run("sh", &["-c", line]).assert_done().stdout
    }

    /// Applies a ruleset of the `nft` program, which must be accepted whole.
    pub fn nft(&self, ruleset: &str) {
        let file = tempfile::NamedTempFile::new_in(self.lab.folder()).unwrap();
        super::write(file.path().to_owned(), ruleset);
        self.run("nft", &["--file", &file.path().display().to_string()]).assert_done();
    }

    // Clients.

    /// curl, which fails for anything but success, and gives up after ten seconds.
    #[must_use]
    pub fn curl(&self, arguments: &[&str]) -> Ran {
        self.run("curl", &[&["-sSf", "--max-time", "10"], arguments].concat())
    }

    /// wget to its standard output, which tries once.
    #[must_use]
    pub fn wget(&self, url: &str) -> Ran {
        self.run("wget", &["-nv", "--tries=1", "--timeout=10", "-O", "-", url])
    }

    /// `pip install` of a project into a folder of its own; none where there is no pip.
    #[must_use]
    pub fn pip_install(&self, project: &str) -> Option<Ran> {
        let python = program("python3", &["-m", "pip", "--version"])?;
        let target = self.fresh("pip");
        let target = target.display().to_string();
        let python = python.command().get_program().display().to_string();
        let options = ["-m", "pip", "install", "--no-cache-dir", "--disable-pip-version-check"];
        let patience = ["--retries", "0", "--timeout", "5", "--target", &target, project];
        Some(self.run(&python, &[&options[..], &patience].concat()))
    }

    /// `apt-get update` from deb.debian.org, then `apt-get download` of a package; none where there is no apt.
    #[must_use]
    pub fn apt_download(&self, package: &str) -> Option<Ran> {
        program("apt-get", &["--version"])?;
        let folder = self.fresh("apt");
        for name in ["etc/apt", "state/lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        super::write(folder.join("status"), "");
        super::write(
            folder.join("etc/apt/sources.list"),
            "deb [trusted=yes] http://deb.debian.org/debian stable main\n",
        );
        let path = folder.display();
        // Another user for downloads is not to be had in a user namespace with one user.
        let config = format!(
            "Dir \"{path}\"; Dir::Etc \"etc/apt\"; Dir::State \"state\"; Dir::State::status \"{path}/status\";
             Dir::Cache \"cache\"; Dir::Bin::methods \"/usr/lib/apt/methods\"; APT::Sandbox::User \"root\";
             Acquire::Languages \"none\"; Acquire::Retries \"0\"; Acquire::http::Timeout \"5\";\n"
        );
        super::write(folder.join("apt.conf"), config);
        let line =
            format!("cd {path} && apt-get --error-on=any -qq update && apt-get -qq download {package} && ls");
        let mut command = self.command("sh");
        command.args(["-c", &line]).env("APT_CONFIG", folder.join("apt.conf"));
        Some(Ran::of(&finish(&mut command)))
    }

    /// `git clone`, which prints the clone's README; none where there is no git.
    #[must_use]
    pub fn git_clone(&self, url: &str) -> Option<Ran> {
        program("git", &["--version"])?;
        let folder = self.fresh("git").display().to_string();
        let mut command = self.command("sh");
        command.args(["-c", &format!("git clone --quiet {url} {folder} && cat {folder}/README")]);
        command.env("GIT_TERMINAL_PROMPT", "0").env("GIT_CONFIG_NOSYSTEM", "1");
        Some(Ran::of(&finish(&mut command)))
    }

    /// Pulls an image with skopeo into a folder, whose files it prints; none where there is no skopeo.
    #[must_use]
    pub fn pull(&self, image: &str) -> Option<Ran> {
        program("skopeo", &["--version"])?;
        let folder = self.fresh("image").display().to_string();
        let options = self.lab.skopeo_options().join(" ");
        let line = format!("skopeo {options} copy --quiet docker://{image} dir:{folder} && ls {folder}");
        Some(self.run("sh", &["-c", &line]))
    }

    /// A page's text by Python's own HTTP client.
    #[must_use]
    pub fn python(&self, url: &str) -> Ran {
        let script =
            "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=10).read().decode())";
        self.run("python3", &["-c", script, url])
    }

    /// A page's text by Node's `fetch`; none where there is no Node.
    #[must_use]
    pub fn node(&self, url: &str) -> Option<Ran> {
        program("node", &["--version"])?;
        let script = "fetch(process.argv[1]).then(async r => { console.log(await r.text()); process.exit(0) }, \
                      e => { console.error(e, e.cause); process.exit(1) })";
        Some(self.run("node", &["-e", script, url]))
    }

    /// A page's text by headless Chromium, whose error page is a text too; none where there is no Chromium.
    #[must_use]
    pub fn chromium(&self, url: &str) -> Option<Ran> {
        let chromium = program("chromium", &["--version"])?;
        program("sh", &["-c", "command -v certutil"])?;
        let home = self.fresh("chromium").display().to_string();
        self.shell(&format!(
            "mkdir -p {home}/.pki/nssdb && certutil -d sql:{home}/.pki/nssdb -N --empty-password && \
             certutil -d sql:{home}/.pki/nssdb -A -t C,, -n lab -i /etc/ssl/certs/ca-certificates.crt"
        ));
        let mut command = self.command(&chromium.command().get_program().display().to_string());
        // Its own sandbox wants more namespaces than root of one has to give.
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--timeout=8000",
        ]);
        command.arg(format!("--user-data-dir={home}/profile")).args(["--dump-dom", url]).env("HOME", home);
        Some(Ran::of(&finish(&mut command)))
    }

    /// A TLS handshake by OpenSSL with an address, saying `name` or nothing as the server's name.
    #[must_use]
    pub fn s_client(&self, address: &str, name: Option<&str>) -> Ran {
        let address =
            if address.contains(':') { format!("[{address}]:443") } else { format!("{address}:443") };
        let named = match name {
            Some(name) => vec!["-servername", name, "-verify_hostname", name],
            None => vec!["-noservername"],
        };
        self.run(
            "timeout",
            &[&["10", "openssl", "s_client", "-connect", &address, "-verify_return_error"], &named[..]]
                .concat(),
        )
    }

    /// dig, in the short form, asking once.
    #[must_use]
    pub fn dig(&self, arguments: &[&str]) -> Ran {
        self.run("dig", &[&["+tries=1", "+time=3"], arguments].concat())
    }

    /// One ICMP echo request.
    #[must_use]
    pub fn ping(&self, address: &str) -> Ran {
        self.run("ping", &["-n", "-c", "1", "-W", "2", address])
    }

    /// A folder that nobody has used.
    fn fresh(&self, name: &str) -> PathBuf {
        tempfile::Builder::new().prefix(name).tempdir_in(self.lab.folder()).unwrap().keep()
    }

    /// Starts a program that goes on by itself, with its output in a file of the lab's folder: the file.
    #[must_use]
    pub fn background(&self, name: &str, arguments: &[&str]) -> (std::process::Child, PathBuf) {
        let file = self.fresh("background").join("output");
        let output = std::fs::File::create(&file).unwrap();
        let mut command = self.command(name);
        command.args(arguments).stdin(Stdio::piped()).stdout(output.try_clone().unwrap()).stderr(output);
        (command.spawn().unwrap(), file)
    }
}
