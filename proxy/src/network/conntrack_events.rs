//! The end of flows, as the kernel's connection tracking tells of it (linux/netfilter/nfnetlink_conntrack.h).

use std::net::SocketAddr;

use super::{Ended, mark};
use crate::kernel::conntrack::Flow;
use crate::kernel::netlink::Message;
use crate::record::network::{IpProtocol, Packets};

/// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 1 << 8 | 2;
/// The multicast group of flows that end, `NFNLGRP_CONNTRACK_DESTROY`, as a bit.
pub(super) const ENDS: u32 = 1 << (3 - 1);

/// The flow of a message that has ended; none where the kernel did not pass it by our rules.
pub(super) fn ended(message: &Message<'_>) -> Option<Ended> {
    let flow = Flow::read(message).filter(|_| message.kind == DELETE)?;
    let client = SocketAddr::new(flow.original.source, flow.original.source_port);
    let destination = SocketAddr::new(flow.original.destination, flow.original.destination_port);
    Some(Ended {
        packets: Packets { client, destination, protocol: IpProtocol(flow.protocol) },
        by_name: mark::passed_by_name(flow.mark)?,
        bytes_up: flow.bytes_up,
        bytes_down: flow.bytes_down,
    })
}
