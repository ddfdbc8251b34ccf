//! The `appliance` keys: a gate that other hosts have as their router.

use outgate_rules::PrefixSet;
use outgate_rules::document::{Fields, Mistake, Node, Report, Value, prefix, quoted};

use super::default_clients;
use crate::kernel::plan::Redirection;

/// The mark of packets that TPROXY hands to a socket, unless told otherwise: "og".
const MARK: u32 = 0x6f67;
/// The routing table in which marked packets are local, unless told otherwise.
const ROUTE_TABLE: u32 = 0x6f67;
/// The group of the kernel's log packets (`NFLOG`), unless told otherwise.
const LOG_GROUP: u16 = 0x6f;

/// How the gate stands between other hosts and the internet.
#[derive(Clone, Debug, PartialEq)]
pub struct Appliance {
    /// Whose traffic is redirected and decided on. All other traffic is dropped.
    pub clients: PrefixSet,
    /// How TCP reaches the listeners.
    pub redirection: Redirection,
    /// Whether what the kernel lets through leaves with the gate's own address.
    pub masquerade: bool,
    /// Whether origins of TCP flows see the clients' addresses instead of the gate's.
    pub transparent_source: bool,
    /// The mark of packets that TPROXY hands to a socket.
    pub mark: u32,
    /// The routing table in which marked packets are local.
    pub route_table: u32,
    /// The group of the kernel's log packets.
    pub log_group: u16,
    /// Whether other gates share the clients' flows.
    pub gates: Gates,
}

/// How many gates stand behind one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gates {
    /// This one: a client's lookups and flows come to the same gate.
    One,
    /// A load balancer deals out flows, so that a client's lookup may come to one gate and its flow to another.
    Several,
}

impl Default for Appliance {
    fn default() -> Self {
        Self {
            clients: default_clients(),
            redirection: Redirection::Tproxy,
            masquerade: true,
            transparent_source: false,
            mark: MARK,
            route_table: ROUTE_TABLE,
            log_group: LOG_GROUP,
            gates: Gates::One,
        }
    }
}

/// `appliance: {clients: [10.0.0.0/8]}`; with no value, every default.
pub(super) fn read(report: &mut Report, node: &Node) -> Option<Appliance> {
    let mut appliance = Appliance::default();
    if matches!(node.value, Value::Null) {
        return Some(appliance);
    }
    let fields = Fields::of(report, node, "the appliance's keys")?;
    fields.only(
        report,
        &[
            "clients",
            "redirection",
            "masquerade",
            "transparent_source",
            "mark",
            "route_table",
            "log_group",
            "gates",
        ],
    );
    if let Some(clients) = fields.all_parsed(report, "clients", prefix) {
        appliance.clients = clients.into_iter().map(|prefix| prefix.value).collect();
    }
    let ways = [("tproxy", Redirection::Tproxy), ("redirect", Redirection::Redirect)];
    if let Some(redirection) = fields.word(report, "redirection", &ways) {
        appliance.redirection = redirection.value;
    }
    for (key, flag) in
        [("masquerade", &mut appliance.masquerade), ("transparent_source", &mut appliance.transparent_source)]
    {
        if let Some(value) = fields.word(report, key, &[("true", true), ("false", false)]) {
            *flag = value.value;
        }
    }
    for (key, number) in [("mark", &mut appliance.mark), ("route_table", &mut appliance.route_table)] {
        if let Some(value) = fields.parsed(report, key, positive) {
            *number = value.value;
        }
    }
    if let Some(group) = fields.parsed(report, "log_group", positive) {
        appliance.log_group = group.value;
    }
    if let Some(gates) = fields.word(report, "gates", &[("one", Gates::One), ("several", Gates::Several)]) {
        appliance.gates = gates.value;
    }
    Some(appliance)
}

/// A number other than 0, in decimal or, behind `0x`, in hexadecimal.
fn positive<T: TryFrom<u32>>(text: &str) -> Result<T, Mistake> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let fits = number.ok().filter(|number| *number != 0).and_then(|number| T::try_from(number).ok());
    fits.ok_or_else(|| {
        Mistake::new(format!("{} is not a number that fits", quoted(text)), "as in `100` or `0x64`")
    })
}
