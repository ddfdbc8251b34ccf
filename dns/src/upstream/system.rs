//! The resolvers that the system is configured with.

use std::path::Path;

use super::Upstream;

/// Where Unix systems say so (resolv.conf(5)).
pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Reads the upstreams of a `resolv.conf`.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn read(path: &Path) -> std::io::Result<Vec<Upstream>> {
    std::fs::read(path).map(|text| parse(&String::from_utf8_lossy(&text)))
}

/// The upstreams of a `resolv.conf`: its `nameserver` lines. Search domains and options mean nothing here: a
/// name is asked for as decided, or not at all. An address with a zone (`fe80::1%eth0`) is passed over.
#[must_use]
pub fn parse(text: &str) -> Vec<Upstream> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = (words.next()? == "nameserver").then(|| words.next()).flatten()?;
        let address: std::net::IpAddr = address.parse().ok()?;
        Some(Upstream::from(std::net::SocketAddr::new(address, super::PORT)))
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nameserver_lines_with_a_plain_address_count() {
        let text = "# nameserver 10.0.0.1\nsearch corp.example\n nameserver\t10.0.0.2 # main\nnameserver fe80::1%eth0\n\
                    nameservers 10.0.0.3\nnameserver\nnameserver dns.example\nnameserver 2001:db8::5\noptions edns0\n";
        let upstreams: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(upstreams, ["10.0.0.2:53", "[2001:db8::5]:53"]);
    }
}
