//! What surrounds a gate in a test: names, and origins behind them.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::dns::Dns;
use crate::gate::Setup;
use crate::origin::{Origin, Serve, tls};
use crate::tls::Authority;

/// A DNS server, a certificate authority, and a loopback address for each name, so that origins stand on the
/// real ports and tests do not meet.
#[derive(Debug)]
pub struct World {
    /// What the gate resolves with.
    pub dns: Dns,
    /// Who vouches for the TLS origins.
    pub authority: Authority,
    places: Mutex<HashMap<String, Place>>,
}

impl World {
    /// An empty world.
    #[must_use]
    pub fn new() -> Self {
        Self { dns: Dns::start(), authority: Authority::new(), places: Mutex::default() }
    }

    /// An origin for `name` on `port`; the name resolves to it.
    pub fn origin(&self, name: &str, port: u16, serve: impl Serve) -> Origin {
        let address = self.address_of(name);
        self.dns.set(name, &[&address.to_string()]);
        Origin::start(listen(SocketAddr::from((address, port))), serve)
    }

    /// An HTTP origin, or any other on port 80.
    pub fn http(&self, name: &str, serve: impl Serve) -> Origin {
        self.origin(name, 80, serve)
    }

    /// A TLS origin on port 443 with a certificate for `name`.
    pub fn https(&self, name: &str, inside: impl Serve) -> Origin {
        self.origin(name, 443, tls(self.authority.server(name), inside))
    }

    /// The loopback address that `name` stands at, its own from the first time it is asked for.
    #[must_use]
    pub fn address_of(&self, name: &str) -> Ipv4Addr {
        let mut places = self.places.lock().unwrap();
        places.entry(name.to_owned()).or_insert_with(Place::claim).address
    }

    /// A gate in this world, not yet started.
    #[must_use]
    pub fn gate(&self, policy: impl AsRef<str>) -> Setup {
        Setup::new(policy.as_ref()).set("dns.upstreams", [self.dns.address().to_string()])
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// A loopback address that no other test uses, in this process or another.
#[derive(Debug)]
struct Place {
    address: Ipv4Addr,
    /// Held as long as the address is: who cannot bind this takes another address.
    _claim: UdpSocket,
}

impl Place {
    fn claim() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        for _ in 0..10_000 {
            // Far from 127.0.0.1, and processes begin far from each other.
            let number = (std::process::id() * 251 + NEXT.fetch_add(1, Ordering::Relaxed)) % 0x007f_0000;
            let address = Ipv4Addr::from(0x7f40_0101 + number % 0x003f_0000);
            if let Ok(claim) = UdpSocket::bind((address, 65_535)) {
                return Self { address, _claim: claim };
            }
        }
        panic!("no loopback address is free");
    }
}

fn listen(address: SocketAddr) -> TcpListener {
    TcpListener::bind(address).unwrap_or_else(|error| {
        panic!("cannot listen on {address}: {error}; tests/run says how tests get ports below 1024")
    })
}
