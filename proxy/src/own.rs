//! The addresses of this host.

use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

/// The addresses of the host's interfaces, other than loopback: dialled, they would lead back to this host.
/// None where the system does not tell; loopback and the listeners are known without it.
#[must_use]
pub fn interfaces() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    addresses.filter(|address| !address.is_loopback()).collect()
}
