//! The original destination of a connection that was redirected here: where the client's packets were going.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

use socket2::SockRef;

/// Where the client dialled. Behind REDIRECT the kernel remembers it (`SO_ORIGINAL_DST`, `IP6T_SO_ORIGINAL_DST`), and
/// behind TPROXY it does as well where it tracks connections; else it is the connection's own local address, which is
/// `local` where that is known.
///
/// # Errors
/// When the connection is gone.
pub fn dialled(stream: &TcpStream, client: SocketAddr, local: Option<SocketAddr>) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let translated = if client.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    // Without connection tracking nothing was translated.
    let dialled = match (translated.ok().and_then(|address| address.as_socket()), local) {
        (Some(dialled), _) | (None, Some(dialled)) => dialled,
        (None, None) => stream.local_addr()?,
    };
    Ok(SocketAddr::new(dialled.ip().to_canonical(), dialled.port()))
}

/// The local address of all that a listener accepts, where it can be only one.
#[must_use]
pub fn local_of_all(listener: &impl AsFd) -> Option<SocketAddr> {
    let socket = SockRef::from(listener);
    let local = socket.local_addr().ok().and_then(|local| local.as_socket());
    let local = local.filter(|local| !local.ip().is_unspecified())?;
    let transparent = if local.is_ipv4() { socket.ip_transparent_v4() } else { socket.ip_transparent_v6() };
    (!transparent.unwrap_or(true)).then_some(local)
}

/// Lets a socket have an address that is not this host's: to accept what TPROXY hands over, or to dial with a
/// client's address.
///
/// # Errors
/// Without CAP_NET_ADMIN.
pub fn make_transparent(socket: &SockRef<'_>, is_ipv4: bool) -> io::Result<()> {
    if is_ipv4 { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_listener_at_one_address_accepts_has_that_address_and_at_any_address_it_has_its_own() {
        for (address, is_one) in [("127.0.0.1:0", true), ("0.0.0.0:0", false), ("[::]:0", false)] {
            let listener = std::net::TcpListener::bind(address).unwrap();
            let at = listener.local_addr().unwrap();
            assert_eq!(local_of_all(&listener), is_one.then_some(at), "{address}");
        }
    }
}
