//! The floor of every figure: what it costs to receive a datagram and to send one back.

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrIn, SockaddrStorage, bind, recvfrom,
    recvmmsg, sendmmsg, sendto, setsockopt, socket, sockopt,
};

/// Largest datagram that is sent back.
const DATAGRAM: usize = 512;
/// What outgate's own sockets hold.
const SOCKET_BUFFER: usize = 4 << 20;

/// Sends back what comes to `port`, up to `batch` datagrams in one call, from so many threads. Never comes back.
pub(crate) fn run(port: u16, batch: usize, threads: usize) {
    let threads: Vec<_> = (0..threads)
        .map(|_| {
            let socket = listen(port);
            std::thread::spawn(move || if batch == 1 { one_by_one(&socket) } else { batched(&socket, batch) })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn listen(port: u16) -> OwnedFd {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&socket, sockopt::ReusePort, &true).unwrap();
    setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER).unwrap();
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))).unwrap();
    socket
}

fn one_by_one(socket: &OwnedFd) {
    let mut buffer = [0; DATAGRAM];
    loop {
        let (length, from) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer).unwrap();
        answer(&mut buffer);
        // A reply that cannot be sent is lost, as datagrams are.
        _ = sendto(socket.as_raw_fd(), &buffer[..length], &from.unwrap(), MsgFlags::empty());
    }
}

fn batched(socket: &OwnedFd, batch: usize) {
    let mut buffers = vec![[0_u8; DATAGRAM]; batch];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(batch, None);
    let mut sending = MultiHeaders::<SockaddrStorage>::preallocate(batch, None);
    loop {
        let received: Vec<(usize, Option<SockaddrStorage>)> = {
            let mut slices: Vec<[IoSliceMut<'_>; 1]> =
                buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
            recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None)
                .unwrap()
                .map(|message| (message.bytes, message.address))
                .collect()
        };
        buffers.iter_mut().take(received.len()).for_each(|buffer| answer(buffer));
        let slices: Vec<[IoSlice<'_>; 1]> = received
            .iter()
            .zip(&buffers)
            .map(|((length, _), buffer)| [IoSlice::new(&buffer[..*length])])
            .collect();
        let to: Vec<Option<SockaddrStorage>> = received.iter().map(|(_, from)| *from).collect();
        let mut sent = 0;
        while sent < slices.len() {
            let flags = MsgFlags::empty();
            let rest = sendmmsg(socket.as_raw_fd(), &mut sending, &slices[sent..], &to[sent..], [], flags);
            sent += rest.map_or(1, |rest| rest.count().max(1));
        }
    }
}

/// Makes a response of a query, so that dnsperf takes it: QR is set.
fn answer(message: &mut [u8]) {
    message[2] |= 0x80;
}
