//! The original destination of a connection that was redirected here: where the client's packets were going.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// Where the client dialled. Behind REDIRECT the kernel remembers it (`SO_ORIGINAL_DST`, `IP6T_SO_ORIGINAL_DST`);
/// behind TPROXY, and where nothing redirects, it is the connection's own local address.
///
/// # Errors
/// When the connection is gone.
pub fn dialled(stream: &TcpStream) -> io::Result<SocketAddr> {
    let local = stream.local_addr()?;
    let socket = SockRef::from(stream);
    let translated =
        if local.ip().to_canonical().is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    // Without connection tracking nothing was translated.
    let dialled = translated.ok().and_then(|address| address.as_socket()).unwrap_or(local);
    Ok(SocketAddr::new(dialled.ip().to_canonical(), dialled.port()))
}

/// Lets a socket have an address that is not this host's: to accept what TPROXY hands over, or to dial with a
/// client's address.
///
/// # Errors
/// Without CAP_NET_ADMIN.
pub fn make_transparent(socket: &SockRef<'_>, is_ipv4: bool) -> io::Result<()> {
    if is_ipv4 { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}
