//! Bytes from socket to socket without a copy through the process, for flows that carry many (`splice(2)`).
//!
//! What it buys: a third to a half of the CPU per gigabyte of copying with 64 KiB (bench/README.md). A pipe of 256 KiB
//! stands between the sockets while bytes move, and only then: a flow that pauses gives it back. Where the system
//! gives no pipe of that size, as it does to a user who has 64 MiB of them (`fs.pipe-user-pages-soft`), the flow goes
//! on being copied.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use outgate_rules::Reason;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::Outcome;
use super::turn::{self, Turn};
use super::unsent;
use crate::readiness::writable;
use crate::record::EndedBy;
use crate::upload::Grant;

/// Bytes that a pipe holds: the longest step. With 64 KiB a gigabyte costs a third more, with 1 MiB hardly less.
const PIPE: usize = 256 * 1024;
/// Empty pipes that a thread keeps for the next flow that needs one.
const KEPT: usize = 16;

thread_local! {
    static POOL: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// Two ends of a pipe with nothing in it.
#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    /// An empty pipe of full size, if there is one to be had.
    pub(super) fn take() -> Option<Self> {
        POOL.with_borrow_mut(Vec::pop).or_else(Self::new)
    }

    fn new() -> Option<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        fcntl_setpipe_size(&write, PIPE).ok().filter(|size| *size >= PIPE)?;
        Some(Self { read, write })
    }

    /// Keeps an empty pipe for another flow.
    fn give_back(self) {
        POOL.with_borrow_mut(|pool| {
            if pool.len() < KEPT {
                pool.push(self);
            }
        });
    }
}

/// Why bytes no longer move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pause {
    /// Nothing is there to be read now.
    Empty,
    /// The reader's side has closed.
    Closed,
}

/// Moves bytes through `pipe` until there are none to be read. `grant` says how many of those read may pass; those
/// that may not are gone with the pipe.
pub(super) async fn drain(
    from: &TcpStream,
    to: &TcpStream,
    pipe: Pipe,
    grant: impl Fn(usize) -> Grant,
    (reader, writer): (EndedBy, EndedBy),
) -> Result<Pause, Outcome> {
    let mut turn = Turn::default();
    loop {
        turn.begin().await;
        let read = match from.try_io(Interest::READABLE, || move_bytes(from, &pipe.write, turn::step())) {
            Ok(0) => {
                pipe.give_back();
                return Ok(Pause::Closed);
            }
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                pipe.give_back();
                return Ok(Pause::Empty);
            }
            Err(_) => return Err(Outcome::side(reader)),
        };
        let Grant { bytes, stop } = grant(read);
        empty(&pipe, to, bytes as usize, &mut turn).await.map_err(|_| Outcome::side(writer))?;
        stop.map_or(Ok(()), |reason: Reason| Err(Outcome::gate(reason)))?;
        turn.moved(read).await;
    }
}

/// Moves so many bytes out of the pipe.
async fn empty(pipe: &Pipe, to: &TcpStream, mut bytes: usize, turn: &mut Turn) -> io::Result<()> {
    while bytes > 0 {
        match to.try_io(Interest::WRITABLE, || move_bytes(&pipe.read, to, bytes)) {
            // A pipe with bytes in it has no end.
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.saturating_sub(written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                turn.give_up();
                unsent::bound(to);
                writable(to).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn move_bytes(from: impl AsFd, to: impl AsFd, bytes: usize) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    splice(from, None, to, None, bytes, flags).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Duration;

    use socket2::SockRef;
    use tokio::time::timeout;

    use std::cell::Cell;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use tokio::task::yield_now;

    use super::*;
    use crate::readiness::tests::pair;

    const SIDES: (EndedBy, EndedBy) = (EndedBy::Client, EndedBy::Origin);

    #[tokio::test]
    async fn every_byte_arrives_in_order_and_the_pipe_is_given_back() {
        let (from, mut sender) = pair().await;
        let (to, mut receiver) = pair().await;
        let sent: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_be_bytes).collect();
        let wanted = sent.clone();
        let sending = std::thread::spawn(move || sender.write_all(&sent));
        let receiving = std::thread::spawn(move || {
            let mut received = vec![0; wanted.len()];
            receiver.read_exact(&mut received).unwrap();
            received == wanted
        });
        let whole = |bytes: usize| Grant { bytes: bytes as u64, stop: None };
        loop {
            from.readable().await.unwrap();
            let pipe = Pipe::take().unwrap();
            if let Pause::Closed = drain(&from, &to, pipe, whole, SIDES).await.unwrap_or(Pause::Closed) {
                break;
            }
        }
        sending.join().unwrap().unwrap();
        assert!(receiving.join().unwrap());
        assert_eq!(POOL.with_borrow(Vec::len), 1);
    }

    #[tokio::test]
    async fn while_others_have_something_to_do_a_slow_receiver_is_not_owed_much() {
        let (from, mut sender) = pair().await;
        let (to, _receiver) = pair().await;
        let _sending = std::thread::spawn(move || sender.write_all(&vec![7; 64 << 20]));
        from.readable().await.unwrap();
        turn::light_work();
        let whole = |bytes: usize| Grant { bytes: bytes as u64, stop: None };
        let unsent = || SockRef::from(&to).tcp_notsent_lowat().unwrap();
        let unbound = unsent();
        let moving = async {
            while let Ok(Pause::Empty) = drain(&from, &to, Pipe::take().unwrap(), whole, SIDES).await {
                from.readable().await.unwrap();
            }
        };
        let full = async {
            while unsent() == unbound {
                tokio::task::yield_now().await;
            }
        };
        let waited = timeout(Duration::from_secs(10), async {
            tokio::select! { () = moving => panic!("nobody reads it"), () = full => {} }
        });
        waited.await.expect("it has a bound");
    }

    #[tokio::test]
    async fn what_is_not_granted_does_not_pass_and_its_pipe_is_not_used_again() {
        let (from, mut sender) = pair().await;
        let (to, mut receiver) = pair().await;
        sender.write_all(&[7; 1000]).unwrap();
        from.readable().await.unwrap();
        let some = |_| Grant { bytes: 10, stop: Some(Reason::UploadLimit) };
        let ended = drain(&from, &to, Pipe::take().unwrap(), some, SIDES).await.err().unwrap();
        assert_eq!(ended.reason(), Some(Reason::UploadLimit));
        drop((from, to));
        let mut received = Vec::new();
        receiver.read_to_end(&mut received).unwrap();
        assert_eq!(received, [7; 10]);
        assert_eq!(POOL.with_borrow(Vec::len), 0);
    }

    /// Bytes of which there are many steps; so many that a connection holds them.
    const MANY: usize = 512 * 1024;

    fn whole(bytes: usize) -> Grant {
        Grant { bytes: bytes as u64, stop: None }
    }

    /// A connection that holds bytes for the gate, and the end they came from.
    async fn full() -> (TcpStream, std::net::TcpStream) {
        let (from, mut sender) = pair().await;
        sender.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while sent < MANY {
            sent += sender.write(&vec![7; MANY - sent]).expect("the kernel holds so many");
        }
        from.readable().await.unwrap();
        (from, sender)
    }

    fn swallow(mut receiver: std::net::TcpStream) {
        std::thread::spawn(move || std::io::copy(&mut receiver, &mut std::io::sink()));
    }

    #[tokio::test]
    async fn others_have_their_turn_between_steps() {
        let ((from, _sender), (to, receiver)) = (full().await, pair().await);
        swallow(receiver);
        let (moved, seen, most) = (Cell::new(0), Cell::new(0), Cell::new(0));
        let count = |bytes| {
            moved.set(moved.get() + bytes);
            whole(bytes)
        };
        let others = async {
            loop {
                turn::light_work();
                most.set(most.get().max(moved.get() - seen.replace(moved.get())));
                yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = others => {}
            _ = drain(&from, &to, Pipe::take().unwrap(), count, SIDES) => {}
        }
        most.set(most.get().max(moved.get() - seen.get()));
        assert!(moved.get() > 4 * turn::step() && most.get() < 2 * turn::step(), "{most:?} of {moved:?}");
    }

    #[tokio::test]
    async fn a_flow_moves_nothing_while_another_has_its_turn() {
        let ((from, _sender), (to, _receiver)) = (full().await, pair().await);
        let moved = Cell::new(0);
        let count = |bytes| {
            moved.set(moved.get() + bytes);
            whole(bytes)
        };
        let mut other = Turn::default();
        other.begin().await;
        let mut flow = pin!(drain(&from, &to, Pipe::take().unwrap(), count, SIDES));
        let mut context = Context::from_waker(Waker::noop());
        assert!(flow.as_mut().poll(&mut context).is_pending());
        assert_eq!(moved.get(), 0);
        other.give_up();
        _ = flow.as_mut().poll(&mut context);
        assert_ne!(moved.get(), 0);
    }

    #[tokio::test]
    async fn a_flow_whose_reader_does_not_read_takes_nobodys_turn() {
        let ((from, _sender), (to, _receiver)) = (full().await, pair().await);
        to.writable().await.unwrap();
        while to.try_write(&[7; 65536]).is_ok() {}
        let mut flow = pin!(drain(&from, &to, Pipe::take().unwrap(), whole, SIDES));
        let mut context = Context::from_waker(Waker::noop());
        assert!(flow.as_mut().poll(&mut context).is_pending());
        assert!(pin!(Turn::default().begin()).poll(&mut context).is_ready());
    }
}
