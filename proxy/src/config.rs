//! The gate's own configuration: `outgate.yaml`, read once at start. The policy is what reloads.

mod appliance;
mod dns;
mod listen;

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use outgate_dns::ResolverSettings;
use outgate_rules::document::{
    Diagnostics, Fields, Mistake, Node, Placed, Report, Value, decode, duration, parse, quoted, size,
};

use crate::audit::{AuditSettings, AuditTarget, WhenFull};
use crate::gate::Limits;
use crate::listener::Way;
pub use appliance::{Appliance, Gates};
pub use dns::{DEFAULT_DNS, DnsAnswers, DnsListen, DnsTls};
pub use listen::{Listen, default_clients};

/// Where the proxy listens unless told otherwise.
pub const DEFAULT_PROXY: &str = "127.0.0.1:3128";
/// Where the admin listener listens unless told otherwise.
pub const DEFAULT_ADMIN: &str = "127.0.0.1:9180";
/// The configuration that is read where none is named, if it exists.
pub const DEFAULT_CONFIG: &str = "/etc/outgate/outgate.yaml";

/// Size at which an audit file is rotated.
const ROTATE: u64 = 100_000_000;
/// Full audit files that are kept.
const KEEP: NonZeroU16 = NonZeroU16::new(10).unwrap();

/// What the configuration means, with every default filled in.
#[derive(Clone, Debug)]
pub struct Config {
    /// The explicit proxy.
    pub proxy: Listen,
    /// The listeners for what is redirected to the gate, each for one [`Way`].
    pub transparent: Vec<(Way, Listen)>,
    /// How the kernel redirects and what it decides itself, where the gate stands as a router.
    pub appliance: Option<Appliance>,
    /// Health, metrics and status.
    pub admin: SocketAddr,
    /// The socket of `outgate reload`.
    pub control: PathBuf,
    /// The policy's files and folders; none for the built-in policy.
    pub policy: Vec<PathBuf>,
    /// The DNS listener, unless it is off.
    pub dns: Option<DnsListen>,
    /// How lookups of clients are answered.
    pub answers: DnsAnswers,
    /// Who is asked for names.
    pub resolver: ResolverSettings,
    /// Where records go.
    pub audit: AuditSettings,
    /// Bounds.
    pub limits: Limits,
    /// The configuration's own file, if there is one.
    pub file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        let local = |text: &str| text.parse().unwrap_or_else(|_| SocketAddr::from(([127, 0, 0, 1], 0)));
        Self {
            proxy: Listen { address: local(DEFAULT_PROXY), clients: default_clients() },
            transparent: Vec::new(),
            appliance: None,
            admin: local(DEFAULT_ADMIN),
            control: default_control(),
            policy: Vec::new(),
            dns: Some(DnsListen::default()),
            answers: DnsAnswers::default(),
            resolver: ResolverSettings::default(),
            audit: AuditSettings::new(AuditTarget::Stdout),
            limits: Limits::default(),
            file: None,
        }
    }
}

impl Config {
    /// Reads the configuration in `file`; every default where none is named and the usual one does not exist.
    ///
    /// # Errors
    /// Every mistake in it, or that it cannot be read.
    pub fn read(file: Option<&Path>) -> Result<Self, Diagnostics> {
        let file = match file {
            Some(file) => file.to_owned(),
            None if Path::new(DEFAULT_CONFIG).exists() => PathBuf::from(DEFAULT_CONFIG),
            None => return Ok(Self::default()),
        };
        let mut report = Report::default();
        let config = Self::read_into(&mut report, &file);
        match config {
            Some(config) if !report.has_errors() => Ok(config),
            Some(_) | None => Err(report.into_diagnostics()),
        }
    }

    fn read_into(report: &mut Report, file: &Path) -> Option<Self> {
        let name = file.display().to_string();
        let bytes = match std::fs::read(file) {
            Ok(bytes) => bytes,
            Err(error) => {
                report.file_error(&name, 1, format!("the configuration cannot be read: {error}"));
                return None;
            }
        };
        let text: Arc<str> = match decode(bytes) {
            Ok(text) => text,
            Err(mistake) => {
                report.file_error(&name, mistake.line, mistake.message).hint_if(mistake.hint);
                return None;
            }
        };
        let id = report.add_file(&name, text);
        let root = parse(report, id)?;
        let folder = file.parent().unwrap_or(Path::new("."));
        Some(Self { file: Some(file.to_owned()), ..Self::of(report, &root, folder) })
    }

    /// What the tree of a configuration means; paths are relative to `folder`.
    fn of(report: &mut Report, root: &Node, folder: &Path) -> Self {
        let mut config = Self::default();
        if matches!(root.value, Value::Null) {
            return config;
        }
        let Some(fields) = Fields::of(report, root, "the keys of a configuration") else { return config };
        fields.only(report, &["listen", "appliance", "control", "policy", "dns", "audit", "limits"]);
        config.appliance = fields.get("appliance").and_then(|node| appliance::read(report, node));
        if config.appliance.is_some() {
            listen::for_appliance(&mut config);
        }
        if let Some(node) = fields.get("listen") {
            listen::read(report, node, folder, &mut config);
        }
        if let Some(path) = fields.text(report, "control") {
            config.control = folder.join(path.value);
        }
        if let Some(paths) = fields.texts(report, "policy") {
            config.policy = paths.into_iter().map(|path| folder.join(path.value)).collect();
        }
        if let Some(node) = fields.get("dns") {
            let listeners = config.listeners();
            dns::read(report, node, folder, listeners, &mut config.answers, &mut config.resolver);
        }
        if let Some(audit) = fields.get("audit").and_then(|node| read_audit(report, node, folder)) {
            config.audit = audit;
        }
        if let Some(node) = fields.get("limits") {
            config.read_limits(report, node);
        }
        config
    }

    /// Every default of a gate that is a router.
    #[must_use]
    pub fn of_appliance() -> Self {
        let mut config = Self { appliance: Some(Appliance::default()), ..Self::default() };
        listen::for_appliance(&mut config);
        config
    }

    /// Where the gate listens, as configured.
    #[must_use]
    pub fn listeners(&self) -> Vec<SocketAddr> {
        listen::addresses(self).into_iter().map(|(_, address)| address).collect()
    }

    fn read_limits(&mut self, report: &mut Report, node: &Node) {
        let Some(fields) = Fields::of(report, node, "the limits") else { return };
        fields.only(report, &["connections", "per_client", "head", "dial", "idle", "drain"]);
        let limits = &mut self.limits;
        for (key, limit) in [("connections", &mut limits.connections), ("per_client", &mut limits.per_client)]
        {
            if let Some(number) = fields.parsed(report, key, count) {
                *limit = number.value;
            }
        }
        let times = [
            ("head", &mut limits.head),
            ("dial", &mut limits.dial),
            ("idle", &mut limits.idle),
            ("drain", &mut limits.drain),
        ];
        for (key, limit) in times {
            if let Some(time) = fields.parsed(report, key, duration) {
                *limit = time.value;
            }
        }
    }
}

/// Where `outgate reload` finds the gate: the system's folder for root, the user's for anybody else.
#[must_use]
pub fn default_control() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/run/outgate/control.sock");
    }
    let folder = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    folder.join(format!("outgate-{}", nix::unistd::geteuid())).join("control.sock")
}

/// An address with its port.
///
/// # Errors
/// What it is not, and what to write.
pub fn socket_address(text: &str) -> Result<SocketAddr, Mistake> {
    text.parse().map_err(|_| {
        Mistake::new(
            format!("{} is not an address with a port", quoted(text)),
            "as in `127.0.0.1:3128`, `0.0.0.0:3128` or `\"[::]:3128\"`",
        )
    })
}

fn count(text: &str) -> Result<usize, Mistake> {
    match text.parse() {
        Ok(0) | Err(_) => {
            Err(Mistake::new(format!("{} is not a number of connections", quoted(text)), "as in `2000`"))
        }
        Ok(number) => Ok(number),
    }
}

/// `audit: {path: …}`, or `-` for standard output.
fn read_audit(report: &mut Report, node: &Node, folder: &Path) -> Option<AuditSettings> {
    let fields = Fields::of(report, node, "where records go")?;
    fields.only(report, &["path", "rotate", "keep", "when_full"]);
    let Some(path) = fields.text(report, "path") else {
        report.error(node.span, "`audit` has no `path`").hint("a file, or `-` for standard output");
        return None;
    };
    let rotate = fields.parsed(report, "rotate", size);
    let keep = fields.parsed(report, "keep", number_of_files);
    if path.value == "-" {
        for field in [rotate.map(|field| field.span), keep.map(|field| field.span)].into_iter().flatten() {
            report.error(field, "standard output is not rotated").hint("leave the key out, or name a file");
        }
    }
    let mut settings = AuditSettings::new(target(path, folder, rotate, keep));
    let words = [("wait", WhenFull::Wait), ("drop", WhenFull::Drop)];
    if let Some(when_full) = fields.word(report, "when_full", &words) {
        settings.when_full = when_full.value;
    }
    Some(settings)
}

fn target(
    path: Placed<&str>,
    folder: &Path,
    rotate: Option<Placed<u64>>,
    keep: Option<Placed<NonZeroU16>>,
) -> AuditTarget {
    match path.value {
        "-" => AuditTarget::Stdout,
        path => AuditTarget::File {
            path: folder.join(path),
            rotate: rotate.map_or(ROTATE, |rotate| rotate.value),
            keep: keep.map_or(KEEP, |keep| keep.value),
        },
    }
}

/// The target that `--audit` names.
#[must_use]
pub fn audit_target(path: &Path) -> AuditTarget {
    if path == Path::new("-") {
        return AuditTarget::Stdout;
    }
    AuditTarget::File { path: path.to_owned(), rotate: ROTATE, keep: KEEP }
}

fn number_of_files(text: &str) -> Result<NonZeroU16, Mistake> {
    text.parse().map_err(|_| Mistake::new(format!("{} is not a number of files", quoted(text)), "as in `10`"))
}
