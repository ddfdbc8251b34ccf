//! Who is on the lab's internet, and where.

/// A host on the internet. Its web server is at both addresses, on ports 80 and 443, and says at `/whoami` who it
/// is and which of its addresses was asked. Echo answers on TCP 22, 25, 4444 and 5432 and on UDP 443, 5831 and
/// 5832, and NTP on UDP 123.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Its name.
    pub name: &'static str,
    /// Its IPv4 address, as public as the real one.
    pub v4: &'static str,
    /// Its IPv6 address.
    pub v6: &'static str,
}

/// The hosts that have a name.
pub const SITES: [Site; 13] = [
    of("pypi.org", "151.101.0.223", "2a04:4e42::223"),
    of("files.pythonhosted.org", "151.101.64.223", "2a04:4e42:200::223"),
    of("mcr.microsoft.com", "20.60.10.10", "2620:1ec:bdf::10"),
    of("deb.debian.org", "151.101.2.132", "2a04:4e42::132"),
    of("github.com", "140.82.121.4", "2a0a:a440::4"),
    of("ml.azure.com", "13.107.246.40", "2620:1ec:bdf::40"),
    of("db.partner.example", "45.33.32.156", "2600:3c01::156"),
    of("time.cloudflare.com", "162.159.200.123", "2606:4700:f1::123"),
    of("evil.example", "93.184.216.34", "2606:2800:220:1::34"),
    of("other.example", "93.184.216.99", "2606:2800:220:1::99"),
    // In the service tag of a test, and beside it.
    of("compute.azureml.example", "20.61.0.10", "2603:1020:5::10"),
    of("neighbour.azure.example", "20.61.1.10", "2603:1020:6::10"),
    of("mlstore.blob.core.windows.net", "20.60.88.4", "2603:1020:8::4"),
];

/// Resolvers on the internet, by UDP and TCP, by TLS on 853 and by HTTPS on 443; and their names.
pub(super) const RESOLVERS: [Site; 2] = [
    of("dns.quad9.net", super::PUBLIC_RESOLVER, "2620:fe::fe"),
    of("dns.google", super::OTHER_RESOLVER, "2001:4860:4860::8888"),
];

/// What must stay out of reach: Azure's platform and the metadata services. Each has a web server on port 80.
pub(super) const METADATA: [&str; 2] = ["168.63.129.16", "169.254.169.254"];

/// Names whose addresses are none that a public name should have.
pub const LIED_ABOUT: [(&str, &str); 4] = [
    ("metadata.rebound.example", "169.254.169.254"),
    ("platform.rebound.example", "168.63.129.16"),
    ("private.rebound.example", "10.1.2.4"),
    ("loopback.rebound.example", "127.0.0.1"),
];

/// A host by its name.
///
/// # Panics
/// If there is none of that name.
#[must_use]
pub fn site(name: &str) -> Site {
    let mut all = SITES.into_iter().chain(RESOLVERS);
    all.find(|site| site.name == name).unwrap_or_else(|| panic!("the lab has no {name}"))
}

/// Every address of the internet, with its length as a prefix.
pub(super) fn addresses() -> impl Iterator<Item = String> {
    let named = SITES.iter().chain(&RESOLVERS);
    let named = named.flat_map(|site| [format!("{}/32", site.v4), format!("{}/128", site.v6)]);
    named.chain(METADATA.map(|address| format!("{address}/32")))
}

const fn of(name: &'static str, v4: &'static str, v6: &'static str) -> Site {
    Site { name, v4, v6 }
}
