//! `outgate serve`: from a configuration to a gate that listens, and from a signal to one that is gone.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use outgate_dns::ledger::Ledger;
use outgate_dns::server::{Identity, ServerSettings, Sockets};
use outgate_dns::{Resolver, ResolverSettings};
use outgate_rules::{OwnAddresses, PrefixSet, Reason};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::admin::{self, GateState};
use crate::appliance::{self, Appliance, Openings};
use crate::audit::Audit;
use crate::config::{self, Config, DnsAnswers, DnsListen, DnsTls};
use crate::console::Console;
use crate::control::Control;
use crate::cores::{self, Cores};
use crate::gate::Gate;
use crate::kernel::plan::Redirection;
use crate::listener::{Listener, Way};
use crate::metrics::Metrics;
use crate::network::Listening;
use crate::original;
use crate::own;
use crate::policy::PolicyFiles;
use crate::record::Trigger;
use crate::recorder::Recorder;
use crate::reload::{self, Reloader};
use crate::systemd;

/// Connections that the kernel keeps until they are accepted: what arrives in the moment of a reload.
const BACKLOG: i32 = 4096;
/// How long the last records, and the last lines on the terminal, may take to be written.
const FLUSH: Duration = Duration::from_secs(5);
/// How long sessions may take to write their last records once their flows have been ended.
const GOODBYE: Duration = Duration::from_secs(2);

/// Runs a gate until a signal ends it.
///
/// # Errors
/// When it cannot start: a policy with a mistake in it, an address in use, a folder that is not there.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let signals = Signals::new().context("signals")?;
    let console = Console::stderr(true).context("the console")?;
    let appliance = Appliance::of(&config).map(Arc::new);
    if let Some(appliance) = &appliance {
        // Before anything can fail: a gate that does not start lets nothing pass.
        prepare(appliance, &console)?;
    }
    let files = PolicyFiles::new(config.policy.clone());
    let before = files.stamps(&[]);
    let compiled =
        files.load(None, Timestamp::now()).map_err(|diagnostics| anyhow::anyhow!("{diagnostics}"))?;
    let started = reload::in_force(&compiled.rules, compiled.files.len());
    if !compiled.diagnostics.is_empty() {
        console.notice(compiled.diagnostics.to_string());
    }
    let cores = Cores::start().context("threads to serve with")?;
    let Bound { listeners: bound, admin, control, dns } = Bound::new(&config, cores.count())?;
    let resolver =
        Resolver::new(ResolverSettings { own: own_addresses(&config), ..config.resolver.clone() })?;
    let audit = Audit::open(config.audit.clone(), console.clone()).context("the audit file")?;
    let recorder = Recorder::new(Metrics::new(), console.clone(), audit);
    let keeps_sources = config.appliance.as_ref().is_some_and(|appliance| appliance.transparent_source);
    let mut gate = Gate::new(resolver, recorder, config.limits);
    gate.keeps_sources = keeps_sources;
    gate.is_router = appliance.is_some();
    if appliance.is_some() {
        let openings = Openings::new(gate.shared_rules(), console.clone()).context("the appliance")?;
        gate.ledger = Arc::new(Ledger::with_opener(Arc::new(openings)));
    }
    let gate = Arc::new(gate);
    let state = Arc::new(GateState::new());
    let dns = dns.map(|sockets| sockets.serve(gate.foundation()));
    let mut listeners = Vec::new();
    for Shared { way, address, .. } in &bound {
        listeners.push((way.name(), *address));
    }
    listeners.push(("admin", admin.local_addr()?));
    if let Some(dns) = &dns {
        listeners.push(("dns", dns.address()?));
        listeners.extend(dns.tls_address()?.map(|address| ("dns-tls", address)));
    }
    let addresses: Vec<SocketAddr> = listeners.iter().map(|(_, address)| *address).collect();
    let reloader = Reloader::start(
        Arc::clone(&gate),
        Arc::clone(&state),
        files,
        addresses,
        appliance.clone(),
        compiled,
        before,
    )
    .await;
    for (name, address) in listeners {
        state.listening(name, address);
        console.notice(format!("{name} listens on {address}"));
    }
    console.notice(started.clone());
    let mut accepting = JoinSet::new();
    for Shared { way, clients, sockets, .. } in bound {
        let listener = Arc::new(Listener::new(&gate, way, clients));
        for (core, socket) in cores.each().zip(sockets) {
            let entrance = cores::entrance_at(core, socket)?;
            accepting.spawn_on(Arc::clone(&listener).run(entrance, Arc::clone(&gate)), core);
        }
    }
    let background = [
        tokio::spawn(admin::serve(admin, Arc::clone(&state), Arc::clone(&gate.recorder))),
        tokio::spawn(control.serve(Arc::clone(&reloader))),
        tokio::spawn(watch_files(Arc::clone(&reloader))),
        tokio::spawn(watch_expiries(Arc::clone(&reloader))),
        tokio::spawn(Arc::clone(&gate).keep_up()),
    ];
    if let Some(dns) = dns {
        gate.tasks.spawn(dns.run(gate.draining.clone(), cores.each().cloned().collect()));
    }
    let listening = match &appliance {
        Some(appliance) => Some(open(appliance, &gate).await?),
        None => None,
    };
    let finding = appliance.as_ref().and_then(|appliance| appliance.names());
    let finding = finding.map(|names| tokio::spawn(names.keep(Arc::clone(&gate), reloader.changes())));
    console.notice("ready");
    systemd::ready(&started);
    signals.run(&gate, &state, &reloader).await;
    background.iter().chain(&finding).for_each(tokio::task::JoinHandle::abort);
    accepting.abort_all();
    if let Some(appliance) = &appliance {
        close(appliance, listening, &console).await;
    }
    finish(&gate, &console).await;
    Ok(())
}

/// Closes the network and says what of this host's settings a gateway cannot do with.
fn prepare(appliance: &Appliance, console: &Console) -> anyhow::Result<()> {
    appliance.secure().context("the appliance")?;
    let (needed, weak) = appliance::settings();
    if !needed.is_empty() {
        let all: Vec<String> = needed.iter().map(appliance::unfit).collect();
        anyhow::bail!("the appliance: {}", all.join("; "));
    }
    weak.iter().for_each(|setting| console.notice(appliance::unfit(setting)));
    Ok(())
}

/// Opens the network, now that everybody is there who decides and records.
async fn open(appliance: &Arc<Appliance>, gate: &Arc<Gate>) -> anyhow::Result<Listening> {
    let (rules, ledger) = (gate.shared_rules(), Arc::clone(&gate.ledger));
    let listening = Listening::start(
        appliance.log_group(),
        Box::new(move || rules.load_full()),
        Box::new(move |client, address| ledger.names(client, address, std::time::Instant::now())),
        Arc::clone(&gate.recorder),
        tokio::runtime::Handle::current(),
    )
    .context("the appliance")?;
    let (appliance, gate) = (Arc::clone(appliance), Arc::clone(gate));
    if let Some(why) = appliance.unkept(&gate.rules()).into_iter().next() {
        anyhow::bail!("the appliance: {why}");
    }
    if let Some(names) = appliance.names() {
        names.find_before_ready(&gate).await;
    }
    let opened = tokio::task::spawn_blocking(move || {
        // The names come first, by which open flows are judged; then the rules, and then what they do not allow.
        appliance.remember(&gate.rules(), &gate.ledger)?;
        appliance.enforce(&gate.rules())?;
        appliance.forget_strangers()?;
        appliance.cut(&gate.rules(), &gate.ledger)
    });
    opened.await?.context("the appliance")?;
    Ok(listening)
}

/// Closes the network behind a gate that ends.
async fn close(appliance: &Arc<Appliance>, listening: Option<Listening>, console: &Console) {
    let appliance = Arc::clone(appliance);
    let closed = tokio::task::spawn_blocking(move || {
        let closed = appliance.close();
        if let Some(listening) = listening {
            listening.stop();
        }
        closed
    });
    if let Ok(Err(error)) = closed.await {
        console.notice(format!("the network was not closed: {error}"));
    }
}

/// Every socket that the gate listens on, bound before anything else is begun.
struct Bound {
    listeners: Vec<Shared>,
    admin: TcpListener,
    control: Control,
    dns: Option<Sockets>,
}

/// A listener's address, with a socket for each core.
struct Shared {
    way: Way,
    clients: PrefixSet,
    address: SocketAddr,
    sockets: Vec<std::net::TcpListener>,
}

impl Bound {
    fn new(config: &Config, cores: usize) -> anyhow::Result<Self> {
        let proxy = [(Way::Proxy, &config.proxy)];
        let transparent = config.transparent.iter().map(|(way, listen)| (*way, listen));
        let bound = proxy.into_iter().chain(transparent).map(|(way, listen)| {
            let bound = bind_for(way, listen.address, config.appliance.as_ref(), cores);
            let (address, sockets) = bound.with_context(|| {
                format!("the {} listener cannot listen on {}", way.name(), listen.address)
            })?;
            Ok(Shared { way, clients: listen.clients.clone(), address, sockets })
        });
        Ok(Self {
            listeners: bound.collect::<anyhow::Result<_>>()?,
            admin: bind(config.admin)
                .with_context(|| format!("the admin listener cannot listen on {}", config.admin))?,
            control: Control::bind(&config.control)
                .with_context(|| format!("the control socket {}", config.control.display()))?,
            dns: config.dns.clone().map(|dns| listen_dns(dns, &config.answers)).transpose()?,
        })
    }
}

/// The DNS listener's sockets, so that a start that fails for them fails before anything else is begun.
fn listen_dns(listen: DnsListen, answers: &DnsAnswers) -> anyhow::Result<Sockets> {
    let tls = match listen.tls {
        None => None,
        Some(DnsTls { address, certificate, key }) => {
            Some((address, Identity::read(&certificate, &key).context("listen.dns.tls")?))
        }
    };
    let settings = ServerSettings {
        address: listen.address,
        tls,
        clients: listen.clients,
        denied: answers.denied,
        queries_per_second: answers.queries_per_second,
        budget: answers.budget,
        loops: None,
    };
    Ok(Sockets::bind(settings)?)
}

/// The gate's own addresses as configured: no upstream may be one of them.
fn own_addresses(config: &Config) -> OwnAddresses {
    OwnAddresses { listeners: config.listeners(), interfaces: own::interfaces() }
}

async fn watch_files(reloader: Arc<Reloader>) {
    reloader.watch_files().await;
}

async fn watch_expiries(reloader: Arc<Reloader>) {
    reloader.watch_expiries().await;
}

/// Sockets for what comes in this way. Behind TPROXY they have to be transparent, which takes CAP_NET_ADMIN; without
/// it the listener still serves what REDIRECT or DNS send there.
fn bind_for(
    way: Way,
    address: SocketAddr,
    appliance: Option<&config::Appliance>,
    count: usize,
) -> io::Result<(SocketAddr, Vec<std::net::TcpListener>)> {
    let needed = appliance.is_some_and(|appliance| appliance.redirection == Redirection::Tproxy);
    let prepare = |socket: &Socket| match way {
        Way::Proxy => Ok(()),
        Way::Tls | Way::Http | Way::Tcp => {
            match original::make_transparent(&SockRef::from(socket), address.is_ipv4()) {
                Err(error) if needed => Err(error),
                Ok(()) | Err(_) => Ok(()),
            }
        }
    };
    // The first has the address to itself when it begins to listen, so that a second gate is told that it is taken.
    let first = listening(address, prepare)?;
    SockRef::from(&first).set_reuse_port(true)?;
    let address = first.local_addr()?;
    let beside = |socket: &Socket| prepare(socket).and_then(|()| socket.set_reuse_port(true));
    let others = (1..count).map(|_| listening(address, beside));
    let sockets = std::iter::once(Ok(first)).chain(others).collect::<io::Result<_>>()?;
    Ok((address, sockets))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::from_std(listening(address, |_| Ok(()))?)
}

/// A listening socket that a restarted gate can bind at once, although old connections linger. An unspecified IPv6
/// address stands for both families.
fn listening(
    address: SocketAddr,
    prepare: impl FnOnce(&Socket) -> io::Result<()>,
) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    prepare(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The last records, then the last lines.
async fn finish(gate: &Gate, console: &Console) {
    if let Err(lost) = gate.recorder.flush_and_close(FLUSH).await {
        console.notice(lost.to_string());
    }
    console.flush(FLUSH);
}

/// The signals that a gate answers.
struct Signals {
    reload: Signal,
    reopen: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            reload: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Answers signals; comes back when the gate has been drained or has been told twice to end.
    async fn run(mut self, gate: &Arc<Gate>, state: &GateState, reloader: &Arc<Reloader>) {
        loop {
            tokio::select! {
                _ = self.reload.recv() => {
                    let reloader = Arc::clone(reloader);
                    gate.tasks.spawn(async move { reloader.reload(Trigger::Signal).await });
                }
                _ = self.reopen.recv() => gate.recorder.audit().reopen(),
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
            }
        }
        state.drain();
        systemd::stopping("draining");
        gate.draining.cancel();
        gate.tasks.close();
        gate.recorder.console().notice(format!(
            "draining: {} open flows have up to {} s; a second signal ends them at once",
            gate.flows.len(),
            gate.limits.drain.as_secs()
        ));
        tokio::select! {
            _ = timeout(gate.limits.drain, gate.tasks.wait()) => {}
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        gate.flows.end_all(Reason::Draining);
        // Sessions without a flow wait for a client that has nothing more to say.
        let _ = timeout(GOODBYE, gate.tasks.wait()).await;
    }
}
