//! Routes that bring redirected packets to this host, and the settings of the kernel that a gateway needs.
//!
//! TPROXY gives a packet to a socket, but the packet is still on its way elsewhere. So it is marked, and what has
//! the mark is looked up in a routing table of our own, in which every address is local:
//!
//! ```text
//! ip rule add fwmark 0x… lookup N
//! ip route add local default dev lo table N
//! ```

use std::fs;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use super::netlink::{Bus, CREATE, EXCLUSIVE, Failure, REPLACE, Request, Socket};
use super::table::{Family, Mark};
use super::{Error, open};

const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;

/// The routing protocol that stands beside what an administrator adds (`RTPROT_STATIC`).
const STATIC: u8 = 4;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Where marked packets are looked up, for IPv4 and IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Routes {
    /// The mark of redirected packets.
    pub mark: Mark,
    /// The routing table's number: not 0, and not 253 to 255, which are the system's.
    pub table: u32,
    /// The rule's place among the rules: lower is earlier. The main table is at 32766.
    pub priority: u32,
}

impl Routes {
    /// Makes what is not there yet. A host without IPv6 gets what it can use.
    ///
    /// # Errors
    /// The kernel refuses: the loopback interface is down, a rule of the same priority says something else.
    pub fn up(&self) -> Result<(), Error> {
        let mut socket = open(Bus::Route)?;
        for family in FAMILIES {
            let route = self.route(NEW_ROUTE, CREATE | REPLACE, family)?;
            let rule = self.rule(NEW_RULE, CREATE | EXCLUSIVE, family);
            match tolerate(socket.request(&route), unsupported(family)) {
                Ok(Done::Yes) => {}
                Ok(Done::NotNeeded) => continue,
                Err(failure) => return Err(self.error("route", family, failure)),
            }
            let done = tolerate(socket.request(&rule), &[Errno::EEXIST]);
            done.map_err(|failure| self.error("rule", family, failure))?;
        }
        Ok(())
    }

    /// Takes away what is there of it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn down(&self) -> Result<(), Error> {
        const ABSENT: [Errno; 4] = [Errno::ENOENT, Errno::ESRCH, Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP];
        let mut socket = open(Bus::Route)?;
        for family in FAMILIES {
            self.no_rules(&mut socket, family)?;
            let route = self.route(DELETE_ROUTE, 0, family)?;
            let done = tolerate(socket.request(&route), &ABSENT);
            done.map_err(|failure| self.error("route", family, failure))?;
        }
        Ok(())
    }

    /// What `up` does, as the commands that a person would give.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { mark: Mark { value, mask }, table, priority } = self;
        let mask = if *mask == u32::MAX { String::new() } else { format!("/{mask:#x}") };
        let line = |ip: &str, default: &str| {
            format!(
                "{ip} rule add fwmark {value:#x}{mask} lookup {table} priority {priority} protocol static\n\
                 {ip} route replace local {default} dev lo table {table} proto static\n"
            )
        };
        line("ip", "default") + &line("ip -6", "::/0")
    }

    /// A rule may stand there more than once, where somebody added it by hand.
    fn no_rules(&self, socket: &mut Socket, family: Family) -> Result<(), Error> {
        const SO_MANY: usize = 16;
        for _ in 0..SO_MANY {
            let request = self.rule(DELETE_RULE, 0, family);
            let absent = [Errno::ENOENT, Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP];
            match tolerate(socket.request(&request), &absent) {
                Ok(Done::Yes) => {}
                Ok(Done::NotNeeded) => break,
                Err(failure) => return Err(self.error("rule", family, failure)),
            }
        }
        Ok(())
    }

    fn rule(&self, kind: u16, flags: u16, family: Family) -> Request {
        const TO_TABLE: u8 = 1;
        let fixed = [number(family), 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0];
        Request::new(kind, flags, &fixed)
            .with(6, &self.priority.to_ne_bytes())
            .with(10, &self.mark.value.to_ne_bytes())
            .with(16, &self.mark.mask.to_ne_bytes())
            .with(15, &self.table.to_ne_bytes())
            .with(21, &[STATIC])
    }

    fn route(&self, kind: u16, flags: u16, family: Family) -> Result<Request, Error> {
        const LOCAL: u8 = 2;
        const SCOPE_HOST: u8 = 254;
        let loopback = if_nametoindex("lo").map_err(|errno| self.error("route", family, errno.into()))?;
        let fixed = [number(family), 0, 0, 0, 0, STATIC, SCOPE_HOST, LOCAL, 0, 0, 0, 0];
        Ok(Request::new(kind, flags, &fixed)
            .with(4, &loopback.to_ne_bytes())
            .with(15, &self.table.to_ne_bytes()))
    }

    fn error(&self, what: &str, family: Family, failure: Failure) -> Error {
        let family = match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let features = ["CONFIG_IP_MULTIPLE_TABLES", "CONFIG_IPV6_MULTIPLE_TABLES"];
        Error::of(format!("the {what} to table {} for {family}", self.table), failure, &features)
    }
}

/// A setting of the kernel that is not as a gateway needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    /// Its name, as `sysctl` has it.
    pub name: &'static str,
    /// What it should be.
    pub wanted: &'static str,
    /// What it is; none where it cannot be read.
    pub found: Option<String>,
    /// What goes wrong otherwise.
    pub why: &'static str,
    /// Whether the gate cannot do its work without.
    pub needed: bool,
}

/// The settings of this network namespace that are not as a gateway needs them. Nothing is changed.
#[must_use]
pub fn unfit_settings() -> Vec<Setting> {
    SETTINGS
        .iter()
        .filter_map(|(name, wanted, needed, why)| {
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            let found = fs::read_to_string(path).ok().map(|value| value.trim().to_owned());
            // A host without IPv6 has no setting for it, and no packets.
            let absent = found.is_none() && name.contains("ipv6");
            let fits = found.as_deref() == Some(wanted) || absent;
            (!fits).then_some(Setting { name, wanted, found, why, needed: *needed })
        })
        .collect()
}

const SETTINGS: [(&str, &str, bool, &str); 8] = [
    ("net.ipv4.ip_forward", "1", true, "no IPv4 packet is forwarded"),
    ("net.ipv6.conf.all.forwarding", "1", false, "no IPv6 packet is forwarded"),
    ("net.ipv4.conf.all.send_redirects", "0", false, "clients are told of a shorter way, past the gate"),
    ("net.ipv4.conf.all.accept_redirects", "0", false, "whoever is near can tell the gate another way"),
    ("net.ipv6.conf.all.accept_redirects", "0", false, "whoever is near can tell the gate another way"),
    ("net.ipv4.conf.all.accept_source_route", "0", false, "a packet can choose its own way"),
    ("net.ipv6.conf.all.accept_source_route", "0", false, "a packet can choose its own way"),
    ("net.netfilter.nf_conntrack_acct", "1", false, "records of flows that the kernel passes have no bytes"),
];

enum Done {
    Yes,
    NotNeeded,
}

fn tolerate(done: Result<(), Failure>, tolerated: &[Errno]) -> Result<Done, Failure> {
    match done {
        Ok(()) => Ok(Done::Yes),
        Err(Failure::Refused { errno, .. }) if tolerated.contains(&errno) => Ok(Done::NotNeeded),
        Err(failure) => Err(failure),
    }
}

/// What a kernel says that has no such family.
fn unsupported(family: Family) -> &'static [Errno] {
    match family {
        Family::V4 => &[],
        Family::V6 => &[Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP, Errno::EACCES],
    }
}

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

#[cfg(test)]
mod tests;
