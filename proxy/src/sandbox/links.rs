//! The one interface of a sandbox, its loopback: with an address that programs take for their own, and all routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::kernel::netlink::{Bus, CREATE, Failure, REPLACE, Request, Socket};

/// What a program in the sandbox has as its own address, beside loopback: without one, resolvers leave a whole family
/// out (`AI_ADDRCONFIG`), and an origin's address would be its own source. From the range for carriers' networks and
/// from a unique local one, of which neither leaves the sandbox.
const ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(100, 64, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd6f, 0x7574, 0x6761, 0x7465, 0, 0, 0, 2)),
];
/// Loopback's number in every namespace.
const LOOPBACK: u32 = 1;

// Kinds of requests, attributes and values of `linux/rtnetlink.h` and `linux/if_addr.h`.
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const UP: u32 = 1;
const INTERFACE_ADDRESS: u16 = 1;
const INTERFACE_LOCAL: u16 = 2;
/// Nobody else can have the address: it can be used at once.
const NO_DUPLICATES: u8 = 2;
const ROUTE_INTERFACE: u16 = 4;
const ROUTE_SOURCE: u16 = 7;
const MAIN_TABLE: u8 = 254;
const LOCAL_TABLE: u8 = 255;
const BY_BOOT: u8 = 3;
const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;
const UNICAST: u8 = 1;
const LOCAL: u8 = 2;

/// Brings loopback up and gives it its addresses; a machine without IPv6 has the one.
///
/// # Errors
/// The kernel refuses.
pub(super) fn loopback_up() -> Result<(), Failure> {
    let mut socket = Socket::open(Bus::Route)?;
    let mut link = vec![0; 4];
    for part in [LOOPBACK, UP, UP] {
        link.extend(part.to_ne_bytes());
    }
    socket.request(&Request::new(NEW_LINK, 0, &link))?;
    for_each_family(|address| {
        let (family, bits, bytes) = parts(address);
        let mut fixed = vec![family, bits, NO_DUPLICATES, 0];
        fixed.extend(LOOPBACK.to_ne_bytes());
        let request = Request::new(NEW_ADDRESS, CREATE | REPLACE, &fixed);
        socket.request(&request.with(INTERFACE_LOCAL, &bytes).with(INTERFACE_ADDRESS, &bytes))
    })
}

/// Routes everything to loopback, where the kernel's rules redirect it.
///
/// # Errors
/// The kernel refuses.
pub(super) fn route_by_loopback() -> Result<(), Failure> {
    let mut socket = Socket::open(Bus::Route)?;
    for_each_family(|address| {
        let (_, _, source) = parts(address);
        let route = everything(address, [MAIN_TABLE, BY_BOOT, SCOPE_LINK, UNICAST]);
        socket.request(&route.with(ROUTE_SOURCE, &source))
    })
}

/// Makes every address this host's own, so that whatever is dialled is a listener here or nobody.
///
/// # Errors
/// The kernel refuses.
pub(super) fn make_every_address_local() -> Result<(), Failure> {
    let mut socket = Socket::open(Bus::Route)?;
    for_each_family(|address| {
        let (_, _, source) = parts(address);
        // Else the address that is dialled would be the client's own as well.
        let route = everything(address, [LOCAL_TABLE, BY_BOOT, SCOPE_HOST, LOCAL]);
        socket.request(&route.with(ROUTE_SOURCE, &source))
    })
}

/// Does something for IPv4, and for IPv6 where there is any.
fn for_each_family(mut act: impl FnMut(IpAddr) -> Result<(), Failure>) -> Result<(), Failure> {
    let has_v6 = std::fs::exists("/proc/net/if_inet6").unwrap_or(false);
    ADDRESSES.into_iter().filter(|address| address.is_ipv4() || has_v6).try_for_each(&mut act)
}

/// A route for every address of a family, through loopback.
fn everything(address: IpAddr, [table, protocol, scope, kind]: [u8; 4]) -> Request {
    let (family, _, _) = parts(address);
    let fixed = [family, 0, 0, 0, table, protocol, scope, kind, 0, 0, 0, 0];
    Request::new(NEW_ROUTE, CREATE | REPLACE, &fixed).with(ROUTE_INTERFACE, &LOOPBACK.to_ne_bytes())
}

/// An address's family, its number of bits, and its bytes.
fn parts(address: IpAddr) -> (u8, u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (nix::libc::AF_INET as u8, 32, address.octets().to_vec()),
        IpAddr::V6(address) => (nix::libc::AF_INET6 as u8, 128, address.octets().to_vec()),
    }
}
